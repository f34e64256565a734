/**
 * Scrub: reads a vault back a little at a time and heals what is damaged while its content still
 * exists somewhere.
 *
 *     pass:   known damage is tried again ─► disk by disk, oldest point first: what is new in each point ─► proved ─► healed
 *             ─► noted in `disks/<disk>/proved`     until the budget is spent
 *     round:  passes, until every point and every segment has been looked at
 *
 * What points share is read once in a round: a `MapWalk` knows what of a point's map no older point
 * had, and `ProvedPlaces` knows which chunks have been read. A pass can end anywhere, also in the
 * middle of a point; the next pass goes on there. Points that another scrubber has proved since the
 * round began are skipped.
 *
 * A process that can write to an encrypted vault and has no key to read it proves what it can: lists,
 * maps, frame tables, and that segments are there as far as maps need them. It heals nothing, and leaves
 * the vault's quota and its notes of proved points to processes that read payloads.
 *
 * Memory: proved places, at most 128 MiB (see `ProvedPlaces`), the names of the maps' objects, the
 * records of all points, and findings. Maps are read besides the budget: 36 bytes for each chunk.
 */

import { watchedStore } from "../../disk/source/head-watch.ts";
import { hasCode, type TidemarkError, throwIfAborted } from "../../errors.ts";
import type { NoticeOptions } from "../../notice.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { PointRecord } from "../../store/format/documents.ts";
import { decodeDiskName, parseSegmentName, segmentsPrefix } from "../../store/format/names.ts";
import { MapWalk } from "../../store/map/map-walk.ts";
import { readHead } from "../../store/points/head.ts";
import { readPoints } from "../../store/points/history.ts";
import { diskNames } from "../../store/points/points.ts";
import { noteProved, type ProvedTimes, readProved } from "../../store/points/proved.ts";
import { sweepQuarantine } from "../../store/segments/quarantine.ts";
import { Store } from "../../store/store.ts";
import type { Bandwidth } from "../../throttle.ts";
import type { Volume } from "../../volume.ts";
import { type Damage, type DamageFinding, isDamage, listFinding } from "./damage.ts";
import { DamageRegister, listsKey, segmentsKey } from "./damage-register.ts";
import { Healer } from "./heal.ts";
import { PointProver, ReadingEnds } from "./point-prover.ts";
import { ProvedPlaces } from "./proved-places.ts";
import { claimQuota, dayMs, endRound, firstMs } from "./quota.ts";
import { proveSegment, type SegmentProofOptions } from "./segment-prover.ts";

/** How `Vault.scrub` works. */
export interface ScrubOptions extends NoticeOptions {
  /** Bytes of segments to read in this pass. Default: all. */
  readonly budgetBytes?: number | undefined;
  /**
   * The vault's daily share, from 0 to 1, for all scrubbers together: the pass claims what has
   * accrued, a day's share at most. The smaller of this and `budgetBytes` counts.
   */
  readonly sharePerDay?: number | undefined;
  /** Limit of bytes a second. Default: none. */
  readonly bandwidth?: Bandwidth | undefined;
  /** By disk: a volume that may still hold its content, for healing. */
  readonly sources?: ReadonlyMap<string, Volume> | undefined;
  /** Called with a disk that can be healed after its writer's session. */
  readonly onOpen?: ((disk: string) => void) | undefined;
  /** Called with each damage that is found, healed or not. */
  readonly onDamage?: ((damage: Damage) => void) | undefined;
}

/** The outcome of a pass. */
export interface ScrubSummary {
  /** Points that were proved to be whole. */
  readonly provedPoints: number;
  /** Bytes of segments that were read. */
  readonly readBytes: number;
  /** False: this process has no key for the payloads. They were not proved. */
  readonly readsPayloads: boolean;
  /** Damage that is known and not healed, found by this pass or an earlier one. */
  readonly damaged: readonly Damage[];
  /** What this pass has healed. */
  readonly healed: readonly Damage[];
  /** Every point has been proved since the round began; the next pass begins another round. */
  readonly roundEnded: boolean;
  readonly elapsedMs: number;
}

/** How often proved points are noted in the vault. */
const noteEveryMs = 60_000;

/** A disk's points, oldest first, and when they were proved. */
interface ListedPoints {
  readonly points: readonly PointRecord[];
  readonly times: ProvedTimes;
}

/** How far a round has come with a disk. */
interface DiskProgress {
  readonly walk: MapWalk;
  /** Numbers of the points that have been looked at. */
  readonly done: Set<number>;
  /** The point that the last pass ended in, and up to which granule it was whole. */
  begun: { readonly sequence: number; granule: number } | undefined;
}

