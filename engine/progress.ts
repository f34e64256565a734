/** Paces progress reports: an embedder or a terminal wants a few a second, whatever the pipeline's pace. */
import type { OperationOptions, Progress } from "./summaries.ts";

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
