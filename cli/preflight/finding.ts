/** One thing that a pre-flight check looked at. */

export interface Finding {
  /** What was looked at, such as `clock`. */
  readonly check: string;
  /** `advice`: a vault works, and something should be changed. `skipped`: it could not be looked at. */
  readonly state: "ok" | "advice" | "failed" | "skipped";
  readonly fact: string;
  /** Null: nothing is to be done. */
  readonly remedy: string | null;
}
