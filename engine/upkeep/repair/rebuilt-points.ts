/**
 * Rebuilding of a lost list of points: which points a disk has, from its manifests.
 *
 * A manifest proves itself and names the point before it. It may belong to a cycle that was never
 * committed, or to a point that has been pruned. Of several manifests with one sequence number, the
 * one counts that a later point was made from, else that of the newest writer. Each is then checked
 * against the objects that it needs:
 *
 *     whole      listed again, even if it had been pruned: too much is better than too little
 *     damaged    listed again and named: a collection deletes and damages nothing, so a damaged point was not collected
 *     absent     an object does not exist: collected, or lost. It was lost if a listed point needs it too; else the point is left out
 *     freed      a collection's record says so: the point is left out
 *
 * The newest point is never pruned. So where no point is whole, the newest one of which nothing has
 * been freed counts as listed.
 *
 * Cost: the maps of all points are read, no chunks.
 */
import { hasCode, isGone, isUnreadable, isUnreadableOrGone, throwIfAborted } from "../../errors.ts";
import { toHex } from "../../store/format/checksum.ts";
import type { ManifestDocument, PointRecord } from "../../store/format/documents.ts";
import { storedLength } from "../../store/format/frame.ts";
import type { EntryColumns } from "../../store/format/leaf.ts";
import { zeroSegment } from "../../store/format/leaf.ts";
import { deadName } from "../../store/format/reclaim.ts";
import { PointMap, pieceIsZero, windowGranules } from "../../store/map/point-map.ts";
import { readDead } from "../../store/segments/dead-pages.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import type { Store } from "../../store/store.ts";

/** A manifest that has been read, and the id that it proved to have. */
export interface FoundManifest {
  readonly id: string;
  readonly manifest: ManifestDocument;
}

/** A point, and why it is damaged or left out. */
export interface NotedPoint {
  readonly sequence: number;
  readonly id: string;
  readonly why: string;
}

export interface ChosenPoints {
  /** In rising order. */
  readonly points: readonly PointRecord[];
  /** Among them, those that cannot be read in full. */
  readonly damaged: readonly NotedPoint[];
  readonly left: readonly NotedPoint[];
}

export interface ChooseOptions {
  /** Reads leaves and roots. */
  readonly store: Store;
  readonly vaultId: Uint8Array;
  /** In rising order of their numbers. */
  readonly manifests: readonly FoundManifest[];
  /** Records that can still be read, by id: they hold more than manifests. */
  readonly known: ReadonlyMap<string, PointRecord>;
  /**
   * By segment: pages that have been freed, where the record of them was rebuilt; a dry run does
   * not write it.
   */
  readonly rebuiltRecords?: ReadonlyMap<string, PageSet> | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Errors: those of the store. */
export async function choosePoints(options: ChooseOptions): Promise<ChosenPoints> {
  const { manifests, known } = options;
  const left: NotedPoint[] = [];
  const claims = oneOfEachNumber(manifests, known, left);
  const fates = await new Judgement(options).fatesOf(claims);
  const damaged: NotedPoint[] = [];
  const standing: FoundManifest[] = [];
  for (const found of claims) {
    const fate = fates.get(found) ?? whole;
    const { sequence } = found.manifest;
    if (isKept(fate)) standing.push(found);
    else left.push({ sequence, id: found.id, why: fate.why });
    if (fate.kind === "damaged") damaged.push({ sequence, id: found.id, why: fate.why });
  }
  const points = inOrderOfTime(standing, known, left);
  const listed = new Set(points.map(({ id }) => id));
  return {
    points,
    damaged: damaged.filter(({ id }) => listed.has(id)),
    left: left.sort((a, b) => a.sequence - b.sequence),
  };
}

/** In rising order. What loses its number to another is left out. */
function oneOfEachNumber(
  manifests: readonly FoundManifest[],
  known: ReadonlyMap<string, PointRecord>,
  left: NotedPoint[],
): FoundManifest[] {
  const parents = new Set(manifests.flatMap(({ manifest }) => manifest.parent ?? []));
  const claims = new Map<number, FoundManifest>();
  const rank = ({ id }: FoundManifest): number => (known.has(id) ? 2 : parents.has(id) ? 1 : 0);
  // Claimants of one number in the order of their writers: of equals the later one counts.
  for (const found of [...manifests].sort(
    (a, b) => a.manifest.sequence - b.manifest.sequence || a.manifest.epoch - b.manifest.epoch,
  )) {
    const { sequence } = found.manifest;
    const rival = claims.get(sequence);
    const [chosen, other] = rival !== undefined && rank(rival) > rank(found) ? [rival, found] : [found, rival];
    claims.set(sequence, chosen);
    if (other !== undefined) left.push({ sequence, id: other.id, why: "another point has its number" });
  }
  return [...claims.values()];
}

/**
 * Times rise from point to point. Where they do not, the clock had been set back, and a cycle that
 * never came to its commit had the higher one: the older number goes, unless it is listed.
 */
function inOrderOfTime(
  standing: readonly FoundManifest[],
  known: ReadonlyMap<string, PointRecord>,
  left: NotedPoint[],
): PointRecord[] {
  const newestFirst: PointRecord[] = [];
  for (const found of standing.toReversed()) {
    const record = known.get(found.id) ?? recordOf(found);
    for (
      let after = newestFirst.at(-1);
      after !== undefined && after.timeMs <= record.timeMs;
      after = newestFirst.at(-1)
    ) {
      const isListed = known.has(record.id) && !known.has(after.id);
      const { sequence, id } = isListed ? after : record;
      left.push({
        sequence,
        id,
        why: `it is not ${isListed ? "younger than the point before" : "older than the point after"} it`,
      });
      if (!isListed) break;
      newestFirst.pop();
    }
    if (left.at(-1)?.id !== record.id) newestFirst.push(record);
  }
  return newestFirst.reverse();
}

/** How long its commit took is known to the lost list only. */
function recordOf({ id, manifest }: FoundManifest): PointRecord {
  const { sequence, epoch, timeMs, consistency, group, volumeBytes, statistics } = manifest;
  const { changedBytes, newBytes, storedBytes } = statistics;
  return {
    sequence,
    epoch,
    id,
    timeMs,
    lagMs: null,
    consistency,
    group,
    volumeBytes,
    changedBytes,
    newBytes,
    storedBytes,
  };
}

/** What has become of a point; see above. */
type Fate =
  | { readonly kind: "whole" }
  | { readonly kind: "damaged" | "freed"; readonly why: string }
  /** `names`: the objects that do not exist. */
  | { readonly kind: "absent"; readonly why: string; readonly names: ReadonlySet<string> };

const whole: Fate = { kind: "whole" };

function isKept(fate: Fate): fate is Extract<Fate, { readonly kind: "whole" | "damaged" }> {
  return fate.kind === "whole" || fate.kind === "damaged";
}

/** Decides for all points together: what a listed point misses was lost, not collected. */
class Judgement {
  readonly #options: ChooseOptions;
  readonly #parts: PartsCheck;

