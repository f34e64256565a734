/** Orders of a benchmark to the process that protects its disk, and the answer. */
import type { PointSummary, ProtectionPolicy, ProtectionState } from "../../engine/index.ts";
import type { AzureCredentials, ProxyOptions } from "../../sink/index.ts";
import type { StoreTraffic } from "./metered-sink.ts";

/** No cycle is due by itself while a benchmark runs. */
export const onDemandMs: number = 24 * 3_600 * 1_000;

/**
 * Policy of a disk with a point every `cycleMs`. The first of them is due up to 30 s after the start
 * of the protection, also where the next is due in a day: so a disk with points on demand starts
 * later.
 */
export function policyOf(cycleMs: number): ProtectionPolicy {
  const start = cycleMs === onDemandMs ? { startTimeMs: Date.now() + onDemandMs } : {};
  return { crashConsistentFrequencyMs: cycleMs, ...start };
}

/** A store as another process can open it. */
export interface StoreAddress {
  /** Not `memory:`, which no other process sees. */
  readonly address: string;
  readonly credentials?: Pick<AzureCredentials, "accountKey" | "connectionString"> | undefined;
  readonly proxy?: ProxyOptions | undefined;
}

export interface ProtectionPlan {
  /** `discarding`: a store in the process itself that costs no processor time. */
  readonly store: StoreAddress | "discarding";
  /** Where in the store the vault lies; ends with a slash. */
  readonly prefix: string;
  readonly disk: string;
  readonly image: string;
  readonly stateFolder: string;
  /** Path of the Unix socket on which the disk is served. */
  readonly socket: string;
  readonly cycleMs: number;
  readonly workers: number;
  readonly lanes: number | undefined;
  /** Ceiling of the dedup index; undefined: the default. */
  readonly indexBytesMax: number | undefined;
}

/**
 * `serve`: the first one, answered when the disk is served. `point`: take one, answer when it is committed. `drain`: change `bytes` at the front of the disk,
 * answer when the cut of the next cycle has them. `rest`: take a point, then none. `pause`: take none. `stop`: end and save the
 * exact marks; the process ends after its answer.
 */
export type Order =
  | { readonly kind: "serve"; readonly plan: ProtectionPlan }
  | { readonly kind: "point" }
  | { readonly kind: "pause" }
  | { readonly kind: "resume" }
  | { readonly kind: "drain"; readonly bytes: number }
  | { readonly kind: "rest" }
  | { readonly kind: "status" }
  | { readonly kind: "stop" };

/** A point as the protecting process saw it come about. Times are ms since 1970. */
export interface SeenPoint {
  readonly cutAtMs: number;
  readonly committedAtMs: number;
}

/** The answer to every order. */
export interface Condition {
  readonly state: ProtectionState;
  readonly backlogBytes: number;
  readonly committedLagMs: number | null;
  readonly barrierMsMax: number;
  /** The most memory that the process has had resident. */
  readonly peakRssBytes: number;
  /** Every point that this process committed, oldest first. */
  readonly points: readonly SeenPoint[];
  /** What failed, in words, oldest first. Tried again, so no failure of the process. */
  readonly failures: readonly string[];
  /** The answer to `point`: what was committed. */
  readonly point: PointSummary | null;
  /** Requests of this process that transferred data. */
  readonly store: StoreTraffic;
  /** The answer to `rest`: how long the cycle that `drain` waited for was under way. */
  readonly drainedMs: number;
}
