/** `tidemark retention simulate`: shows which of regular points a retention policy keeps. */

import { Command } from "commander";
import { parsePolicy } from "../../engine/index.ts";
import { describePolicy, type SimulatedTimeline, simulateRetention } from "../../engine/internal.ts";
import type { AgeBand, SimulationSummary } from "../json.ts";
import { formatCount, formatNumberOf } from "../quantities.ts";
import { duration, wholeNumber } from "../settings.ts";
import { table } from "../text.ts";
import type { CommandContext } from "./context.ts";

interface SimulateFlags {
  readonly policy: string;
  readonly days: number;
  readonly every: number;
}

const secondMs = 1_000;
const minuteMs: number = 60 * secondMs;
const hourMs: number = 60 * minuteMs;
const dayMs: number = 24 * hourMs;

/** Where bands of age end, as people name them. */
const ladderMs: readonly number[] = [
  ...[1, 10].map((minutes) => minutes * minuteMs),
  ...[1, 2, 6, 12].map((hours) => hours * hourMs),
  ...[1, 2, 4, 7, 15, 30, 60, 90, 180, 365, 730, 1_825, 3_650].map((days) => days * dayMs),
];

/**
 * An instant on no full hour, so that what is shown is no special case. The same in every run, so
 * that results can be compared.
 */
const endMs: number = Date.UTC(2026, 5, 17, 12, 10);

export function retentionCommand(context: CommandContext): Command {
  const retention = new Command("retention")
    .description("try out a retention policy")
    .addHelpText("after", "\nExample:\n  $ tidemark retention simulate --policy days:7 --days 30");
  retention
    .command("simulate")
    .requiredOption("--policy <policy>", "days:N, bands:AGE=EVERY,… or keep:last=7,daily=30,…")
    .requiredOption("--days <count>", "for how many days points have been made", wholeNumber)
    .option("--every <duration>", "how often a point is made (default: 5s)", duration)
    .description("draw which points a policy would keep")
    .addHelpText(
      "after",
      `
Policies:
  none                      every point is kept
  days:N                    N days as Azure Site Recovery keeps them, 0 to 15:
                            all for 2 hours, then one per hour, 2 hours, 4 hours
  bands:2h=all,1d=1h,7d=2h  all up to 2 hours of age, then one an hour up to a
                            day, then one per 2 hours up to 7 days, then none
  keep:last=7,hourly=24,daily=30,weekly=8,monthly=12,yearly=5,within=36h,tz=ZONE
                            what any of the rules keeps: the last 7, one in each
                            of the last 24 hours that have points, …, all within
                            36 hours; periods as clocks show them in the zone

Examples:
  $ tidemark retention simulate --policy days:7 --days 30
  $ tidemark retention simulate --policy keep:daily=30 --days 90 --every 1m`,
    )
    .action(async (flags: Omit<SimulateFlags, "every"> & Partial<SimulateFlags>) => {
      await simulate(context, { ...flags, every: flags.every ?? 5 * secondMs });
    });
  return retention;
}

async function simulate(
  { output, signal }: CommandContext,
  { policy: text, days, every: everyMs }: SimulateFlags,
): Promise<void> {
  const policy = parsePolicy(text);
  const timeline = await simulateRetention({ policy, spanMs: days * dayMs, everyMs, endMs, signal });
  const { pointsMade, agesMs } = timeline;
  const bands = bandsOf(timeline, days * dayMs);
  const summary = {
    policy: describePolicy(policy),
    days,
    everyMs,
    pointsMade,
    points: agesMs.length,
    oldestAgeMs: agesMs.at(-1) ?? 0,
    bands,
  };
  output.answer("retention simulate", summary, draw(timeline, summary));
}

function bandsOf({ agesMs }: SimulatedTimeline, spanMs: number): AgeBand[] {
  const edgesMs = [0, ...ladderMs.filter((ageMs) => ageMs < spanMs), spanMs];
  return edgesMs.slice(1).map((toMs, index) => {
    const fromMs = edgesMs[index] ?? 0;
    return { fromMs, toMs, points: agesMs.filter((ageMs) => (ageMs > fromMs || index === 0) && ageMs <= toMs).length };
  });
}

