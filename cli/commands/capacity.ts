/** `tidemark capacity`: what replication of a load will need, before it is set up. */
import { Command, InvalidArgumentError, Option } from "commander";
import { parsePolicy, type RetentionPolicy, TidemarkError } from "../../engine/index.ts";
import { closing, shellWord } from "../../engine/internal.ts";
import { systemClock } from "../agent/engine-adapter.ts";
import { controlSocketDefault } from "../agent/listen.ts";
import { agentProbe } from "../capacity/agent-probe.ts";
import { type Load, readLoad } from "../capacity/load.ts";
import { planCapacity } from "../capacity/plan.ts";
import { readPrices } from "../capacity/prices.ts";
import { ProfileWriter } from "../capacity/profile-file.ts";
import { diskstatsProbe, type Probe, profile, scanProbe } from "../capacity/profiler.ts";
import { capacityPage } from "../capacity/report-page.ts";
import { describePlan, formatSpan } from "../capacity/report-text.ts";
import { measureThroughput, type Throughput, type Transfers } from "../capacity/throughput.ts";
import { writePage } from "../new-file.ts";
import { formatBytes, formatCount, formatNumberOf, formatRate, parseBytes } from "../quantities.ts";
import { duration, type VaultFlags, wholeNumber, withVaultOptions } from "../settings.ts";
import { printable, table } from "../text.ts";
import { type CommandContext, withSink } from "./context.ts";

interface ProfileFlags {
  readonly disk?: string;
  readonly diskstats?: string;
  readonly agent?: true;
  readonly socket?: string;
  readonly for: number;
  readonly out: string;
}

interface ReportFlags {
  readonly bandwidth?: readonly number[];
  readonly rpo?: readonly number[];
  readonly retention?: readonly RetentionPolicy[];
  readonly growth?: number;
  readonly prices?: string;
  readonly page?: string;
}

interface ThroughputFlags extends VaultFlags {
  readonly for?: number;
}

/** Time between samples, or a part of a short trial. */
const everyMsMax = 30_000;
const everyMsMin = 500;
const samplesMin = 4;
const throughputMsDefault = 30_000;
const lanesDefault = 5;
const minuteMs = 60_000;
const rposMsDefault: readonly number[] = [15 * minuteMs, 60 * minuteMs];
const retentionsDefault: readonly string[] = ["days:1", "days:7"];

export function capacityCommand(context: CommandContext): Command {
  const capacity = new Command("capacity")
    .description("plan bandwidth, storage and cost from what a disk is written")
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark capacity profile --disk web.img --for 24h --out web.profile
  $ tidemark capacity report web.profile --rpo 15m --bandwidth 100Mbit/s
  $ tidemark capacity throughput --vault azurite:/srv/vault`,
    );
  capacity
    .command("profile")
    .description("record what replication would ship; nothing is shipped")
    .addOption(
      new Option("--disk <path>", "image file or block device that others write; it is read every 30 s").conflicts([
        "diskstats",
        "agent",
      ]),
    )
    .addOption(
      new Option("--diskstats <device>", "count writes to a device such as sda; nothing is read").conflicts(["agent"]),
    )
    .option("--agent", "ask the agent what its disks are written and its points ship")
    .addOption(new Option("--socket <path>", "the agent's control socket").env("TIDEMARK_SOCKET"))
    .requiredOption("--for <duration>", "how long, such as 24h; a week with its busiest day tells most", duration)
    .requiredOption("--out <file>", "profile to begin, or to go on with")
    .addHelpText(
      "after",
      `
A profile that exists is gone on with: run the command again after a restart of
the machine. Of a large or slow disk a random part is read, and the report says
which.

Examples:
  $ tidemark capacity profile --disk /dev/vg/data --for 7d --out data.profile
  $ tidemark capacity profile --agent --for 24h --out agent.profile`,
    )
    .action(async (flags: ProfileFlags) => await record(context, flags));
  capacity
    .command("report")
    .argument("<profile...>", "files that `capacity profile` has written; their disks share the line")
    .description("tell the line, the storage and the cost that profiles ask for")
    .option("--rpo <durations>", "objectives: how old the newest point may become (default: 15m,1h)", listOf(duration))
    .option(
      "--bandwidth <rates>",
      "lines to look at, such as 100Mbit/s,1Gbit/s (default: those that are needed)",
      listOf(rate),
    )
    .option("--retention <policies>", "policies, divided by spaces (default: days:1 days:7)", policies)
    .option("--growth <percent>", "plan for so much more, such as 30% (default: 0%)", percent)
    .option("--prices <file>", "what the store charges, as in examples/prices.yaml")
    .option("--page <file>", "write a page with plots too")
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark capacity report web.profile
  $ tidemark capacity report web.profile db.profile --rpo 15m,1h --growth 30% \\
      --bandwidth 100Mbit/s --retention days:7 --page plan.html`,
    )
    .action(async (paths: readonly string[], flags: ReportFlags) => await report(context, paths, flags));
  withVaultOptions(capacity.command("throughput"))
    .description("measure what a store takes and gives; it leaves nothing behind")
    .option("--for <duration>", "how long (default: 30s)", duration)
    .addOption(new Option("--lanes <count>", "requests in flight, 2 to 32 (default: 5)").argParser(wholeNumber))
    .addHelpText(
      "after",
      `
The store's container or folder must exist; it need not hold a vault. Up to
64 MiB a lane are stored meanwhile. What a killed run leaves is removed by the
next one.

Example:
  $ tidemark capacity throughput --vault azurite:/srv/vault --for 10s`,
    )
    .action(async (flags: ThroughputFlags) => await throughput(context, flags));
  return capacity;
}