interface ScrubRound {
  readonly number: number;
  readonly startedMs: number;
  readonly places: ProvedPlaces;
  readonly disks: Map<string, DiskProgress>;
  /** Segments whose frames have been looked at. */
  readonly segments: Set<string>;
  /** Digests of damaged chunks that no other chunk of the vault has. */
  readonly alone: Set<string>;
  /** By disk: points that were proved and have not been noted. */
  readonly unnoted: Map<string, Set<number>>;
  storedBytes: number | undefined;
}

export class Scrubber {
  readonly #context: VaultContext;
  readonly #findings = new DamageRegister();
  #round: ScrubRound | undefined;
  #rounds = 0;
  #lastPassMs: number | undefined;

  constructor(context: VaultContext) {
    this.#context = context;
  }

  /** Runs one pass; one at a time. Errors: INTERRUPTED and those of the store. */
  async pass(options: ScrubOptions): Promise<ScrubSummary> {
    const { sharePerDay, signal } = options;
    if (sharePerDay === undefined) return await this.#pass(options, this.#goOn(), undefined);
    const { vault } = this.#context.document;
    const store = new Store(this.#context.sink);
    if (!readsPayloads(store)) return await this.#pass(options, this.#goOn(), sharePerDay * this.#ownDayPart());
    const quota = await claimQuota(store, vault, Date.now(), { signal });
    if (quota === undefined) return await this.healAgain(options);
    const summary = await this.#pass(options, this.#goOn(quota.roundMs), sharePerDay * quota.dayPart);
    if (summary.roundEnded) await endRound(store, vault, quota.roundMs, Date.now(), { signal });
    return summary;
  }

  /** The part of a day since the last pass of this scrubber; before the first, an hour. */
  #ownDayPart(): number {
    const nowMs = performance.now();
    const sinceMs = nowMs - (this.#lastPassMs ?? nowMs - firstMs);
    this.#lastPassMs = nowMs;
    return Math.min(1, sinceMs / dayMs);
  }

  async #pass(options: ScrubOptions, round: ScrubRound, share: number | undefined): Promise<ScrubSummary> {
    const summary = await new ScrubPass(this.#context, options, round, this.#findings).run("on", share);
    if (summary.roundEnded) this.#round = undefined;
    return summary;
  }

  /** Looks again only at what is damaged. Errors: as `pass`. */
  async healAgain(options: ScrubOptions): Promise<ScrubSummary> {
    return await new ScrubPass(this.#context, options, this.#goOn(), this.#findings).run("again");
  }

  /**
   * The current round; a new one when another scrubber has ended it and the next round began at
   * `startedMs`.
   */
  #goOn(startedMs?: number): ScrubRound {
    if (this.#round === undefined || (startedMs !== undefined && startedMs !== this.#round.startedMs)) {
      this.#rounds += 1;
      this.#round = {
        number: this.#rounds,
        startedMs: startedMs ?? Date.now(),
        places: new ProvedPlaces(),
        disks: new Map(),
        segments: new Set(),
        alone: new Set(),
        unnoted: new Map(),
        storedBytes: undefined,
      };
    }
    return this.#round;
  }
}

function readsPayloads({ keys }: Store): boolean {
  return keys?.canRead !== false;
}

class ScrubPass {
  readonly #context: VaultContext;
  readonly #options: ScrubOptions;
  readonly #round: ScrubRound;
  readonly #findings: DamageRegister;
  readonly #store: Store;
  readonly #prover: PointProver;
  readonly #segmentProof: SegmentProofOptions;
  #listed: ReadonlyMap<string, ListedPoints> = new Map();
  #notedAtMs = performance.now();
  #budgetBytes = Infinity;
  #readBytes = 0;
  #provedPoints = 0;

  constructor(context: VaultContext, options: ScrubOptions, round: ScrubRound, findings: DamageRegister) {
    const { sources = new Map<string, Volume>(), onDamage, onNotice = () => undefined, onOpen, signal } = options;
    const store = watchedStore(context, onNotice);
    this.#context = context;
    this.#options = options;
    this.#round = round;
    this.#findings = findings;
    this.#store = store;
    const { places, alone } = round;
    const pace = async (bytes: number): Promise<void> => await this.#pace(bytes);
    const healer = readsPayloads(store)
      ? new Healer({ context, store, sources, alone, onNotice, onOpen, signal })
      : undefined;
    this.#prover = new PointProver({ context, store, purpose: "scrub", places, healer, pace, onNotice, signal });
    this.#segmentProof = { store, vault: context.document.vault, pace, onNotice, onOpen, signal };
    findings.begin(onDamage);
  }

