/** Progress of long operations: what is reported, and the pace of the reports. */
import type { Notice } from "./notice.ts";

/** Where an operation stands. Emitted a few times a second and once at the end. */
export interface Progress {
  readonly phase: "scan" | "commit" | "materialize" | "verify";
  /** Bytes of the volume dealt with so far, holes included. */
  readonly doneBytes: number;
  /** Bytes of the volume to deal with. */
  readonly totalBytes: number;
  /** Bytes sent to the store (replicate) or read from it (materialize, verify). */
  readonly transferredBytes: number;
}

/** What every long operation takes. */
export interface OperationOptions {
  readonly onProgress?: ((progress: Progress) => void) | undefined;
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  /** Ends the operation with INTERRUPTED; nothing is written after it settles. */
  readonly signal?: AbortSignal | undefined;
}

/** Between two reports: a terminal or an embedder wants a few a second, whatever the pace of the pipeline. */
const everyMs = 200;

/** Passes on the first report, then at most five a second, and always the one marked `last`. */
export function paced(report: OperationOptions["onProgress"]): (progress: Progress, position?: "last") => void {
  let nextAt = 0;
  return (progress, position) => {
    const at = performance.now();
    if (report === undefined || (at < nextAt && position !== "last")) return;
    nextAt = at + everyMs;
    report(progress);
  };
}
