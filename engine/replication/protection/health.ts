/**
 * Health rules: what is wrong with a protected disk, its cause, and the remedy. A pure function of
 * the measures and the policy, so that every rule is read and tested in one place.
 *
 * | code | Warning | Critical |
 * |---|---|---|
 * | PROTECTION_FAILED | | the disk is not protected: something has ended it |
 * | WRITER_ACTIVE, SEAT_LOST | | another writer has the disk |
 * | NO_RECENT_POINT | | no point for 60 min (Azure Site Recovery 153007) |
 * | LAG_ABOVE_THRESHOLD | lag > recoveryPointThreshold | lag > twice that |
 * | POINT_OVERDUE | lag > 3 × crashConsistentFrequency, and 15 s, while changes wait | |
 * | STORE_UNREACHABLE | at once | after 15 min (Azure Site Recovery: missing heartbeat) |
 * | NO_SPACE | old content cannot be kept | changes cannot be tracked |
 * | BACKLOG_SLOW | not uploaded within 30 min | not within 45 min (as in Azure Site Recovery) |
 * | CHURN_ABOVE_UPLOAD | for 5 min | |
 * | CUT_TIMED_OUT | 3 in a row | 10 in a row |
 * | CUT_ABANDONED | once | 3 in a row |
 * | TRACKING_LOST | until the next point | |
 * | STORE_REGRESSED | for an hour | |
 * | HOOK_FAILED | the last attempt | 3 in a row |
 * | PAUSED | always | |
 *
 * The rules that compare rates hold only while a point is overdue, that is later than its frequency
 * and the minute over which rates are measured: a disk that is just beginning to ship has a backlog
 * and no rate yet, and one with a frequency of hours has a backlog by intent. A pause mutes what
 * follows from it (lag, backlog, churn, store), but not NO_RECENT_POINT: a forgotten pause
 * must show.
 *
 * POINT_OVERDUE is the first sign of a store that has fallen silent, while requests to it are still
 * being repeated. It holds in state `protecting` only: in every other one no point is due each
 * cycle (an initial replication, a comparison, a pause) or another finding tells why there is none.
 */
import { shellWord } from "../../shell-word.ts";
import type { ProtectionState } from "./protection-state.ts";

/**
 * Thresholds of the rules. Times in ms; `InARow` counts failures without a success between them.
 */
export const healthLimits = {
  noPointCriticalMs: 3_600_000,
  /** Critical is above this multiple of the threshold. */
  lagCriticalFactor: 2,
  /**
   * Overdue is a point after this many cycles without one, and not before the time below: a short
   * cycle may be missed once.
   */
  overdueCycles: 3,
  overdueMsMin: 15_000,
  storeUnreachableCriticalMs: 900_000,
  backlogWarningMs: 1_800_000,
  backlogCriticalMs: 2_700_000,
  churnWarningMs: 300_000,
  /** Over this time rates are measured (see `Meter`). */
  rateWindowMs: 60_000,
  cutTimeoutsWarningInARow: 3,
  cutTimeoutsCriticalInARow: 10,
  cutsAbandonedCriticalInARow: 3,
  hookFailuresCriticalInARow: 3,
  regressedToldMs: 3_600_000,
} as const;

/**
 * What is measured of one disk. Ages and spells in ms, on a clock that cannot be set; null: it is
 * not so.
 */
