/**
 * `tidemark bench`: measures this machine and Tidemark on it, each figure beside a yardstick from
 * the same run.
 */
import { join } from "node:path";
import { Command, Option } from "commander";
import { type BenchKind, benchKinds, cases, formatBench, isStoreless, runBench } from "../../bench/index.ts";
import { closing } from "../../engine/internal.ts";
import { openSink } from "../../sink/index.ts";
import { exitCodes } from "../errors.ts";
import { byteRate, byteSize, sinkOptions, wholeNumber, withLanesOption, withWorkersOption } from "../settings.ts";
import { TemporaryFolder } from "../temporary-folder.ts";
import { endCaseFirst, storeAddress } from "./bench-store.ts";
import { suiteCommand } from "./bench-suite.ts";
import type { CommandContext } from "./context.ts";

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

/** What `--seconds` is of. */
const loads: Readonly<Partial<Record<BenchKind, string>>> = {
  front: "length of each load",
  mount: "length of each load",
  instant: "length of each load",
  restart: "length of the load until the kill",
  churn: "length of the load",
  collect: "length of the load before the collection",
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
  const { description, image, takesPeers, isMeasuredOnce, ...defaults } = cases[kind];
  const { writes, seconds, bytesPerSecond, limit, points, diskBytes, hotBytes } = defaults;
  const command = new Command(kind).description(description);
  if (image === "required") command.requiredOption("--image <path>", "disk image to measure with; it is read only");
  if (image === "optional")
    command.option("--image <path>", "disk image of which a copy is worked on (default: a new disk)");
  if (kind !== "kernels" && kind !== "start") withWorkersOption(command);
  if (!isStoreless(kind)) {
    // No TIDEMARK_VAULT: a forgotten variable must not lead a benchmark to a vault in use.
    command.option("--vault <vault>", "store to measure with (default: a new Azurite)");
    withLanesOption(command);
  }
  if (takesPeers === true) command.option("--peer-json <file>", "what other programs needed, to compare with");
  const load = loads[kind];
  if (load !== undefined) command.option("--seconds <count>", `${load} (default: ${seconds ?? ""})`, wholeNumber);
  if (writes !== undefined) command.option("--writes <count>", `writes of 4 KiB (default: ${writes})`, wholeNumber);
  if (bytesPerSecond !== undefined) {
    const text = `what to write a second (default: ${bytesPerSecond / 1e6} MB/s)`;
    command.option("--rate <rate>", text, byteRate);
  }
  if (kind === "soak") command.option("--minutes <count>", "length of the load (default: 60)", wholeNumber);
  // Where there is none, the case refuses the option by name.
  command.addOption(new Option("--find-limit", `look for the highest ${limit ?? ""}`).hideHelp(limit === undefined));
  if (points !== undefined) command.option("--points <count>", `points of the disk (default: ${points})`, wholeNumber);
  if (kind === "collect")
    command.option("--bytes <size>", "what is dead (default: 10 GB, or less where there is no room)", byteSize);
  if (diskBytes !== undefined) command.option("--disk-size <size>", "size of the disk that is made", byteSize);
  if (hotBytes !== undefined) command.option("--hot <size>", "the part of the disk that is written", byteSize);
  if (kind === "initial") command.option("--check", "bring the point back and compare it");
  const example = image === "required" ? `${kind} --image disk.img` : kind;
  const isRepeated = isMeasuredOnce !== true;
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
