/**
 * Which points a disk has, when what listed them is lost: its manifests tell. A manifest proves itself, and it names the point before it; but it may be of a
 * cycle that never came to its commit, or of a point that has been pruned since. So of several that claim one number the one counts that a later point was
 * made from, else that of the youngest writer; and a point of which anything has been given back already is left out. One that was pruned and is still whole
 * comes back: too much is better than too little.
 */
import { hasCode, throwIfAborted } from "../errors.ts";
import { toHex } from "../format/checksum.ts";
import type { ManifestDocument, PointRecord } from "../format/documents.ts";
import { storedLength } from "../format/frame.ts";
import type { EntryColumns } from "../format/leaf.ts";
import { zeroSegment } from "../format/leaf.ts";
import { deadName } from "../format/reclaim.ts";
import { PointMap, pieceIsZero, windowGranules } from "../map/point-map.ts";
import { readDead } from "../reclaim/dead-pages.ts";
import { PageSet } from "../reclaim/page-set.ts";
import type { Store } from "../store.ts";

/** A manifest that has been read, and the id that it proved to have. */
export interface FoundManifest {
  readonly id: string;
  readonly manifest: ManifestDocument;
}

export interface ChosenPoints {
  /** In rising order. */
  readonly points: readonly PointRecord[];
  readonly left: readonly { readonly sequence: number; readonly id: string; readonly why: string }[];
}

export interface ChooseOptions {
  /** Reads tables of maps. */
  readonly store: Store;
  readonly vaultId: Uint8Array;
  /** In rising order of their numbers. */
  readonly manifests: readonly FoundManifest[];
  /** Records that can still be read, by id: they know more than the manifests. */
  readonly known: ReadonlyMap<string, PointRecord>;
  readonly signal?: AbortSignal | undefined;
}

/** Errors: those of the store. */
export async function choosePoints(options: ChooseOptions): Promise<ChosenPoints> {
  const { manifests, known, signal } = options;
  const parts = new PartsCheck(options);
  const points: PointRecord[] = [];
  const left: { sequence: number; id: string; why: string }[] = [];
  const parents = new Set(manifests.flatMap(({ manifest }) => manifest.parent ?? []));
  for (const [sequence, claimants] of bySequence(manifests)) {
    throwIfAborted(signal);
    const listed = claimants.find(({ id }) => known.has(id));
    const built = claimants.find(({ id }) => parents.has(id));
    const chosen = listed ?? built ?? claimants.at(-1);
    for (const { id } of claimants) if (id !== chosen?.id) left.push({ sequence, id, why: "another point has its number" });
    if (chosen === undefined) continue;
    const record = known.get(chosen.id);
    for (
      let before = points.at(-1);
      record !== undefined && before !== undefined && before.timeMs >= record.timeMs;
      before = points.at(-1)
    ) {
      points.pop();
      left.push({ sequence: before.sequence, id: before.id, why: "it is not older than the point after it" });
    }
    const before = points.at(-1);
    const why =
      record !== undefined
        ? undefined
        : before !== undefined && before.timeMs >= chosen.manifest.timeMs
          ? "it is not younger than the point before it"
          : await parts.missing(chosen.manifest);
    if (why === undefined) points.push(record ?? recordOf(chosen));
    else left.push({ sequence, id: chosen.id, why });
  }
  return { points, left };
}

/** Claimants of one number in the order of their writers. */
function bySequence(manifests: readonly FoundManifest[]): ReadonlyMap<number, readonly FoundManifest[]> {
  const grouped = new Map<number, FoundManifest[]>();
  const rising = [...manifests].sort((a, b) => a.manifest.sequence - b.manifest.sequence || a.manifest.epoch - b.manifest.epoch);
  for (const found of rising) grouped.set(found.manifest.sequence, [...(grouped.get(found.manifest.sequence) ?? []), found]);
  return grouped;
}

/** How long its commit took, only the list knew. */
function recordOf({ id, manifest }: FoundManifest): PointRecord {
  const { sequence, epoch, timeMs, consistency, group, volumeBytes, statistics } = manifest;
  const { changedBytes, newBytes, storedBytes } = statistics;
  return { sequence, epoch, id, timeMs, lagMs: null, consistency, group, volumeBytes, changedBytes, newBytes, storedBytes };
}