export interface HealthMeasures {
  readonly disk: string;
  readonly state: ProtectionState;
  /** How long protection has run. Stands in for the lag before the first point. */
  readonly runningMs: number;
  readonly committedLagMs: number | null;
  /** How long the store has failed to answer, and its last word. */
  readonly storeUnreachable: {
    readonly forMs: number;
    readonly message: string;
    /** Of a store that answers, and refuses what it takes to make a point. */
    readonly remedy?: string | undefined;
  } | null;
  readonly cutTimeoutsInARow: number;
  readonly cutsAbandonedInARow: number;
  /**
   * Failed attempts at an application-consistent point since the last that succeeded, and why the
   * last one failed.
   */
  readonly hook: { readonly failuresInARow: number; readonly reason: string } | null;
  /** Why it is not known what changed, until a point has been made of the comparison. */
  readonly trackingLost: string | null;
  /** Since when it is known that the store has lost points, and which. */
  readonly regressed: { readonly forMs: number; readonly message: string } | null;
  /**
   * The other writer of the disk: it refused the writer lease at the start, or took it over.
   */
  readonly writerLease: { readonly code: "WRITER_ACTIVE" | "SEAT_LOST"; readonly message: string } | null;
  /** Local folders that are full. */
  readonly full: { readonly tracking: string | null; readonly spill: string | null };
  readonly backlogBytes: number;
  readonly uploadBytesPerSecond: number;
  readonly churnBytesPerSecond: number;
  /** How long churn has been above the upload rate. */
  readonly churnAboveUploadMs: number | null;
  readonly pausedMs: number | null;
  /** What ended protection, in state `failed`. */
  readonly failure: { readonly message: string; readonly remedy: string | undefined } | null;
}

export interface HealthPolicy {
  readonly crashConsistentFrequencyMs: number;
  readonly recoveryPointThresholdMs?: number | undefined;
}

/** Everything that is wrong, the worst first; in the order of the table above among equals. */
export function assessHealth(measures: HealthMeasures, policy: HealthPolicy): readonly Finding[] {
  const found = rules.map((rule) => rule(measures, policy)).filter((finding) => finding !== undefined);
  return found.sort((a, b) => severity[b.level] - severity[a.level]);
}

/** The worst level among findings; `Normal` when there are none. */
export function healthOf(findings: readonly Finding[]): HealthLevel {
  return findings.reduce<HealthLevel>(
    (worst, { level }) => (severity[level] > severity[worst] ? level : worst),
    "Normal",
  );
}

const severity: Readonly<Record<HealthLevel, number>> = { Normal: 0, Warning: 1, Critical: 2 };

type Rule = (measures: HealthMeasures, policy: HealthPolicy) => Finding | undefined;

