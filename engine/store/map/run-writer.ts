/**
 * Run writer: turns entries in ascending order into the objects of one sorted run. Leaves are put
 * as they fill; a run of more than one leaf gets a root. Memory: the leaf that is being filled, and
 * those that are being put, which are few where the caller waits (`drain`) now and then.
 */
import assert from "node:assert/strict";
import { copyDigest } from "../../copy-bytes.ts";
import { TidemarkError } from "../../errors.ts";
import { digestBytes } from "../../limits.ts";
import { toHex } from "../format/checksum.ts";
import type { RunReference } from "../format/documents.ts";
import type { EntryColumns, LeafReference } from "../format/leaf.ts";
import {
  encodeLeaf,
  encodeRoot,
  grownColumns,
  leafEntriesMax,
  newColumns,
  rootLeavesMax,
  zeroSegment,
} from "../format/leaf.ts";
import { mapName } from "../format/names.ts";
import type { Store } from "../store.ts";

/**
 * Numbers the map objects of a session, and keeps the list of those that were put since the last
 * commit.
 */
export class MapObjects {
  readonly store: Store;
  readonly vaultId: Uint8Array;
  readonly disk: string;
  readonly epoch: number;
  readonly signal: AbortSignal | undefined;
  readonly #put = new Map<string, string>();
  #nextOrdinal = 0;

  constructor(options: {
    readonly store: Store;
    readonly vaultId: Uint8Array;
    readonly disk: string;
    readonly epoch: number;
    readonly signal?: AbortSignal | undefined;
  }) {
    this.store = options.store;
    this.vaultId = options.vaultId;
    this.disk = options.disk;
    this.epoch = options.epoch;
    this.signal = options.signal;
  }

  /** Name → ETag of every object put since the last commit. */
  get put(): ReadonlyMap<string, string> {
    return this.#put;
  }

  /** To be called after a commit: everything that was put belongs to a committed point. */
  committed(): void {
    this.#put.clear();
  }

  /** Puts one table and returns its number. */
  async write(bytes: Uint8Array): Promise<number> {
    const ordinal = this.#nextOrdinal;
    this.#nextOrdinal += 1;
    const name = mapName(this.disk, this.epoch, ordinal);
    this.#put.set(name, await this.store.putOnce(name, bytes, { signal: this.signal }));
    return ordinal;
  }
}

const putsInFlightMax = 4;

/** Room of a new leaf. It grows by the factor: most cycles change little, and a hundred disks may cut at once. */
const firstEntries = 1_024;
const growth = 8;

export class RunWriter {
  readonly #objects: MapObjects;
  /** The leaf that is being filled: encoded when it is cut, and filled again from the beginning. */
  #columns: EntryColumns = newColumns(firstEntries);
  /** Segment name → its index in the leaf being filled. */
  readonly #names = new Map<string, number>();
  /** Leaves in order, some of them still being put. */
  readonly #leaves: Promise<LeafReference>[] = [];
  readonly #inFlight = new Set<Promise<LeafReference>>();
  #end = 0;
  #finished: Promise<RunReference | undefined> | undefined;

  constructor(objects: MapObjects) {
    this.#objects = objects;
  }

  /** Appends a ZERO entry; one that continues the last is merged with it. */
  appendZero(start: number, length: number): void {
    const columns = this.#columns;
    const last = columns.count - 1;
    const joined = (columns.lengths[last] ?? 0) + length;
    if (last >= 0 && columns.segments[last] === zeroSegment && this.#end === start && joined <= 0xffff_ffff) {
      columns.lengths[last] = joined;
      this.#end = start + length;
      return;
    }
    if (columns.count === leafEntriesMax) this.#cutLeaf();
    this.#add(start, length, zeroSegment, 0, 0, 0, 1, undefined, 0);
  }

