/**
 * Space accounting: what a vault's points would take as full images, what they take deduplicated,
 * and what they take compressed, for each disk and in all.
 *
 * The walk is that of a garbage collection (`LiveSet`): it looks at each map entry that a point
 * shows once. A chunk may stand in many entries, so a hash set for each segment tells which chunks
 * have been counted. The set also keeps the number of the disk that last referred to a chunk. Disks
 * are walked one after the other, so the same set counts each chunk once for the disk and once for
 * the vault.
 *
 * Invariant: the vault's counts never exceed the sums over its disks. They are smaller by what
 * disks share.
 *
 * Cost: reads every map of the vault, as one look of a collection does, and no segment. Memory: 11
 * to 22 bytes for each chunk that points refer to, and the names of map objects.
 */
import { granuleBytes } from "../../limits.ts";
import { storedLength } from "../../store/format/frame.ts";
import { type EntryColumns, zeroSegment } from "../../store/format/leaf.ts";
import { decodeDiskName, disksPrefix, parseDiskObject, vaultCopyName, vaultName } from "../../store/format/names.ts";
import { reclaimPrefix } from "../../store/format/reclaim.ts";
import type { ListingOptions } from "../../store/points/points.ts";
import type { Store } from "../../store/store.ts";
import { LiveSet, walkBesideCollections } from "./live-set.ts";

/** Space in bytes, of a disk or of a vault. */
export interface SpaceCounts {
  /** Committed points. */
  readonly points: number;
  /** What these points would take as full images, holes included. */
  readonly logicalBytes: number;
  /** Plain bytes of the chunks that these points refer to, each chunk once. */
  readonly uniqueBytes: number;
  /** Bytes of the same chunks, compressed, without frame headers and tables. */
  readonly storedBytes: number;
  /**
   * Bytes of the objects that describe points; for the vault also `vault.json` and the records of
   * collections.
   */
  readonly metadataBytes: number;
}

/** Space that one disk takes. A chunk that several disks refer to counts for each of them. */
export interface DiskStats extends SpaceCounts {
  readonly disk: string;
}

/** Space that a vault takes. A chunk that several disks refer to counts once. */
export interface VaultStats extends SpaceCounts {
  /** 32 hexadecimal digits. */
  readonly vault: string;
  /** Sorted by name. */
  readonly disks: readonly DiskStats[];
}

/**
 * Counts what a vault holds. Points that are committed meanwhile may be missing.
 *
 * @throws TidemarkError DAMAGED or FORMAT_UNSUPPORTED when a head, manifest or map cannot be read;
 * INTERRUPTED; and the errors of the store.
 */
export async function vaultStats(
  store: Store,
  vault: string,
  { signal }: Pick<ListingOptions, "signal"> = {},
): Promise<VaultStats> {
  return await walkBesideCollections(async () => {
    const tally = new Tally();
    const { heads } = await LiveSet.of({
      store,
      vault,
      signal,
      onPoint: (disk, { volumeBytes }) => tally.addPoint(disk, volumeBytes),
      onEntry: (disk, leaf, entry) => tally.addEntry(disk, leaf, entry),
    });
    for (const [disk, { points }] of heads) if (points.length > 0) tally.of(disk);
    await addMetadata(store, tally, signal);
    return { vault, ...tally.inAll.counts(), disks: tally.disks() };
  });
}

async function addMetadata(store: Store, tally: Tally, signal: AbortSignal | undefined): Promise<void> {
  for (const prefix of [disksPrefix, reclaimPrefix, vaultName, vaultCopyName]) {
    for await (const { name, sizeBytes } of store.list(prefix, { signal })) {
      tally.inAll.metadataBytes += sizeBytes;
      const disk = decodeDiskName(parseDiskObject(name)?.encodedDisk ?? "");
      if (disk !== undefined) tally.addMetadata(disk, sizeBytes);
    }
  }
}

class Counts {
  points = 0;
  logicalBytes = 0;
  uniqueBytes = 0;
  storedBytes = 0;
  metadataBytes = 0;

