/**
 * Prune: drops the points that a retention policy does not keep, from the head and its pages.
 * Manifests name complete runs, so nothing else changes and no data moves; a garbage collection
 * frees what no point refers to any more.
 *
 *     plan (no lease, no writes) ─► writer lease ─► plan again from the head ─► condemn ─► look for holds and pins ─► swap head ─► clear condemned
 *
 * `store/points/prune-fence.ts` says why the order of the last four loses no point that a reader
 * holds.
 *
 * Invariant: an interrupted prune has dropped all of its points or none; the next prune goes on.
 */

import assert from "node:assert/strict";
import { watchedStore } from "../../disk/source/head-watch.ts";
import { hasCode, isUnreadable, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { NoticeOptions } from "../../notice.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { condemnedRangesMax } from "../../store/format/keeping.ts";
import { condemnedName, vaultName } from "../../store/format/names.ts";
import { readDisk } from "../../store/points/head.ts";
import { PageCache } from "../../store/points/history.ts";
import { removeIdleLabels } from "../../store/points/labels.ts";
import { proveObjects, proveVault } from "../../store/points/manifest.ts";
import { deletePin } from "../../store/points/pins.ts";
import { diskNames } from "../../store/points/points.ts";
import { clearCondemned, putCondemned, rangesOf } from "../../store/points/prune-fence.ts";
import { WriterLease } from "../../store/points/writer-lease.ts";
import { storeRegressed } from "../../store/store.ts";
import type { Consistency } from "../../volume.ts";
import type { LiveSetOptions } from "../collection/live-set.ts";
import { bytesFreed } from "../collection/live-set.ts";
import type { Decision } from "../retention/decide.ts";
import type { RetentionPolicy } from "../retention/policy.ts";
import { heldPointsOf, reasonOf } from "./group-holds.ts";
import { GroupRetention } from "./group-retention.ts";
import type { PlanOptions, PrunePlan } from "./prune-plan.ts";
import { planPrune } from "./prune-plan.ts";

/**
 * Points that are condemned together: their list fits into its document, whatever their numbers
 * are.
 */
const condemnedPointsMax: number = condemnedRangesMax;

/** A prune is started again when the store went back in time: how often in all. */
const attemptsMax = 4;

/** How `Vault.prune` works. */
export interface PruneOptions extends NoticeOptions {
  /** Absent: every disk. */
  readonly disk?: string | undefined;
  readonly policy: RetentionPolicy;
  /** Decide, and change nothing. */
  readonly dryRun?: boolean | undefined;
  /** Of a dry run: leave `freedBytes` null; computing it reads every map of the vault. */
  readonly withoutFreedBytes?: boolean | undefined;
  /** The time by which ages are counted, in ms since 1970. Default: now. */
  readonly nowMs?: number | undefined;
  /** Called with each decision, oldest point first, disk by disk. */
  readonly onDecision?: ((decision: PointDecision) => void) | undefined;
}

/** What a prune decides about one point. */
export interface PointDecision {
  readonly disk: string;
  readonly sequence: number;
  /** Id of the point. */
  readonly point: string;
  /** Of the cut, ISO 8601 in UTC. */
  readonly time: string;
  readonly consistency: Consistency;
  /** Bytes that its cycle stored. */
  readonly storedBytes: number;
  readonly keep: boolean;
  /** The rules that decided, in a few words each. */
  readonly reasons: readonly string[];
}

/** What was dropped, or would be in a dry run. */
export interface PruneCounts {
  readonly removedPoints: number;
  /** Points that are left, as far as they can be read. */
  readonly keptPoints: number;
  /** Of these, points that only a reader or a new pin keeps. */
  readonly heldPoints: number;
  /**
   * Bytes that the cycles of the removed points stored. A garbage collection frees the part that no
   * other point needs.
   */
  readonly removedStoredBytes: number;
}

/** The outcome of a prune. */
export interface PruneSummary extends PruneCounts {
  readonly dryRun: boolean;
  /** Of a dry run: bytes that a garbage collection would then free; null: not known. */
  readonly freedBytes: number | null;
  readonly disks: readonly (PruneCounts & { readonly disk: string })[];
  /** Disks that another writer holds, or whose points cannot be read: nothing was dropped there. */
  readonly skippedDisks: number;
  readonly requests: number;
  readonly elapsedMs: number;
}

/**
 * Prunes one disk, or all. Of all disks, one that is being written is left out with a notice: its
 * agent prunes it.
 *
 * @throws `DISK_NOT_FOUND`, `WRITER_ACTIVE`, `SEAT_LOST`, `STORE_REGRESSED`, `INTERRUPTED`, and the
 * errors of the store.
 */
export async function prune(context: VaultContext, options: PruneOptions): Promise<PruneSummary> {
  const startedAt = performance.now();
  const { signal, dryRun = false, withoutFreedBytes = false } = options;
  const onNotice = options.onNotice ?? (() => undefined);
  const store = watchedStore(context, onNotice);
  const { vault } = context.document;
  const asked = {
    store,
    vault,
    policy: options.policy,
    nowMs: options.nowMs ?? store.nowMs,
    cache: new PageCache(),
    onNotice,
    signal,
  };
  const planning: PlanOptions = { ...asked, groupRetention: new GroupRetention(asked) };
  const names = options.disk === undefined ? await diskNames(store, signal) : [options.disk.normalize("NFC")];
  let skippedDisks = 0;
  /** A disk that cannot be pruned does not keep the others from it. */
  const orSkip = async <Result>(disk: string, work: Promise<Result>): Promise<Result | undefined> => {
    try {
      return await work;
    } catch (error) {
      if (options.disk === undefined && hasCode(error, "DISK_NOT_FOUND")) return undefined; // it has no points
      if (options.disk !== undefined || !hasCode(error, "WRITER_ACTIVE", "DAMAGED", "FORMAT_UNSUPPORTED")) throw error;
      skippedDisks += 1;
      onNotice({ code: "DISK_SKIPPED", message: `disk ${JSON.stringify(disk)} is not pruned: ${error.message}` });
      return undefined;
    }
  };
  // Everything is decided before anything is dropped: a group's points go on all of its disks or on
  // none.
  const plans: (PrunePlan & { readonly heldPoints: number })[] = [];
  for (const disk of names) {
    throwIfAborted(signal);
    const planned = readDisk(store, vault, disk, signal).then(async (head) => {
      const plan = await planPrune(planning, head);
      return dryRun ? await foresee(planning, plan) : { ...plan, heldPoints: 0 };
    });
    const plan = await orSkip(disk, planned);
    if (plan === undefined) continue;
    plans.push(plan);
    if (options.onDecision !== undefined) tell(plan, options.onDecision);
  }
  const disks: (PruneCounts & { readonly disk: string })[] = [];
  for (const plan of plans) {
    const counts = dryRun ? countsOf(plan) : await orSkip(plan.disk, pruneDisk(planning, plan));
    if (counts !== undefined) disks.push({ disk: plan.disk, ...counts });
  }
  const sum = (field: keyof PruneCounts): number => disks.reduce((total, counts) => total + counts[field], 0);
  return {
    dryRun,
    freedBytes: dryRun && !withoutFreedBytes ? await foreseeBytes({ store, vault, signal }, plans) : null,
    removedPoints: sum("removedPoints"),
    keptPoints: sum("keptPoints"),
    heldPoints: sum("heldPoints"),
    removedStoredBytes: sum("removedStoredBytes"),
    disks,
    skippedDisks,
    requests: store.requests,
    elapsedMs: Math.round(performance.now() - startedAt),
  };
}

/**
 * Drops what a plan drops, under the writer lease. After an error it is not known whether the head
 * has been swapped: release the lease then, which makes sure that it never will be. `leave`
 * releases the lease with the last swap.
 *
 * @throws `SEAT_LOST`, `STORE_REGRESSED`, `INTERRUPTED`, and the errors of the store.
 */
export async function dropPlanned(
  options: PlanOptions,
  plan: PrunePlan,
  writerLease: WriterLease,
  leave: boolean,
): Promise<PruneCounts> {
  const { store, vault, cache, signal } = options;
  const { disk, toDrop } = plan;
  let removedPoints = 0;
  let removedStoredBytes = 0;
  let heldPoints = 0;
  const gone = new Set<number>();
  for (let from = 0; from < toDrop.length; from += condemnedPointsMax) {
    throwIfAborted(signal);
    const condemned = toDrop.slice(from, from + condemnedPointsMax);
    const isLast = from + condemnedPointsMax >= toDrop.length;
    const document = {
      vault,
      disk,
      epoch: writerLease.epoch,
      ranges: rangesOf(condemned.map(({ sequence }) => sequence)),
    };
    const etag = await putCondemned(store, document, signal);
    const kept = await heldPointsOf(options, plan, condemned, { clear: true });
    const dropped = condemned.filter((point) => !kept.has(point));
    heldPoints += kept.size;
    if (dropped.length > 0) {
      const prove = async (written: ReadonlyMap<string, string>): Promise<void> => {
        await proveObjects(store, new Map([...written, [condemnedName(disk), etag]]), signal);
        await proveVault(store, vault, signal);
      };
      const sequences = dropped.map(({ sequence }) => sequence);
      for (const sequence of sequences) gone.add(sequence);
      removedPoints += await writerLease.drop(sequences, { leave: leave && isLast, prove, cache, signal });
      removedStoredBytes += dropped.reduce((total, { storedBytes }) => total + storedBytes, 0);
    }
    try {
      await clearCondemned(store, document, etag);
    } catch (error) {
      // Releasing the lease makes the list void for every client that reads it.
      if (!leave || !(error instanceof TidemarkError)) throw error;
    }
  }
  for (const pin of plan.idlePins) await deletePin(store, pin, signal);
  if (gone.size > 0) await removeIdleLabels({ ...plan, store, isDropped: (sequence) => gone.has(sequence), signal });
  return { removedPoints, keptPoints: plan.points.length - removedPoints, heldPoints, removedStoredBytes };
}

async function pruneDisk(options: PlanOptions, first: PrunePlan): Promise<PruneCounts> {
  const { disk, toDrop, points } = first;
  if (toDrop.length === 0) return { removedPoints: 0, keptPoints: points.length, heldPoints: 0, removedStoredBytes: 0 };
  return await repeated(options, `the prune of disk ${JSON.stringify(disk)}`, async () => {
    try {
      return await pruneUnderLease(options, disk);
    } catch (error) {
      throw hasCode(error, "OBJECT_EXISTS") ? forgotten(disk, error) : error;
    }
  });
}

/** Runs `work`, and again when the store went back in time meanwhile. `what` names it in a notice. */
export async function repeated<Result>(
  { onNotice }: Pick<PlanOptions, "onNotice">,
  what: string,
  work: () => Promise<Result>,
): Promise<Result> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await work();
    } catch (error) {
      const mayTryAgain =
        hasCode(error, "STORE_REGRESSED") && error.detail["object"] !== vaultName && attempt < attemptsMax;
      if (!mayTryAgain) throw error;
      onNotice({ code: "STORE_REGRESSED", message: `${error.message}; ${what} starts again` });
    }
  }
}

