/**
 * fio with its own NBD client: the load and the clock of every measurement at a server. Where
 * shipped bytes count, fio makes fresh data for every write, so that deduplication saves nothing.
 */
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { TidemarkError, throwIfAborted } from "../../engine/index.ts";
import type { BenchConfig } from "../options.ts";
import { type Latency, percentilesOf, percents } from "../trace.ts";
import { type Ended, runProgram } from "./programs.ts";

export type FioPattern = "randwrite" | "write" | "randread" | "read" | "randrw";

export interface FioJob {
  readonly uri: string;
  readonly pattern: FioPattern;
  readonly requestBytes: number;
  /** The part of the disk, from its front, that is worked on. */
  readonly spanBytes: number;
  /** How long, or how many bytes in all. */
  readonly extent: { readonly seconds: number } | { readonly bytes: number };
  /** Shared by reads and writes as `readPercent` says. */
  readonly bytesPerSecondMax?: number | undefined;
  /** Of `randrw`, how many of 100 requests are reads. Default: 50. */
  readonly readPercent?: number | undefined;
  /**
   * True: no two writes carry the same bytes, which costs fio time. False: the same few over and
   * over.
   */
  readonly freshData: boolean;
  /** How much of fresh data can be compressed away. Default: next to none. */
  readonly compressiblePercent?: number | undefined;
  readonly seed: number;
  /** Under this name the trace gets rates and latencies; absent: it gets none. */
  readonly traced?: string | undefined;
}

/** Reads and writes together. */
export interface FioFigures {
  readonly requests: number;
  readonly bytes: number;
  readonly elapsedMs: number;
  /** Of the slower of reads and writes. */
  readonly p99Us: number;
}

/** What a load needs of the case that runs it. */
export type FioCase = Pick<BenchConfig, "temporaryFolder" | "trace" | "signal">;

/** Requests in flight. */
const depth = 32;

/**
 * Errors: UNSUPPORTED (no fio, or one without NBD), DEVICE_FAILED (the server refused or broke
 * off), INTERRUPTED.
 */
export async function runFio(config: FioCase, job: FioJob): Promise<FioFigures> {
  const { temporaryFolder: folder, trace, signal } = config;
  const startedAtMs = trace.now();
  const figures = figuresOf(await runProgram("fio", words(job), folder, signal));
  const { traced } = job;
  if (traced !== undefined) {
    trace.latency({ name: traced, count: figures.requests, percentiles: figures.percentiles });
    for (const [atMs, value] of await loggedRates(folder))
      trace.point("written and read by clients", "bytes/s", value, startedAtMs + atMs);
  }
  return figures;
}

/**
 * A load that lasts until `stop`, and under which the server may die: how fio ends says nothing,
 * and having lost its server it may not end at all. Errors: UNSUPPORTED, INTERRUPTED.
 */
export async function runFioUntil(
  { temporaryFolder: folder, signal }: FioCase,
  job: FioJob,
  stop: AbortSignal,
): Promise<void> {
  const either = signal === undefined ? stop : AbortSignal.any([signal, stop]);
  try {
    refuseWithoutNbd(await runProgram("fio", words(job), folder, either));
  } catch (error) {
    throwIfAborted(signal);
    if (!stop.aborted) throw error;
  }
}

function words(job: FioJob): string[] {
  const { extent, bytesPerSecondMax, compressiblePercent } = job;
  return [
    "--name=tidemark",
    "--ioengine=nbd",
    // Else the load is a process of its own, which would outlive a fio that is killed.
    "--thread",
    `--uri=${job.uri}`,
    `--rw=${job.pattern}`,
    `--bs=${job.requestBytes}`,
    `--iodepth=${depth}`,
    `--size=${job.spanBytes}`,
    `--randseed=${job.seed}`,
    ...(job.readPercent === undefined ? [] : [`--rwmixread=${job.readPercent}`]),
    ...(job.freshData ? ["--refill_buffers"] : []),
    ...(compressiblePercent === undefined ? [] : [`--buffer_compress_percentage=${compressiblePercent}`]),
    ...("seconds" in extent
      ? ["--time_based", `--runtime=${Math.round(extent.seconds * 1_000)}ms`]
      : [`--io_size=${extent.bytes}`]),
    ...(bytesPerSecondMax === undefined ? [] : [`--rate=${ratesOf(bytesPerSecondMax, job.readPercent)}`]),
    ...(job.traced === undefined ? [] : [`--write_bw_log=${logName}`, `--log_avg_msec=${logEveryMs(extent)}`]),
    `--percentile_list=${percents.join(":")}`,
    "--output-format=json",
  ];
}

