/**
 * Retention of a protected disk: its protection prunes it after a commit, at most once a minute,
 * because each prune rewrites every page of points from which it drops one.
 *
 * The plan is made beside the cycles. Dropping points uses the session's writer lease between two
 * cycles, for about ten requests. A plan that takes longer than a cycle can wait continues, and is
 * used after a later point.
 *
 * Invariant: a prune that fails does not affect the points that are taken. It is repeated a minute
 * later, and is a finding after `failuresTold` failures.
 */
import { setTimeout as delay } from "node:timers/promises";
import { TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import { PageCache } from "../../store/points/history.ts";
import { aheadToldMs } from "../../timing.ts";
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
  /** Different notices, each of which is given once. */
  toldMax: 100,
} as const;

/**
 * A plan, made or being made. It is valid for one session, because after another writer or a store
 * regression sequence numbers may mean other points, and for one policy, because a policy that was
 * replaced must drop nothing.
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
  /** On the steady clock. */
  #nextAtMs = 0;
  /**
   * Sequence number of the newest point at the newest prune. Until there is a newer point, there is
   * nothing to prune.
   */
  #seen = 0;
  #last: (Omit<LastPrune, "ageMs"> & { readonly atMs: number }) | undefined;
  /** Time of the newest point. */
  #newestMs: number | undefined;
  /** By how much this machine's clock is not believed. */
  #clockAheadMs = 0;
  #failuresInRow = 0;
  #failure: TidemarkError | undefined;
  /** Messages of notices given; each is given once, because a damaged page stays so for weeks. */
  readonly #told = new Set<string>();

  constructor(vault: string, options: Pick<ProtectOptions, "disk" | "onEvent">) {
    this.#vault = vault;
    this.#options = options;
  }

  /**
   * Prunes if it is time. False: the prune failed while it used the writer lease, and the session
   * is over. `cycleMs`: time between points. Errors of the store are not thrown.
   */
  async afterPoint(session: Session, policy: RetentionPolicy | undefined, cycleMs: number): Promise<boolean> {
    const isStale = this.#planning?.session !== session || this.#planning.options.policy !== policy;
    if (isStale) await this.abandon();
    this.#newestMs = session.newest?.timeMs;
    this.#clockAheadMs = Date.now() - session.store.nowMs;
    if (policy === undefined || policy.kind === "everything") {
      this.#last = undefined;
      return true;
    }
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

  /** Outcome of the newest prune; null if there was none, or the policy keeps everything. */
  get last(): LastPrune | null {
    if (this.#last === undefined) return null;
    const { atMs, removedPoints, keptPoints, heldPoints } = this.#last;
    return { ageMs: Math.round(performance.now() - atMs), removedPoints, keptPoints, heldPoints };
  }

  /** The finding for prunes that keep failing, or for points dated ahead. */
  get finding(): Finding | undefined {
    const aheadMs = (this.#newestMs ?? 0) - (Date.now() - this.#clockAheadMs);
    if (aheadMs > aheadToldMs) return datedAhead(this.#newestMs ?? 0, aheadMs);
    if (this.#failure === undefined || this.#failuresInRow < timing.failuresTold) return undefined;
    return {
      level: "Warning",
      code: "PRUNE_FAILED",
      cause: `points that the policy does not keep could not be dropped ${String(this.#failuresInRow)} times in a row: ${this.#failure.message}`,
      remedy: this.#failure.remedy ?? "see the log; points are taken as ever, and the vault grows",
    };
  }

  /** Aborts the planning that is under way and waits for its end. */
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
    const onNotice = ({ code, message }: Notice): void => this.#notice(code, message);
    const asked = {
      store: session.store,
      vault: this.#vault,
      policy,
      nowMs: session.store.nowMs,
      cache: this.#cache,
      onNotice,
      signal,
    };
    const options: PlanOptions = { ...asked, groupRetention: new GroupRetention(asked) };
    const plan = planPrune(options, session.head);
    plan.catch(() => undefined); // awaited after a point, or never
    return { session, options, abort, plan };
  }

  async #drop({ session, options }: Planning, plan: PrunePlan): Promise<Omit<LastPrune, "ageMs">> {
    const { removedPoints, keptPoints, heldPoints } = await session.prune(
      async (writerLease) => await dropPlanned(options, plan, writerLease, false),
    );
    const counts = { removedPoints, keptPoints, heldPoints };
    if (removedPoints === 0) return counts;
    const held = heldPoints === 0 ? "" : `, ${String(heldPoints)} of them held by a reader or pinned`;
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

/** Points that were made while a clock was ahead stay until the clock has caught up with them. */
function datedAhead(newestMs: number, aheadMs: number): Finding {
  const until = new Date(newestMs).toISOString();
  return {
    level: "Warning",
    code: "POINTS_DATED_AHEAD",
    cause: `the newest point is dated ${String(Math.round(aheadMs / 3_600_000))} h later than now: points made while a clock was ahead stay until ${until}`,
    remedy:
      "set the clock of this machine right; if it is right, nothing needs to be done: retention goes by the clock",
  };
}

/** The value of `work`, or undefined when it takes longer than `waitMs`. */
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