const barColumnsMax = 36;

function draw(
  timeline: SimulatedTimeline,
  { policy, days, everyMs, points, oldestAgeMs, bands }: SimulationSummary,
): string {
  // Bands differ by factors of thousands: a bar tells the magnitude, the number beside it the
  // number.
  const largest = Math.max(...bands.map((band) => band.points), 1);
  const bar = (count: number): string =>
    "#".repeat(Math.ceil((Math.log2(count + 1) / Math.log2(largest + 1)) * barColumnsMax));
  const rows = bands.map(({ fromMs, toMs, points: count }) => {
    // The newest point has none before it to be apart from.
    const apart = fromMs === 0 ? count - 1 : count;
    const spacing = apart < 1 ? "-" : formatAge((toMs - fromMs) / apart);
    return [`${formatAge(fromMs)} to ${formatAge(toMs)}`, formatCount(count), spacing, bar(count)];
  });
  return [
    `${policy} after ${formatNumberOf(days, "day")} with a point every ${formatAge(everyMs)}`,
    "",
    strip(timeline, days * dayMs, everyMs),
    "",
    table(["AGE", "POINTS", "ONE PER", "(logarithmic)"], rows, "lrrl"),
    "",
    `${formatNumberOf(points, "point")} left of ${formatCount(timeline.pointsMade)}; the oldest is ${formatAge(oldestAgeMs)} old`,
    "bytes: not known, because they depend on what is written to the disk",
  ].join("\n");
}

const stripColumns = 78;

/** Every age on one line, young ones wide and old ones narrow, with the ladder above it. */
function strip({ agesMs }: SimulatedTimeline, spanMs: number, everyMs: number): string {
  const firstMs = Math.min(10 * everyMs, spanMs / 2);
  const columnOf = (ageMs: number): number => {
    const column = Math.floor(
      (Math.log(Math.max(ageMs, firstMs) / firstMs) / Math.log(spanMs / firstMs)) * stripColumns,
    );
    return Math.min(column, stripColumns - 1);
  };
  const counts = (ages: Iterable<number>): number[] => {
    const columns = new Array<number>(stripColumns).fill(0);
    for (const ageMs of ages) columns[columnOf(ageMs)] = (columns[columnOf(ageMs)] ?? 0) + 1;
    return columns;
  };
  const left = counts(agesMs);
  const made = counts(regularAges(spanMs, everyMs));
  let marks = "";
  for (const [column, count] of left.entries()) {
    const possible = made[column] ?? 0;
    // Where a column is narrower than the points are apart it looks as the one before it, if
    // nothing is missing there.
    if (possible === 0) marks += marks.endsWith("#") ? "#" : " ";
    else if (count === possible) marks += "#";
    else marks += count > 1 ? ":" : count === 1 ? "." : " ";
  }
  let scale = "now";
  for (const ageMs of ladderMs.filter((rung) => rung > firstMs && rung < spanMs)) {
    const column = columnOf(ageMs);
    if (column > scale.length) scale = `${scale.padEnd(column)}|${formatAge(ageMs)}`;
  }
  return [scale.slice(0, stripColumns), marks.trimEnd(), "# every point   : several   . one"].join("\n");
}

function* regularAges(spanMs: number, everyMs: number): Generator<number> {
  for (let ageMs = 0; ageMs < spanMs; ageMs += everyMs) yield ageMs;
}

/** `5s`, `10m`, `1.9h`, `30d`: as policies are written. */
function formatAge(ageMs: number): string {
  const [unitMs, unit] =
    ageMs >= dayMs
      ? [dayMs, "d"]
      : ageMs >= hourMs
        ? [hourMs, "h"]
        : ageMs >= minuteMs
          ? [minuteMs, "m"]
          : [secondMs, "s"];
  return `${Number((ageMs / unitMs).toFixed(1))}${unit}`;
}
