/** `tidemark bench suite`: all cases, and a report of them as JSON and as a page. */
import { join, resolve } from "node:path";
import { Command, Option } from "commander";
import { runSuiteTo, type SuiteCase, type SuiteOutcome } from "../../bench/index.ts";
import { closing } from "../../engine/internal.ts";
import { openSink } from "../../sink/index.ts";
import { exitCodes } from "../errors.ts";
import { makeNamedFolder } from "../new-file.ts";
import { formatDuration, formatNumberOf } from "../quantities.ts";
import { duration, sinkOptions, withLanesOption, withWorkersOption } from "../settings.ts";
import { TemporaryFolder } from "../temporary-folder.ts";
import { endCaseFirst, storeAddress } from "./bench-store.ts";
import type { CommandContext } from "./context.ts";

interface SuiteFlags {
  readonly full?: true;
  readonly within?: number;
  readonly out?: string;
  readonly targets?: string;
  readonly baseline?: string;
  readonly image?: string;
  readonly vault?: string;
  readonly workers?: number;
  readonly lanes?: number;
  readonly fail: boolean;
}

export function suiteCommand(context: CommandContext): Command {
  const command = new Command("suite")
    .description("run all cases but the soak, and write report.json and report.html")
    .addOption(new Option("--quick", "small disks (default)").conflicts("full"))
    .option("--full", "the sizes that the marks hold for; the machine has to be quiet")
    .option("--within <duration>", "time for all cases, each at least once (default: 3m, full: 90m)", duration)
    .option("--out <folder>", "folder for the report (default: a new one here)")
    .option("--baseline <file>", "report.json of an older suite, to compare with")
    .option("--image <path>", "disk image for the cases that take one (default: one is made); it is read only")
    .option("--vault <vault>", "store to measure with (default: a new Azurite)")
    .option("--targets <file>", "YAML with marks of your own, in the form of bench/targets.yaml")
    .option("--no-fail", "exit with 0 though a mark is missed");
  return withLanesOption(withWorkersOption(command))
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark bench suite
  $ tidemark bench suite --full --out today --baseline yesterday/report.json`,
    )
    .action(async (flags: SuiteFlags) => await suite(context, flags));
}

async function suite(context: CommandContext, flags: SuiteFlags): Promise<void> {
  const { output, environment, signal } = context;
  const out = resolve(flags.out ?? `bench-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}`);
  await makeNamedFolder(out);
  endCaseFirst(context);
  const folder = await TemporaryFolder.create("tidemark-bench-");
  const outcome = await closing(folder, async () => {
    const address = flags.vault ?? `azurite:${join(folder.path, "vault")}`;
    return await runSuiteTo({
      mode: flags.full === true ? "full" : "quick",
      folder: out,
      baselineFile: flags.baseline,
      targetsFile: flags.targets,
      suiteMs: flags.within,
      image: flags.image === undefined ? undefined : resolve(flags.image),
      workers: flags.workers,
      lanes: flags.lanes,
      storeAddress: storeAddress(address, environment, signal),
      openVaultSink: async () => await openSink(address, sinkOptions(address, environment, signal)),
      temporaryFolder: folder.path,
      signal,
      onProgress: (progress) => {
        const { case: kind, number, of, run, step, leftMsMax } = progress;
        const left = leftMsMax === 0 ? "" : `, at most ${formatDuration(leftMsMax)} left`;
        const where = kind === null ? `${of} cases` : `${number} of ${of}, ${kind}, run ${run}`;
        output.step(progress, `${where}${left}: ${step}`);
      },
      onCase: (done) => output.item("case", done, lineOf(done)),
    });
  });
  const { report, json, page, reached, missed, notJudged, failed } = outcome;
  output.answer("bench suite", { json, page, reached, missed, notJudged, failed }, textOf(outcome));
  if (flags.fail && failed) context.exitCode = exitCodes.failed;
  output.detail(`measured with ${report.store}`);
}

/** A case that is done, in one line. */
function lineOf(done: SuiteCase): string {
  const { case: kind, missing, repetitions, elapsedMs, disturbances, marks, stable } = done;
  const name = kind.padEnd(10);
  if (missing !== null) return `${name} no figures: ${missing}`;
  const missed = marks.filter(({ met }) => met === false).map((mark) => mark.name);
  const runs = formatNumberOf(repetitions, "run").padEnd(7);
  const facts = [
    `${formatDuration(elapsedMs).padStart(8)}  ${runs}`,
    ...(stable || repetitions === 1 ? [] : ["not yet stable"]),
    ...(missed.length === 0 ? [] : [`missed: ${missed.join("; ")}`]),
    ...(disturbances.length === 0 ? [] : [`busy: ${disturbances.join("; ")}`]),
  ];
  return `${name} ${facts.join("  ")}`;
}

function textOf({ report, json, page, reached, missed, notJudged }: SuiteOutcome): string {
  const changed = report.changes.filter(({ verdict }) => verdict !== "unclear");
  const since =
    report.baseline === null
      ? ""
      : `\nsince the baseline: ${changed.length === 0 ? "no clear difference" : ""}${changed
          .map(
            ({ case: kind, step, verdict, ratio }) => `\n  ${kind}, ${step}: ${verdict}, ${ratio.median.toFixed(2)} ×`,
          )
          .join("")}`;
  const marks = `${formatNumberOf(reached, "mark")} reached, ${missed} missed, ${notJudged} not judged`;
  return `\n${marks}, in ${formatDuration(report.elapsedMs)}${since}\n${page}\n${json}\n`;
}