  constructor(options: ChooseOptions) {
    this.#options = options;
    this.#parts = new PartsCheck(options);
  }

  /** Considers unlisted points only. Listed points are kept as they are. */
  async fatesOf(claims: readonly FoundManifest[]): Promise<ReadonlyMap<FoundManifest, Fate>> {
    const { known, signal } = this.#options;
    const fates = new Map<FoundManifest, Fate>();
    for (const found of claims) {
      throwIfAborted(signal);
      if (!known.has(found.id)) fates.set(found, await this.#parts.fateOf(found.manifest));
    }
    const absent = [...fates].flatMap(([found, fate]) => (fate.kind === "absent" ? { found, fate } : []));
    if (absent.length === 0) return fates;
    const lost = new Set<string>();
    for (const { id, manifest } of claims)
      if (known.has(id)) for (const name of await this.#absentOf(manifest)) lost.add(name);
    const hasListed = known.size > 0 || [...fates.values()].some(isKept);
    if (!hasListed) for (const name of absent.at(-1)?.fate.names ?? []) lost.add(name);
    for (const { found, fate } of absent) {
      if ([...fate.names].every((name) => lost.has(name))) fates.set(found, { kind: "damaged", why: fate.why });
    }
    return fates;
  }

  async #absentOf(manifest: ManifestDocument): Promise<Iterable<string>> {
    const fate = await this.#parts.fateOf(manifest);
    return fate.kind === "absent" ? fate.names : [];
  }
}

/** Checks points against the objects that they need, without reading chunks. */
class PartsCheck {
  readonly #options: ChooseOptions;
  readonly #segments = new Map<string, Promise<SegmentContents>>();
  /** Leaves of which everything is there. */
  readonly #whole = new WeakSet<EntryColumns>();
  readonly #wholeRuns = new Set<string>();

  constructor(options: ChooseOptions) {
    this.#options = options;
  }

