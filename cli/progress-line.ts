/**
 * Progress of a command on stderr: one line that is rewritten in place on a terminal, or a line
 * from time to time in a pipe.
 *
 *     scan       [#########           ]  45 %  3.6 GiB of 8.0 GiB  640 MiB/s  stored 210 MiB  0:07 left
 *
 * The rate of lines is `TIDEMARK_PROGRESS_FPS` (lines a second). On a terminal each report is drawn
 * unless it is set.
 */
import type { Progress } from "../engine/index.ts";
import { formatBytes, formatDuration, formatRate } from "./quantities.ts";
import { cut } from "./text.ts";
import type { TextStream } from "./text-stream.ts";

/** The rate shown is that of this window: long enough to be steady, short enough to be current. */
const windowMs = 5_000;
/** A rate over less than this is noise, and an estimate from less than that a guess. */
const rateAfterMs = 400;
const estimateAfterMs = 1_000;

const clearLine = "\r\u001b[K";
const barColumns = 20;

interface Sample {
  readonly atMs: number;
  readonly doneBytes: number;
}

/** The reports of one phase that the rate is computed from. */
class RecentProgress {
  #samples: Sample[] = [];
  #phase: Progress["phase"] | undefined;

  /** Takes a report and gives the line that shows it. */
  text(progress: Progress): string {
    const atMs = performance.now();
    // Another phase, or another point of the same one, begins from the start.
    if (progress.phase !== this.#phase || progress.doneBytes < (this.#samples.at(-1)?.doneBytes ?? 0))
      this.#samples = [];
    this.#phase = progress.phase;
    this.#samples.push({ atMs, doneBytes: progress.doneBytes });
    while (this.#samples.length > 2 && atMs - (this.#samples[1]?.atMs ?? atMs) > windowMs) this.#samples.shift();
    return progressText(progress, this.#samples);
  }
}

/** One line on a terminal, rewritten in place and cleared when something else is printed. */
export class ProgressLine {
  readonly #stream: TextStream;
  readonly #everyMs: number;
  readonly #recent = new RecentProgress();
  #nextAtMs = 0;
  #drawn = false;

  /** `fps`: redraws a second at most; undefined draws every report. */
  constructor(stream: TextStream, fps: number | undefined) {
    this.#stream = stream;
    this.#everyMs = fps === undefined ? 0 : 1_000 / fps;
  }

  draw(progress: Progress): void {
    const text = this.#recent.text(progress);
    const atMs = performance.now();
    if (atMs < this.#nextAtMs) return;
    this.#nextAtMs = atMs + this.#everyMs;
    this.show(text);
  }

  /** Shows any other text in the line. */
  show(text: string): void {
    // A line that fills the last column would wrap and could not be rewritten.
    this.#stream.write(clearLine + cut(text, this.#stream.columns - 1));
    this.#drawn = true;
  }

  /** Removes the line, so that something else can be printed. */
  clear(): void {
    if (this.#drawn) this.#stream.write(clearLine);
    this.#drawn = false;
  }
}

/** Whole lines in a pipe or a file, at most `fps` a second. */
export class ProgressLines {
  readonly #stream: TextStream;
  readonly #everyMs: number;
  readonly #recent = new RecentProgress();
  #nextAtMs = 0;

  constructor(stream: TextStream, fps: number) {
    this.#stream = stream;
    this.#everyMs = 1_000 / fps;
  }

  draw(progress: Progress): void {
    this.show(this.#recent.text(progress));
  }

  show(text: string): void {
    const atMs = performance.now();
    if (atMs < this.#nextAtMs) return;
    this.#nextAtMs = atMs + this.#everyMs;
    this.#stream.writeNews(`${text}\n`);
  }

  /** Lines that were written stay. */
  clear(): void {
    return;
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
  const filled = Math.floor((share / 100) * barColumns);
  const bar = `[${"#".repeat(filled)}${" ".repeat(barColumns - filled)}]`;
  const parts = [
    `${phase.padEnd(11)} ${bar} ${String(share).padStart(3)} %`,
    `${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`,
  ];
  if (elapsedMs >= rateAfterMs) parts.push(formatRate(advancedBytes, elapsedMs));
  parts.push(`${phase === "scan" || phase === "commit" ? "stored" : "read"} ${formatBytes(transferredBytes)}`);
  if (elapsedMs >= estimateAfterMs && advancedBytes > 0 && doneBytes < totalBytes) {
    parts.push(`${formatDuration(((totalBytes - doneBytes) / advancedBytes) * elapsedMs)} left`);
  }
  return parts.join("  ");
}
