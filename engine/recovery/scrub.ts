/**
 * Scrubbing: a vault is read back a little at a time, so that damage is found while somebody still holds what was there.
 *
 *     pass:   points, least recently proved first ─► held ─► proved ─► healed ─► noted in `disks/<disk>/proved`     until the budget is spent
 *     round:  passes, until every point has been proved since the round began; what several points share is read once in a round
 *
 * A pass can end anywhere. What it has read is remembered by the round, so a point that takes longer than a budget is proved by several passes. After
 * the points come the frames' headers and tables, once in a round.
 *
 * Memory: places that have been proved, at most 128 MiB (see `ProvedPlaces`), and the records of all points. Maps of points are read besides the
 * budget: 36 bytes for each chunk.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Bandwidth } from "../control/bandwidth.ts";
import { readPoints } from "../control/history.ts";
import { diskNames } from "../control/points.ts";
import { noteProved, readProved } from "../control/proved.ts";
import { readHead } from "../control/seat.ts";
import type { VaultContext } from "../control/session.ts";
import type { Damage, Notice } from "../control/summaries.ts";
import type { BlockDevice } from "../device.ts";
import { hasCode, type TidemarkError, throwIfAborted } from "../errors.ts";
import type { PointRecord } from "../format/documents.ts";
import { parseSegmentName, segmentsPrefix } from "../format/names.ts";
import { sweepQuarantine } from "../reclaim/quarantine.ts";
import { Store } from "../store.ts";
import type { Volume } from "../volume.ts";
import { FrameProver } from "./frame-repair.ts";
import { Healer } from "./heal.ts";
import { isDamage, objectDamage, PointProver } from "./point-prover.ts";
import { ProvedPlaces } from "./proved-places.ts";

export interface ScrubOptions {
  /** Bytes of segments to read in this pass. Default: as many as there are. */
  readonly budgetBytes?: number | undefined;
  /** Or what share of them, from 0 to 1. The less of both counts. */
  readonly share?: number | undefined;
  /** How fast. Default: as fast as it goes. */
  readonly bandwidth?: Bandwidth | undefined;
  /** By disk: what may still hold its content, for healing. Disks that the vault protects need not be named. */
  readonly sources?: ReadonlyMap<string, Volume> | undefined;
  /** Told of a disk whose writer has something open that needs to be healed: that can be done when the writer has left its seat. */
  readonly onOpen?: ((disk: string) => void) | undefined;
  /** Told of each damage that is found, healed or not. */
  readonly onDamage?: ((damage: Damage) => void) | undefined;
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface ScrubSummary {
  /** Points that were found to be whole. */
  readonly provedPoints: number;
  /** Bytes of segments that were read. */
  readonly readBytes: number;
  /** What is damaged now, as far as is known, found by this pass or an earlier one. */
  readonly damaged: readonly Damage[];
  /** What this pass has healed. */
  readonly healed: readonly Damage[];
  /** Every point has been proved since the round began; the next pass begins another round. */
  readonly roundEnded: boolean;
  readonly elapsedMs: number;
}

/** A disk that is protected: what it holds now, and its writer. */
interface ProtectedSource {
  readonly disk: string;
  readonly device: Pick<BlockDevice, "description" | "sizeBytes" | "read">;
  status(): { readonly state: string };
}

/** How long a protection is given to end the cycle that it is in. */
const renewalMsMax = 60_000;
const renewalPollMs = 200;

/**
 * A pass in which protected disks are sources of their own. Where one of them has something open that needs to be healed, it is asked to end its
 * session after the cycle that it is in, and a second pass heals it. Errors: see `Scrubber`.
 */
export async function scrubProtected(
  scrubber: Scrubber,
  { renewals }: Pick<VaultContext, "renewals">,
  protections: Iterable<ProtectedSource>,
  options: ScrubOptions,
): Promise<ScrubSummary> {
  const running = [...protections].filter((protection) => protection.status().state !== "stopped");
  const sources = new Map([...running.map(({ disk, device }): [string, Volume] => [disk, volumeOf(device)]), ...(options.sources ?? [])]);
  const open = new Set<string>();
  const onOpen = (disk: string): void => {
    if (running.some((protection) => protection.disk === disk)) open.add(disk);
    options.onOpen?.(disk);
  };
  const first = await scrubber.pass({ ...options, sources, onOpen });
  if (open.size === 0) return first;
  for (const disk of open) renewals.add(disk);
  for (let waitedMs = 0; waitedMs < renewalMsMax && [...open].some((disk) => renewals.has(disk)); waitedMs += renewalPollMs) {
    await delay(renewalPollMs, undefined, { signal: options.signal }).catch(() => undefined);
    throwIfAborted(options.signal);
  }
  const second = await scrubber.pass({ ...options, sources });
  return {
    ...second,
    provedPoints: first.provedPoints + second.provedPoints,
    readBytes: first.readBytes + second.readBytes,
    healed: [...first.healed, ...second.healed],
    elapsedMs: first.elapsedMs + second.elapsedMs,
  };
}

