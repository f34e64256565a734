/**
 * `tidemark demo`: the main job on real data, from beginning to end, in half a minute. It takes
 * three points of a disk with changes between, writes two of them out, compares them with the disk
 * as it was, and proves every chunk of the vault.
 */
import { rm } from "node:fs/promises";
import { basename, join, relative, resolve } from "node:path";
import process from "node:process";
import { Command } from "commander";
import {
  FileVolume,
  type MaterializeSummary,
  type ReplicateSummary,
  Vault,
  type VerifySummary,
} from "../../engine/index.ts";
import { closing, shellWord } from "../../engine/internal.ts";
import { openSink } from "../../sink/index.ts";
import { copyAndOverwrite, copyDisk, type DemoDisk, hashOf, makeDisk, overwriteAndDelete } from "../demo-disk.ts";
import { exitCodes } from "../errors.ts";
import type { DemoStep, DemoSummary } from "../json.ts";
import { makeEmptyFolder } from "../new-file.ts";
import { formatBytes, formatDuration, formatNumberOf, formatRate, formatRatio } from "../quantities.ts";
import { TemporaryFolder } from "../temporary-folder.ts";
import { table } from "../text.ts";
import { type CommandContext, operation } from "./context.ts";

interface DemoFlags {
  readonly image?: string;
  readonly keep?: string;
}

const diskName = "demo";
/** Any would do; a fixed one makes every run change the same places. */
const seed = 20_260_501;

/** What a point's disk was, to compare with what comes back. */
interface TakenPoint {
  readonly summary: ReplicateSummary;
  readonly hash: string;
}

interface ReturnedPoint {
  readonly summary: MaterializeSummary;
  readonly equal: boolean;
}

export function demoCommand(context: CommandContext): Command {
  return new Command("demo")
    .description("run the main job on real files found here, in half a minute")
    .option("--image <path>", "work on a copy of this image instead")
    .option("--keep <dir>", "work in this folder, which must be empty or absent, and keep everything")
    .addHelpText(
      "after",
      `
It makes a disk from files of this machine, takes three points of it with
changes between, writes two of them out and compares them with the disk as it
was. Exit 0 means that all was equal.

Examples:
  $ tidemark demo
  $ tidemark demo --keep /tmp/tidemark`,
    )
    .action(async (flags: DemoFlags) => await demo(context, flags));
}

async function demo(context: CommandContext, flags: DemoFlags): Promise<void> {
  if (flags.keep !== undefined) {
    await makeEmptyFolder(flags.keep);
    await runIn(context, flags, resolve(flags.keep));
    return;
  }
  const folder = await TemporaryFolder.create("tidemark-demo-");
  await closing(folder, async () => await runIn(context, flags, folder.path));
}

async function runIn(context: CommandContext, flags: DemoFlags, folder: string): Promise<void> {
  const { output, signal } = context;
  const startedAt = performance.now();
  output.step({ step: "disk" }, "making a disk …");
  const disk = flags.image === undefined ? await makeDisk(folder, signal) : await copyDisk(flags.image, folder, signal);
  say(context, "disk", disk.content, startedAt);
  const address = `azurite:${join(folder, "vault")}`;
  const azuriteAt = performance.now();
  output.step({ step: "vault" }, "starting Azurite …");
  const sink = await openSink(address, { signal });
  const result = await closing(sink, async () => {
    const vault = await Vault.openOrCreate(sink, { stateFolder: join(folder, "state"), signal });
    say(context, "vault", "new, in an Azurite of its own", azuriteAt);
    return await closing(
      vault,
      async () => await new Demo(context, vault, disk, { folder, keeps: flags.keep !== undefined }).run(),
    );
  });
  const elapsedMs = Math.round(performance.now() - startedAt);
  const equal = result.returned.every((point) => point.equal);
  const damaged = result.verified.damaged.length;
  output.summary(
    "demo",
    {
      equal,
      ...totals(result.taken),
      checkedChunks: result.verified.checkedChunks,
      damaged: result.verified.damaged,
      elapsedMs,
    },
    [
      "",
      pointsTable(result.taken),
      "",
      backTable(result.returned),
      "",
      `${equal && damaged === 0 ? "All that came back is equal, byte for byte" : "NOT EQUAL"}; the whole took ${formatDuration(elapsedMs)}.`,
      ...(flags.keep === undefined ? [] : ["", goOn(folder, address)]),
    ].join("\n"),
  );
  if (!equal) context.exitCode = exitCodes.failed;
  else if (damaged > 0) context.exitCode = exitCodes.damageFound;
}

class Demo {
  readonly #context: CommandContext;
  readonly #vault: Vault;
  readonly #disk: DemoDisk;
  readonly #folder: string;
  readonly #keeps: boolean;

  constructor(
    context: CommandContext,
    vault: Vault,
    disk: DemoDisk,
    place: { readonly folder: string; readonly keeps: boolean },
  ) {
    this.#context = context;
    this.#vault = vault;
    this.#disk = disk;
    this.#folder = place.folder;
    this.#keeps = place.keeps;
  }

