/**
 * A disk that is an array of bytes, and the means to hold a vault against it: what a point must
 * hold is a copy of the array, and what it does hold is read by a reader of our own, without
 * threads, that trusts nothing but formats and digests.
 */
import assert from "node:assert/strict";
import { hasCode } from "../engine/errors.ts";
import { digestBytes, granuleBytes } from "../engine/limits.ts";
import { createDigest, type DigestKernel } from "../engine/pipeline/kernels.ts";
import { Lz4 } from "../engine/pipeline/lz4.ts";
import type { ReplicateSummary } from "../engine/replication/replicate.ts";
import type { Sink } from "../engine/sink.ts";
import { fromHex } from "../engine/store/format/checksum.ts";
import {
  decodeVault,
  documentBytesMax,
  type PointRecord,
  type VaultDocument,
} from "../engine/store/format/documents.ts";
import { storedLength, storedLz4Flag } from "../engine/store/format/frame.ts";
import { payloadSeal, unseal } from "../engine/store/format/sealed.ts";
import { unlock } from "../engine/store/keys/unlock.ts";
import { type Pieces, PointMap, pieceDigest, pieceIsZero, windowGranules } from "../engine/store/map/point-map.ts";
import { readHead } from "../engine/store/points/head.ts";
import { readPoints } from "../engine/store/points/history.ts";
import { readManifest } from "../engine/store/points/manifest.ts";
import { Store } from "../engine/store/store.ts";
import { Vault } from "../engine/vault.ts";
import type { VaultOptions, VaultParameters } from "../engine/vault-options.ts";
import type { Consistency, Extent, Volume } from "../engine/volume.ts";
import { isEncryptedRun, modelEncryption } from "./encrypted.ts";

/** The smallest block: small disks then have many. */
export const modelBlockBytes: number = 16 * 1024;

/** A volume in memory. Tests write to `bytes`, exchange it, or hook in where a scan passes. */
export class ModelDisk implements Volume {
  readonly description: string;
  bytes: Buffer;
  consistency: Consistency = "crash";
  /** Called before each read takes its bytes. */
  beforeRead: (offset: number, length: number) => Promise<void> = () => Promise.resolve();
  reads = 0;

  constructor(bytes: Buffer, description = "the model disk") {
    this.bytes = bytes;
    this.description = description;
  }

  sizeBytes(): Promise<number> {
    return Promise.resolve(this.bytes.length);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.reads += 1;
    await this.beforeRead(offset, into.length);
    assert(offset + into.length <= this.bytes.length, "a read lies inside the volume");
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  /** Tells every 16 KiB that are zeros as a hole, as a file system would. */
  async *allocated(sizeBytes: number): AsyncGenerator<Extent> {
    for (let offset = 0; offset < sizeBytes; offset += modelBlockBytes) {
      const length = Math.min(modelBlockBytes, sizeBytes - offset);
      if (this.bytes.subarray(offset, offset + length).some((byte) => byte !== 0))
        yield await Promise.resolve({ offset, length });
    }
  }

  endScan(): Promise<Consistency> {
    return Promise.resolve(this.consistency);
  }
}

/** Bytes that follow from the seed alone, half of them such that LZ4 makes them smaller. */
export function contentOf(length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length);
  let state = Math.imul(seed, 0x9e37_79b1) >>> 0;
  for (let at = 0; at < length; at += 1) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    bytes[at] = (at & 8192) === 0 ? state >>> 24 : (state >>> 24) % 4;
  }
  return bytes;
}

/** A disk with content, a hole, and content again. */
export function sampleDisk(lengthBytes: number, seed: number): ModelDisk {
  const disk = new ModelDisk(contentOf(lengthBytes, seed));
  disk.bytes.fill(0, Math.floor(lengthBytes / 3), Math.floor(lengthBytes / 2));
  return disk;
}

/**
 * Changes a granule here, most of a block there, and makes some of it zeros: all that a delta can
 * say.
 */
