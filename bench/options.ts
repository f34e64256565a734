/** Options of the benchmarks: what a caller may ask for, and the checked configuration. */
import { readFile } from "node:fs/promises";
import type { Sink } from "../engine/index.ts";
import { systemCode, TidemarkError } from "../engine/index.ts";
import { workersDefault } from "../engine/internal.ts";
import { imageFactsOf } from "./image.ts";
import { type BenchKind, benchKinds, cases } from "./kinds.ts";
import type { StoreAddress } from "./live/orders.ts";
import { size } from "./quantities.ts";
import { type MarkOf, marksOf, readTargets } from "./targets.ts";
import { Trace } from "./trace.ts";

/** What is being measured now. */
export interface BenchProgress {
  readonly step: string;
  /** From 1 to `runs`. */
  readonly run: number;
  readonly runs: number;
}

/** Defaults that differ from case to case stand in `cases`. */
export interface BenchOptions {
  readonly kind: BenchKind;
  /** Path of a disk image. It is read, never written to. */
  readonly image?: string | undefined;
  /** How often each step is measured, 1 to 100; medians are reported. Default: 1. */
  readonly runs?: number | undefined;
  /**
   * NDJSON with what peers needed for the same image on the same machine:
   * {"peer":"…","step":"first-backup|scattered-backup|restore","seconds":…}.
   */
  readonly peerFile?: string | undefined;
  /** File with targets of your own, in the form of targets.yaml. */
  readonly targetsFile?: string | undefined;
  /**
   * The sizes are smaller than the targets are for: only marks that have a target for that are
   * judged. Default: false.
   */
  readonly isSmall?: boolean | undefined;
  /** `initial`: bring the point back and compare it with the image. Default: false. */
  readonly check?: boolean | undefined;
  /** Random writes of 4 KiB. */
  readonly scatterWrites?: number | undefined;
  /** Seed of everything that is random, 1 to 2³²-1. Default: 7. */
  readonly seed?: number | undefined;
  /** Worker threads of the vault. Default: the engine's. */
  readonly workers?: number | undefined;
  /** Lanes of the vault. Default: the engine's. */
  readonly lanes?: number | undefined;
  /** Time given to each kernel. Default: 1,000. */
  readonly kernelMs?: number | undefined;
  /**
   * Entries that the dedup index is measured with. Default: 1,048,576, which is far beyond a
   * processor's own cache.
   */
  readonly indexEntries?: number | undefined;
  /** Length of the load, or of each load, 0.1 to 604,800. */
  readonly seconds?: number | undefined;
  /** Bytes written a second, from 1 MB (10⁶ bytes). */
  readonly bytesPerSecond?: number | undefined;
  /** Look for the highest load that holds, in cases that have one. Default: false. */
  readonly findLimit?: boolean | undefined;
  /** Time between points in ms. Default: 5,000. */
  readonly cycleMs?: number | undefined;
  /** Size of the disk that a case makes, from 16 MiB. */
  readonly diskBytes?: number | undefined;
  /** The part of that disk that is written, from 16 MiB. Default: at most the disk. */
  readonly hotBytes?: number | undefined;
  /** `front`: cuts that are made with 32 writes in flight, as many as 30 s allow. Default: 100. */
  readonly cuts?: number | undefined;
  /** Points of the chain, 8 to 1,000,000. */
  readonly points?: number | undefined;
  /**
   * `collect`: bytes that are dead before the collection, from 16 MiB. Default: 10 GB, or as many
   * as there is room for.
   */
  readonly deadBytes?: number | undefined;
  /** For shared cases: the store that `openVaultSink` opens, as another process opens it. */
  readonly storeAddress?: StoreAddress | undefined;
  /**
   * Opens the store for all cases that have one; called once, before any clock starts. The benchmark
   * works under a prefix of its own in that store, removes what it wrote and disposes of the sink.
   */
  readonly openVaultSink: () => Promise<Sink>;
  /**
   * Images, copies and local state go into a new folder in this one, which is removed at the end.
   */
  readonly temporaryFolder: string;
  readonly onProgress?: ((progress: BenchProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export type PeerStep = "first-backup" | "scattered-backup" | "restore";

/** What another program needed for a step. */
export interface PeerTime {
  readonly peer: string;
  readonly step: PeerStep;
  readonly seconds: number;
}

/** Options that have a value. */
type Given<Name extends keyof BenchOptions> = { readonly [Each in Name]-?: NonNullable<BenchOptions[Each]> };

/** Options with their defaults, proved to be possible. */
export interface BenchConfig
  extends Given<"kind" | "runs" | "check" | "scatterWrites" | "seed" | "workers" | "kernelMs" | "indexEntries">,
    Pick<BenchOptions, "temporaryFolder" | "lanes" | "signal"> {
  /** Empty where none is given. */
  readonly image: string;
  readonly peers: readonly PeerTime[];
  /** Makes a mark of this case, with its target. */
  readonly mark: MarkOf;
  /** Takes up what is reported besides steps and counts. */
  readonly trace: Trace;
  /** What is read by the cases of live disks and of points that last. */
  readonly live: Given<
    | "seconds"
    | "bytesPerSecond"
    | "findLimit"
    | "cycleMs"
    | "diskBytes"
    | "hotBytes"
    | "cuts"
    | "storeAddress"
    | "points"
  > &
    Pick<BenchOptions, "deadBytes">;
  /**
   * Announces a step and ends the benchmark there when it has been interrupted. `run` counts from
   * 0.
   */
  readonly begin: (step: string, run?: number) => void;
}

const limitKinds = benchKinds.filter((kind) => cases[kind].limit !== undefined);
const megabyte = 1_000_000;
const tebibyte = 2 ** 40;
const imageBytesMin = 2 ** 20;
const diskBytesMin = 16 * 2 ** 20;

/**
 * Errors: INVALID_ARGUMENT with every fault at once, and what reading the peers' file ended with.
 */
export async function resolveOptions(options: BenchOptions, temporaryFolder: string): Promise<BenchConfig> {
  const { kind, image = "", runs = 1, check = false, seed = 7, workers = workersDefault, lanes, signal } = options;
  const { kernelMs = 1_000, indexEntries = 1_048_576, onProgress } = options;
  const traits = cases[kind];
  const { scatterWrites = traits.writes ?? 20_000, seconds = traits.seconds ?? 1, findLimit = false } = options;
  const { bytesPerSecond = traits.bytesPerSecond ?? 100 * megabyte, cycleMs = 5_000, cuts = 100 } = options;
  const { diskBytes = traits.diskBytes ?? tebibyte } = options;
  const { hotBytes = Math.min(traits.hotBytes ?? diskBytes, diskBytes) } = options;
  const { points = traits.points ?? 1_000, deadBytes, storeAddress } = options;
  const faults: string[] = [];
  const whole = (value: number, what: string, least: number, most: number, shown: (of: number) => string): void => {
    if (!Number.isInteger(value) || value < least || value > most)
      faults.push(`${shown(value)} is no ${what} from ${shown(least)} to ${shown(most)}`);
  };
  const count = (value: number, what: string, least: number, most: number): void =>
    whole(value, what, least, most, String);
  const bytes = (value: number, what: string, least: number, most: number): void =>
    whole(value, what, least, most, size);
  if (image === "" && traits.image === "required") faults.push(`the case ${kind} needs a disk image`);
  count(runs, "number of runs", 1, 100);
  count(scatterWrites, "number of writes", 1, 10_000_000);
  count(seed, "seed", 1, 2 ** 32 - 1);
  count(workers, "number of workers", 1, 64);
  count(kernelMs, "number of milliseconds", 1, 60_000);
  count(indexEntries, "number of index entries", 1_024, 4_194_304);
  if (!(seconds >= 0.1 && seconds <= 604_800)) faults.push(`${seconds} is no number of seconds from 0.1 to 604800`);
  bytes(bytesPerSecond, "rate a second", megabyte, 100_000 * megabyte);
  count(cycleMs, "number of milliseconds between points", 1_000, 3_600_000);
  bytes(diskBytes, "size of a disk", diskBytesMin, 64 * tebibyte);
  if (options.hotBytes !== undefined) bytes(hotBytes, "size of what is written", diskBytesMin, diskBytes);
  count(cuts, "number of cuts", 1, 100_000);
  count(points, "number of points", 8, 1_000_000);
  if (deadBytes !== undefined) bytes(deadBytes, "size of what is dead", diskBytesMin, 64 * tebibyte);
  if (traits.isShared === true && (storeAddress === undefined || storeAddress.address.startsWith("memory:"))) {
    faults.push(`the case ${kind} needs a store that another process can open`);
  }
  if (findLimit && traits.limit === undefined)
    faults.push(`the case ${kind} has no limit to find; these have: ${limitKinds.join(", ")}`);
  if (faults.length > 0)
    throw new TidemarkError("INVALID_ARGUMENT", faults.join("; "), { remedy: "change what is named" });
  if (image !== "") {
    const { sizeBytes } = await imageFactsOf(image);
    if (sizeBytes < imageBytesMin)
      throw new TidemarkError("INVALID_ARGUMENT", `${image} has ${size(sizeBytes)}, which is too little to measure`, {
        remedy: `name an image of ${size(imageBytesMin)} or more`,
      });
  }
  return {
    kind,
    image,
    runs,
    check,
    scatterWrites,
    seed,
    workers,
    lanes,
    kernelMs,
    indexEntries,
    peers: options.peerFile === undefined ? [] : await readPeers(options.peerFile),
    trace: new Trace(),
    mark: marksOf(await readTargets(options.targetsFile), kind, options.isSmall ?? false),
    live: {
      seconds,
      bytesPerSecond,
      findLimit,
      cycleMs,
      diskBytes,
      hotBytes,
      cuts,
      storeAddress: storeAddress ?? { address: "memory:" },
      points,
      deadBytes,
    },
    temporaryFolder,
    begin: (step, run = 0) => {
      if (signal?.aborted === true)
        throw new TidemarkError("INTERRUPTED", "the benchmark was interrupted", { cause: signal.reason });
      onProgress?.({ step, run: run + 1, runs });
    },
    signal,
  };
}

async function readPeers(path: string): Promise<PeerTime[]> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    throw new TidemarkError("INVALID_ARGUMENT", `the peers' times cannot be read from ${path}`, {
      remedy: "check the path",
      cause: error,
    });
  }
  return text
    .split("\n")
    .flatMap((line, index) => (line.trim() === "" ? [] : [parsePeer(line, `${path}:${index + 1}`)]));
}

function parsePeer(line: string, place: string): PeerTime {
  const value = parseJson(line) as Partial<PeerTime> | null | undefined;
  const { peer, step, seconds } = value ?? {};
  const known = step === "first-backup" || step === "scattered-backup" || step === "restore";
  if (typeof peer !== "string" || !known || typeof seconds !== "number" || !(seconds > 0)) {
    throw new TidemarkError("INVALID_ARGUMENT", `${place} does not tell what a peer needed`, {
      remedy: 'write {"peer":"restic","step":"first-backup|scattered-backup|restore","seconds":12.3} there',
    });
  }
  return { peer, step, seconds };
}

/** The value, or undefined for what is no JSON; that is then refused for what it lacks. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}
