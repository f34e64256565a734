/**
 * `tidemark disks list` and `tidemark points list|show|pin|unpin`: what a vault holds, and what
 * keeps a point. Further commands of both are in files of their own.
 */
import { Command } from "commander";
import { type ListedPoint, type PointDetail, TidemarkError } from "../../engine/index.ts";
import type { PointsSummary } from "../json.ts";
import type { Output } from "../output.ts";
import { formatBytes, formatCount, formatDuration, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, wholeNumber, withVaultOptions } from "../settings.ts";
import { type Column, fields, fittedTable, printable, shortened, table } from "../text.ts";
import { pointSelector, requireTime, timeForms } from "../times.ts";
import { type CommandContext, operation, withVault } from "./context.ts";
import { addDisableCommands } from "./disks-disable.ts";
import { addRemoveCommand } from "./disks-remove.ts";
import { addRenameCommand } from "./disks-rename.ts";
import { addDiffCommand } from "./points-diff.ts";
import { addLabelCommand } from "./points-label.ts";

interface DiskFlags extends VaultFlags {
  readonly disk: string;
}

interface ListFlags extends DiskFlags {
  readonly last?: number;
  readonly since?: string;
  readonly until?: string;
  readonly app?: true;
  readonly pinned?: true;
}

interface PointFlags extends DiskFlags {
  readonly point: string;
}

interface PinFlags extends PointFlags {
  readonly name?: string;
  readonly until?: string;
}

export function disksCommand(context: CommandContext): Command {
  const disks = new Command("disks")
    .description("list, rename and remove the disks of a vault")
    .addHelpText("after", "\nExample:\n  $ tidemark disks list --vault azurite:/srv/azurite");
  withVaultOptions(disks.command("list"))
    .description("list the disks of a vault, with their newest points")
    .addHelpText(
      "after",
      `
Example:
  $ tidemark disks list --vault azurite:/srv/azurite`,
    )
    .action(async (flags: VaultFlags) => await listDisks(context, flags));
  addRemoveCommand(context, disks);
  addRenameCommand(context, disks);
  addDisableCommands(context, disks);
  return disks;
}

export function pointsCommand(context: CommandContext): Command {
  const points = new Command("points")
    .description("list, show, label, pin and compare the recovery points of a disk")
    .addHelpText("after", "\nExample:\n  $ tidemark points list --disk web --vault azurite:/srv/azurite");
  withVaultOptions(points.command("list").requiredOption("--disk <name>", "name of the disk in the vault"))
    .option("--since <time>", "only points cut at or after this time")
    .option("--until <time>", "only points cut at or before this time")
    .option("--app", "only application-consistent points")
    .option("--pinned", "only points that a pin keeps")
    .option("--last <count>", "only the newest points of those, this many", wholeNumber)
    .description("list the recovery points of a disk, newest last")
    .addHelpText(
      "after",
      `
A time is ${timeForms}.
The last line counts the points that are listed, and adds up their bytes.

Examples:
  $ tidemark points list --disk web --last 20 --vault azurite:/srv/azurite
  $ tidemark points list --disk web --since "2 days ago" --app --vault dir:/v`,
    )
    .action(async (flags: ListFlags) => await listPoints(context, flags));
  const show = points.command("show").requiredOption("--disk <name>", "name of the disk in the vault");
  withVaultOptions(
    show.option("--point <point>", "sequence number, id, `latest` (default), a time or an age", "latest"),
  )
    .description("show one recovery point in full")
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark points show --disk web --vault azurite:/srv/azurite
  $ tidemark points show --disk web --point 2026-05-01T12:00:00Z --vault dir:/v`,
    )
    .action(async (flags: PointFlags) => await showPoint(context, flags));
  addPinCommands(context, points);
  addDiffCommand(context, points);
  addLabelCommand(context, points);
  return points;
}

/** Pins need no writer lease, so both commands work while the disk is written. */
function addPinCommands(context: CommandContext, points: Command): void {
  const pin = points.command("pin").requiredOption("--disk <name>", "name of the disk in the vault");
  withVaultOptions(pin.requiredOption("--point <point>", "sequence number, id, `latest`, a time or an age"))
    .option("--name <name>", "name of the pin; a point may have several pins")
    .option("--until <time>", "when the pin ends, such as 2030-05-01T12:00:00Z (default: never)")
    .description("keep a recovery point from being pruned")
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark points pin --disk web --point 1234 --name audit --vault dir:/v
  $ tidemark points pin --disk web --point latest \\
      --until 2030-05-01T12:00:00Z --vault dir:/v`,
    )
    .action(async (flags: PinFlags) => await pinPoint(context, flags));
  const unpin = points.command("unpin").requiredOption("--disk <name>", "name of the disk in the vault");
  withVaultOptions(unpin.requiredOption("--point <point>", "sequence number, id, `latest`, a time or an age"))
    .option("--name <name>", "only the pin of this name (default: all pins of the point)")
    .description("remove pins of a recovery point")
    .addHelpText("after", "\nExample:\n  $ tidemark points unpin --disk web --point 1234 --vault dir:/v")
    .action(async (flags: PinFlags) => await unpinPoint(context, flags));
}