export function scribble(disk: ModelDisk, seed: number): void {
  const { length } = disk.bytes;
  const place = (part: number): number =>
    Math.floor((length * ((part * 0.37 + seed * 0.21) % 1)) / granuleBytes) * granuleBytes;
  contentOf(Math.min(1000, length), seed + 100).copy(disk.bytes, place(1));
  contentOf(Math.min(14_000, length), seed + 200).copy(disk.bytes, place(2));
  disk.bytes.fill(0, place(3), Math.min(place(3) + 9000, length));
}

const opened: Vault[] = [];

/** Opens or creates a vault of small blocks with one thread; in an encrypted run, an encrypted one. */
export async function openModelVault(sink: Sink, options: VaultOptions & VaultParameters = {}): Promise<Vault> {
  const parameters = { workers: 1, lanes: 2, blockBytes: modelBlockBytes, ...modelEncryption, ...options };
  const vault = await Vault.openOrCreate(sink, parameters);
  opened.push(vault);
  return vault;
}

/** Closes every vault that has been opened here, and with them their threads. */
export async function closeModelVaults(): Promise<void> {
  for (const vault of opened.splice(0)) await vault.close();
}

/**
 * What a vault must hold of one disk: sequence number → content. A number may have been attempted
 * more than once, when a store went back in time; then each of the attempts may stand there.
 */
export class Expected {
  readonly disk: string;
  readonly #attempts = new Map<number, Buffer[]>();

  constructor(disk: string) {
    this.disk = disk;
  }

  /** Notes what the next point will hold if it is committed, and returns its sequence number. */
  async note(sink: Sink, content: Uint8Array): Promise<number> {
    const sequence = (await committedPoints(sink, this.disk)).length + 1;
    const attempts = this.#attempts.get(sequence) ?? [];
    if (!attempts.some((attempt) => attempt.equals(content))) attempts.push(Buffer.from(content));
    this.#attempts.set(sequence, attempts);
    return sequence;
  }

  /** Fails unless every committed point is what it must be. Returns how many there are. */
  async check(sink: Sink): Promise<number> {
    const points = await committedPoints(sink, this.disk);
    for (const [index, point] of points.entries()) {
      assert.equal(point.sequence, index + 1, "points are numbered without a gap");
      const bytes = await pointBytes(sink, this.disk, point);
      const attempts = this.#attempts.get(point.sequence) ?? [];
      assert(
        attempts.some((attempt) => attempt.equals(bytes)),
        `point ${String(point.sequence)} of ${this.disk} is not what the disk was`,
      );
    }
    return points.length;
  }
}

/** Fails unless the newest point is what the disk is now. */
export async function checkNewest(sink: Sink, disk: string, content: Uint8Array): Promise<void> {
  const newest = (await committedPoints(sink, disk)).at(-1);
  assert(newest !== undefined, `${disk} has a point`);
  assert((await pointBytes(sink, disk, newest)).equals(content), `the newest point of ${disk} is not what the disk is`);
}

/** Replicates and notes what the point must hold, whatever comes of it. */
export async function replicateNoted(
  vault: Vault,
  sink: Sink,
  expected: Expected,
  disk: ModelDisk,
): Promise<ReplicateSummary> {
  await expected.note(sink, disk.bytes);
  return await vault.replicate({ disk: expected.disk, volume: disk });
}

/** A sink that tells of each call before it is made. */
export function watched(inner: Sink, before: (method: string, name: string) => void): Sink {
  return new Proxy(inner, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== "function") return value;
      return (...given: unknown[]): unknown => {
        if (typeof property === "string") before(property, typeof given[0] === "string" ? given[0] : "");
        return Reflect.apply(value, target, given);
      };
    },
  });
}

/**
 * A sink that passes every call on to the one that `line` names then. A vault opened on it keeps
 * its threads while the stores behind it come and go, which makes a sweep ten times as fast.
 */
export function redirected(line: { current: Sink }): Sink {
  return new Proxy(line.current, {
    get(_first, property) {
      const { current } = line;
      const value: unknown = Reflect.get(current, property, current);
      return typeof value === "function"
        ? (...given: unknown[]): unknown => Reflect.apply(value, current, given)
        : value;
    },
  });
}