async function record(context: CommandContext, flags: ProfileFlags): Promise<void> {
  const { output } = context;
  const { for: forMs, out } = flags;
  const everyMs = Math.min(everyMsMax, Math.max(everyMsMin, Math.floor(forMs / samplesMin)));
  // The file goes first: to read a disk takes seconds, and the file may not be usable.
  const file = await ProfileWriter.open(out);
  await closing(file, async () => {
    const probe = await openProbe(context, flags, everyMs);
    await closing(probe, async () => {
      const stop = new AbortController();
      context.answerSignals({ stop: () => stop.abort() });
      const samples = await profile({
        probe,
        append: async (line) => await file.append(line),
        everyMs,
        forMs,
        clock: systemClock,
        stop: stop.signal,
        onSample: (sample, leftMs) => {
          const changed =
            sample.changed === undefined ? "" : `, ${formatCount(sample.changed.blocks.length)} blocks changed`;
          output.step({ disk: sample.disk, leftMs }, `${printable(sample.disk)}${changed}; ${formatSpan(leftMs)} left`);
        },
      });
      output.summary(
        "capacity profile",
        { out, samples },
        `${formatNumberOf(samples, "sample")} in ${printable(out)}; \`tidemark capacity report ${shellWord(out)}\` shows what they ask for`,
      );
    });
  });
}

async function openProbe(
  { environment, output, signal }: CommandContext,
  { disk, diskstats, agent, socket }: ProfileFlags,
  everyMs: number,
): Promise<Probe> {
  if (disk !== undefined) return await scanProbe(disk, signal, { everyMs });
  if (diskstats !== undefined) return await diskstatsProbe(diskstats, { everyMs });
  if (agent === true) {
    const at = socket ?? controlSocketDefault(environment);
    return agentProbe({ socket: at, everyMs, onNotice: output.notice.bind(output) });
  }
  throw new TidemarkError("INVALID_ARGUMENT", "nothing to look at is named", {
    remedy: "add `--disk PATH`, `--diskstats DEVICE` or `--agent`",
  });
}

async function report(context: CommandContext, paths: readonly string[], flags: ReportFlags): Promise<void> {
  const { output, signal } = context;
  const load = await readLoad(paths);
  const rposMs = flags.rpo ?? possibleRpos(load);
  for (const rpoMs of rposMs) checkRpo(rpoMs, load);
  const question = {
    rposMs,
    bandwidths: flags.bandwidth ?? [],
    retentions: flags.retention ?? retentionsDefault.map(parsePolicy),
    growth: flags.growth ?? 0,
    prices: flags.prices === undefined ? undefined : await readPrices(flags.prices),
  };
  const plan = await planCapacity(load, question, signal);
  if (flags.page !== undefined) await writePage(flags.page, capacityPage(plan, output.time.bind(output)));
  output.answer("capacity report", plan, describePlan(plan, output.columns, output.time.bind(output)));
}