  /**
   * Appends a window of a chunk: `length` granules from granule `chunkOffset` of a chunk of
   * `chunkLength` granules.
   */
  append(
    start: number,
    length: number,
    segment: string,
    offset: number,
    storedWord: number,
    chunkOffset: number,
    chunkLength: number,
    digests: Uint8Array,
    digestAt: number,
  ): void {
    if (this.#columns.count === leafEntriesMax) this.#cutLeaf();
    let number = this.#names.get(segment);
    if (number === undefined) {
      number = this.#columns.names.push(segment) - 1;
      this.#names.set(segment, number);
    }
    this.#add(start, length, number, offset, storedWord, chunkOffset, chunkLength, digests, digestAt);
  }

  /** Adds an entry to the leaf being filled, which has room. */
  #add(
    start: number,
    length: number,
    segment: number,
    offset: number,
    storedWord: number,
    chunkOffset: number,
    chunkLength: number,
    digests: Uint8Array | undefined,
    digestAt: number,
  ): void {
    assert(start >= this.#end && length > 0, "entries are appended in ascending order");
    if (this.#columns.count === this.#columns.starts.length) this.#columns = grownColumns(this.#columns, growth);
    const columns = this.#columns;
    const index = columns.count;
    columns.starts[index] = start;
    columns.lengths[index] = length;
    columns.offsets[index] = offset;
    columns.storedWords[index] = storedWord;
    columns.segments[index] = segment;
    columns.chunkOffsets[index] = chunkOffset;
    columns.chunkLengths[index] = chunkLength - 1;
    if (digests === undefined) columns.digests.fill(0, index * digestBytes, (index + 1) * digestBytes);
    else copyDigest(digests, digestAt, columns.digests, index * digestBytes);
    columns.count = index + 1;
    this.#end = start + length;
  }

  /** Takes over a leaf of an older run unchanged. Later entries begin behind it. */
  adopt(leaf: LeafReference): void {
    this.#cutLeaf();
    assert(leaf.first >= this.#end, "leaves are adopted in ascending order");
    this.#leaves.push(Promise.resolve(leaf));
    this.#end = leaf.last + 1;
  }

  /** Waits until few leaves are being put. */
  async drain(): Promise<void> {
    while (this.#inFlight.size >= putsInFlightMax) await Promise.race(this.#inFlight);
  }

  #cutLeaf(): void {
    if (this.#columns.count === 0) return;
    const put = this.#putLeaf();
    put.catch(() => undefined); // settled by finish or discard
    this.#inFlight.add(put);
    const done = (): void => {
      this.#inFlight.delete(put);
    };
    put.then(done, done);
    this.#leaves.push(put);
  }

  /** Encodes the leaf, empties its columns and puts it. */
  async #putLeaf(): Promise<LeafReference> {
    const columns = this.#columns;
    const table = encodeLeaf(columns, this.#objects.vaultId);
    const last = columns.count - 1;
    const extent = {
      first: columns.starts[0] ?? 0,
      last: (columns.starts[last] ?? 0) + (columns.lengths[last] ?? 0) - 1,
      entries: columns.count,
    };
    columns.count = 0;
    columns.names.length = 0;
    this.#names.clear();
    const ordinal = await this.#objects.write(table.bytes);
    return {
      ...extent,
      bytes: table.bytes.byteLength,
      epoch: this.#objects.epoch,
      ordinal,
      checksum: table.checksum,
    };
  }

  /** Puts what is left. Returns the run, or undefined when nothing was appended. Idempotent. */
  async finish(): Promise<RunReference | undefined> {
    this.#finished ??= this.#finish();
    return await this.#finished;
  }

  async #finish(): Promise<RunReference | undefined> {
    this.#cutLeaf();
    const leaves = await Promise.all(this.#leaves);
    const [only] = leaves;
    if (only === undefined) return undefined;
    const entries = leaves.reduce((sum, leaf) => sum + leaf.entries, 0);
    if (leaves.length > rootLeavesMax) {
      throw new TidemarkError(
        "UNSUPPORTED",
        `the map of disk ${JSON.stringify(this.#objects.disk)} needs ${leaves.length} leaves; that is more than a root can list`,
        {
          remedy: "replicate the disk under a new name: a map is as fragmented as the writes that it remembers",
        },
      );
    }
    const leafBytes = leaves.reduce((sum, leaf) => sum + leaf.bytes, 0);
    if (leaves.length === 1) {
      const { epoch, ordinal, bytes } = only;
      return {
        kind: "leaf",
        epoch,
        ordinal,
        bytes,
        checksum: toHex(only.checksum),
        entries,
        leaves: 1,
        totalBytes: bytes,
      };
    }
    const root = encodeRoot(leaves, this.#objects.vaultId);
    return {
      kind: "root",
      epoch: this.#objects.epoch,
      ordinal: await this.#objects.write(root.bytes),
      bytes: root.bytes.byteLength,
      checksum: toHex(root.checksum),
      entries,
      leaves: leaves.length,
      totalBytes: leafBytes + root.bytes.byteLength,
    };
  }

  /** Waits until nothing is being put any more, failed or not. */
  async settle(): Promise<void> {
    await Promise.allSettled(this.#leaves);
  }
}
