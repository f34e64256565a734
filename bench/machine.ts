/** Machine facts: every report states what its figures were measured on. */
import { availableParallelism, cpus, loadavg, platform, release, totalmem } from "node:os";
import { tidemarkVersion } from "../engine/index.ts";

export interface MachineFacts {
  readonly cpu: string;
  /** Cores that this process may use. */
  readonly cores: number;
  readonly memoryBytes: number;
  /** Kernel and its release. */
  readonly system: string;
  readonly architecture: string;
  readonly node: string;
  readonly v8: string;
  readonly tidemark: string;
  /**
   * Load of the last minute before the measurement: well above zero, others were at work and the
   * figures are too low.
   */
  readonly loadAverage: number;
  /** When the measurement began, ISO 8601 in UTC. */
  readonly date: string;
}

/** The facts as they are now. */
export function machineFacts(now: Date): MachineFacts {
  return {
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    system: `${platform()} ${release()}`,
    architecture: process.arch,
    node: process.version,
    v8: process.versions.v8,
    tidemark: tidemarkVersion,
    loadAverage: Math.round((loadavg()[0] ?? 0) * 100) / 100,
    date: now.toISOString(),
  };
}

/**
 * The most memory that this process has had resident at once. An Azurite of ours is another
 * process.
 */
export function peakRssBytes(): number {
  // libuv gives kibibytes on every platform.
  return process.resourceUsage().maxRSS * 1024;
}