function volumeOf(device: ProtectedSource["device"]): Volume {
  return {
    description: device.description,
    sizeBytes: () => Promise.resolve(device.sizeBytes),
    read: async (offset, into) => {
      await device.read(offset, into);
    },
  };
}

/** How long what has been proved is kept to itself. */
const noteEveryMs = 60_000;

/** Stand for a point's number: what lists points, and what makes frames readable. */
const listsKey = 0;
const framesKey = -1;

interface Candidate {
  readonly disk: string;
  readonly point: PointRecord;
  readonly provedMs: number | null;
}

interface Round {
  readonly places: ProvedPlaces;
  readonly startedMs: number;
  /** Segments whose frames have been looked at, and what was wrong with them, by disk. */
  readonly segments: Set<string>;
  readonly frames: Map<string, readonly Damage[]>;
  storedBytes: number | undefined;
}

/** Ends a pass in the middle of a point. */
class BudgetSpent extends Error {}

export class Scrubber {
  readonly #context: VaultContext;
  #round: Round | undefined;
  /** What is damaged, by disk and point; and what is no point's, see `listsKey` and `framesKey`. */
  readonly #damages = new Map<string, Map<number, readonly Damage[]>>();

  constructor(context: VaultContext) {
    this.#context = context;
  }

  /** One pass; one at a time. Errors: INTERRUPTED and those of the store. */
  async pass(options: ScrubOptions): Promise<ScrubSummary> {
    this.#round ??= { places: new ProvedPlaces(), startedMs: Date.now(), segments: new Set(), frames: new Map(), storedBytes: undefined };
    const pass = new Pass(this.#context, options, this.#round, this.#damages);
    const summary = await pass.run();
    if (summary.roundEnded) this.#round = undefined;
    return summary;
  }
}

class Pass {
  readonly #context: VaultContext;
  readonly #options: ScrubOptions;
  readonly #round: Round;
  readonly #damages: Map<string, Map<number, readonly Damage[]>>;
  readonly #store: Store;
  readonly #prover: PointProver;
  readonly #frames: FrameProver;
  readonly #healed: Damage[] = [];
  /** All points of each disk, oldest first, and the numbers of those that were proved and have not been noted. */
  readonly #points = new Map<string, readonly PointRecord[]>();
  readonly #unnoted = new Map<string, Set<number>>();
  #notedAtMs = performance.now();
  #budgetBytes = Infinity;
  #readBytes = 0;
  #provedPoints = 0;

  constructor(context: VaultContext, options: ScrubOptions, round: Round, damages: Map<string, Map<number, readonly Damage[]>>) {
    const { sources = new Map<string, Volume>(), onNotice = () => undefined, onOpen, signal } = options;
    const store = new Store(context.sink);
    this.#context = context;
    this.#options = options;
    this.#round = round;
    this.#damages = damages;
    this.#store = store;
    const { places } = round;
    const pace = async (bytes: number): Promise<void> => await this.#pace(bytes);
    const healer = new Healer({ context, store, sources, onNotice, onOpen, signal });
    this.#prover = new PointProver({ context, store, purpose: "scrub", places, healer, pace, onNotice, signal });
    this.#frames = new FrameProver({ context, store, vault: context.document.vault, pace, onNotice, onOpen, signal });
  }