async function pinPoint(context: CommandContext, flags: PinFlags): Promise<void> {
  const { output } = context;
  const { disk, name } = flags;
  const untilMs = flags.until === undefined ? undefined : requireTime("--until", flags.until, Date.now());
  const options = { disk, point: pointSelector(flags.point), name, untilMs, ...operation(context) };
  const pinned = await withVault(context, flags, async (vault) => await vault.pin(options));
  const until = pinned.pin.until === null ? "for good" : `until ${output.time(pinned.pin.until)}`;
  output.summary("points pin", pinned, `point ${pinned.sequence} of disk ${printable(pinned.disk)} is pinned ${until}`);
}

async function unpinPoint(context: CommandContext, flags: PinFlags): Promise<void> {
  const { output } = context;
  const { disk, name } = flags;
  const options = { disk, point: pointSelector(flags.point), name, ...operation(context) };
  const unpinned = await withVault(context, flags, async (vault) => await vault.unpin(options));
  const what = formatNumberOf(unpinned.removedPins, "pin");
  output.summary(
    "points unpin",
    unpinned,
    `${what} of point ${unpinned.sequence} of disk ${printable(unpinned.disk)} removed`,
  );
}

async function listDisks(context: CommandContext, flags: VaultFlags): Promise<void> {
  const { output } = context;
  const disks = await withVault(context, flags, async (vault) => await vault.disks(operation(context)));
  for (const disk of disks) output.item("disk", disk);
  const rows = disks.map(({ disk, points, latest }) => [
    disk,
    formatCount(points),
    output.time(latest.time),
    latest.consistency,
    formatBytes(latest.volumeBytes),
  ]);
  const text = table(["DISK", "POINTS", "NEWEST", "CONSISTENCY", "SIZE"], rows, "lrllr");
  output.answer("disks list", { disks: disks.length }, disks.length === 0 ? "the vault holds no disk yet" : text);
}

async function listPoints(context: CommandContext, flags: ListFlags): Promise<void> {
  const { output } = context;
  const filter = filterOf(flags, Date.now());
  // Without a filter the vault reads no more pages of the list than it needs.
  const limit = filter === undefined ? flags.last : undefined;
  const options = { limit, ...operation(context) };
  const all = await withVault(context, flags, async (vault) => await vault.points(flags.disk, options));
  const found = filter === undefined ? all : all.filter(filter);
  const points = flags.last === undefined ? found : found.slice(-flags.last);
  for (const point of points) output.item("point", point);
  const totals = totalsOf(points);
  const disk = flags.disk.normalize("NFC");
  const none =
    filter === undefined ? `disk ${printable(disk)} has no point yet` : `no point of disk ${printable(disk)} matches`;
  const text = points.length === 0 ? none : `${pointsTable(points, output)}\n${describeTotals(totals)}`;
  output.answer("points list", { disk, ...totals }, text);
}

/** Which points are listed; undefined: all. */
function filterOf(
  { since, until, app, pinned, last }: ListFlags,
  nowMs: number,
): ((point: ListedPoint) => boolean) | undefined {
  if (last === 0) {
    throw new TidemarkError("INVALID_ARGUMENT", "--last 0 lists no point", {
      remedy: "write --last 1 or more, or leave it out",
    });
  }
  if (since === undefined && until === undefined && app === undefined && pinned === undefined) return undefined;
  const sinceMs = since === undefined ? -Infinity : requireTime("--since", since, nowMs);
  const untilMs = until === undefined ? Infinity : requireTime("--until", until, nowMs);
  if (sinceMs > untilMs) {
    const [from, to] = [JSON.stringify(since), JSON.stringify(until)];
    throw new TidemarkError("INVALID_ARGUMENT", `--since ${from} is later than --until ${to}, so no point matches`, {
      remedy: `exchange the times: --since ${to} --until ${from}`,
    });
  }
  return (point) => {
    const timeMs = Date.parse(point.time);
    return (
      timeMs >= sinceMs &&
      timeMs <= untilMs &&
      (app !== true || point.consistency === "app") &&
      (pinned !== true || point.pinned)
    );
  };
}

type Totals = Omit<PointsSummary, "disk">;

function totalsOf(points: readonly ListedPoint[]): Totals {
  const sum = (of: (point: ListedPoint) => number): number => points.reduce((total, point) => total + of(point), 0);
  return {
    points: points.length,
    pinnedPoints: sum(({ pinned }) => (pinned ? 1 : 0)),
    changedBytes: sum(({ changedBytes }) => changedBytes),
    newBytes: sum(({ newBytes }) => newBytes),
    storedBytes: sum(({ storedBytes }) => storedBytes),
  };
}

