/**
 * A protected disk prunes itself: after a point has been committed, and at most once a minute,
 * because a page is written anew for each prune that takes a point from it, however few.
 *
 * What goes is found out beside the cycles; only to drop it the seat is borrowed between two of
 * them, for about ten requests. Planning that takes longer than a cycle can wait is left to go on,
 * and its outcome is used after a later point. A prune that fails changes nothing about the points
 * that are taken: it is tried again a minute later, and said to fail when that goes on.
 */
import { setTimeout as delay } from "node:timers/promises";
import { TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import { PageCache } from "../../store/points/history.ts";
import { GroupRetention } from "../../upkeep/prune/group-retention.ts";
import { dropPlanned } from "../../upkeep/prune/prune.ts";
import type { PlanOptions, PrunePlan } from "../../upkeep/prune/prune-plan.ts";
import { planPrune } from "../../upkeep/prune/prune-plan.ts";
import type { RetentionPolicy } from "../../upkeep/retention/policy.ts";
import type { Session } from "../session.ts";
import type { Finding } from "./health.ts";
import type { LastPrune, ProtectOptions } from "./protection-status.ts";

const timing = {
  everyMs: 60_000,
  /** A cycle waits for this part of its length for the plan, within these bounds. */
  patience: 0.2,
  patienceMsMin: 200,
  patienceMsMax: 30_000,
  failuresTold: 3,
  /**
   * Clocks are set by some minutes now and then; points that are so far ahead of theirs stay for so
   * long.
   */
  aheadToldMs: 3_600_000,
  /** Different notices, each of which is given once. */
  toldMax: 100,
} as const;

/**
 * A plan that is being made, or has been. It holds for one session, because after another writer,
 * or a store that went back, numbers may mean other points; and for one policy, because what a user
 * has taken back drops nothing.
 */
interface Planning {
  readonly session: Session;
  readonly options: PlanOptions;
  readonly abort: AbortController;
  readonly plan: Promise<PrunePlan>;
}

export class SelfPrune {
  readonly #vault: string;
  readonly #options: Pick<ProtectOptions, "disk" | "onEvent">;
  readonly #cache = new PageCache();
  #planning: Planning | undefined;
  /** By a clock that cannot be set. */
  #nextAtMs = 0;
  /**
   * The newest point when it was last looked what goes. While there is no newer one, nothing more
   * goes.
   */
  #seen = 0;
  #last: (Omit<LastPrune, "ageMs"> & { readonly atMs: number }) | undefined;
  /** Time of the newest point, where a policy counts ages from it. */
  #newestMs: number | undefined;
  #failuresInRow = 0;
  #failure: TidemarkError | undefined;
  /** What was said is said once: a page that is damaged stays so for weeks. */
  readonly #told = new Set<string>();

  constructor(vault: string, options: Pick<ProtectOptions, "disk" | "onEvent">) {
    this.#vault = vault;
    this.#options = options;
  }

  /**
   * Prunes when it is time. False: it failed with the seat in hand, and the session is over.
   * `cycleMs`: how far points are apart. What the store answers is no error here.
   */
  async afterPoint(session: Session, policy: RetentionPolicy | undefined, cycleMs: number): Promise<boolean> {
    const isStale = this.#planning?.session !== session || this.#planning.options.policy !== policy;
    if (isStale) await this.abandon();
    if (policy === undefined || policy.kind === "everything") {
      this.#last = undefined;
      this.#newestMs = undefined;
      return true;
    }
    this.#newestMs = session.newest?.timeMs;
    const newest = session.newest?.sequence ?? 0;
    if (this.#planning === undefined && (performance.now() < this.#nextAtMs || newest === this.#seen)) return true;
    const planning = (this.#planning ??= this.#begin(session, policy));
    let isLeaseLent = false;
    try {
      const plan = await within(
        planning.plan,
        Math.min(timing.patienceMsMax, Math.max(timing.patienceMsMin, cycleMs * timing.patience)),
      );
      if (plan === undefined) return true;
      isLeaseLent = plan.toDrop.length > 0;
      const counts = isLeaseLent
        ? await this.#drop(planning, plan)
        : { removedPoints: 0, keptPoints: plan.points.length, heldPoints: 0 };
      this.#last = { ...counts, atMs: performance.now() };
      this.#over(newest);
      this.#failuresInRow = 0;
      this.#failure = undefined;
      return true;
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      this.#over(0);
      if (error.code !== "INTERRUPTED") this.#failed(error);
      return !isLeaseLent;
    }
  }

  /** What the last prune came to; null when there was none, or the policy keeps everything. */
  get last(): LastPrune | null {
    if (this.#last === undefined) return null;
    const { atMs, removedPoints, keptPoints, heldPoints } = this.#last;
    return { ageMs: Math.round(performance.now() - atMs), removedPoints, keptPoints, heldPoints };
  }

  /** What is wrong with it, when that goes on. */
  get finding(): Finding | undefined {
    const aheadMs = (this.#newestMs ?? 0) - Date.now();
    if (aheadMs > timing.aheadToldMs) return datedAhead(this.#newestMs ?? 0, aheadMs);
    if (this.#failure === undefined || this.#failuresInRow < timing.failuresTold) return undefined;
    return {
      level: "Warning",
      code: "PRUNE_FAILED",
      cause: `points that the policy does not keep could not be dropped ${String(this.#failuresInRow)} times in a row: ${this.#failure.message}`,
      remedy: this.#failure.remedy ?? "see the log; points are taken as ever, and the vault grows",
    };
  }

  /** Ends the planning that is under way. Waits. */
  async abandon(): Promise<void> {
    const planning = this.#planning;
    if (planning === undefined) return;
    this.#planning = undefined;
    planning.abort.abort();
    await Promise.allSettled([planning.plan]);
  }

  #begin(session: Session, policy: RetentionPolicy): Planning {
    const abort = new AbortController();
    const signal = AbortSignal.any([abort.signal, session.signal]);
    const onNotice = ({ code, message }: Notice): void => {
      this.#notice(code, message);
    };
    const asked = {
      store: session.store,
      vault: this.#vault,
      policy,
      nowMs: Date.now(),
      cache: this.#cache,
      onNotice,
      signal,
    };
    const options: PlanOptions = { ...asked, groupRetention: new GroupRetention(asked) };
    const plan = planPrune(options, session.head);
    plan.catch(() => undefined); // heard of after a point, or not at all
    return { session, options, abort, plan };
  }

  async #drop({ session, options }: Planning, plan: PrunePlan): Promise<Omit<LastPrune, "ageMs">> {
    const { removedPoints, keptPoints, heldPoints } = await session.prune(
      async (writerLease) => await dropPlanned(options, plan, writerLease, false),
    );
    const counts = { removedPoints, keptPoints, heldPoints };
    if (removedPoints === 0) return counts;
    const held = heldPoints === 0 ? "" : `, ${String(heldPoints)} of them because somebody reads or has pinned them`;
    const message = `${String(removedPoints)} points pruned, ${String(keptPoints)} left${held}`;
    this.#options.onEvent?.({ kind: "prune", disk: this.#options.disk, ...counts, message });
    return counts;
  }

  #failed(error: TidemarkError): void {
    this.#failure = error;
    this.#failuresInRow += 1;
    // One notice for a row of failures: the finding tells that they go on.
    if (this.#failuresInRow === 1)
      this.#emitNotice("PRUNE_FAILED", `${error.message}; the points that are too old are pruned later`);
  }

  #notice(code: Notice["code"], message: string): void {
    if (this.#told.has(message) || this.#told.size >= timing.toldMax) return;
    this.#told.add(message);
    this.#emitNotice(code, message);
  }

  #emitNotice(code: Notice["code"], message: string): void {
    this.#options.onEvent?.({ kind: "notice", disk: this.#options.disk, code, message });
  }

  #over(seen: number): void {
    this.#planning = undefined;
    this.#seen = seen;
    this.#nextAtMs = performance.now() + timing.everyMs;
  }
}

/**
 * A clock that was ahead for a moment, and has been set right, keeps the points of all the time
 * between.
 */
function datedAhead(newestMs: number, aheadMs: number): Finding {
  const until = new Date(newestMs).toISOString();
  return {
    level: "Warning",
    code: "POINTS_DATED_AHEAD",
    cause: `the newest point is dated ${String(Math.round(aheadMs / 3_600_000))} h later than now, so every point stays until ${until}, and the vault grows`,
    remedy:
      "set the clock of this machine right; if it is, it was ahead when points were taken: wait, or protect the disk under another name",
  };
}

/** What `work` gives, or undefined when it takes longer. */
async function within<Result>(work: Promise<Result>, waitMs: number): Promise<Result | undefined> {
  const over = new AbortController();
  const late = delay(waitMs, undefined, { signal: over.signal }).catch(() => undefined);
  try {
    return await Promise.race([work, late]);
  } finally {
    over.abort();
    await late;
  }
}
