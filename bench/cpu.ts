/** Processor time of this process and of this thread. */
import { readFileSync } from "node:fs";
import process from "node:process";

export interface CpuTime {
  /** Of all threads, in ms. */
  readonly processMs: number;
  /** Of the thread that asks, in ms; NaN where the system does not tell (no /proc). */
  readonly threadMs: number;
}

/** Starts to count; the function that is returned gives the time since then. */
export function cpuClock(): () => CpuTime {
  const [usage, thread] = [process.cpuUsage(), threadMs()];
  return () => {
    const { user, system } = process.cpuUsage(usage);
    return { processMs: (user + system) / 1_000, threadMs: threadMs() - thread };
  };
}

function threadMs(): number {
  try {
    return Number(readFileSync("/proc/thread-self/schedstat", "utf8").split(" ")[0]) / 1e6;
  } catch {
    return NaN;
  }
}