/** Of the usual objectives, those that the load can tell of. */
function possibleRpos({ slots, slotMs }: Load): readonly number[] {
  const possible = rposMsDefault.filter((rpoMs) => rpoMs >= 2 * slotMs && rpoMs <= slots * slotMs);
  return possible.length > 0 ? possible : [2 * slotMs];
}

function checkRpo(rpoMs: number, { slots, slotMs }: Load): void {
  const [least, most] = [2 * slotMs, 2 * slots * slotMs];
  if (rpoMs >= least && rpoMs <= most) return;
  const [fact, remedy] =
    rpoMs < least
      ? [
          `a profile with samples of ${formatSpan(slotMs)} tells nothing about an RPO of ${formatSpan(rpoMs)}`,
          `--rpo ${formatSpan(least).replace(" ", "")} or more`,
        ]
      : [
          `a profile of ${formatSpan(slots * slotMs)} is too short for an RPO of ${formatSpan(rpoMs)}`,
          "a shorter --rpo, or profile for longer",
        ];
  throw new TidemarkError("INVALID_ARGUMENT", fact, { remedy: `give ${remedy}`, detail: { rpoMs, slotMs, slots } });
}

async function throughput(context: CommandContext, flags: ThroughputFlags): Promise<void> {
  const { output, signal } = context;
  const steps = { put: "writing pages", get: "reading pages", small: "writing small objects" } as const;
  const lanes = Math.min(32, Math.max(2, flags.lanes ?? lanesDefault));
  const measured = await withSink(
    context,
    flags,
    async (sink) =>
      await measureThroughput(sink, {
        lanes,
        forMs: flags.for ?? throughputMsDefault,
        signal,
        onStep: (step) => output.step({ step }, steps[step]),
      }),
  );
  output.answer("capacity throughput", measured, describeThroughput(measured));
}

function describeThroughput(measured: Throughput): string {
  const row = (name: string, { requests, bytesPerSecond, latency }: Transfers): readonly string[] => [
    name,
    formatRate(bytesPerSecond, 1_000),
    formatCount(requests),
    ...[latency.p50Ms, latency.p95Ms, latency.p99Ms, latency.maxMs].map((ms) => `${ms.toFixed(1)} ms`),
  ];
  const rows = [
    row(`put, ${formatBytes(4 * 1024 ** 2)} × ${measured.lanes}`, measured.put),
    row(`get, ${formatBytes(4 * 1024 ** 2)} × ${measured.lanes}`, measured.get),
    row("put, 2 KiB × 1", measured.small),
  ];
  const left = measured.removedLeftovers;
  return [
    table(["REQUESTS", "RATE", "COUNT", "MEDIAN", "95 %", "99 %", "MOST"], rows, "lrrrrrr"),
    ...(left === 0 ? [] : [`${formatNumberOf(left, "object")} of an earlier run that was killed: removed`]),
  ].join("\n");
}

/** Bytes a second of `100Mbit/s` (decimal bits) or `12MiB/s`. */
function rate(text: string): number {
  const bits = /^(\d+(?:\.\d+)?)\s*([kMG])bit\/s$/.exec(text);
  const bytes =
    bits === null
      ? parseBytes(/^(.*)\/s$/.exec(text)?.[1] ?? "")
      : (Number(bits[1]) * 1_000 ** ("kMG".indexOf(bits[2] ?? "") + 1)) / 8;
  if (bytes === undefined || bytes === 0)
    throw new InvalidArgumentError("It is not a rate such as 100Mbit/s or 12MiB/s.");
  return bytes;
}

function percent(text: string): number {
  const match = /^(\d{1,4})\s*%$/.exec(text);
  if (match === null) throw new InvalidArgumentError("It is not a percentage such as 30%.");
  return Number(match[1]) / 100;
}

function policies(text: string): readonly RetentionPolicy[] {
  return text.trim().split(/\s+/).map(parsePolicy);
}

/** Values that are divided by commas. */
function listOf<Value>(parse: (text: string) => Value): (text: string) => readonly Value[] {
  return (text) => text.split(",").map((each) => parse(each.trim()));
}