function describeTotals({ points, pinnedPoints, changedBytes, storedBytes }: Totals): string {
  const pinned = pinnedPoints === 0 ? "" : `, ${formatCount(pinnedPoints)} pinned`;
  return `${formatNumberOf(points, "point")}${pinned}, ${formatBytes(changedBytes)} changed, ${formatBytes(storedBytes)} stored`;
}

/** Of a label; `points show` prints all of it. */
const labelColumnsMax = 20;

/**
 * Points in as many columns as fit. A column in which no point says anything is left out, then
 * those that say least.
 */
export function pointsTable(points: readonly ListedPoint[], output: Pick<Output, "columns" | "time">): string {
  const columns: readonly Column<ListedPoint>[] = [
    { heading: "POINT", align: "r", cell: ({ sequence }) => String(sequence) },
    { heading: "ID", align: "l", dropped: 3, cell: ({ point }) => point.slice(0, 8) },
    { heading: "TIME", align: "l", cell: ({ time }) => output.time(time) },
    { heading: "CONS.", align: "l", cell: ({ consistency }) => consistency },
    { heading: "GROUP", align: "l", cell: ({ group }) => group?.name ?? "-" },
    { heading: "KEPT", align: "l", cell: ({ pinned, held }) => (pinned ? "pinned" : held ? "read" : "-") },
    { heading: "LABEL", align: "l", cell: ({ label }) => (label === null ? "-" : shortened(label, labelColumnsMax)) },
    { heading: "LAG", align: "r", cell: ({ lagMs }) => (lagMs === null ? "-" : formatDuration(lagMs)) },
    { heading: "SIZE", align: "r", dropped: 1, cell: ({ volumeBytes }) => formatBytes(volumeBytes) },
    { heading: "CHANGED", align: "r", cell: ({ changedBytes }) => formatBytes(changedBytes) },
    { heading: "STORED", align: "r", dropped: 2, cell: ({ storedBytes }) => formatBytes(storedBytes) },
  ];
  return fittedTable(columns, points, output.columns);
}

async function showPoint(context: CommandContext, flags: PointFlags): Promise<void> {
  const { output } = context;
  const selector = pointSelector(flags.point);
  const options = operation(context);
  const point = await withVault(context, flags, async (vault) => await vault.point(flags.disk, selector, options));
  output.answer("points show", point, describe(point, output));
}

function describe(point: PointDetail, output: Pick<Output, "time">): string {
  const entries = point.runs.reduce((sum, run) => sum + run.entries, 0);
  const mapBytes = point.runs.reduce((sum, run) => sum + run.bytes, 0);
  return [
    `point ${point.sequence} of disk ${printable(point.disk)}`,
    fields([
      ["point", point.point],
      ["parent", point.parent ?? "none"],
      ["time", output.time(point.time)],
      ...(point.label === null ? [] : [["label", point.label] as const]),
      ["consistency", point.consistency],
      ...describeApplication(point),
      ...describeGroup(point),
      ["proved", point.proved === null ? "never, as far as the vault records" : output.time(point.proved)],
      ...point.pins.map(
        ({ name, until }): Field => [
          "pinned",
          `${until === null ? "for good" : `until ${output.time(until)}`}${name === null ? "" : `: ${name}`}`,
        ],
      ),
      ["lag", point.lagMs === null ? "not measured" : `${formatDuration(point.lagMs)} from the cut to the commit`],
      ["volume", formatBytes(point.volumeBytes)],
      ["changed", `${formatBytes(point.changedBytes)}, of which ${formatBytes(point.zeroBytes)} became zero`],
      ["known", `${formatBytes(point.dedupedBytes)}, already in the vault`],
      ["new", `${formatBytes(point.newBytes)}, stored as ${formatBytes(point.storedBytes)}`],
      [
        "map",
        `${formatCount(entries)} entries in ${formatNumberOf(point.runs.length, "run")}, ${formatBytes(mapBytes)}`,
      ],
      ["written by", point.writtenBy],
    ]),
  ].join("\n");
}

type Field = readonly [name: string, value: string];

function describeApplication({ application }: PointDetail): readonly Field[] {
  if (application === null) return [];
  const { outcome, reason, steps } = application;
  return [
    ["application", outcome === "frozen" ? "at rest at the cut" : `not at rest: ${reason ?? "its hook failed"}`],
    ...steps.map(({ phase, command, exitCode, signal, elapsedMs }): Field => {
      const end = signal ?? (exitCode === null ? "did not run" : `exit ${exitCode}`);
      return [`  ${phase}`, `${command}: ${end} after ${formatDuration(elapsedMs)}`];
    }),
  ];
}

function describeGroup({ group, groupIncomplete }: PointDetail): readonly Field[] {
  if (group === null) return [];
  const state = groupIncomplete ? "; not every disk has its point, so this one stands alone" : "";
  return [["group", `${group.name} (${group.disks.join(", ")}), id ${group.id}${state}`]];
}