const rules: readonly Rule[] = [
  function failed({ state, failure }) {
    if (state !== "failed") return undefined;
    return {
      level: "Critical",
      code: "PROTECTION_FAILED",
      cause: `the disk is not protected: ${failure?.message ?? "its protection has ended"}`,
      remedy: failure?.remedy ?? "mend what the message names; the disk is then protected again",
    };
  },

  function writerLease({ writerLease: lost }) {
    if (lost === null) return undefined;
    const remedy = "stop the other writer of this disk, or protect this one under another name";
    return { level: "Critical", code: lost.code, cause: lost.message, remedy };
  },

  function noPoint(measures) {
    const lagMs = lagOf(measures);
    if (!pointsAreDue(measures) || lagMs <= healthLimits.noPointCriticalMs) return undefined;
    const cause =
      measures.committedLagMs === null
        ? `there is no point after ${minutes(lagMs)}`
        : `the newest point is ${minutes(lagMs)} old`;
    return {
      level: "Critical",
      code: "NO_RECENT_POINT",
      cause,
      remedy: "see the other findings and the log for what holds points up",
    };
  },

  function lag(measures, { recoveryPointThresholdMs: thresholdMs }) {
    const lagMs = lagOf(measures);
    if (thresholdMs === undefined || !pointsAreDue(measures) || measures.pausedMs !== null || lagMs <= thresholdMs)
      return undefined;
    return {
      level: lagMs > thresholdMs * healthLimits.lagCriticalFactor ? "Critical" : "Warning",
      code: "LAG_ABOVE_THRESHOLD",
      cause: `what the vault does not hold yet goes back ${minutes(lagMs)}; recoveryPointThreshold is ${minutes(thresholdMs)}`,
      remedy: "see the other findings for what holds points up; else give more bandwidth or raise the threshold",
    };
  },

  function overdue(
    { state, committedLagMs: lagMs, backlogBytes },
    { crashConsistentFrequencyMs: cycleMs, recoveryPointThresholdMs },
  ) {
    if (state !== "protecting" || lagMs === null || backlogBytes === 0) return undefined;
    if (lagMs <= Math.max(cycleMs * healthLimits.overdueCycles, healthLimits.overdueMsMin)) return undefined;
    if (lagMs > (recoveryPointThresholdMs ?? Infinity)) return undefined; // told above
    return {
      level: "Warning",
      code: "POINT_OVERDUE",
      cause: `what the vault does not hold yet goes back ${minutes(lagMs)}, and a point is due every ${minutes(cycleMs)}`,
      remedy:
        "check that the store answers and that the upload keeps up with what is written; changes are tracked and shipped meanwhile",
    };
  },

  function store({ storeUnreachable: outage, pausedMs }) {
    if (outage === null || pausedMs !== null) return undefined;
    const { forMs, message, remedy } = outage;
    const [fact, first] =
      remedy === undefined
        ? ["the store has not answered", "check the network, the proxy and the store"]
        : ["the vault has not taken a point", remedy];
    return {
      level: forMs > healthLimits.storeUnreachableCriticalMs ? "Critical" : "Warning",
      code: "STORE_UNREACHABLE",
      cause: `${fact} for ${minutes(forMs)}: ${message}`,
      remedy: `${first}; changes are tracked meanwhile and shipped ${remedy === undefined ? "when it answers" : "then"}`,
    };
  },

  function space({ full: { tracking, spill } }) {
    const folder = tracking ?? spill;
    if (folder === null) return undefined;
    const code = "NO_SPACE";
    const remedy = "free space there, or move the state folder to a larger disk";
    if (tracking !== null)
      return { level: "Critical", code, cause: `there is no space left for the tracking file in ${folder}`, remedy };
    return {
      level: "Warning",
      code,
      cause: `there is no space left in ${folder} for old content that an open cut still needs`,
      remedy,
    };
  },

  function backlog(measures, policy) {
    const { backlogBytes, uploadBytesPerSecond } = measures;
    if (!isOverdue(measures, policy) || backlogBytes === 0) return undefined;
    const neededMs = uploadBytesPerSecond === 0 ? Infinity : (backlogBytes / uploadBytesPerSecond) * 1000;
    if (neededMs <= healthLimits.backlogWarningMs) return undefined;
    const pace =
      neededMs === Infinity ? "nothing is being uploaded" : `at the present rate that takes ${minutes(neededMs)}`;
    return {
      level: neededMs > healthLimits.backlogCriticalMs ? "Critical" : "Warning",
      code: "BACKLOG_SLOW",
      cause: `${mebibytes(backlogBytes)} wait to be uploaded, and ${pace}`,
      remedy: "give more bandwidth: raise or lift the limit, or find what slows the connection down",
    };
  },

  function churn(measures, policy) {
    const { churnAboveUploadMs: spellMs, churnBytesPerSecond, uploadBytesPerSecond } = measures;
    if (spellMs === null || spellMs < healthLimits.churnWarningMs || !isOverdue(measures, policy)) return undefined;
    const rates = `${mebibytes(churnBytesPerSecond)}/s written, ${mebibytes(uploadBytesPerSecond)}/s uploaded`;
    return {
      level: "Warning",
      code: "CHURN_ABOVE_UPLOAD",
      cause: `the disk has changed faster than it is uploaded for ${minutes(spellMs)} (${rates})`,
      remedy:
        "give more bandwidth, or move what is written and need not be protected (swap, caches, temporary files) to another disk",
    };
  },

  function cutTimeouts({ cutTimeoutsInARow: count }) {
    if (count < healthLimits.cutTimeoutsWarningInARow) return undefined;
    return {
      level: count >= healthLimits.cutTimeoutsCriticalInARow ? "Critical" : "Warning",
      code: "CUT_TIMED_OUT",
      cause: `the last ${count} cuts were given up, because writes under way did not end in time`,
      remedy: "find out why the disk under the image is slow; or allow a longer barrier",
    };
  },

  function cutsAbandoned({ cutsAbandonedInARow: count }) {
    if (count === 0) return undefined;
    return {
      level: count >= healthLimits.cutsAbandonedCriticalInARow ? "Critical" : "Warning",
      code: "CUT_ABANDONED",
      cause: `old content of the last ${count === 1 ? "cut" : `${count} cuts`} could not be kept`,
      remedy: "give more room for preserved content, or more bandwidth so that a cut is captured sooner",
    };
  },

  function tracking({ trackingLost: reason }) {
    if (reason === null) return undefined;
    return {
      level: "Warning",
      code: "TRACKING_LOST",
      cause: `it was not known what had changed (${reason}), so the disk is compared with the vault`,
      remedy: "nothing needs to be done: earlier points stay readable, and the next one ends the comparison",
    };
  },

  function storeRegressed({ regressed }) {
    if (regressed === null || regressed.forMs > healthLimits.regressedToldMs) return undefined;
    return {
      level: "Warning",
      code: "STORE_REGRESSED",
      cause: regressed.message,
      remedy:
        "find out what put the store back: a killed server, a restored folder, or another user who may write to it",
    };
  },

  function hooks({ hook }) {
    if (hook === null || hook.failuresInARow === 0) return undefined;
    return {
      level: hook.failuresInARow >= healthLimits.hookFailuresCriticalInARow ? "Critical" : "Warning",
      code: "HOOK_FAILED",
      cause: `no application-consistent point in the last ${hook.failuresInARow === 1 ? "attempt" : `${hook.failuresInARow} attempts`}: ${hook.reason}`,
      remedy: "run the pre and post commands by hand; the point's record holds what they printed",
    };
  },

  function paused({ pausedMs, disk }) {
    if (pausedMs === null) return undefined;
    const cause = `the disk has been paused for ${minutes(pausedMs)}; changes are tracked, but no point is made`;
    const remedy = `resume it: \`tidemark agent resume --disk ${shellWord(disk)}\``;
    return { level: "Warning", code: "PAUSED", cause, remedy };
  },
];