  async run(): Promise<{
    readonly taken: readonly TakenPoint[];
    readonly returned: readonly ReturnedPoint[];
    readonly verified: VerifySummary;
  }> {
    const first = await this.#take("the disk as it is");
    const second = await this.#take(await overwriteAndDelete(this.#disk, seed));
    const third = await this.#take(await copyAndOverwrite(this.#disk, seed + 1));
    const returned = [await this.#bringBack(first), await this.#bringBack(third)];
    const startedAt = performance.now();
    const verified = await this.#vault.verify(operation(this.#context));
    const found =
      verified.damaged.length === 0 ? "no damage" : `${formatNumberOf(verified.damaged.length, "damage")} found`;
    say(
      this.#context,
      "verify",
      `${found}: ${formatNumberOf(verified.checkedPoints, "point")}, ${formatNumberOf(verified.checkedChunks, "chunk")}`,
      startedAt,
    );
    return { taken: [first, second, third], returned, verified };
  }

  async #take(what: string): Promise<TakenPoint> {
    const startedAt = performance.now();
    const hash = await hashOf(this.#disk.path, this.#context.signal);
    const volume = await FileVolume.open(this.#disk.path);
    try {
      const summary = await this.#vault.replicate({ disk: diskName, volume, ...operation(this.#context) });
      say(this.#context, `point ${summary.sequence}`, what, startedAt, summary);
      return { summary, hash };
    } finally {
      await volume.close();
    }
  }

  async #bringBack({ summary: { sequence }, hash }: TakenPoint): Promise<ReturnedPoint> {
    const startedAt = performance.now();
    const to = join(this.#folder, `point-${sequence}.img`);
    const what = { disk: diskName, point: String(sequence), to };
    const summary = await this.#vault.materialize({ ...what, ...operation(this.#context) });
    const equal = (await hashOf(to, this.#context.signal)) === hash;
    // One image at a time, so that room for one is enough, unless the user keeps them.
    if (!this.#keeps) await rm(to);
    say(
      this.#context,
      "back",
      `point ${sequence} ${equal ? "equals the disk as it was" : "DIFFERS from the disk as it was"}`,
      startedAt,
      {
        ...summary,
        equal,
      },
    );
    return { summary, equal };
  }
}

/** One step is done. */
function say(
  { output }: CommandContext,
  step: string,
  what: string,
  startedAt: number,
  fields: Partial<DemoStep> = {},
): void {
  const elapsedMs = Math.round(performance.now() - startedAt);
  const text = `${step.padEnd(8)} ${what.padEnd(60)} ${formatDuration(elapsedMs).padStart(7)}`;
  output.item("step", { ...fields, step, what, elapsedMs: fields.elapsedMs ?? elapsedMs }, text);
}

type Totals = Omit<DemoSummary, "equal" | "checkedChunks" | "damaged" | "elapsedMs">;

function totals(taken: readonly TakenPoint[]): Totals {
  const sum = (of: (summary: ReplicateSummary) => number): number =>
    taken.reduce((total, { summary }) => total + of(summary), 0);
  return {
    points: taken.length,
    volumeBytes: taken.at(-1)?.summary.volumeBytes ?? 0,
    scannedBytes: sum(({ scannedBytes }) => scannedBytes),
    changedBytes: sum(({ changedBytes }) => changedBytes),
    dedupedBytes: sum(({ dedupedBytes }) => dedupedBytes),
    newBytes: sum(({ newBytes }) => newBytes),
    storedBytes: sum(({ storedBytes }) => storedBytes),
    replicateMs: sum(({ elapsedMs }) => elapsedMs),
  };
}

function pointsTable(taken: readonly TakenPoint[]): string {
  const row = (name: string, bytes: Omit<Totals, "points" | "replicateMs">, elapsedMs: number): readonly string[] => [
    name,
    formatBytes(bytes.volumeBytes),
    formatBytes(bytes.changedBytes),
    formatBytes(bytes.storedBytes),
    formatRatio(bytes.dedupedBytes + bytes.newBytes, bytes.newBytes),
    formatRatio(bytes.newBytes, bytes.storedBytes),
    formatDuration(elapsedMs),
    formatRate(bytes.scannedBytes, elapsedMs),
  ];
  const all = totals(taken);
  const rows = taken.map(({ summary }) => row(String(summary.sequence), summary, summary.elapsedMs));
  rows.push(row("all", all, all.replicateMs));
  return table(
    ["POINT", "LOGICAL", "CHANGED", "STORED", "DEDUP", "COMPRESSION", "TIME", "THROUGHPUT"],
    rows,
    "lrrrrrrr",
  );
}

function backTable(returned: readonly ReturnedPoint[]): string {
  const rows = returned.map(({ summary: { sequence, bytesRead, bytesWritten, elapsedMs }, equal }) => [
    String(sequence),
    formatBytes(bytesRead),
    formatBytes(bytesWritten),
    formatDuration(elapsedMs),
    formatRate(bytesWritten, elapsedMs),
    equal ? "equal" : "DIFFERENT",
  ]);
  return table(["BACK", "READ", "WRITTEN", "TIME", "THROUGHPUT", "COMPARED"], rows, "lrrrrl");
}

/** The commands with which to go on by hand in what was kept. */
function goOn(folder: string, address: string): string {
  const script = process.argv[1] ?? "tidemark";
  const program = basename(script) === "tidemark" ? "tidemark" : `node ${shellWord(relative(process.cwd(), script))}`;
  return [
    "Go on by hand:",
    `  export TIDEMARK_VAULT=${shellWord(address)}`,
    `  export TIDEMARK_STATE=${shellWord(join(folder, "state"))}`,
    `  ${program} points list --disk ${diskName}`,
    `  ${program} replicate ${shellWord(join(folder, "disk.img"))} --disk ${diskName}`,
    `  ${program} materialize --disk ${diskName} --point 2 --to ${shellWord(join(folder, "point-2.img"))}`,
  ].join("\n");
}
