/**
 * Check of a disk's map: which leaves and roots cannot be read, and which points and extents need
 * them.
 *
 * A leaf or root stands nowhere else in the vault, so one that is lost stays lost. A repair names
 * it. Points that do not need it are not affected, and the next point of the disk does not build on
 * it.
 *
 * Cost: each leaf and root of the given manifests is read once. Memory: the references in all
 * roots.
 */
import { hasCode, throwIfAborted } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import { fromHex } from "../../store/format/checksum.ts";
import type { ManifestDocument, RunReference } from "../../store/format/documents.ts";
import { damaged } from "../../store/format/fields.ts";
import type { LeafReference } from "../../store/format/leaf.ts";
import { decodeLeaf, decodeRoot } from "../../store/format/leaf.ts";
import { mapName } from "../../store/format/names.ts";
import type { Store } from "../../store/store.ts";
import type { Extent } from "../../volume.ts";

export interface MapCheckOptions {
  readonly store: Store;
  readonly vaultId: Uint8Array;
  readonly disk: string;
  /** Of all points that may be there, in rising order. */
  readonly manifests: readonly ManifestDocument[];
  readonly signal?: AbortSignal | undefined;
}

/** A leaf or root that cannot be read. */
export interface UnreadTable {
  readonly name: string;
  /** Sequence numbers of the points that need it, rising. */
  readonly points: readonly number[];
  /** The bytes of the disk that it maps; null: any of them. */
  readonly extent: Extent | null;
  /** Why it cannot be read. */
  readonly message: string;
}

/** A leaf or root, and the points that need it. */
interface Table {
  readonly name: string;
  readonly points: Set<number>;
  readonly extent: Extent | null;
  /**
   * Reads it; of a root, returns the leaves that it lists. Errors: DAMAGED, OBJECT_NOT_FOUND,
   * FORMAT_UNSUPPORTED.
   */
  readonly read: () => Promise<readonly LeafReference[]>;
}

/** @throws the errors of the store, and `INTERRUPTED`. */
export async function unreadTables(options: MapCheckOptions): Promise<readonly UnreadTable[]> {
  const { disk, manifests, signal } = options;
  const tables = new Map<string, Table>();
  const add = (table: Omit<Table, "points">, points: Iterable<number>): void => {
    const known = tables.get(table.name) ?? { ...table, points: new Set<number>() };
    for (const point of points) known.points.add(point);
    tables.set(table.name, known);
  };
  for (const { runs, sequence } of manifests) {
    for (const run of runs) {
      const name = mapName(disk, run.epoch, run.ordinal);
      add({ name, extent: null, read: async () => await readRun(options, name, run) }, [sequence]);
    }
  }
  const unread: UnreadTable[] = [];
  // Leaves that a root lists come after it: a map goes through what is added to it meanwhile.
  for (const { name, points, extent, read } of tables.values()) {
    throwIfAborted(signal);
    try {
      for (const leaf of await read()) {
        const leafName = mapName(disk, leaf.epoch, leaf.ordinal);
        const mapped = { offset: leaf.first * granuleBytes, length: (leaf.last + 1 - leaf.first) * granuleBytes };
        add({ name: leafName, extent: mapped, read: async () => await readLeaf(options, leafName, leaf) }, points);
      }
    } catch (error) {
      if (!hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND", "FORMAT_UNSUPPORTED")) throw error;
      unread.push({ name, points: [], extent, message: error.message });
    }
  }
  // A leaf may be listed by roots that were read after it.
  return unread.map((table) => ({
    ...table,
    points: [...(tables.get(table.name)?.points ?? [])].sort((a, b) => a - b),
  }));
}

async function readRun(options: MapCheckOptions, name: string, run: RunReference): Promise<readonly LeafReference[]> {
  const checksum = fromHex(run.checksum);
  if (run.kind === "leaf") return await readLeaf(options, name, { ...run, checksum });
  const { store, vaultId, signal } = options;
  const { bytes } = await store.get(name, run.bytes, { signal });
  return decodeRoot(bytes, name, vaultId, checksum);
}

async function readLeaf(
  { store, vaultId, signal }: MapCheckOptions,
  name: string,
  leaf: Pick<LeafReference, "bytes" | "entries" | "checksum">,
): Promise<readonly LeafReference[]> {
  const { bytes } = await store.get(name, leaf.bytes, { signal });
  if (decodeLeaf(bytes, name, vaultId, leaf.checksum).count !== leaf.entries)
    throw damaged(name, "it has another number of entries than the reference to it says");
  return [];
}
