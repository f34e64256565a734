/**
 * Profiler: takes samples of a probe at regular times and appends them to a profile.
 *
 *     scan        reads a disk that others write; tells which granules changed
 *     diskstats   reads the kernel's counters; tells how much was written, not where
 *     agent       asks an agent for its meters; tells what its points shipped
 *
 * Invariant: a sample is durable before the next one begins, and covers the time since the last one
 * that was taken. What a probe could not see leaves no sample.
 */
import type { Clock } from "../agent/ports.ts";
import { DiskScanner } from "./disk-scanner.ts";
import { deviceFolder, readWriteCounts, type WriteCounts } from "./diskstats.ts";
import type { ProfileLine, SampleLine, StartLine } from "./profile-lines.ts";

/** What tells of one disk or several. */
export interface Probe extends AsyncDisposable {
  /** Lines for what has happened since the last call. The first call begins. */
  lines(signal: AbortSignal): Promise<readonly ProfileLine[]>;
  /** Called every `pollMs` between samples, when there is one. */
  readonly poll?: { readonly everyMs: number; readonly look: (signal: AbortSignal) => Promise<void> };
}

export interface ProfilerOptions {
  readonly probe: Probe;
  readonly append: (line: ProfileLine) => Promise<void>;
  readonly everyMs: number;
  readonly forMs: number;
  readonly clock: Clock;
  /** Ends it early, with a last sample. */
  readonly stop: AbortSignal;
  readonly onSample?: ((sample: SampleLine, leftMs: number) => void) | undefined;
}

/** Takes samples for `forMs`, or until `stop`. Returns their number. */
export async function profile(options: ProfilerOptions): Promise<number> {
  const { probe, append, everyMs, forMs, clock, stop, onSample } = options;
  // A stop ends the waiting; a sample that has begun is finished.
  const never = new AbortController().signal;
  const endMs = clock.now() + forMs;
  let dueMs = clock.now();
  let samples = 0;
  for (;;) {
    for (const line of await probe.lines(never)) {
      await append(line);
      if (line.type === "start") continue;
      samples += 1;
      onSample?.(line, Math.max(0, endMs - clock.now()));
    }
    if (dueMs >= endMs || stop.aborted) return samples;
    // A sample that took longer than the interval leaves out the times that it missed.
    do dueMs = Math.min(dueMs + everyMs, endMs);
    while (dueMs <= clock.now() && dueMs < endMs);
    await waitUntil(dueMs, options);
  }
}

/** Waits, and polls meanwhile. A stop ends it. */
async function waitUntil(dueMs: number, { probe, clock, stop }: ProfilerOptions): Promise<void> {
  for (let leftMs = dueMs - clock.now(); leftMs > 0 && !stop.aborted; leftMs = dueMs - clock.now()) {
    await clock.sleep(Math.min(leftMs, probe.poll?.everyMs ?? leftMs), stop);
    await probe.poll?.look(stop);
  }
}

/** Wall-clock time of a sample, and the time since the one before. */
export class SampleTimes {
  readonly #now: () => number;
  #lastMs: number | undefined;

  constructor(now: () => number) {
    this.#now = now;
  }

  next(): { readonly time: string; readonly spanMs: number } {
    const nowMs = this.#now();
    const spanMs = Math.max(0, nowMs - (this.#lastMs ?? nowMs));
    this.#lastMs = nowMs;
    return { time: new Date(nowMs).toISOString(), spanMs };
  }
}

interface ProbeOptions {
  readonly everyMs: number;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
}

/** A file or device that others write. Errors: those of `DiskScanner.open`. */
export async function scanProbe(
  path: string,
  signal: AbortSignal,
  { everyMs, now = Date.now }: ProbeOptions,
): Promise<Probe> {
  const scanner = await DiskScanner.open(path, signal);
  const times = new SampleTimes(now);
  let last: WriteCounts | undefined;
  let started = false;
  return {
    async lines(scanning) {
      const counts = await scanner.writes();
      const written = countedSince(last, counts);
      last = counts;
      const moment = times.next();
      if (!started) {
        started = true;
        const start = { type: "start", version: 1, disk: path, source: "scan", time: moment.time, everyMs } as const;
        return [{ ...start, ...scanner.baseline }];
      }
      const { changed, content, dataBytes, readBytes, ms } = await scanner.scan(scanning);
      const scan = { dataBytes, readBytes, ms: Math.round(ms) };
      return [{ type: "sample", disk: path, ...moment, ...written, changed, content, scan }];
    },
    [Symbol.asyncDispose]: async () => await scanner[Symbol.asyncDispose](),
  };
}

/** A block device by its name, such as sda. Errors: SOURCE_NOT_FOUND. */
export async function diskstatsProbe(name: string, { everyMs, now = Date.now }: ProbeOptions): Promise<Probe> {
  const { folder, sizeBytes } = await deviceFolder(name);
  const times = new SampleTimes(now);
  let last: WriteCounts | undefined;
  return {
    async lines() {
      const counts = await readWriteCounts(`${folder}/stat`);
      const moment = times.next();
      const before = last;
      last = counts;
      const start: StartLine = {
        type: "start",
        version: 1,
        disk: name,
        source: "diskstats",
        time: moment.time,
        everyMs,
        sizeBytes,
      };
      if (before === undefined) return counts === undefined ? [] : [start];
      const written = countedSince(before, counts);
      return written === undefined ? [] : [{ type: "sample", disk: name, ...moment, ...written }];
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/** Undefined when one of the two is not known, or the counters began anew in between. */
function countedSince(before: WriteCounts | undefined, now: WriteCounts | undefined): WriteCounts | undefined {
  if (before === undefined || now === undefined || now.writtenBytes < before.writtenBytes) return undefined;
  return { writes: Math.max(0, now.writes - before.writes), writtenBytes: now.writtenBytes - before.writtenBytes };
}
