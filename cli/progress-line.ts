/**
 * The one line that tells on a terminal how far a command is: rewritten in place, cleared when something else is printed.
 *
 *     scan       45 %  3.6 GiB of 8.0 GiB  640 MiB/s  stored 210 MiB  0:07 left
 */
import type { Progress } from "../engine/index.ts";
import { formatBytes, formatDuration, formatRate } from "./quantities.ts";
import { cut } from "./text.ts";

/** The rate is that of the last few seconds: steady enough to read, quick enough to be true. */
const windowMs = 5_000;
/** A rate over less than this is noise, and an estimate from less than that a guess. */
const rateAfterMs = 400;
const estimateAfterMs = 1_000;

const clearLine = "\r\u001b[K";

interface Sample {
  readonly atMs: number;
  readonly doneBytes: number;
}

export class ProgressLine {
  readonly #stream: NodeJS.WriteStream;
  #samples: Sample[] = [];
  #phase: Progress["phase"] | undefined;
  #drawn = false;

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
  }

  draw(progress: Progress): void {
    const atMs = performance.now();
    // Another phase, or another point of the same one, begins from the start.
    if (progress.phase !== this.#phase || progress.doneBytes < (this.#samples.at(-1)?.doneBytes ?? 0)) this.#samples = [];
    this.#phase = progress.phase;
    this.#samples.push({ atMs, doneBytes: progress.doneBytes });
    while (this.#samples.length > 2 && atMs - (this.#samples[1]?.atMs ?? atMs) > windowMs) this.#samples.shift();
    this.show(progressText(progress, this.#samples));
  }

  /** Shows any other text in the line. */
  show(text: string): void {
    // A line that fills the last column would wrap and could not be rewritten.
    this.#stream.write(clearLine + cut(text, this.#stream.columns - 1));
    this.#drawn = true;
  }

  /** Takes the line away, so that something else can be printed. */
  clear(): void {
    if (this.#drawn) this.#stream.write(clearLine);
    this.#drawn = false;
  }
}

/** `samples` are of this phase, oldest first, the last one now. */
export function progressText(progress: Progress, samples: readonly Sample[]): string {
  const { phase, doneBytes, totalBytes, transferredBytes } = progress;
  const share = totalBytes === 0 ? 100 : Math.floor((doneBytes / totalBytes) * 100);
  const first = samples[0];
  const last = samples.at(-1);
  const elapsedMs = first === undefined || last === undefined ? 0 : last.atMs - first.atMs;
  const advancedBytes = first === undefined || last === undefined ? 0 : last.doneBytes - first.doneBytes;
  const parts = [`${phase.padEnd(11)} ${String(share).padStart(3)} %`, `${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`];
  if (elapsedMs >= rateAfterMs) parts.push(formatRate(advancedBytes, elapsedMs));
  parts.push(`${phase === "scan" || phase === "commit" ? "stored" : "read"} ${formatBytes(transferredBytes)}`);
  if (elapsedMs >= estimateAfterMs && advancedBytes > 0 && doneBytes < totalBytes) {
    parts.push(`${formatDuration(((totalBytes - doneBytes) / advancedBytes) * elapsedMs)} left`);
  }
  return parts.join("  ");
}