  /**
   * `on`: goes on with the round, for at most a share of the vault. `again`: looks at known damage
   * only.
   */
  async run(how: "on" | "again", share?: number): Promise<ScrubSummary> {
    const startedAt = performance.now();
    const { budgetBytes = Infinity } = this.#options;
    this.#budgetBytes = Math.min(budgetBytes, share === undefined ? Infinity : share * (await this.#storedBytes()));
    const roundEnded = await this.#runUntilSpent(how);
    await this.#note();
    return {
      provedPoints: this.#provedPoints,
      readBytes: this.#readBytes,
      readsPayloads: readsPayloads(this.#store),
      damaged: this.#findings.damages,
      healed: this.#findings.healed,
      roundEnded,
      elapsedMs: Math.round(performance.now() - startedAt),
    };
  }

  /** True: the round has ended. */
  async #runUntilSpent(how: "on" | "again"): Promise<boolean> {
    try {
      this.#listed = await this.#list();
      await this.#lookAgain();
      if (how === "again") return false;
      for (const disk of this.#inOrder()) await this.#proveDisk(disk);
      await this.#proveSegments();
      await sweepQuarantine(this.#store, { signal: this.#options.signal });
      return true;
    } catch (error) {
      if (error instanceof ReadingEnds) return false;
      throw error;
    }
  }

  async #pace(bytes: number): Promise<void> {
    const { bandwidth, signal } = this.#options;
    if (this.#readBytes >= this.#budgetBytes) throw new ReadingEnds("the budget is spent");
    this.#readBytes += bytes;
    await bandwidth?.take(bytes, signal);
  }

  /** Written bytes of all segments; asked once in a round, which is exact enough for a share. */
  async #storedBytes(): Promise<number> {
    if (this.#round.storedBytes !== undefined) return this.#round.storedBytes;
    const { signal } = this.#options;
    let bytes = 0;
    for (const segment of await this.#segments()) {
      try {
        bytes += (await this.#store.statPages(segment, { signal })).writtenBytes;
      } catch (error) {
        if (!isDamage(error)) throw error; // the points that need it tell
      }
    }
    this.#round.storedBytes = bytes;
    return bytes;
  }

  /** All points that can be listed. A list that cannot be read is damage. */
  async #list(): Promise<ReadonlyMap<string, ListedPoints>> {
    const { signal } = this.#options;
    const { vault } = this.#context.document;
    const listed = new Map<string, ListedPoints>();
    const all = await diskNames(this.#store, signal);
    this.#findings.keepDisks(all);
    for (const disk of all) {
      const lists: DamageFinding[] = [];
      const newestFirst: PointRecord[] = [];
      try {
        const { head } = await readHead(this.#store, vault, disk, signal);
        const onDamage = (error: TidemarkError): void => {
          if (!isDamage(error)) throw error;
          lists.push(listFinding(disk, error));
        };
        for await (const point of readPoints(this.#store, head, { onDamage, signal })) newestFirst.push(point);
      } catch (error) {
        const lost = hasCode(error, "DISK_NOT_FOUND") ? error.cause : error;
        if (!isDamage(lost)) throw error;
        lists.push(listFinding(disk, lost));
      }
      this.#findings.replace(disk, listsKey, lists, this.#round.number);
      this.#findings.keepPoints(disk, new Set(newestFirst.map(({ sequence }) => sequence)));
      listed.set(disk, { points: newestFirst.reverse(), times: await readProved(this.#store, vault, disk, signal) });
    }
    return listed;
  }

  /**
   * Disks that can be healed here first; of equals the disk with the point that was proved longest
   * ago.
   */
  #inOrder(): readonly string[] {
    const { sources } = this.#options;
    const keys = Array.from(this.#listed, ([disk, { points, times }]) => {
      const left = points.filter(({ sequence }) => !this.#progressOf(disk).done.has(sequence));
      const provedMs = left.reduce((oldest, point) => Math.min(oldest, times.of(point) ?? 0), Infinity);
      return { disk, rank: sources?.has(disk) === true ? 0 : 1, provedMs };
    });
    return keys.sort((a, b) => a.rank - b.rank || a.provedMs - b.provedMs).map(({ disk }) => disk);
  }

  #progressOf(disk: string): DiskProgress {
    const progress = this.#round.disks.get(disk) ?? {
      walk: new MapWalk(disk),
      done: new Set<number>(),
      begun: undefined,
    };
    this.#round.disks.set(disk, progress);
    return progress;
  }

  /**
   * Tries again what could not be healed before: its source may exist now, or its writer may have
   * ended.
   */
  async #lookAgain(): Promise<void> {
    for (const { disk, sequence, chunks } of this.#findings.damagedPoints()) {
      const point = this.#listed.get(disk)?.points.find((listed) => listed.sequence === sequence);
      if (point === undefined) continue;
      try {
        const whole = this.#findings.heal(await this.#prover.healAgain(disk, point, chunks));
        for (const healed of whole)
          if (this.#progressOf(healed.disk).done.has(healed.sequence)) this.#isWhole(healed.disk, healed.sequence);
      } catch (error) {
        if (!hasCode(error, "POINT_NOT_FOUND")) throw error; // pruned since it was listed
      }
    }
    for (const segment of this.#findings.damagedSegments()) await this.#proveSegment(segment);
  }

  async #proveDisk(disk: string): Promise<void> {
    const { points, times } = this.#listed.get(disk) ?? { points: [], times: undefined };
    const { done } = this.#progressOf(disk);
    for (const [index, point] of points.entries()) {
      throwIfAborted(this.#options.signal);
      if (done.has(point.sequence)) continue;
      // By `verify`, or by another scrubber.
      const isProved = (times?.of(point) ?? 0) >= this.#round.startedMs;
      try {
        await this.#provePoint(disk, point, isProved, points.slice(index + 1));
      } catch (error) {
        if (!hasCode(error, "POINT_NOT_FOUND")) throw error; // pruned since it was listed
      }
      if (performance.now() - this.#notedAtMs > noteEveryMs) await this.#note();
    }
  }

  async #provePoint(
    disk: string,
    point: PointRecord,
    isProved: boolean,
    younger: readonly PointRecord[],
  ): Promise<void> {
    const { sequence } = point;
    const progress = this.#progressOf(disk);
    const begun = progress.begun?.sequence === sequence ? progress.begun : { sequence, granule: 0 };
    progress.begun = begun;
    const onWhole = (granule: number): void => {
      begun.granule = granule;
    };
    const from = isProved ? Infinity : begun.granule;
    const { found, ended } = await this.#prover.proveNew(disk, point, { walk: progress.walk, from, onWhole });
    await this.#trace(disk, this.#findings.add(disk, sequence, found, this.#round.number), younger);
    if (ended !== undefined) throw ended;
    progress.done.add(sequence);
    progress.begun = undefined;
    const isWhole = this.#findings.finish(disk, sequence, this.#round.number) && readsPayloads(this.#store);
    if (isWhole && !isProved) this.#isWhole(disk, sequence);
  }

  #isWhole(disk: string, sequence: number): void {
    this.#provedPoints += 1;
    const { unnoted } = this.#round;
    unnoted.set(disk, (unnoted.get(disk) ?? new Set()).add(sequence));
  }

  /** Finds the younger points that show a damaged chunk, one after the other, until none does. */
  async #trace(disk: string, damages: readonly DamageFinding[], younger: readonly PointRecord[]): Promise<void> {
    let shown = damages.filter(({ chunk }) => chunk !== undefined);
    for (const point of younger) {
      if (shown.length === 0) return;
      throwIfAborted(this.#options.signal);
      try {
        const first = this.#findings.isFull;
        const found = await this.#prover.trace(disk, point, shown, first);
        this.#findings.add(disk, point.sequence, found, this.#round.number);
        if (!first || found.length === 0) shown = [...found];
      } catch (error) {
        if (!isDamage(error)) throw error; // reported when that point is proved
      }
    }
  }

  /** Segments as wholes, each named with the disk that wrote it. */
  async #proveSegments(): Promise<void> {
    const segments = new Set(await this.#segments());
    this.#findings.damagedSegments(segments);
    for (const segment of segments) if (!this.#round.segments.has(segment)) await this.#proveSegment(segment);
  }

  async #segments(): Promise<string[]> {
    const names = await this.#store.names(segmentsPrefix, { signal: this.#options.signal });
    return names.filter((name) => parseSegmentName(name) !== undefined);
  }

  async #proveSegment(segment: string): Promise<void> {
    const disk = decodeDiskName(parseSegmentName(segment)?.encodedDisk ?? "") ?? "";
    const found = await proveSegment(this.#segmentProof, segment);
    this.#findings.replace(disk, segmentsKey, found, this.#round.number, ({ object }) => object === segment);
    this.#round.segments.add(segment);
  }

  async #note(): Promise<void> {
    for (const [disk, sequences] of this.#round.unnoted) {
      const place = { vault: this.#context.document.vault, disk };
      try {
        await noteProved(
          this.#store,
          place,
          this.#listed.get(disk)?.points ?? [],
          sequences,
          Date.now(),
          this.#options.signal,
        );
      } catch (error) {
        if (!hasCode(error, "ACCESS_REFUSED")) throw error; // read access is enough to prove points
      }
      this.#round.unnoted.delete(disk);
    }
    this.#notedAtMs = performance.now();
  }
}
