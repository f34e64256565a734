/**
 * Map of a point: a stack of sorted runs, the newest on top. The topmost run that maps a granule
 * says what it holds; a granule that no run maps is zero.
 *
 * Runs stay in the store and are read leaf by leaf on demand, so opening a point costs its manifest
 * and nothing else. A range is resolved by painting: each run from the oldest to the newest marks
 * the granules that it maps, then equal neighbours are collected. That costs one pass over typed
 * arrays per run and needs no case analysis of how extents overlap.
 *
 * Invariant: a leaf is the one that the reference to it names, whole and within the span that the
 * reference gives. So a granule shows the same in whatever window it is resolved.
 *
 * Memory: the decoded leaves of `leafCacheBytesMax`, those of one window, at most
 * `windowLeafBytesMax`, and 256 KiB to paint it.
 */
import assert from "node:assert/strict";
import { copyDigest } from "../../copy-bytes.ts";
import { digestBytes, granuleBytes } from "../../limits.ts";
import { fromHex, toHex } from "../format/checksum.ts";
import type { ManifestDocument, RunReference } from "../format/documents.ts";
import { damaged } from "../format/fields.ts";
import type { EntryColumns, LeafReference } from "../format/leaf.ts";
import { decodeLeaf, decodeRoot, zeroSegment } from "../format/leaf.ts";
import { mapName } from "../format/names.ts";
import { getReferred, type Store } from "../store.ts";

/** Granules that are resolved at a time: 256 MiB of disk. */
export const windowGranules = 65_536;

/**
 * Decoded leaves that are cached, in bytes of their objects. Sixty runs, the deepest stack, have
 * about 57 MB of leaves around any place.
 */
const leafCacheBytesMax = 96 * 1024 * 1024;

/** Bytes of leaves that a window may need: four times what the deepest stack of a writer has. */
const windowLeafBytesMax = 256 * 1024 * 1024;

/**
 * Resolved pieces of a window in ascending order; granules between them are zero because they were
 * never written.
 */
export interface Pieces {
  readonly count: number;
  readonly starts: Uint32Array;
  readonly lengths: Uint32Array;
  /** The leaf and the entry in it that each piece is cut from. */
  readonly leaves: readonly EntryColumns[];
  readonly entries: Uint32Array;
  /** First granule of the chunk that the piece shows. */
  readonly chunkOffsets: Uint32Array;
}

/** Granules [from, end). */
export interface GranuleRange {
  readonly from: number;
  readonly end: number;
}

/** True when the piece is ZERO. */
export function pieceIsZero(pieces: Pieces, index: number): boolean {
  return pieces.leaves[index]?.segments[pieces.entries[index] ?? 0] === zeroSegment;
}

/** Names a leaf or root by what it is: two references that name one object are told apart. */
export function mapObjectKey({
  epoch,
  ordinal,
  checksum,
}: Pick<RunReference | LeafReference, "epoch" | "ordinal" | "checksum">): string {
  return `${String(epoch)}-${String(ordinal)} ${typeof checksum === "string" ? checksum : toHex(checksum)}`;
}

/** Decoded leaves by `mapObjectKey`, most recently used last. Maps of one disk may share one. */
export class LeafCache {
  readonly #leaves = new Map<string, { readonly leaf: EntryColumns; readonly bytes: number }>();
  #bytes = 0;

  find(key: string): EntryColumns | undefined {
    const cached = this.#leaves.get(key);
    if (cached === undefined) return undefined;
    this.#leaves.delete(key);
    this.#leaves.set(key, cached);
    return cached.leaf;
  }