/** Whether all that a point is made of is there, as far as that can be told without reading chunks. */
class PartsCheck {
  readonly #options: ChooseOptions;
  /** Pages that have been given back; undefined: none, or nobody can read which. */
  readonly #dead = new Map<string, Promise<PageSet | undefined>>();
  /** End of what is written in a segment; undefined: there is none. */
  readonly #written = new Map<string, Promise<number | undefined>>();
  /** Leaves of which everything is there. */
  readonly #whole = new WeakSet<EntryColumns>();
  readonly #wholeRuns = new Set<string>();

  constructor(options: ChooseOptions) {
    this.#options = options;
  }

  /** What is missing; undefined: nothing. */
  async missing(manifest: ManifestDocument): Promise<string | undefined> {
    const { store, vaultId, signal } = this.#options;
    const map = new PointMap(store, vaultId, manifest.disk, manifest);
    try {
      let isWhole = true;
      for (const [index, { checksum }] of manifest.runs.entries()) {
        if (!this.#wholeRuns.has(checksum)) isWhole = (await this.#isRunWhole(map, index, checksum)) && isWhole;
      }
      return isWhole ? undefined : await this.#missingShown(map);
    } catch (error) {
      if (hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND", "FORMAT_UNSUPPORTED")) return error.message;
      throw error;
    } finally {
      throwIfAborted(signal);
    }
  }

  /** Whether every entry of the run leads to something, whether or not newer runs hide it. */
  async #isRunWhole(map: PointMap, index: number, checksum: string): Promise<boolean> {
    let isWhole = true;
    for await (const leaf of map.entriesOf(index, this.#options.signal)) {
      if (this.#whole.has(leaf)) continue;
      let isLeafWhole = true;
      for (let entry = 0; entry < leaf.count && isLeafWhole; entry += 1)
        isLeafWhole = (await this.#missingEntry(leaf, entry)) === undefined;
      if (isLeafWhole) this.#whole.add(leaf);
      isWhole &&= isLeafWhole;
    }
    if (isWhole) this.#wholeRuns.add(checksum);
    return isWhole;
  }

  async #missingShown(map: PointMap): Promise<string | undefined> {
    const { signal } = this.#options;
    for (let from = await map.nextMapped(0, signal); from < map.granules; from = await map.nextMapped(from, signal)) {
      const end = Math.min(from + windowGranules, map.granules);
      const pieces = await map.window(from, end, signal);
      for (let piece = 0; piece < pieces.count; piece += 1) {
        const leaf = pieces.leaves[piece];
        if (leaf === undefined || pieceIsZero(pieces, piece)) continue;
        const missing = await this.#missingEntry(leaf, pieces.entries[piece] ?? 0);
        if (missing !== undefined) return missing;
      }
      from = end;
    }
    return undefined;
  }

  async #missingEntry(leaf: EntryColumns, entry: number): Promise<string | undefined> {
    const segment = leaf.segments[entry] ?? zeroSegment;
    if (segment === zeroSegment) return undefined;
    const name = leaf.names[segment] ?? "";
    const offset = leaf.offsets[entry] ?? 0;
    const length = storedLength(leaf.storedWords[entry] ?? 0);
    const writtenBytes = await this.#writtenBytes(name);
    if (writtenBytes === undefined) return `${name} does not exist any more`;
    if (offset + length > writtenBytes) return `${name} ends before byte ${String(offset + length)}`;
    return (await this.#deadPages(name))?.touches(offset, length) === true ? `what it needs of ${name} has been given back` : undefined;
  }

  async #writtenBytes(segment: string): Promise<number | undefined> {
    const known = this.#written.get(segment) ?? this.#stat(segment);
    this.#written.set(segment, known);
    return await known;
  }

  async #deadPages(segment: string): Promise<PageSet | undefined> {
    const known = this.#dead.get(segment) ?? this.#readDead(segment);
    this.#dead.set(segment, known);
    return await known;
  }

  /** What was condemned only is there still. A point that may be whole is listed: one that is not would be collected. */
  async #readDead(segment: string): Promise<PageSet | undefined> {
    const { store, vaultId, signal } = this.#options;
    try {
      const found = await readDead(store, toHex(vaultId), deadName(segment), { signal });
      return found === undefined ? undefined : PageSet.ofRuns(found.document.dead);
    } catch (error) {
      if (hasCode(error, "DAMAGED")) return undefined;
      throw error;
    }
  }

  /** One that is damaged itself is there: what of it can be read, a verification tells. */
  async #stat(segment: string): Promise<number | undefined> {
    const { store, signal } = this.#options;
    try {
      return (await store.statPages(segment, { signal })).writtenBytes;
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) return undefined;
      if (hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED")) return Infinity;
      throw error;
    }
  }
}
