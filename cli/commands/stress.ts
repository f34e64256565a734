/**
 * `tidemark stress`: real processes, real faults, and a proof that nothing was lost. `tidemark stress
 * store`: whether a store keeps the contract that Tidemark needs.
 */
import { randomInt } from "node:crypto";
import { resolve } from "node:path";
import process from "node:process";
import { Command } from "commander";
import { TidemarkError } from "../../engine/index.ts";
import { closing } from "../../engine/internal.ts";
import { exitCodes, withoutSecrets } from "../errors.ts";
import { makeEmptyFolder, writePage } from "../new-file.ts";
import { byteRate, byteSize, wholeNumber } from "../settings.ts";
import type { StressReport } from "../stress/report.ts";
import type { FaultKind } from "../stress/schedule.ts";
import { TemporaryFolder } from "../temporary-folder.ts";
import type { CommandContext } from "./context.ts";

interface StressFlags {
  readonly vault?: string;
  readonly disks: number;
  readonly diskSize: number;
  readonly seconds: number;
  readonly rate: number;
  readonly faults?: string;
  readonly seed?: number;
  readonly report?: string;
  readonly keep?: string;
}

interface StoreFlags {
  readonly vault: string;
  readonly seconds: number;
}

/** A program that reads pipes gets news so often. */
const pipeEveryMs = 10_000;

export function stressCommand(context: CommandContext): Command {
  const command = new Command("stress")
    .description("break store, network and agent under load, and prove that nothing is lost")
    .option("--vault <vault>", "vault to make: azurite:DIR, dir:DIR or an http URL (default: a new Azurite)")
    .option("--disks <count>", "protected disks, 1 to 64", wholeNumber, 4)
    .option("--disk-size <size>", "size of each disk", byteSize, 16 * 1024 ** 2)
    .option("--seconds <count>", "length of the load", wholeNumber, 60)
    .option("--rate <rate>", "writes of all disks together", byteRate, 20 * 1024 ** 2)
    .option("--faults <list>", "kinds of faults, or none (default: all that this vault can have)")
    .option("--seed <number>", "decides writes and faults (default: drawn)", wholeNumber)
    .option("--report <file>", "write a page with plots, which needs no network")
    .option("--keep <dir>", "work in this folder, which must be empty or absent, and keep everything")
    .addHelpText(
      "after",
      `
Faults: kill-store, kill-agent, lost-ack, 503, slow, reset, freeze, regress (a
store that goes back in time), disk-full (as root), flip (a bit on the way and at
rest).

Exit 0 means: every acknowledged write is on its disk, every listed point is
exactly the writes before one instant, every byte is proved, every planned fault
fired, nothing is left running. Exit 3 means damage; the folder is kept then.

Examples:
  $ tidemark stress
  $ tidemark stress --seconds 180 --report stress.html
  $ tidemark stress --vault http://127.0.0.1:10000/devstoreaccount1/stress --faults lost-ack,503
  $ tidemark stress --faults none --seconds 3600 --seed 7 --json`,
    )
    .action(async (flags: StressFlags) => await stress(context, flags));
  command
    .command("store")
    .description("check which guarantees of a store hold, for who tests an emulator")
    .requiredOption("--vault <vault>", "a container's URL, azurite:DIR, dir:DIR or memory:; it need not exist")
    .option("--seconds <count>", "length of the load after the checks", wholeNumber, 10)
    .addHelpText(
      "after",
      `
Each check works in a container of its own beside the one that is named, called
check-…, and removes it. Of a check that fails the calls are printed that it made.
Exit 1 when a guarantee does not hold.

Example:
  $ tidemark stress store --vault http://127.0.0.1:10000/devstoreaccount1/any`,
    )
    .action(async (flags: StoreFlags) => await store(context, flags));
  return command;
}

async function store(context: CommandContext, { vault, seconds }: StoreFlags): Promise<void> {
  const { output, environment, signal } = context;
  const { checkStore, openScratch, storeText } = await import("../stress/index.ts");
  const scratch = await openScratch(vault, environment, signal);
  const onStep = (text: string): void => output.step({ step: text }, `${text} …`);
  const report = await closing(
    scratch,
    async () => await checkStore({ open: scratch.open, vault: withoutSecrets(vault), seconds, onStep, signal }),
  );
  output.answer("stress store", report, storeText(report));
  if (!report.sound) context.exitCode = exitCodes.failed;
}

