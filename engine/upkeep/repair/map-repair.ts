/**
 * Rebuilds leaves and roots of a disk's map that are lost or damaged. All of them are named by a checksum, so whatever has the checksum is the object, wherever
 * it came from:
 *
 *   - a root lists the leaves that were written before it, under the numbers below its own, and those that its merge took over from an older run;
 *   - a leaf holds what other runs say of the same granules: a merged run what it was merged from, a run that was merged what became of it;
 *   - the leaf of a point that shipped nothing but new chunks holds what its frames' tables say.
 *
 * Candidates are made and compared; nothing else is ever written. What no candidate fits is lost, and named with the points and extents that need it.
 */
import { hasCode, throwIfAborted } from "../../errors.ts";
import { digestBytes, granuleBytes } from "../../limits.ts";
import { fromHex, sameBytes, toHex } from "../../store/format/checksum.ts";
import type { ManifestDocument, RunReference } from "../../store/format/documents.ts";
import { damaged } from "../../store/format/fields.ts";
import type { EntryColumns, LeafReference } from "../../store/format/leaf.ts";
import {
  claimedChecksum,
  decodeLeaf,
  decodeRoot,
  encodeLeaf,
  encodeRoot,
  leafBytesMax,
  newColumns,
  zeroSegment,
} from "../../store/format/leaf.ts";
import { mapName, segmentEpochPrefix } from "../../store/format/names.ts";
import { PointMap, windowGranules } from "../../store/map/point-map.ts";
import { walkFrames } from "../../store/segments/frame-walk.ts";
import type { Store } from "../../store/store.ts";
import type { Extent } from "../../volume.ts";

export interface MapRepairOptions {
  readonly store: Store;
  readonly vaultId: Uint8Array;
  readonly disk: string;
  /** Of all points that may be there, in rising order. */
  readonly manifests: readonly ManifestDocument[];
  /** What the store holds of the map: names and nothing else is believed of them. */
  readonly objects: readonly { readonly epoch: number; readonly ordinal: number }[];
  /** Objects that count as if they stood in the store. */
  readonly rebuilt?: ReadonlyMap<string, Uint8Array> | undefined;
  /** Puts an object where it belongs. */
  readonly put: (name: string, bytes: Uint8Array) => Promise<void>;
  readonly signal?: AbortSignal | undefined;
}

/** A leaf or root that cannot be read. */
export interface DamagedTable {
  readonly name: string;
  readonly kind: "leaf" | "root";
  readonly isRebuilt: boolean;
  /** Sequence numbers of the points that need it, rising. */
  readonly points: readonly number[];
  /** What it speaks of; null: any part of the disk. */
  readonly extent: Extent | null;
  readonly message: string;
}

/** Points on either side of those that need a leaf whose runs are tried, and leaves that a root may have. */
const neighboursMax = 32;

interface Table {
  readonly name: string;
  readonly kind: "leaf" | "root";
  readonly run: RunReference;
  /** Of a leaf. */
  readonly leaf: LeafReference | undefined;
  readonly points: number[];
}

export interface RepairedMap {
  readonly tables: readonly DamagedTable[];
  /** The store as it is with everything that was rebuilt, whether or not it has been written. */
  readonly store: Store;
}

/** Errors: those of the store. */
export async function repairMap(options: MapRepairOptions): Promise<RepairedMap> {
  const repair = new MapRepair(options);
  return { tables: await repair.run(), store: repair.reading(options.store) };
}

class MapRepair {
  readonly #options: MapRepairOptions;
  readonly #found: DamagedTable[] = [];
  /** Roots and leaves that can be read, the rebuilt ones among them, whether or not they have been written. */
  readonly #roots = new Map<string, readonly LeafReference[]>();
  readonly #rebuilt: Map<string, Uint8Array>;
  readonly #readable = new Set<string>();

  constructor(options: MapRepairOptions) {
    this.#options = options;
    this.#rebuilt = new Map(options.rebuilt);
  }