/**
 * How much would be lost: the age of the newest point, or of the protection while there is none.
 */
function lagOf({ committedLagMs, runningMs }: HealthMeasures): number {
  return committedLagMs ?? runningMs;
}

/**
 * False while no point is expected: before the start, after the end, and in an initial replication
 * that makes progress.
 */
function pointsAreDue({ state, uploadBytesPerSecond }: HealthMeasures): boolean {
  switch (state) {
    case "starting":
    case "stopped":
    case "failed":
      return false;
    case "initial":
      return uploadBytesPerSecond === 0;
    case "resyncing":
    case "protecting":
    case "waiting":
    case "paused":
      return true;
  }
}

/** Whether a point is late, and rates have been measured for long enough. */
function isOverdue(measures: HealthMeasures, policy: HealthPolicy): boolean {
  if (!pointsAreDue(measures) || measures.pausedMs !== null) return false;
  return lagOf(measures) > policy.crashConsistentFrequencyMs + healthLimits.rateWindowMs;
}

/** `40 s`, `12 min`, `3 h 5 min`: as exact as a sentence needs it. */
function minutes(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  const whole = Math.round(seconds / 60);
  return whole < 120 ? `${whole} min` : `${Math.floor(whole / 60)} h ${whole % 60} min`;
}

function mebibytes(bytes: number): string {
  const value = bytes / 1024 ** 2;
  return `${value.toFixed(value < 9.95 ? 1 : 0)} MiB`;
}

/** How bad a finding is, or the worst of a disk's findings. */
export type HealthLevel = "Normal" | "Warning" | "Critical";

/** One thing that is wrong: a stable code, what causes it and what to do. */
export interface Finding {
  readonly level: Exclude<HealthLevel, "Normal">;
  readonly code: string;
  readonly cause: string;
  readonly remedy: string;
}
