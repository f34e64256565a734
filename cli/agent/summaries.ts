/** What requests to the agent did to its disks. */

import type { TidemarkError } from "../../engine/index.ts";
import { type RestingSource } from "../../engine/internal.ts";

/** What a reload did. */
export interface ReloadSummary {
  readonly added: readonly string[];
  readonly removed: readonly string[];
  /** Stopped and started again, because what changed cannot change while they run. */
  readonly restarted: readonly string[];
  /**
   * Changed while they run: the policy, or where they are exported. Of disks that are stopped, and
   * stay it, anything.
   */
  readonly changed: readonly string[];
  /** Their images are larger than before; clients see it when they connect again. */
  readonly grown: readonly string[];
  /** Vaults whose limits changed. */
  readonly limits: readonly string[];
  /** Settings that only the next start of the agent takes over. */
  readonly atNextStart: readonly string[];
}

/** What a stop of some disks did. */
export interface StopSummary {
  readonly disks: readonly string[];
  /**
   * Those of them that may have changes that are not in the vault: a last point is missing. It is
   * taken when the disk is resumed.
   */
  readonly notDrained: readonly string[];
  /** Those of them whose image is known to be their newest point, and the signature that proves it later. */
  readonly resting: readonly RestingSource[];
}

/** A disk that was to end with a last point, and why there is none. */
export interface MissedPoint {
  readonly disk: string;
  readonly error: TidemarkError;
}