async function pruneUnderLease(options: PlanOptions, disk: string): Promise<PruneCounts> {
  const { store, vault, onNotice, signal } = options;
  const writerLease = await WriterLease.take({ store, vault, disk, onNotice, signal }).catch((error: unknown) => {
    throw hasCode(error, "WRITER_ACTIVE") ? agentPrunes(error) : error;
  });
  try {
    return await dropPlanned(options, await planPrune(options, writerLease.head), writerLease, true);
  } finally {
    await writerLease.release();
  }
}

/** The plan as it would be carried out if holds and pins stay as they are. */
async function foresee(options: PlanOptions, plan: PrunePlan): Promise<PrunePlan & { readonly heldPoints: number }> {
  const kept = await heldPointsOf(options, plan, plan.toDrop, { clear: false });
  const decisions = plan.decisions.map((decision, index): Decision => {
    const point = plan.points[index];
    const keeper = point === undefined ? undefined : kept.get(point);
    return keeper === undefined ? decision : { ...decision, keep: true, reasons: [reasonOf(keeper, plan.disk)] };
  });
  return { ...plan, decisions, toDrop: plan.toDrop.filter((point) => !kept.has(point)), heldPoints: kept.size };
}

function countsOf({ points, toDrop, heldPoints }: PrunePlan & { readonly heldPoints: number }): PruneCounts {
  return {
    removedPoints: toDrop.length,
    keptPoints: points.length - toDrop.length,
    heldPoints,
    removedStoredBytes: toDrop.reduce((total, { storedBytes }) => total + storedBytes, 0),
  };
}