  async fateOf(manifest: ManifestDocument): Promise<Fate> {
    const { store, vaultId } = this.#options;
    const map = new PointMap(store, vaultId, manifest.disk, manifest);
    const faults = new PointFaults();
    let isWhole = true;
    let readable = 0;
    for (const [index, { checksum }] of manifest.runs.entries()) {
      try {
        if (!this.#wholeRuns.has(checksum)) isWhole = (await this.#isRunWhole(map, index, checksum)) && isWhole;
        if (readable === index) readable += 1;
      } catch (error) {
        if (!isUnreadableOrGone(error)) throw error;
        const { object } = error.detail;
        if (isGone(error) && typeof object === "string") faults.absent(object);
        else faults.damaged(error.message);
      }
    }
    // What the readable runs on top show does not depend on the first run that cannot be read.
    const above = { ...manifest, runs: manifest.runs.slice(0, readable) };
    if (!isWhole) await this.#lookAtShown(new PointMap(store, vaultId, manifest.disk, above), faults);
    return faults.fate;
  }

  /** Whether every entry of the run leads to something, whether or not newer runs hide it. */
  async #isRunWhole(map: PointMap, index: number, checksum: string): Promise<boolean> {
    let isWhole = true;
    for await (const leaf of map.entriesOf(index, this.#options.signal)) {
      if (this.#whole.has(leaf)) continue;
      const faults = new PointFaults();
      for (let entry = 0; entry < leaf.count && faults.fate.kind === "whole"; entry += 1)
        await this.#lookAt(leaf, entry, faults);
      if (faults.fate.kind === "whole") this.#whole.add(leaf);
      else isWhole = false;
    }
    if (isWhole) this.#wholeRuns.add(checksum);
    return isWhole;
  }

  async #lookAtShown(map: PointMap, faults: PointFaults): Promise<void> {
    const { signal } = this.#options;
    for (let from = await map.nextMapped(0, signal); from < map.granules; from = await map.nextMapped(from, signal)) {
      throwIfAborted(signal);
      const end = Math.min(from + windowGranules, map.granules);
      const pieces = await map.window(from, end, signal);
      for (let piece = 0; piece < pieces.count; piece += 1) {
        const leaf = pieces.leaves[piece];
        if (leaf !== undefined && !pieceIsZero(pieces, piece))
          await this.#lookAt(leaf, pieces.entries[piece] ?? 0, faults);
      }
      from = end;
    }
  }

  async #lookAt(leaf: EntryColumns, entry: number, faults: PointFaults): Promise<void> {
    const segment = leaf.segments[entry] ?? zeroSegment;
    if (segment === zeroSegment) return;
    const name = leaf.names[segment] ?? "";
    const offset = leaf.offsets[entry] ?? 0;
    const length = storedLength(leaf.storedWords[entry] ?? 0);
    const { writtenBytes, dead } = await this.#segment(name);
    if (writtenBytes === undefined) faults.absent(name);
    else if (offset + length > writtenBytes) faults.damaged(`${name} ends before byte ${String(offset + length)}`);
    else if (dead?.touches(offset, length) === true) faults.freed(name);
  }

  async #segment(name: string): Promise<SegmentContents> {
    const known = this.#segments.get(name) ?? this.#readSegment(name);
    this.#segments.set(name, known);
    return await known;
  }

  async #readSegment(segment: string): Promise<SegmentContents> {
    return { writtenBytes: await this.#writtenBytes(segment), dead: await this.#dead(segment) };
  }

  /** Condemned pages still exist. A record that cannot be read says nothing. */
  async #dead(segment: string): Promise<PageSet | undefined> {
    const { store, vaultId, rebuiltRecords, signal } = this.#options;
    const rebuilt = rebuiltRecords?.get(segment);
    if (rebuilt !== undefined) return rebuilt;
    try {
      const record = await readDead(store, toHex(vaultId), deadName(segment), { signal });
      return record === undefined ? undefined : PageSet.ofRuns(record.document.dead);
    } catch (error) {
      if (isUnreadable(error)) return undefined;
      throw error;
    }
  }

  /** A damaged segment exists: a verification tells what of it can be read. */
  async #writtenBytes(segment: string): Promise<number | undefined> {
    const { store, signal } = this.#options;
    try {
      return (await store.statPages(segment, { signal })).writtenBytes;
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) return undefined;
      if (isUnreadable(error)) return Infinity;
      throw error;
    }
  }
}

interface SegmentContents {
  /** End of what is written; undefined: there is no such segment. */
  readonly writtenBytes: number | undefined;
  /** Pages that have been freed. */
  readonly dead: PageSet | undefined;
}

/** What is wrong with a point. The worst fault decides. */
class PointFaults {
  readonly #absent = new Set<string>();
  #freed: string | undefined;
  #damaged: string | undefined;

  absent(name: string): void {
    this.#absent.add(name);
  }

  freed(segment: string): void {
    this.#freed ??= segment;
  }

  damaged(why: string): void {
    this.#damaged ??= why;
  }

  get fate(): Fate {
    const [absent] = this.#absent;
    if (this.#freed !== undefined)
      return { kind: "freed", why: `what it needs of ${this.#freed} has been freed by a collection` };
    if (absent !== undefined) return { kind: "absent", why: `${absent} does not exist any more`, names: this.#absent };
    return this.#damaged === undefined ? whole : { kind: "damaged", why: this.#damaged };
  }
}
