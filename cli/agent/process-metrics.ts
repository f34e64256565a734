/**
 * Process metrics for Prometheus: memory, CPU time, open files, start and event loop lag of this
 * process, under the names that Prometheus clients use.
 *
 * `update` reads them at each scrape; nothing runs in between but Node's sampler of the event loop.
 */
import { readdir } from "node:fs/promises";
import { monitorEventLoopDelay } from "node:perf_hooks";
import process from "node:process";
import { unlessAbsent } from "../../engine/internal.ts";
import type { Registry } from "./exposition.ts";

/** The sampler's period. Event loop lag is the time between two samples, so it is at least this. */
const samplePeriodMs = 10;

/** Adds the metrics to `registry`. Call the function that it returns before each reading. */
export function processMetrics(registry: Registry): () => Promise<void> {
  const resident = registry.gauge("process_resident_memory_bytes", "Resident memory of the process.");
  const openFiles = registry.gauge("process_open_fds", "Open file descriptors.");
  const cpu = registry.counter("process_cpu_seconds_total", "CPU time of the process, user and system.");
  const mean = registry.gauge("nodejs_eventloop_lag_mean_seconds", "Mean event loop lag since the last reading.");
  const p99 = registry.gauge("nodejs_eventloop_lag_p99_seconds", "99th percentile of it since the last reading.");
  registry
    .gauge("process_start_time_seconds", "Start of the process, in seconds since 1970.")
    .set({}, Math.round(Date.now() / 1_000 - process.uptime()));
  const delay = monitorEventLoopDelay({ resolution: samplePeriodMs });
  delay.enable();
  let countedSeconds = 0;
  return async () => {
    const { user, system } = process.cpuUsage();
    const usedSeconds = (user + system) / 1e6;
    resident.set({}, process.memoryUsage.rss());
    cpu.add({}, usedSeconds - countedSeconds);
    countedSeconds = usedSeconds;
    openFiles.reset();
    const open = await openFileCount();
    if (open !== undefined) openFiles.set({}, open);
    mean.set({}, delay.mean / 1e9);
    p99.set({}, delay.percentile(99) / 1e9);
    delay.reset();
  };
}

/** Undefined where the platform does not list them. */
async function openFileCount(): Promise<number | undefined> {
  const open = await unlessAbsent(readdir("/dev/fd"));
  // The listing itself holds one descriptor.
  return open && open.length - 1;
}