/**
 * Bytes that a collection would free once the planned points have gone. Null when something of the
 * vault cannot be read.
 */
export async function foreseeBytes(
  options: LiveSetOptions,
  plans: readonly Pick<PrunePlan, "disk" | "toDrop">[],
): Promise<number | null> {
  const dropped = new Map(plans.map(({ disk, toDrop }) => [disk, new Set(toDrop.map(({ sequence }) => sequence))]));
  if (plans.every(({ toDrop }) => toDrop.length === 0)) return 0;
  try {
    return await bytesFreed({ ...options, isDropped: (disk, sequence) => dropped.get(disk)?.has(sequence) === true });
  } catch (error) {
    if (isUnreadable(error)) return null;
    throw error;
  }
}

function tell({ disk, points, decisions }: PrunePlan, onDecision: (decision: PointDecision) => void): void {
  for (const [index, { sequence, id, timeMs, consistency, storedBytes }] of points.entries()) {
    const decision: Decision | undefined = decisions[index];
    assert(decision?.sequence === sequence, "there is a decision for each point, in their order");
    const { keep, reasons } = decision;
    onDecision({
      disk,
      sequence,
      point: id,
      time: new Date(timeMs).toISOString(),
      consistency,
      storedBytes,
      keep,
      reasons,
    });
  }
}

/**
 * A page's name holds the epoch. If the name is taken, another writer had this epoch, and the store
 * has forgotten its head.
 */
function forgotten(disk: string, cause: TidemarkError): TidemarkError {
  return storeRegressed(
    String(cause.detail["object"]),
    `the store went back in time: it has forgotten the last writer of disk ${JSON.stringify(disk)}`,
    { remedy: "run `tidemark prune` again", cause },
  );
}

function agentPrunes(cause: TidemarkError): TidemarkError {
  return new TidemarkError("WRITER_ACTIVE", cause.message, {
    remedy:
      "set `recoveryPointRetention` in the configuration of the agent that protects the disk, or run `tidemark prune` when the writer has ended",
    detail: cause.detail,
    cause,
  });
}