async function stress(context: CommandContext, flags: StressFlags): Promise<void> {
  const { output } = context;
  refuseOutOfBounds(flags);
  const { progressText, reportText, runStress, stressPage } = await import("../stress/index.ts");
  const faults = await faultsOf(flags);
  const seed = flags.seed ?? randomInt(2 ** 31);
  // What cannot be written is found before the run.
  if (flags.report !== undefined) await writePage(flags.report, "", "a");
  const report = await inFolder(flags.keep, async (folder) => {
    let nextLineMs = 0;
    return await runStress({
      vault: flags.vault,
      disks: flags.disks,
      diskBytes: flags.diskSize,
      seconds: flags.seconds,
      bytesPerSecond: flags.rate,
      faults,
      seed,
      folder,
      environment: context.environment,
      command: commandOf(flags, faults, seed),
      onStep: (text) => output.step({ step: text }, `${text} …`),
      onSample: (sample, planned, now) => {
        const text = progressText(sample, flags.seconds, planned, now);
        output.step({ step: "load", ...sample }, text);
        if (sample.atMs < nextLineMs) return;
        nextLineMs += pipeEveryMs;
        output.item("sample", sample, process.stderr.isTTY ? undefined : text);
      },
      signal: context.signal,
    });
  });
  if (flags.report !== undefined) await writePage(flags.report, stressPage(report));
  output.answer("stress", report, reportText(report));
  if (report.verdict === "damaged") context.exitCode = exitCodes.damageFound;
  else if (report.verdict === "failed") context.exitCode = exitCodes.failed;
}

/** Errors: INVALID_ARGUMENT for kinds that a run on this vault cannot have. */
async function faultsOf({ faults, vault }: StressFlags): Promise<readonly FaultKind[]> {
  const { faultKinds, impossibleFaults, parseFaults } = await import("../stress/index.ts");
  const reasons = await impossibleFaults(vault);
  if (faults === undefined) return faultKinds.filter((kind) => !reasons.has(kind));
  const named = parseFaults(faults);
  const refused = named.filter((kind) => reasons.has(kind));
  if (refused.length === 0) return named;
  const possible = named.filter((kind) => !reasons.has(kind));
  const why = refused.map((kind) => `${kind}: ${reasons.get(kind) ?? ""}`).join("; ");
  throw new TidemarkError("INVALID_ARGUMENT", `this run cannot have ${why}`, {
    remedy: `add \`--faults ${possible.length === 0 ? "none" : possible.join(",")}\``,
  });
}

function refuseOutOfBounds({ disks, diskSize, seconds, rate: bytesPerSecond }: StressFlags): void {
  const bounds: readonly (readonly [flag: string, value: number, min: number, max: number])[] = [
    ["--disks", disks, 1, 64],
    ["--disk-size", diskSize, 1024 ** 2, 1024 ** 3],
    ["--seconds", seconds, 1, 86_400],
    ["--rate", bytesPerSecond, 10 * 1024, 1024 ** 3],
  ];
  for (const [flag, value, min, max] of bounds) {
    if (value >= min && value <= max) continue;
    throw new TidemarkError("INVALID_ARGUMENT", `${flag} is ${value}, which is not ${min} to ${max}`, {
      remedy: `add \`${flag}\` with a number in these bounds`,
    });
  }
  if (diskSize % 4096 === 0) return;
  throw new TidemarkError("INVALID_ARGUMENT", `--disk-size is ${diskSize}, which is no multiple of 4096`, {
    remedy: "add `--disk-size 16MiB`",
  });
}

/** Errors: INVALID_ARGUMENT when `keep` is not empty. */
async function inFolder(
  keep: string | undefined,
  work: (folder: string) => Promise<StressReport>,
): Promise<StressReport> {
  if (keep !== undefined) {
    await makeEmptyFolder(keep);
    return await work(resolve(keep));
  }
  const folder = await TemporaryFolder.create("tidemark-stress-");
  return await closing(folder, async () => {
    const report = await work(folder.path);
    if (report.verdict !== "damaged") return { ...report, folder: null };
    folder.keep();
    return report;
  });
}

/** The words that run the same again, without secrets. */
function commandOf(flags: StressFlags, faults: readonly FaultKind[], seed: number): string {
  return [
    "tidemark stress",
    ...(flags.vault === undefined ? [] : [`--vault ${withoutSecrets(flags.vault)}`]),
    `--disks ${flags.disks}`,
    `--disk-size ${sizeWord(flags.diskSize)}`,
    `--seconds ${flags.seconds}`,
    `--rate ${sizeWord(flags.rate)}/s`,
    `--faults ${faults.length === 0 ? "none" : faults.join(",")}`,
    `--seed ${seed}`,
  ].join(" ");
}

/** As `--disk-size` takes it, without rounding. */
function sizeWord(bytes: number): string {
  return bytes % 1024 ** 2 === 0 ? `${bytes / 1024 ** 2}MiB` : `${bytes}B`;
}
