/** `tidemark disks list` and `tidemark points list|show|pin|unpin`; the files beside add more. */
import { Command, InvalidArgumentError } from "commander";
import type { ListedPoint, PointDetail } from "../../engine/index.ts";
import { formatBytes, formatCount, formatDuration, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, wholeNumber, withVaultOptions } from "../settings.ts";
import { cut, displayWidth, fields, printable, table } from "../text.ts";
import { type CommandContext, withVault } from "./context.ts";
import { addDiffCommand } from "./points-diff.ts";
import { addLabelCommand } from "./points-label.ts";

interface DiskFlags extends VaultFlags {
  readonly disk: string;
}

interface ListFlags extends DiskFlags {
  readonly limit?: number | undefined;
}

interface PointFlags extends DiskFlags {
  readonly point: string;
}

interface PinFlags extends PointFlags {
  readonly name?: string;
  readonly until?: number;
}

export function disksCommand(context: CommandContext): Command {
  const disks = new Command("disks")
    .description("list the disks of a vault")
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
  return disks;
}

export function pointsCommand(context: CommandContext): Command {
  const points = new Command("points")
    .description("list, show, label, pin and compare the recovery points of a disk")
    .addHelpText("after", "\nExample:\n  $ tidemark points list --disk web --vault azurite:/srv/azurite");
  withVaultOptions(points.command("list").requiredOption("--disk <name>", "name of the disk in the vault"))
    .option("--limit <count>", "only the newest so many", wholeNumber)
    .description("list the recovery points of a disk, oldest first")
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark points list --disk web --vault azurite:/srv/azurite
  $ tidemark points list --disk web --limit 20 --vault azurite:/srv/azurite`,
    )
    .action(async (flags: ListFlags) => await listPoints(context, flags));
  const show = points.command("show").requiredOption("--disk <name>", "name of the disk in the vault");
  withVaultOptions(show.option("--point <point>", "sequence number, id, `latest` or an ISO time", "latest"))
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

/** Both work at any time: they need no seat. */
function addPinCommands(context: CommandContext, points: Command): void {
  const pin = points.command("pin").requiredOption("--disk <name>", "name of the disk in the vault");
  withVaultOptions(pin.requiredOption("--point <point>", "sequence number, id, `latest` or an ISO time"))
    .option("--name <name>", "what the pin is called: a point may have several")
    .option("--until <time>", "when it ends, such as 2030-05-01T12:00:00Z (default: never)", isoTime)
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
  withVaultOptions(unpin.requiredOption("--point <point>", "sequence number, id, `latest` or an ISO time"))
    .option("--name <name>", "only the pin of this name (default: all of the point)")
    .description("remove what was pinned")
    .addHelpText("after", "\nExample:\n  $ tidemark points unpin --disk web --point 1234 --vault dir:/v")
    .action(async (flags: PinFlags) => await unpinPoint(context, flags));
}

function isoTime(text: string): number {
  const timeMs = /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d))?$/.test(text) ? Date.parse(text) : Number.NaN;
  if (Number.isNaN(timeMs)) throw new InvalidArgumentError("It is not a time such as 2030-05-01T12:00:00Z.");
  return timeMs;
}

async function pinPoint(context: CommandContext, flags: PinFlags): Promise<void> {
  const { output, signal } = context;
  const { disk, point, name, until: untilMs } = flags;
  const options = { disk, point, name, untilMs, signal, onNotice: output.notice.bind(output) };
  const pinned = await withVault(context, flags, async (vault) => await vault.pin(options));
  const until = pinned.pin.until === null ? "for good" : `until ${pinned.pin.until}`;
  output.summary("points pin", pinned, `point ${pinned.sequence} of disk ${printable(pinned.disk)} is pinned ${until}`);
}

async function unpinPoint(context: CommandContext, flags: PinFlags): Promise<void> {
  const { output, signal } = context;
  const { disk, point, name } = flags;
  const options = { disk, point, name, signal, onNotice: output.notice.bind(output) };
  const unpinned = await withVault(context, flags, async (vault) => await vault.unpin(options));
  const what = formatNumberOf(unpinned.removedPins, "pin");
  output.summary("points unpin", unpinned, `${what} of point ${unpinned.sequence} of disk ${printable(unpinned.disk)} removed`);
}

async function listDisks(context: CommandContext, flags: VaultFlags): Promise<void> {
  const disks = await withVault(context, flags, async (vault) => await vault.disks());
  for (const disk of disks) context.output.item("disk", disk);
  const rows = disks.map(({ disk, points, latest }) => [
    disk,
    formatCount(points),
    latest?.time ?? "-",
    latest?.consistency ?? "-",
    latest === undefined ? "-" : formatBytes(latest.volumeBytes),
  ]);
  const text = table(["DISK", "POINTS", "NEWEST", "CONSISTENCY", "SIZE"], rows, "lrllr");
  context.output.summary("disks list", { disks: disks.length }, disks.length === 0 ? "the vault holds no disk yet" : text);
}

async function listPoints(context: CommandContext, flags: ListFlags): Promise<void> {
  const { output, signal } = context;
  const options = { limit: flags.limit, signal, onNotice: output.notice.bind(output) };
  const points = await withVault(context, flags, async (vault) => await vault.points(flags.disk, options));
  for (const point of points) output.item("point", point);
  const text = points.length === 0 ? `disk ${printable(flags.disk)} has no point yet` : pointsTable(points, output.columns);
  output.summary("points list", { disk: flags.disk.normalize("NFC"), points: points.length }, text);
}

interface Column {
  readonly heading: string;
  readonly align: "l" | "r";
  /** Columns with a higher number are the first to be left out when the lines are too long. */
  readonly dropped?: number;
  readonly cell: (point: ListedPoint) => string;
}

const labelColumnsMax = 20;

const pointColumns: readonly Column[] = [
  { heading: "POINT", align: "r", cell: ({ sequence }) => String(sequence) },
  { heading: "ID", align: "l", cell: ({ point }) => point.slice(0, 8) },
  { heading: "TIME", align: "l", cell: ({ time }) => time },
  { heading: "CONS.", align: "l", cell: ({ consistency }) => consistency },
  { heading: "GROUP", align: "l", cell: ({ group }) => group?.name ?? "-" },
  { heading: "KEPT", align: "l", cell: ({ pinned, held }) => (pinned ? "pinned" : held ? "read" : "-") },
  { heading: "LABEL", align: "l", cell: ({ label }) => (label === null ? "-" : shortened(label)) },
  { heading: "LAG", align: "r", cell: ({ lagMs }) => (lagMs === null ? "-" : formatDuration(lagMs)) },
  { heading: "SIZE", align: "r", dropped: 2, cell: ({ volumeBytes }) => formatBytes(volumeBytes) },
  { heading: "CHANGED", align: "r", cell: ({ changedBytes }) => formatBytes(changedBytes) },
  { heading: "STORED", align: "r", dropped: 1, cell: ({ storedBytes }) => formatBytes(storedBytes) },
];

/** The beginning of a label: `points show` has all of it. */
function shortened(label: string): string {
  return displayWidth(label) <= labelColumnsMax ? label : `${cut(label, labelColumnsMax - 1)}…`;
}

/** Points in as many columns as fit into `width`: a column in which no point has anything to say is left out, then those that say least. */
export function pointsTable(points: readonly ListedPoint[], width: number): string {
  const told = pointColumns.filter(({ cell }) => points.some((point) => cell(point) !== "-"));
  for (let kept = 2; ; kept -= 1) {
    const columns = told.filter(({ dropped = 0 }) => dropped <= kept);
    const rows = points.map((point) => columns.map(({ cell }) => cell(point)));
    const text = table(
      columns.map(({ heading }) => heading),
      rows,
      columns.map(({ align }) => align).join(""),
    );
    if (kept === 0 || text.split("\n").every((line) => displayWidth(line) <= width)) return text;
  }
}

async function showPoint(context: CommandContext, flags: PointFlags): Promise<void> {
  const point = await withVault(context, flags, async (vault) => await vault.point(flags.disk, flags.point));
  context.output.summary("points show", point, describe(point));
}

function describe(point: PointDetail): string {
  const entries = point.runs.reduce((sum, run) => sum + run.entries, 0);
  const mapBytes = point.runs.reduce((sum, run) => sum + run.bytes, 0);
  return [
    `point ${point.sequence} of disk ${printable(point.disk)}`,
    fields([
      ["point", point.point],
      ["parent", point.parent ?? "none"],
      ["time", point.time],
      ...(point.label === null ? [] : [["label", point.label] as const]),
      ["consistency", point.consistency],
      ...describeApplication(point),
      ...describeGroup(point),
      ["proved", point.proved ?? "never, as far as is known"],
      ...point.pins.map(
        ({ name, until }): Field => ["pinned", `${until === null ? "for good" : `until ${until}`}${name === null ? "" : `: ${name}`}`],
      ),
      ["lag", point.lagMs === null ? "not measured" : `${formatDuration(point.lagMs)} from the cut to the commit`],
      ["volume", formatBytes(point.volumeBytes)],
      ["changed", `${formatBytes(point.changedBytes)}, of which ${formatBytes(point.zeroBytes)} became zero`],
      ["known", `${formatBytes(point.dedupedBytes)}, already in the vault`],
      ["new", `${formatBytes(point.newBytes)}, stored as ${formatBytes(point.storedBytes)}`],
      ["map", `${formatCount(entries)} entries in ${formatCount(point.runs.length)} runs, ${formatBytes(mapBytes)}`],
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