  async run(): Promise<readonly DamagedTable[]> {
    const runs = this.#tables();
    for (const table of runs.filter(({ kind }) => kind === "root")) await this.#look(table, async () => await this.#rebuildRoot(table.run));
    const leaves = this.#leaves(runs);
    const lost = new Map<Table, string>();
    for (const table of leaves) {
      const error = await this.#read(table);
      if (error === undefined) this.#readable.add(table.name);
      else lost.set(table, error);
    }
    // Whatever is rebuilt may be what another one is rebuilt from.
    for (let before = -1; before !== this.#readable.size; ) {
      before = this.#readable.size;
      for (const table of lost.keys()) if (!this.#readable.has(table.name)) await this.#rebuildLeaf(table);
    }
    for (const [table, error] of lost) this.#tell(table, this.#readable.has(table.name), error);
    return this.#found;
  }

  /** The runs of all manifests, each once. */
  #tables(): readonly Table[] {
    const { disk, manifests } = this.#options;
    const tables = new Map<string, Table>();
    for (const { runs, sequence } of manifests) {
      for (const run of runs) {
        const name = mapName(disk, run.epoch, run.ordinal);
        const leaf = run.kind === "leaf" ? wholeLeaf(run) : undefined;
        const table = tables.get(name) ?? { name, kind: run.kind, run, leaf, points: [] };
        table.points.push(sequence);
        tables.set(name, table);
      }
    }
    return [...tables.values()];
  }

  /** The leaves of all runs, each once: runs of one leaf, and those that readable roots list. */
  #leaves(runs: readonly Table[]): readonly Table[] {
    const leaves = new Map<string, Table>();
    for (const table of runs) {
      const references = table.kind === "leaf" ? [table.leaf] : (this.#roots.get(table.name) ?? []);
      for (const leaf of references) {
        if (leaf === undefined) continue;
        const name = mapName(this.#options.disk, leaf.epoch, leaf.ordinal);
        const known = leaves.get(name);
        const points = [...new Set([...(known?.points ?? []), ...table.points])].sort((a, b) => a - b);
        leaves.set(name, { name, kind: "leaf", run: table.run, leaf, points });
      }
    }
    return [...leaves.values()];
  }

  async #look(table: Table, rebuild: () => Promise<Uint8Array | undefined>): Promise<void> {
    throwIfAborted(this.#options.signal);
    const error = await this.#read(table);
    if (error === undefined) return;
    const bytes = await rebuild();
    if (bytes !== undefined) await this.#put(table, bytes);
    this.#tell(table, bytes !== undefined, error);
  }

  async #put(table: Table, bytes: Uint8Array): Promise<void> {
    await this.#options.put(table.name, bytes);
    this.#rebuilt.set(table.name, bytes);
    this.#readable.add(table.name);
    if (table.kind === "root") this.#roots.set(table.name, this.#decodeRoot(table, bytes));
  }

