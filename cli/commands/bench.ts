/**
 * `tidemark bench`: measures this machine and Tidemark on it, each figure beside a yardstick from
 * the same run.
 */
import { join } from "node:path";
import { Command, InvalidArgumentError } from "commander";
import { type BenchKind, benchKinds, formatBench, keepKinds, liveKinds, runBench } from "../../bench/index.ts";
import { openSink } from "../../sink/index.ts";
import { exitCodes } from "../errors.ts";
import { parseBytes, parseRate } from "../quantities.ts";
import { sinkOptions, wholeNumber, withLanesOption, withWorkersOption } from "../settings.ts";
import { TemporaryFolder } from "../temporary-folder.ts";
import { endCaseFirst, storeAddress } from "./bench-store.ts";
import { suiteCommand } from "./bench-suite.ts";
import { type CommandContext, closing } from "./context.ts";

interface BenchFlags {
  readonly image?: string;
  readonly vault?: string;
  readonly runs?: number;
  readonly peerJson?: string;
  readonly check?: true;
  readonly seconds?: number;
  readonly minutes?: number;
  readonly rate?: number;
  readonly findLimit?: true;
  readonly writes?: number;
  readonly points?: number;
  readonly bytes?: number;
  readonly diskSize?: number;
  readonly hot?: number;
  readonly targets?: string;
  readonly fail: boolean;
  readonly workers?: number;
  readonly lanes?: number;
}

const descriptions: Readonly<Record<BenchKind, string>> = {
  initial: "first replication of an image, beside a plain upload of its data",
  scattered: "after scattered 4 KiB writes, and once more unchanged, beside reading the disk",
  restore: "bring a point back, beside fetching what it is stored as",
  front: "fio at a protected disk, beside qemu-nbd; how long a cut holds writes",
  burst: "after scattered writes over NBD, from the cut to the commit",
  churn: "random writes without a pause: points, lag and memory",
  soak: "random writes for an hour: memory and open handles stay flat",
  restart: "kill -9 under writes: until there is a point again",
  mount: "a point mounted: first read, all of it once, and from the cache",
  instant: "a disk that runs at once from a point: first read and flush, copying, and fio meanwhile",
  failover: "planned, change-point and failback, beside what they move",
  copy: "points copied to another vault, beside the bare transfers",
  prune: "1,000 points thinned in one go",
  open: "the newest of 5,000 points opened and read",
  collect: "dead bytes given back beside a disk that is written",
  size: "the same changes on disks of 8 GiB, 1 TiB and 8 TiB",
  disks: "as many changes on 1, 10 and 100 disks in one process",
  lanes: "first replication with 2 to 8 lanes",
  blocks: "first replication with blocks of 16 KiB to 1 MiB, into a store that discards",
  scaling: "first replication with 1 to 16 workers: at how many cores the main thread is busy",
  peers: "what restic, borg and qemu-img need for the same, where they are installed",
  pipeline: "a cycle into a store that discards, beside its bare kernels",
  kernels: "the inner loops, bare",
  start: "a command that lists the points of a small vault, and an import of the library",
};

/** Kinds without a store, or with one that discards. */
const storeless: readonly BenchKind[] = ["kernels", "start", "pipeline", "size", "disks", "blocks", "scaling"];

/** Kinds that are measured once. */
const takenOnce: readonly BenchKind[] = ["churn", "restart", "soak", "prune", "collect", "peers"];

/** Kinds that can be compared with the times of other programs. */
const peerKinds: readonly BenchKind[] = ["initial", "scattered", "restore", "burst"];

/** Kinds that write at random, and how much. */
const writesDefaults: Readonly<Partial<Record<BenchKind, number>>> = {
  burst: 20_000,
  size: 20_000,
  disks: 102_400,
  peers: 20_000,
};

/** Kinds with loads of a length, in seconds. */
const loadSeconds: Readonly<Partial<Record<BenchKind, number>>> = { front: 2, mount: 3, instant: 20 };

/** Kinds that make a disk of their own, and those that write a part of it. */
const madeDisks: readonly BenchKind[] = [...liveKinds, ...keepKinds];
const hotKinds: readonly BenchKind[] = ["restart", "mount", "instant", "failover", "copy", "prune", "open"];

/** Whether a kind takes an image. The others make their own disk, or need none. */
const images: Readonly<Partial<Record<BenchKind, "required" | "optional">>> = {
  initial: "required",
  scattered: "required",
  restore: "required",
  pipeline: "required",
  lanes: "required",
  blocks: "required",
  scaling: "required",
  peers: "required",
  front: "optional",
  burst: "optional",
  mount: "optional",
};

export function benchCommand(context: CommandContext): Command {
  const bench = new Command("bench")
    .description("measure, each figure beside a yardstick from the same run")
    .addHelpText("after", "\nExamples:\n  $ tidemark bench suite\n  $ tidemark bench initial --image disk.img")
    .addCommand(suiteCommand(context));
  for (const kind of benchKinds) bench.addCommand(kindCommand(context, kind));
  return bench;
}

