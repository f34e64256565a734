/** Progress of long operations: the reports, and their pace. */
import type { NoticeOptions } from "./notice.ts";

/** State of an operation. Reported a few times a second and once at the end. */
export interface Progress {
  /** The stage that the operation is in. */
  readonly phase: "scan" | "commit" | "materialize" | "verify";
  /**
   * Bytes that are done. `scan` and `commit`: of the volume. `materialize` and `verify`: of the
   * point's data, without holes and zeros.
   */
  readonly doneBytes: number;
  /** Bytes in all, counted in the same way. */
  readonly totalBytes: number;
  /** Bytes that were sent to the store (replicate) or read from it (materialize, verify). */
  readonly transferredBytes: number;
}

/** Options of every long operation. */
export interface OperationOptions extends NoticeOptions {
  /** Gets the reports; at most five a second, and the last one. */
  readonly onProgress?: ((progress: Progress) => void) | undefined;
}

/** Between two reports: a terminal shows no more than a few a second. */
const everyMs = 200;

/**
 * Passes on the first report, then at most five a second, and always the one that is marked `last`.
 */
export function paced(report: OperationOptions["onProgress"]): (progress: Progress, position?: "last") => void {
  let nextAt = 0;
  return (progress, position) => {
    const at = performance.now();
    if (report === undefined || (at < nextAt && position !== "last")) return;
    nextAt = at + everyMs;
    report(progress);
  };
}