  #tell({ name, kind, points, leaf, run }: Table, isRebuilt: boolean, message: string): void {
    const isPart = leaf !== undefined && run.kind === "root";
    const extent = isPart ? { offset: leaf.first * granuleBytes, length: (leaf.last + 1 - leaf.first) * granuleBytes } : null;
    this.#found.push({ name, kind, isRebuilt, points, extent, message });
  }

  /** Why the table cannot be read; undefined when it can. */
  async #read(table: Table): Promise<string | undefined> {
    const { store, signal } = this.#options;
    try {
      const { bytes } = await store.get(table.name, (table.leaf ?? table.run).bytes, { signal });
      if (table.leaf === undefined) this.#roots.set(table.name, this.#decodeRoot(table, bytes));
      else this.#decodeLeaf(table.name, table.leaf, bytes);
      return undefined;
    } catch (error) {
      if (hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND", "FORMAT_UNSUPPORTED")) return error.message;
      throw error;
    }
  }

  #decodeRoot({ name, run }: Table, bytes: Uint8Array): readonly LeafReference[] {
    return decodeRoot(bytes, name, this.#options.vaultId, fromHex(run.checksum));
  }

  #decodeLeaf(name: string, leaf: LeafReference, bytes: Uint8Array): EntryColumns {
    const columns = decodeLeaf(bytes, name, this.#options.vaultId, leaf.checksum);
    if (columns.count !== leaf.entries) throw damaged(name, "it has another number of entries than the reference to it says");
    return columns;
  }

  // ---- Roots ----

  /** The leaves below the root's number, as many as it takes, and what may have been taken over from older runs. */
  async #rebuildRoot(run: RunReference): Promise<Uint8Array | undefined> {
    const own: LeafReference[] = [];
    for (let ordinal = run.ordinal - 1; ordinal >= 0 && own.length < run.leaves; ordinal -= 1) {
      const leaf = await this.#describeLeaf(run.epoch, ordinal);
      // Leaves of a run rise with their numbers; what breaks that belongs to another run.
      if (leaf === undefined || leaf.last >= (own[0]?.first ?? Infinity)) break;
      own.unshift(leaf);
      for (const candidate of this.#rootCandidates(own, run)) {
        const { bytes, checksum } = encodeRoot(candidate, this.#options.vaultId);
        if (toHex(checksum) === run.checksum) return bytes;
      }
    }
    return undefined;
  }

  #rootCandidates(own: readonly LeafReference[], run: RunReference): readonly (readonly LeafReference[])[] {
    const adopting = [...this.#roots.values()].map((leaves) =>
      [...own, ...leaves.filter((leaf) => own.every((mine) => mine.last < leaf.first || mine.first > leaf.last))].sort(
        (a, b) => a.first - b.first,
      ),
    );
    return [own, ...(own.length < run.leaves ? adopting : [])].filter(
      (leaves) => leaves.length === run.leaves && leaves.reduce((sum, { entries }) => sum + entries, 0) === run.entries,
    );
  }

  /** The reference to a leaf that stands there, as its content tells; undefined when there is none that can be read. */
  async #describeLeaf(epoch: number, ordinal: number): Promise<LeafReference | undefined> {
    const { store, disk, vaultId, objects, signal } = this.#options;
    if (!objects.some((object) => object.epoch === epoch && object.ordinal === ordinal)) return undefined;
    const name = mapName(disk, epoch, ordinal);
    try {
      const { bytes } = await store.get(name, leafBytesMax, { signal });
      const checksum = claimedChecksum(bytes);
      const leaf = decodeLeaf(bytes, name, vaultId, checksum);
      const last = leaf.count - 1;
      return {
        first: leaf.starts[0] ?? 0,
        last: (leaf.starts[last] ?? 0) + (leaf.lengths[last] ?? 0) - 1,
        entries: leaf.count,
        bytes: bytes.length,
        epoch,
        ordinal,
        checksum,
      };
    } catch (error) {
      if (hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND", "FORMAT_UNSUPPORTED")) return undefined;
      throw error;
    }
  }

  // ---- Leaves ----

  async #rebuildLeaf(table: Table): Promise<void> {
    const { leaf, run, points } = table;
    if (leaf === undefined) return;
    const granules = Math.ceil(Math.max(...this.#options.manifests.map(({ volumeBytes }) => volumeBytes)) / granuleBytes);
    const end = run.kind === "root" ? leaf.last + 1 : granules;
    for await (const columns of this.#leafCandidates(leaf, points, end)) {
      if (columns.count !== leaf.entries) continue;
      const { bytes, checksum } = encodeLeaf(columns, this.#options.vaultId);
      if (!sameBytes(checksum, leaf.checksum)) continue;
      await this.#put(table, bytes);
      return;
    }
  }

  async *#leafCandidates(leaf: LeafReference, points: readonly number[], end: number): AsyncGenerator<EntryColumns> {
    for (const stack of this.#stacks(leaf, points)) {
      for (const dropsZeros of [false, true]) {
        const columns = await this.#resolve(stack, leaf, end, dropsZeros);
        if (columns !== undefined) yield columns;
      }
    }
    const columns = await this.#fromFrames(leaf, end);
    if (columns !== undefined) yield columns;
  }

  /** Runs, or stacks of neighbouring runs, that may say the same: of the points around those that need the leaf, the nearest first. */
  #stacks(leaf: LeafReference, points: readonly number[]): readonly (readonly RunReference[])[] {
    const { manifests } = this.#options;
    const [first = 0, last = 0] = [points[0], points.at(-1)];
    const distance = ({ sequence }: ManifestDocument): number => Math.max(first - sequence, sequence - last, 0);
    const near = [...manifests].sort((a, b) => distance(a) - distance(b)).slice(0, 2 * neighboursMax);
    const stacks = new Map<string, readonly RunReference[]>();
    const add = (runs: readonly RunReference[]): void => {
      if (runs.length > 0) stacks.set(runs.map(({ checksum }) => checksum).join(" "), runs);
    };
    for (const { runs } of near) {
      const at = runs.findIndex((run) => this.#holds(run, leaf));
      for (const part of at < 0 ? [runs] : [runs.slice(0, at), runs.slice(at + 1)]) {
        for (let end = part.length; end > 0; end -= 1) add(part.slice(0, end));
        for (const run of part) add([run]);
      }
    }
    return [...stacks.values()];
  }

  #holds(run: RunReference, { epoch, ordinal }: LeafReference): boolean {
    if (run.kind === "leaf") return run.epoch === epoch && run.ordinal === ordinal;
    const leaves = this.#roots.get(mapName(this.#options.disk, run.epoch, run.ordinal)) ?? [];
    return leaves.some((leaf) => leaf.epoch === epoch && leaf.ordinal === ordinal);
  }

  /** What a stack of runs says of the leaf's granules, as a run's writer would write it; undefined when it cannot be read or is more than a leaf. */
  async #resolve(runs: readonly RunReference[], leaf: LeafReference, end: number, dropsZeros: boolean): Promise<EntryColumns | undefined> {
    const { store, vaultId, disk, signal } = this.#options;
    const map = new PointMap(this.reading(store), vaultId, disk, { volumeBytes: end * granuleBytes, runs });
    const columns = new LeafColumns(leaf.entries);
    try {
      for (let from = await map.nextMapped(leaf.first, signal); from < end; from = await map.nextMapped(from, signal)) {
        const windowEnd = Math.min(from + windowGranules, end);
        const pieces = await map.window(from, windowEnd, signal);
        for (let piece = 0; piece < pieces.count; piece += 1) {
          const source = pieces.leaves[piece];
          if (source === undefined) continue;
          const start = pieces.starts[piece] ?? 0;
          const length = pieces.lengths[piece] ?? 0;
          if (!columns.add(source, pieces.entries[piece] ?? 0, start, length, pieces.chunkOffsets[piece] ?? 0, dropsZeros))
            return undefined;
        }
        from = windowEnd;
      }
      return columns.columns;
    } catch (error) {
      if (hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND", "FORMAT_UNSUPPORTED")) return undefined;
      throw error;
    }
  }

  /** The store, in which what has been rebuilt stands already. */
  reading(store: Store): Store {
    const rebuilt = this.#rebuilt;
    return new Proxy(store, {
      get: (target, key) => {
        if (key === "get") {
          return async (...given: Parameters<Store["get"]>): Promise<Awaited<ReturnType<Store["get"]>>> => {
            const bytes = rebuilt.get(given[0]);
            return bytes === undefined ? await target.get(...given) : { bytes, etag: "" };
          };
        }
        const value: unknown = Reflect.get(target, key, target);
        return typeof value === "function" ? (...given: readonly unknown[]): unknown => Reflect.apply(value, target, given) : value;
      },
    });
  }

  /** The chunks that the writer of the leaf's epoch shipped, in the order of their places. */
  async #fromFrames(leaf: LeafReference, end: number): Promise<EntryColumns | undefined> {
    const { store, vaultId, disk, signal } = this.#options;
    const chunks: { segment: string; offset: number; storedWord: number; granule: number; granules: number; digest: Uint8Array }[] = [];
    try {
      for await (const { name, sizeBytes } of store.list(segmentEpochPrefix(disk, leaf.epoch), { signal })) {
        for await (const { offset, table } of walkFrames(store, vaultId, { name, sizeBytes, dead: undefined }, { signal })) {
          for (let index = 0; index < table.count; index += 1) {
            const granule = table.granule[index] ?? 0;
            if (granule < leaf.first || granule >= end) continue;
            chunks.push({
              segment: name,
              offset: offset + (table.offsets[index] ?? 0),
              storedWord: table.storedWords[index] ?? 0,
              granule,
              granules: table.granules[index] ?? 0,
              digest: table.digests.subarray(index * digestBytes, (index + 1) * digestBytes),
            });
          }
          if (chunks.length > leaf.entries) return undefined;
        }
      }
    } catch (error) {
      if (hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND", "FORMAT_UNSUPPORTED")) return undefined;
      throw error;
    }
    const columns = new LeafColumns(leaf.entries);
    for (const { segment, offset, storedWord, granule, granules, digest } of chunks.sort((a, b) => a.granule - b.granule)) {
      columns.addChunk(granule, granules, segment, offset, storedWord, 0, granules - 1, digest);
    }
    return columns.columns;
  }
}

