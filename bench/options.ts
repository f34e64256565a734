/**
 * What a caller may ask of the benchmarks, and what they read once it has been checked.
 */
import { readFile } from "node:fs/promises";
import type { Sink } from "../engine/index.ts";
import { systemCode, TidemarkError, workersDefault } from "../engine/index.ts";

/** `kernels`: the inner loops, bare. `pipeline`: a whole cycle into a sink that discards. The others: whole cycles against a store. */
export type BenchKind = "kernels" | "pipeline" | "initial" | "scattered" | "restore";

export const benchKinds: readonly BenchKind[] = ["initial", "scattered", "restore", "pipeline", "kernels"];

/** What is being measured now. */
export interface BenchProgress {
  readonly step: string;
  /** From 1 to `runs`. */
  readonly run: number;
  readonly runs: number;
}

export interface BenchOptions {
  readonly kind: BenchKind;
  /** Path of the disk image; every case but `kernels` needs one. It is read, never written to. */
  readonly image?: string | undefined;
  /** How often each step is measured, 1 to 100; medians are reported. Default: 1. */
  readonly runs?: number | undefined;
  /**
   * NDJSON with what peers needed for the same image on the same machine:
   * {"peer":"…","step":"first-backup|scattered-backup|restore","seconds":…}.
   */
  readonly peerFile?: string | undefined;
  /** `initial`: bring the point back and compare it with the image. Default: false. `restore` always does. */
  readonly check?: boolean | undefined;
  /** Writes of 4 KiB that `scattered` makes. Default: 20,000. */
  readonly scatterWrites?: number | undefined;
  /** Seed of everything that is random, 1 to 2³²-1. Default: 7. */
  readonly seed?: number | undefined;
  /** Worker threads of the vault. Default: the engine's. */
  readonly workers?: number | undefined;
  /** Lanes of the vault. Default: the engine's. */
  readonly lanes?: number | undefined;
  /** Time given to each kernel. Default: 1,000. */
  readonly kernelMs?: number | undefined;
  /** Entries that the dedup index is measured with. Default: 1,048,576, which is far beyond a processor's own cache. */
  readonly indexEntries?: number | undefined;
  /**
   * Opens the store for `initial`, `scattered` and `restore`; called once, before any clock starts. The benchmark works under a prefix
   * of its own in that store, removes what it wrote and disposes of the sink.
   */
  readonly openVaultSink: () => Promise<Sink>;
  /** Images, copies and local state go into a new folder in this one, which is removed at the end. */
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

/** Options with their defaults, proved to be possible. */
export interface BenchConfig {
  readonly kind: BenchKind;
  /** Empty for `kernels`. */
  readonly image: string;
  readonly runs: number;
  readonly check: boolean;
  readonly scatterWrites: number;
  readonly seed: number;
  readonly workers: number;
  readonly lanes: number | undefined;
  readonly kernelMs: number;
  readonly indexEntries: number;
  readonly peers: readonly PeerTime[];
  readonly temporaryFolder: string;
  /** Announces a step and ends the benchmark there when it has been interrupted. `run` counts from 0. */
  readonly begin: (step: string, run?: number) => void;
  readonly signal: AbortSignal | undefined;
}

/** Errors: INVALID_ARGUMENT with every fault at once, and what reading the peers' file ended with. */
export async function resolveOptions(options: BenchOptions, temporaryFolder: string): Promise<BenchConfig> {
  const { kind, image = "", runs = 1, check = false, scatterWrites = 20_000, seed = 7, workers = workersDefault } = options;
  const { kernelMs = 1_000, indexEntries = 1_048_576, signal, onProgress } = options;
  const faults: string[] = [];
  const whole = (value: number, what: string, least: number, most: number): void => {
    if (!Number.isInteger(value) || value < least || value > most) faults.push(`${value} is no ${what} from ${least} to ${most}`);
  };
  if (image === "" && kind !== "kernels") faults.push(`the case ${kind} needs a disk image`);
  whole(runs, "number of runs", 1, 100);
  whole(scatterWrites, "number of writes", 1, 10_000_000);
  whole(seed, "seed", 1, 2 ** 32 - 1);
  whole(workers, "number of workers", 1, 64);
  whole(kernelMs, "number of milliseconds", 1, 60_000);
  whole(indexEntries, "number of index entries", 1_024, 4_194_304);
  if (faults.length > 0) throw new TidemarkError("INVALID_ARGUMENT", faults.join("; "), { remedy: "change what is named" });
  return {
    kind,
    image,
    runs,
    check,
    scatterWrites,
    seed,
    workers,
    lanes: options.lanes,
    kernelMs,
    indexEntries,
    peers: options.peerFile === undefined ? [] : await readPeers(options.peerFile),
    temporaryFolder,
    begin: (step, run = 0) => {
      if (signal?.aborted === true) throw new TidemarkError("INTERRUPTED", "the benchmark was interrupted", { cause: signal.reason });
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
    throw new TidemarkError("INVALID_ARGUMENT", `the peers' times cannot be read from ${path}`, { remedy: "check the path", cause: error });
  }
  return text.split("\n").flatMap((line, index) => (line.trim() === "" ? [] : [parsePeer(line, `${path}:${index + 1}`)]));
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