  counts(): SpaceCounts {
    const { points, logicalBytes, uniqueBytes, storedBytes, metadataBytes } = this;
    return { points, logicalBytes, uniqueBytes, storedBytes, metadataBytes };
  }
}

class Tally {
  readonly inAll = new Counts();
  readonly #disks = new Map<string, Counts & { readonly number: number }>();
  readonly #segments = new Map<string, SeenChunks>();

  disks(): DiskStats[] {
    return Array.from(this.#disks, ([disk, counts]) => ({ disk, ...counts.counts() })).sort((a, b) =>
      a.disk < b.disk ? -1 : 1,
    );
  }

  /** The counts of a disk, zeros when nothing has been added. */
  of(disk: string): Counts & { readonly number: number } {
    const known = this.#disks.get(disk);
    if (known !== undefined) return known;
    const counts = Object.assign(new Counts(), { number: this.#disks.size + 1 });
    this.#disks.set(disk, counts);
    return counts;
  }

  addPoint(disk: string, volumeBytes: number): void {
    for (const counts of [this.of(disk), this.inAll]) {
      counts.points += 1;
      counts.logicalBytes += volumeBytes;
    }
  }

  /** Objects of a name that the walk has not come upon belong to the vault only. */
  addMetadata(disk: string, bytes: number): void {
    const counts = this.#disks.get(disk);
    if (counts !== undefined) counts.metadataBytes += bytes;
  }

  addEntry(disk: string, leaf: EntryColumns, entry: number): void {
    const segment = leaf.segments[entry] ?? zeroSegment;
    const name = segment === zeroSegment ? undefined : leaf.names[segment];
    if (name === undefined) return;
    let seen = this.#segments.get(name);
    if (seen === undefined) {
      seen = new SeenChunks();
      this.#segments.set(name, seen);
    }
    const own = this.of(disk);
    const before = seen.refer(leaf.offsets[entry] ?? 0, own.number);
    if (before === own.number) return;
    const plainBytes = ((leaf.chunkLengths[entry] ?? 0) + 1) * granuleBytes;
    const storedBytes = storedLength(leaf.storedWords[entry] ?? 0);
    for (const counts of before === 0 ? [own, this.inAll] : [own]) {
      counts.uniqueBytes += plainBytes;
      counts.storedBytes += storedBytes;
    }
  }
}

/**
 * The chunks of one segment, by offset, and the disk that last referred to each: open addressing,
 * at most three quarters full.
 */
class SeenChunks {
  /** Offset plus one; 0 is a free slot. */
  #keys: Uint32Array = new Uint32Array(64);
  #disks: Uint32Array = new Uint32Array(64);
  #count = 0;

  /**
   * Notes that disk number `disk` refers to the chunk. Returns the number of the disk that did so
   * before, or 0.
   */
  refer(offset: number, disk: number): number {
    if (this.#count * 4 >= this.#keys.length * 3) this.#grow();
    const slot = slotOf(this.#keys, offset + 1);
    const before = this.#disks[slot] ?? 0;
    if (before === 0) this.#count += 1;
    this.#keys[slot] = offset + 1;
    this.#disks[slot] = disk;
    return before;
  }

  #grow(): void {
    const [keys, disks] = [this.#keys, this.#disks];
    this.#keys = new Uint32Array(keys.length * 2);
    this.#disks = new Uint32Array(keys.length * 2);
    for (let from = 0; from < keys.length; from += 1) {
      const key = keys[from] ?? 0;
      if (key === 0) continue;
      const slot = slotOf(this.#keys, key);
      this.#keys[slot] = key;
      this.#disks[slot] = disks[from] ?? 0;
    }
  }
}

/** The slot of `key`, or the free one that it goes to. The table's length is a power of two. */
function slotOf(keys: Uint32Array, key: number): number {
  const mask = keys.length - 1;
  let slot = (Math.imul(key, 0x9e37_79b1) >>> 8) & mask;
  while (keys[slot] !== 0 && keys[slot] !== key) slot = (slot + 1) & mask;
  return slot;
}