/** The disk's committed points, none when there is no such disk or vault yet. */
export async function committedPoints(sink: Sink, disk: string): Promise<readonly PointRecord[]> {
  try {
    const { store, document } = await unlockModel(sink);
    const { vault } = document;
    const newestFirst: PointRecord[] = [];
    for await (const point of readPoints(store, (await readHead(store, vault, disk)).head)) newestFirst.push(point);
    return newestFirst.reverse();
  } catch (error) {
    if (hasCode(error, "DISK_NOT_FOUND", "OBJECT_NOT_FOUND", "VAULT_NOT_FOUND")) return [];
    throw error;
  }
}

/**
 * The whole content of a committed point, every chunk proved. Throws at the first thing that is not
 * as it must be.
 */
export async function pointBytes(sink: Sink, disk: string, point: PointRecord): Promise<Buffer> {
  const { store, document } = await unlockModel(sink);
  const manifest = await readManifest(store, document.vault, disk, point, undefined);
  assert.equal(manifest.volumeBytes, point.volumeBytes);
  const map = new PointMap(store, fromHex(document.vault), disk, manifest);
  const digest = await createDigest(document.digest, fromHex(document.digestKey));
  const image = Buffer.alloc(map.granules * granuleBytes);
  for (let from = 0; from < map.granules; from += windowGranules) {
    const pieces = await map.window(from, Math.min(from + windowGranules, map.granules));
    for (let index = 0; index < pieces.count; index += 1) await copyPiece(store, pieces, index, digest, image);
  }
  assert(
    !image.subarray(manifest.volumeBytes).some((byte) => byte !== 0),
    "behind the end of a volume there are zeros",
  );
  return image.subarray(0, manifest.volumeBytes);
}

/** A store client that reads and writes a model vault's objects, also an encrypted one's. */
export async function modelStore(sink: Sink): Promise<Store> {
  return isEncryptedRun ? (await unlockModel(sink)).store : new Store(sink);
}

/** As `modelStore`: bytes of objects are given and taken in plain. */
export async function modelSink(sink: Sink): Promise<Sink> {
  return (await modelStore(sink)).sink;
}

/** The vault in a sink, as its readers work with it. */
export async function unlockModel(sink: Sink): Promise<{ readonly store: Store; readonly document: VaultDocument }> {
  const document = decodeVault((await sink.getObject("vault.json", documentBytesMax)).bytes, "vault.json");
  const unlocked = await unlock(sink, document, modelEncryption.keys, undefined);
  return { store: new Store(unlocked.sink), document: unlocked.document };
}

const lz4 = new Lz4();

async function copyPiece(
  store: Store,
  pieces: Pieces,
  index: number,
  digest: DigestKernel,
  image: Buffer,
): Promise<void> {
  if (pieceIsZero(pieces, index)) return;
  const entry = pieces.entries[index] ?? 0;
  const leaf = pieces.leaves[index];
  assert(leaf !== undefined);
  const storedWord = leaf.storedWords[entry] ?? 0;
  const stored = new Uint8Array(storedLength(storedWord));
  const segment = leaf.names[leaf.segments[entry] ?? 0] ?? "";
  const offset = leaf.offsets[entry] ?? 0;
  await store.readPages(segment, offset, stored);
  const seal = store.keys?.payloads(segment);
  const payload = seal === undefined ? stored : unseal(payloadSeal(seal, offset), stored);
  assert(payload !== undefined, "a payload opens at its place");
  let plain = payload;
  if (storedWord >= storedLz4Flag) {
    plain = new Uint8Array(((leaf.chunkLengths[entry] ?? 0) + 1) * granuleBytes);
    lz4.decompress(payload, plain.length, plain, 0);
  }
  const found = new Uint8Array(digestBytes);
  const wanted = new Uint8Array(digestBytes);
  digest(plain, found, 0);
  pieceDigest(pieces, index, wanted, 0);
  assert.deepEqual(found, wanted, "a chunk has the digest that the map says");
  const from = (pieces.chunkOffsets[index] ?? 0) * granuleBytes;
  const length = (pieces.lengths[index] ?? 0) * granuleBytes;
  image.set(plain.subarray(from, from + length), (pieces.starts[index] ?? 0) * granuleBytes);
}