function kindCommand(context: CommandContext, kind: BenchKind): Command {
  const command = new Command(kind).description(descriptions[kind]);
  const image = images[kind];
  const needsVault = !storeless.includes(kind);
  if (image === "required") command.requiredOption("--image <path>", "disk image to measure with; it is read only");
  if (image === "optional")
    command.option("--image <path>", "disk image of which a copy is worked on (default: a new disk)");
  if (kind !== "kernels" && kind !== "start") withWorkersOption(command);
  if (needsVault) {
    // No TIDEMARK_VAULT: a forgotten variable must not lead a benchmark to a vault in use.
    command.option("--vault <vault>", "store to measure with (default: a new Azurite)");
    withLanesOption(command);
  }
  if (peerKinds.includes(kind)) command.option("--peer-json <file>", "what other programs needed, to compare with");
  if (kind in loadSeconds)
    command.option("--seconds <count>", `length of each load (default: ${loadSeconds[kind] ?? ""})`, wholeNumber);
  if (kind === "restart")
    command.option("--seconds <count>", "length of the load until the kill (default: 5)", wholeNumber);
  if (kind in writesDefaults)
    command.option("--writes <count>", `writes of 4 KiB (default: ${writesDefaults[kind] ?? ""})`, wholeNumber);
  if (kind === "churn") {
    command
      .option("--rate <rate>", "what to write a second (default: 100 MB/s)", rate)
      .option("--seconds <count>", "length of the load (default: 60)", wholeNumber)
      .option("--find-limit", "look for the highest rate that holds");
  }
  if (kind === "soak") {
    command
      .option("--rate <rate>", "what to write a second (default: 20 MB/s)", rate)
      .option("--minutes <count>", "length of the load (default: 60)", wholeNumber);
  }
  if (kind === "prune" || kind === "open") {
    command.option("--points <count>", `points of the disk (default: ${kind === "prune" ? 1000 : 5000})`, wholeNumber);
  }
  if (kind === "collect") {
    command
      .option("--bytes <size>", "what is dead (default: 10 GB, or less where there is no room)", bytes)
      .option("--rate <rate>", "what to write a second (default: 20 MB/s)", rate)
      .option("--seconds <count>", "length of the load before the collection (default: 60)", wholeNumber);
  }
  if (madeDisks.includes(kind)) command.option("--disk-size <size>", "size of the disk that is made", bytes);
  if (hotKinds.includes(kind)) command.option("--hot <size>", "the part of the disk that is written", bytes);
  if (kind === "initial") command.option("--check", "bring the point back and compare it");
  const example = image === "required" ? `${kind} --image disk.img` : kind;
  const isRepeated = !takenOnce.includes(kind);
  if (isRepeated)
    command.option("--runs <count>", "how often each step is measured; medians are reported (default: 1)", wholeNumber);
  return withMarkOptions(command)
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark bench ${example}
  $ tidemark bench ${example}${isRepeated ? " --runs 3" : ""} --json`,
    )
    .action(async (flags: BenchFlags) => await bench(context, kind, flags));
}

/** Adds the options about marks: what is wanted, and whether a missed mark is a failure. */
function withMarkOptions(command: Command): Command {
  return command
    .option("--targets <file>", "YAML with marks of your own, in the form of bench/targets.yaml")
    .option("--no-fail", "exit with 0 though a mark is missed");
}

async function bench(context: CommandContext, kind: BenchKind, flags: BenchFlags): Promise<void> {
  const { output, environment, signal } = context;
  endCaseFirst(context);
  const folder = await TemporaryFolder.create("tidemark-bench-");
  const report = await closing(folder, async () => {
    const address = flags.vault ?? `azurite:${join(folder.path, "vault")}`;
    return await runBench({
      kind,
      image: flags.image,
      runs: flags.runs,
      peerFile: flags.peerJson,
      check: flags.check,
      workers: flags.workers,
      lanes: flags.lanes,
      seconds: flags.minutes === undefined ? flags.seconds : flags.minutes * 60,
      bytesPerSecond: flags.rate,
      diskBytes: flags.diskSize,
      hotBytes: flags.hot,
      targetsFile: flags.targets,
      findLimit: flags.findLimit,
      scatterWrites: flags.writes,
      points: flags.points,
      deadBytes: flags.bytes,
      storeAddress: storeAddress(address, environment, signal),
      openVaultSink: async () => await openSink(address, sinkOptions(address, environment, signal)),
      temporaryFolder: folder.path,
      signal,
      onProgress: (progress) => {
        const run = progress.runs === 1 ? "" : ` (${progress.run} of ${progress.runs})`;
        output.step(progress, `${progress.step}${run}`);
      },
    });
  });
  output.item("bench", report);
  output.answer(`bench ${kind}`, { case: report.case, marks: report.marks }, formatBench(report));
  if (flags.fail && report.marks.some(({ met }) => met === false)) context.exitCode = exitCodes.failed;
}

function bytes(text: string): number {
  const value = parseBytes(text);
  if (value === undefined) throw new InvalidArgumentError("It is not a size such as 10GB.");
  return value;
}

function rate(text: string): number {
  const value = parseRate(text);
  if (value === undefined) throw new InvalidArgumentError("It is not a rate such as 100MB/s.");
  return value;
}