/** For fio, which limits reads and writes apart. */
function ratesOf(bytesPerSecond: number, readPercent = 100): string {
  const reads = Math.round((bytesPerSecond * readPercent) / 100);
  return readPercent === 100 ? `${reads}` : `${reads},${bytesPerSecond - reads}`;
}

/** What we read of fio's report. */
interface FioReport {
  readonly jobs: readonly { readonly error: number; readonly read: FioWay; readonly write: FioWay }[];
}

interface FioWay {
  readonly total_ios: number;
  readonly io_bytes: number;
  /** ms */
  readonly runtime: number;
  readonly clat_ns: { readonly max: number; readonly percentile?: Readonly<Record<string, number>> };
}

function figuresOf(ended: Ended): FioFigures & Pick<Latency, "percentiles"> {
  refuseWithoutNbd(ended);
  const { exitCode, stdout, stderr } = ended;
  // It says what it has to say before the report.
  const start = stdout.indexOf("{");
  const job = start === -1 || exitCode !== 0 ? undefined : (JSON.parse(stdout.slice(start)) as FioReport).jobs[0];
  if (job === undefined || job.error !== 0) {
    throw new TidemarkError(
      "DEVICE_FAILED",
      `fio ended with exit code ${String(exitCode)}: ${stderr.trim().slice(0, 300)}`,
      {
        remedy: "see whether the server has failed",
      },
    );
  }
  const ways = [job.read, job.write].filter((way) => way.total_ios > 0);
  const most = (value: (way: FioWay) => number): number => Math.max(0, ...ways.map(value));
  const at = (percent: number): number => most((way) => (way.clat_ns.percentile?.[percent.toFixed(6)] ?? NaN) / 1_000);
  return {
    requests: ways.reduce((sum, way) => sum + way.total_ios, 0),
    bytes: ways.reduce((sum, way) => sum + way.io_bytes, 0),
    elapsedMs: most((way) => way.runtime),
    p99Us: at(99),
    percentiles: percentilesOf(
      at,
      most((way) => way.clat_ns.max / 1_000),
    ),
  };
}

/** fio writes its rates over time to this file in its folder. */
const logName = "fio";
const loggedPoints = 240;

function logEveryMs(extent: FioJob["extent"]): number {
  return "seconds" in extent ? Math.max(200, Math.round((extent.seconds * 1_000) / loggedPoints)) : 200;
}

/** Bytes a second over the time since fio began, reads and writes together. */
async function loggedRates(folder: string): Promise<(readonly [atMs: number, bytesPerSecond: number])[]> {
  const path = join(folder, `${logName}_bw.1.log`);
  const rates = new Map<number, number>();
  for (const line of (await readFile(path, "utf8")).split("\n")) {
    // Time in ms, KiB a second, direction, and more.
    const [atMs = NaN, kibibytes = NaN] = line.split(",").map(Number);
    if (Number.isFinite(kibibytes)) rates.set(atMs, (rates.get(atMs) ?? 0) + kibibytes * 1024);
  }
  await rm(path);
  return [...rates];
}

function refuseWithoutNbd({ stdout, stderr }: Ended): void {
  const said = (stdout + stderr).toLowerCase();
  const cannotOpen = said
    .split("\n")
    .some((line) => line.includes("nbd") && line.includes("cannot open shared object"));
  if (!cannotOpen && !said.includes("engine nbd not loadable")) return;
  throw new TidemarkError("UNSUPPORTED", "this fio has no NBD client", {
    remedy: "install one that has: apt-get install fio",
  });
}
