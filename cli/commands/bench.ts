/** `tidemark bench`: measures this machine and Tidemark on it, each figure beside a yardstick from the same run. */
import { join } from "node:path";
import { Command } from "commander";
import { type BenchKind, benchKinds, formatBench, runBench } from "../../bench/index.ts";
import { openSink } from "../../sink/index.ts";
import { sinkOptions, wholeNumber, withLanesOption, withWorkersOption } from "../settings.ts";
import { TemporaryFolder } from "../temporary-folder.ts";
import { type CommandContext, closing } from "./context.ts";

interface BenchFlags {
  readonly image?: string;
  readonly vault?: string;
  readonly runs?: number;
  readonly peerJson?: string;
  readonly check?: true;
  readonly workers?: number;
  readonly lanes?: number;
}

const descriptions: Readonly<Record<BenchKind, string>> = {
  initial: "first replication of an image, beside a plain upload of its data",
  scattered: "after scattered 4 KiB writes, and once more unchanged, beside reading the disk",
  restore: "bring a point back, beside fetching what it is stored as",
  pipeline: "a cycle into a store that discards, beside its bare kernels",
  kernels: "the inner loops, bare",
};

export function benchCommand(context: CommandContext): Command {
  const bench = new Command("bench")
    .description("measure, each figure beside a yardstick from the same run")
    .addHelpText("after", "\nExamples:\n  $ tidemark bench kernels\n  $ tidemark bench initial --image disk.img");
  for (const kind of benchKinds) bench.addCommand(kindCommand(context, kind));
  return bench;
}

function kindCommand(context: CommandContext, kind: BenchKind): Command {
  const command = new Command(kind).description(descriptions[kind]);
  const needsImage = kind !== "kernels";
  const needsVault = needsImage && kind !== "pipeline";
  if (needsImage) {
    command.requiredOption("--image <path>", "disk image to measure with; it is read only");
    withWorkersOption(command);
  }
  if (needsVault) {
    // Not mirrored by TIDEMARK_VAULT: nobody wants to measure on a vault in use because of a forgotten variable.
    command.option("--vault <vault>", "store to measure with (default: a new Azurite)");
    command.option("--peer-json <file>", "what other programs needed, to compare with");
    withLanesOption(command);
  }
  if (kind === "initial") command.option("--check", "bring the point back and compare it");
  const example = needsImage ? `${kind} --image disk.img` : kind;
  return command
    .option("--runs <count>", "how often each step is measured; medians are reported (default: 1)", wholeNumber)
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark bench ${example}
  $ tidemark bench ${example} --runs 3 --json`,
    )
    .action(async (flags: BenchFlags) => await bench(context, kind, flags));
}

async function bench(context: CommandContext, kind: BenchKind, flags: BenchFlags): Promise<void> {
  const { output, environment, signal } = context;
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
  output.summary(`bench ${kind}`, { case: report.case, marks: report.marks }, formatBench(report));
}