  async run(): Promise<ScrubSummary> {
    const startedAt = performance.now();
    const { budgetBytes = Infinity, share } = this.#options;
    this.#budgetBytes = Math.min(budgetBytes, share === undefined ? Infinity : share * (await this.#storedBytes()));
    const roundEnded = await this.#runUntilSpent();
    await this.#note();
    return {
      provedPoints: this.#provedPoints,
      readBytes: this.#readBytes,
      damaged: [...this.#damages.values()].flatMap((points) => [...points.values()].flat()),
      healed: this.#healed,
      roundEnded,
      elapsedMs: Math.round(performance.now() - startedAt),
    };
  }

  /** False: the budget was spent first. */
  async #runUntilSpent(): Promise<boolean> {
    try {
      for (const { disk, point } of await this.#candidates()) {
        throwIfAborted(this.#options.signal);
        await this.#provePoint(disk, point);
        if (performance.now() - this.#notedAtMs > noteEveryMs) await this.#note();
      }
      await this.#proveFrames();
      await sweepQuarantine(this.#store, { signal: this.#options.signal });
      return true;
    } catch (error) {
      if (error instanceof BudgetSpent) return false;
      throw error;
    }
  }

  async #pace(bytes: number): Promise<void> {
    const { bandwidth, signal } = this.#options;
    if (this.#readBytes >= this.#budgetBytes) throw new BudgetSpent();
    this.#readBytes += bytes;
    await bandwidth?.take(bytes, signal);
  }

  /** What is written in all segments; asked once in a round, and good enough for a share. */
  async #storedBytes(): Promise<number> {
    if (this.#round.storedBytes !== undefined) return this.#round.storedBytes;
    const { signal } = this.#options;
    let bytes = 0;
    const segments: string[] = [];
    for await (const { name } of this.#store.list(segmentsPrefix, { signal }))
      if (parseSegmentName(name) !== undefined) segments.push(name);
    for (const segment of segments) {
      try {
        bytes += (await this.#store.statPages(segment, { signal })).writtenBytes;
      } catch (error) {
        if (!isDamage(error)) throw error; // told of by the points that need it
      }
    }
    this.#round.storedBytes = bytes;
    return bytes;
  }

  /** The points that this round has not proved yet: never proved ones first, the newest of them before all, then those that were proved longest ago. */
  async #candidates(): Promise<readonly Candidate[]> {
    const { signal } = this.#options;
    const { vault } = this.#context.document;
    const candidates: Candidate[] = [];
    const disks = await diskNames(this.#store, signal);
    for (const disk of this.#damages.keys()) if (!disks.includes(disk)) this.#damages.delete(disk);
    for (const disk of disks) {
      const lists: Damage[] = [];
      const points: PointRecord[] = [];
      try {
        const { head } = await readHead(this.#store, vault, disk, signal);
        const onDamage = (error: TidemarkError): void => {
          if (!isDamage(error)) throw error;
          lists.push(objectDamage(disk, error));
        };
        for await (const point of readPoints(this.#store, head, { onDamage, signal })) points.push(point);
      } catch (error) {
        if (hasCode(error, "DISK_NOT_FOUND") || !isDamage(error)) throw error;
        lists.push(objectDamage(disk, error));
      }
      this.#points.set(disk, points.toReversed());
      this.#judge(disk, listsKey, lists);
      this.#forgetPruned(disk, points);
      const times = await readProved(this.#store, vault, disk, signal);
      for (const point of points) {
        const provedMs = times.of(point);
        if (provedMs === null || provedMs < this.#round.startedMs) candidates.push({ disk, point, provedMs });
      }
    }
    return candidates.sort((a, b) => (a.provedMs ?? 0) - (b.provedMs ?? 0) || b.point.timeMs - a.point.timeMs);
  }

  async #provePoint(disk: string, point: PointRecord): Promise<void> {
    try {
      const { damages, lost } = await this.#prover.prove(disk, point);
      if (lost !== undefined) return;
      if (!this.#judge(disk, point.sequence, damages)) return;
      this.#provedPoints += 1;
      const unnoted = this.#unnoted.get(disk) ?? new Set();
      this.#unnoted.set(disk, unnoted.add(point.sequence));
    } catch (error) {
      if (!hasCode(error, "POINT_NOT_FOUND")) throw error; // pruned since it was listed
    }
  }

  /** Headers and tables, segment by segment; what stands there is named with the disk that wrote it. */
  async #proveFrames(): Promise<void> {
    const { signal } = this.#options;
    const { frames: found, segments: done } = this.#round;
    const segments: string[] = [];
    for await (const { name } of this.#store.list(segmentsPrefix, { signal }))
      if (parseSegmentName(name) !== undefined) segments.push(name);
    for (const segment of segments) {
      if (done.has(segment)) continue;
      const damages = await this.#frames.damages(segment);
      const [first] = damages;
      if (first !== undefined) found.set(first.disk, [...(found.get(first.disk) ?? []), ...damages]);
      done.add(segment);
    }
    for (const disk of new Set([...this.#damages.keys(), ...found.keys()])) this.#judge(disk, framesKey, found.get(disk) ?? []);
  }

  /** Takes note of what is wrong with a point. Returns whether it is whole now. */
  #judge(disk: string, sequence: number, damages: readonly Damage[]): boolean {
    const points = this.#damages.get(disk) ?? new Map<number, readonly Damage[]>();
    this.#damages.set(disk, points);
    const known = new Set(points.get(sequence)?.map(({ message }) => message));
    for (const damage of damages) {
      if (damage.healed) this.#healed.push(damage);
      if (!known.has(damage.message)) this.#options.onDamage?.(damage);
    }
    const left = damages.filter(({ healed }) => !healed);
    if (left.length > 0) points.set(sequence, left);
    else points.delete(sequence);
    return left.length === 0;
  }

  #forgetPruned(disk: string, points: readonly PointRecord[]): void {
    const known = this.#damages.get(disk);
    if (known === undefined || known.size === 0) return;
    const there = new Set(points.map(({ sequence }) => sequence));
    for (const sequence of known.keys()) if (sequence > 0 && !there.has(sequence)) known.delete(sequence);
  }

  async #note(): Promise<void> {
    for (const [disk, sequences] of this.#unnoted) {
      const place = { vault: this.#context.document.vault, disk };
      try {
        await noteProved(this.#store, place, this.#points.get(disk) ?? [], sequences, Date.now(), this.#options.signal);
      } catch (error) {
        if (!hasCode(error, "ACCESS_REFUSED")) throw error; // who may only read may prove, too
      }
      this.#unnoted.delete(disk);
    }
    this.#notedAtMs = performance.now();
  }
}