  add(key: string, leaf: EntryColumns, bytes: number): void {
    if (!this.#leaves.has(key)) this.#bytes += bytes; // else another window has read it meanwhile
    this.#leaves.set(key, { leaf, bytes });
    for (const [oldest, entry] of this.#leaves) {
      if (this.#bytes <= leafCacheBytesMax || oldest === key) break;
      this.#leaves.delete(oldest);
      this.#bytes -= entry.bytes;
    }
  }
}

interface Run {
  readonly reference: RunReference;
  leaves: LeafReference[] | undefined;
}

/** The entry of each granule of a window while it is resolved. */
const owners: Int32Array = new Int32Array(windowGranules);

export class PointMap {
  readonly volumeBytes: number;
  readonly granules: number;
  readonly #store: Store;
  readonly #vaultId: Uint8Array;
  readonly #disk: string;
  readonly #runs: readonly Run[];
  readonly #cache: LeafCache;

  constructor(
    store: Store,
    vaultId: Uint8Array,
    disk: string,
    source: Pick<ManifestDocument, "volumeBytes" | "runs">,
    cache: LeafCache = new LeafCache(),
  ) {
    this.#store = store;
    this.#cache = cache;
    this.#vaultId = vaultId;
    this.#disk = disk;
    this.volumeBytes = source.volumeBytes;
    this.granules = Math.ceil(source.volumeBytes / granuleBytes);
    this.#runs = source.runs.map((reference) => ({ reference, leaves: undefined }));
  }

  /**
   * Leaves of run `index` in order, from its root or its reference. Errors: DAMAGED (also when a
   * root or leaf is gone), FORMAT_UNSUPPORTED.
   */
  async leavesOf(index: number, signal?: AbortSignal): Promise<readonly LeafReference[]> {
    const run = this.#runs[index];
    assert(run !== undefined, "the map has this run");
    run.leaves ??= await this.#readLeaves(run.reference, signal);
    return run.leaves;
  }

  /**
   * The leaves of run `index`, or those that `isWanted` accepts, with all their entries, hidden
   * ones included. Errors: as `leavesOf`.
   */
  async *entriesOf(
    index: number,
    signal?: AbortSignal,
    isWanted?: (leaf: LeafReference) => boolean,
  ): AsyncGenerator<EntryColumns> {
    for (const reference of await this.leavesOf(index, signal)) {
      if (isWanted === undefined || isWanted(reference)) yield await this.#leaf(reference, signal);
    }
  }

  /**
   * Resolves granules [from, end), at most `windowGranules` of them; with `ranges`, ascending and
   * disjoint, what lies in those. The result stays valid. Errors: as `leavesOf`.
   */
  async window(
    from: number,
    end: number,
    signal?: AbortSignal,
    ranges: readonly GranuleRange[] = [{ from, end }],
  ): Promise<Pieces> {
    assert(end - from <= windowGranules, "a window is bounded");
    // All leaves are read first; painting then does not wait, so `owners` has one user.
    const layers: EntryColumns[] = [];
    let leafBytes = 0;
    for (let run = this.#runs.length - 1; run >= 0; run -= 1) {
      const leaves = await this.leavesOf(run, signal);
      for (let index = firstLeafAtOrAfter(leaves, from); index < leaves.length; index += 1) {
        const reference = leaves[index];
        if (reference === undefined || reference.first >= end) break;
        leafBytes += reference.bytes;
        if (leafBytes > windowLeafBytesMax)
          throw damaged(this.#nameOf(reference), "it is one of more leaves over one place than any writer makes");
        layers.push(await this.#leaf(reference, signal));
      }
    }
    if (layers.length === 0) return emptyPieces;
    owners.fill(-1, 0, end - from);
    // A granule is painted with the number of its entry, counted through all layers.
    const bases: number[] = [];
    let base = 0;
    for (const leaf of layers) {
      bases.push(base);
      for (let entry = firstEntryEndingAfter(leaf, from); entry < leaf.count; entry += 1) {
        const start = leaf.starts[entry] ?? 0;
        if (start >= end) break;
        owners.fill(
          base + entry,
          Math.max(start, from) - from,
          Math.min(start + (leaf.lengths[entry] ?? 0), end) - from,
        );
      }
      base += leaf.count;
    }
    let gap = from;
    for (const range of [...ranges, { from: end, end }]) {
      owners.fill(-1, gap - from, range.from - from);
      gap = range.end;
    }
    return collect(owners, from, end, layers, bases);
  }

  /** First granule at or after `from` that any run maps, or Infinity. Errors: as `leavesOf`. */
  async nextMapped(from: number, signal?: AbortSignal): Promise<number> {
    let next = Infinity;
    for (let run = 0; run < this.#runs.length; run += 1) {
      const leaves = await this.leavesOf(run, signal);
      const reference = leaves[firstLeafAtOrAfter(leaves, from)];
      if (reference === undefined || reference.first >= next) continue;
      if (reference.first >= from) {
        next = reference.first;
        continue;
      }
      const leaf = await this.#leaf(reference, signal);
      const entry = firstEntryEndingAfter(leaf, from);
      if (entry < leaf.count) next = Math.min(next, Math.max(from, leaf.starts[entry] ?? 0));
    }
    return next;
  }

  async #readLeaves(reference: RunReference, signal: AbortSignal | undefined): Promise<LeafReference[]> {
    const expected = fromHex(reference.checksum);
    if (reference.kind === "root") {
      const name = this.#nameOf(reference);
      const bytes = await getReferred(this.#store, name, reference.bytes, { signal });
      const leaves = decodeRoot(bytes, name, this.#vaultId, expected);
      if (leaves.length !== reference.leaves)
        throw damaged(name, "it lists other leaves than the reference to it says");
      return leaves;
    }
    const { epoch, ordinal, bytes, entries } = reference;
    // A run of one leaf has no root that says which granules it spans.
    const alone = { entries, bytes, epoch, ordinal, checksum: expected };
    return [{ ...alone, ...spanOf(await this.#anyLeaf(alone, signal)) }];
  }

  async #leaf(reference: LeafReference, signal: AbortSignal | undefined): Promise<EntryColumns> {
    const leaf = await this.#anyLeaf(reference, signal);
    const { first, last } = spanOf(leaf);
    if (first !== reference.first || last !== reference.last)
      throw damaged(this.#nameOf(reference), "it spans other granules than the reference to it says");
    return leaf;
  }

  /** A leaf, wherever it lies on the disk. */
  async #anyLeaf(
    reference: Omit<LeafReference, "first" | "last">,
    signal: AbortSignal | undefined,
  ): Promise<EntryColumns> {
    const key = mapObjectKey(reference);
    let leaf = this.#cache.find(key);
    if (leaf === undefined) {
      const name = this.#nameOf(reference);
      const bytes = await getReferred(this.#store, name, reference.bytes, { signal });
      leaf = decodeLeaf(bytes, name, this.#vaultId, reference.checksum);
      this.#cache.add(key, leaf, bytes.byteLength);
    }
    if (leaf.count !== reference.entries)
      throw damaged(
        this.#nameOf(reference),
        `it has ${String(leaf.count)} entries where ${String(reference.entries)} are expected`,
      );
    return leaf;
  }

  #nameOf({ epoch, ordinal }: Pick<LeafReference, "epoch" | "ordinal">): string {
    return mapName(this.#disk, epoch, ordinal);
  }
}

export const emptyPieces: Pieces = {
  count: 0,
  starts: new Uint32Array(0),
  lengths: new Uint32Array(0),
  leaves: [],
  entries: new Uint32Array(0),
  chunkOffsets: new Uint32Array(0),
};

/** First and last granule that a leaf maps. */
function spanOf({ count, starts, lengths }: EntryColumns): Pick<LeafReference, "first" | "last"> {
  return { first: starts[0] ?? 0, last: (starts[count - 1] ?? 0) + (lengths[count - 1] ?? 0) - 1 };
}

/** `bases`: of each layer the number of its first entry. */
function collect(
  owners: Int32Array,
  from: number,
  end: number,
  layers: readonly EntryColumns[],
  bases: readonly number[],
): Pieces {
  let count = 0;
  const span = end - from;
  for (let at = 0; at < span; at += 1) if (owners[at] !== -1 && (at === 0 || owners[at] !== owners[at - 1])) count += 1;
  const starts = new Uint32Array(count);
  const lengths = new Uint32Array(count);
  const entries = new Uint32Array(count);
  const chunkOffsets = new Uint32Array(count);
  const leaves: EntryColumns[] = [];
  for (let at = 0; at < span; ) {
    const owner = owners[at] ?? -1;
    let stop = at + 1;
    while (stop < span && owners[stop] === owner) stop += 1;
    const layer = owner < 0 ? -1 : layerOf(bases, owner);
    const leaf = layers[layer];
    if (leaf !== undefined) {
      const entry = owner - (bases[layer] ?? 0);
      const index = leaves.push(leaf) - 1;
      starts[index] = from + at;
      lengths[index] = stop - at;
      entries[index] = entry;
      chunkOffsets[index] = (leaf.chunkOffsets[entry] ?? 0) + (from + at - (leaf.starts[entry] ?? 0));
    }
    at = stop;
  }
  return { count, starts, lengths, leaves, entries, chunkOffsets };
}

/** Index of the last base that is not above `owner`. */
function layerOf(bases: readonly number[], owner: number): number {
  let low = 0;
  let high = bases.length - 1;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if ((bases[middle] ?? 0) > owner) high = middle - 1;
    else low = middle;
  }
  return low;
}

/** Index of the first leaf whose last granule is at or after `granule`. */
function firstLeafAtOrAfter(leaves: readonly LeafReference[], granule: number): number {
  let low = 0;
  let high = leaves.length;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((leaves[middle]?.last ?? 0) < granule) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Index of the first entry that ends after `granule`. */
function firstEntryEndingAfter(leaf: EntryColumns, granule: number): number {
  let low = 0;
  let high = leaf.count;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((leaf.starts[middle] ?? 0) + (leaf.lengths[middle] ?? 0) <= granule) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Copies the digest of a piece's chunk to `into[at…]`. */
export function pieceDigest(pieces: Pieces, index: number, into: Uint8Array, at: number): void {
  const entry = pieces.entries[index] ?? 0;
  const digests = pieces.leaves[index]?.digests;
  assert(digests !== undefined, "the piece exists");
  copyDigest(digests, entry * digestBytes, into, at);
}