/** Columns of a leaf that are being filled, as a run's writer fills them. */
class LeafColumns {
  readonly columns: EntryColumns;
  readonly #entriesMax: number;

  constructor(entriesMax: number) {
    this.#entriesMax = entriesMax;
    this.columns = newColumns(entriesMax);
  }

  /** False: there is no room for another entry. */
  add(source: EntryColumns, entry: number, start: number, length: number, chunkOffset: number, dropsZeros: boolean): boolean {
    const { columns } = this;
    const segment = source.segments[entry] ?? zeroSegment;
    if (segment !== zeroSegment) {
      const digest = source.digests.subarray(entry * digestBytes, (entry + 1) * digestBytes);
      const [offset = 0, storedWord = 0, chunkLength = 0] = [source.offsets[entry], source.storedWords[entry], source.chunkLengths[entry]];
      return this.addChunk(start, length, source.names[segment] ?? "", offset, storedWord, chunkOffset, chunkLength, digest);
    }
    if (dropsZeros) return true;
    const last = columns.count - 1;
    const lastEnd = (columns.starts[last] ?? 0) + (columns.lengths[last] ?? 0);
    if (last >= 0 && columns.segments[last] === zeroSegment && lastEnd === start) {
      columns.lengths[last] = (columns.lengths[last] ?? 0) + length;
      return true;
    }
    if (columns.count === this.#entriesMax) return false;
    const at = columns.count;
    columns.starts[at] = start;
    columns.lengths[at] = length;
    columns.segments[at] = zeroSegment;
    columns.count = at + 1;
    return true;
  }

  addChunk(
    start: number,
    length: number,
    segment: string,
    offset: number,
    storedWord: number,
    chunkOffset: number,
    chunkLength: number,
    digest: Uint8Array,
  ): boolean {
    const { columns } = this;
    if (columns.count === this.#entriesMax) return false;
    const known = columns.names.indexOf(segment);
    const at = columns.count;
    columns.starts[at] = start;
    columns.lengths[at] = length;
    columns.offsets[at] = offset;
    columns.storedWords[at] = storedWord;
    columns.segments[at] = known >= 0 ? known : columns.names.push(segment) - 1;
    columns.chunkOffsets[at] = chunkOffset;
    columns.chunkLengths[at] = chunkLength;
    columns.digests.set(digest, at * digestBytes);
    columns.count = at + 1;
    return true;
  }
}

/** A run of one leaf has no root that would say which granules it spans. */
function wholeLeaf({ epoch, ordinal, bytes, entries, checksum }: RunReference): LeafReference {
  return { first: 0, last: 0xffff_ffff, entries, bytes, epoch, ordinal, checksum: fromHex(checksum) };
}
