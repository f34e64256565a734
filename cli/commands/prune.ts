/**
 * `tidemark prune`: applies a retention policy. Drops the points that it does not keep, or lists
 * them with reasons.
 */
import { Command } from "commander";
import { type PointDecision, type PruneSummary, parsePolicy, TidemarkError } from "../../engine/index.ts";
import { shellWord } from "../../engine/internal.ts";
import type { Output } from "../output.ts";
import { formatBytes, formatDuration, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { fields, printable, table } from "../text.ts";
import { pointSelector } from "../times.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

interface PruneFlags extends VaultFlags {
  readonly disk?: string;
  readonly policy: string;
  readonly dryRun?: true;
  readonly explain?: string;
}

/** Lines of a table of decisions at its beginning and its end; what lies between is counted. */
const shownFirst = 20;
const shownLast = 5;

export function pruneCommand(context: CommandContext): Command {
  const command = new Command("prune")
    .description("drop the recovery points that a policy does not keep")
    .option("--disk <name>", "only this disk (default: every disk)")
    .requiredOption("--policy <policy>", "days:N, bands:AGE=EVERY,… or keep:last=N,hourly=N,daily=N,…")
    .option("--dry-run", "list the points that would go, with reasons; change nothing")
    .option("--explain <point>", "show the decision about one point of the disk, with reasons; change nothing");
  return withVaultOptions(command)
    .addHelpText(
      "after",
      `
The newest point of a disk stays, and so does a point that is pinned or being
read. Ages count from the newest point. Pruning frees no space: run
\`tidemark collect\` afterwards. The points of a group stay or go together.
\`tidemark retention simulate --help\` explains the policies.

Examples:
  $ tidemark prune --policy days:7 --dry-run --vault azurite:/srv/azurite
  $ tidemark prune --disk web --policy keep:last=10,daily=30 --vault dir:/v
  $ tidemark prune --disk web --policy days:7 --explain 1234 --vault dir:/v`,
    )
    .action(async (flags: PruneFlags) => await prune(context, flags));
}

async function prune(context: CommandContext, flags: PruneFlags): Promise<void> {
  const policy = parsePolicy(flags.policy);
  const { disk, explain } = flags;
  if (explain !== undefined) {
    if (disk === undefined) {
      throw new TidemarkError("INVALID_ARGUMENT", "`--explain` needs a disk, and none is named", {
        remedy: "add `--disk NAME`",
      });
    }
    await explainPoint(context, flags, disk, pointSelector(explain), policy);
    return;
  }
  const { output } = context;
  const dryRun = flags.dryRun === true;
  const going = new Shortened();
  const onDecision = (decision: PointDecision): void => {
    output.item("decision", decision);
    if (!decision.keep) going.add(decision);
  };
  const options = { disk, policy, dryRun, ...operation(context), ...(dryRun ? { onDecision } : {}) };
  const summary = await withVault(context, flags, async (vault) => await vault.prune(options));
  const text = [...going.lines(output), describe(summary)].join("\n");
  if (dryRun) output.answer("prune", summary, text);
  else output.summary("prune", summary, text);
}

async function explainPoint(
  context: CommandContext,
  flags: PruneFlags,
  disk: string,
  selector: string,
  policy: ReturnType<typeof parsePolicy>,
): Promise<void> {
  const { output } = context;
  const decision = await withVault(context, flags, async (vault) => {
    const { sequence } = await vault.point(disk, selector);
    let found: PointDecision | undefined;
    const onDecision = (told: PointDecision): void => {
      if (told.sequence === sequence) found = told;
    };
    const options = { disk, policy, dryRun: true, withoutFreedBytes: true, onDecision };
    await vault.prune({ ...options, ...operation(context) });
    if (found !== undefined) return found;
    throw new TidemarkError(
      "POINT_NOT_FOUND",
      `point ${sequence} of disk ${JSON.stringify(disk)} has just been pruned`,
      {
        remedy: `list the points that are left with \`tidemark points list --disk ${shellWord(disk)}\``,
      },
    );
  });
  const text = [
    `point ${decision.sequence} of disk ${printable(decision.disk)} ${decision.keep ? "stays" : "goes"}`,
    fields([
      ["point", decision.point],
      ["time", output.time(decision.time)],
      ["consistency", decision.consistency],
      ...decision.reasons.map((reason, index): readonly [string, string] => [index === 0 ? "because" : "", reason]),
    ]),
  ].join("\n");
  output.answer("prune", decision, text);
}

/** The first and the last entries of a long list, and how many lie between. */
class Shortened {
  readonly #first: PointDecision[] = [];
  readonly #last: PointDecision[] = [];
  #between = 0;

  add(decision: PointDecision): void {
    if (this.#first.length < shownFirst) {
      this.#first.push(decision);
      return;
    }
    this.#last.push(decision);
    if (this.#last.length <= shownLast) return;
    this.#last.shift();
    this.#between += 1;
  }

  lines(output: Pick<Output, "time">): string[] {
    if (this.#first.length === 0) return [];
    const row = ({ disk, sequence, time, consistency, storedBytes, reasons }: PointDecision): string[] => [
      disk,
      String(sequence),
      output.time(time),
      consistency,
      formatBytes(storedBytes),
      reasons.join("; "),
    ];
    const [heading = "", ...lines] = table(
      ["DISK", "POINT", "TIME", "CONS.", "STORED", "GOES BECAUSE"],
      [...this.#first, ...this.#last].map(row),
      "lrllrl",
    ).split("\n");
    const more =
      this.#between === 0 ? [] : [`… and ${formatNumberOf(this.#between, "point")} more, which --json lists`];
    return [heading, ...lines.slice(0, this.#first.length), ...more, ...lines.slice(this.#first.length), ""];
  }
}

function describe(summary: PruneSummary): string {
  const { dryRun, removedPoints, keptPoints, heldPoints, removedStoredBytes, freedBytes, skippedDisks, elapsedMs } =
    summary;
  const what = `${formatNumberOf(removedPoints, "point")} ${dryRun ? "would go" : "pruned"}, ${formatNumberOf(keptPoints, "point")} left`;
  const held =
    heldPoints === 0 ? "" : `; ${formatNumberOf(heldPoints, "point")} of them kept only by a reader or a pin`;
  const skipped = skippedDisks === 0 ? "" : `; ${formatNumberOf(skippedDisks, "disk")} skipped`;
  const stored =
    freedBytes === null
      ? `they stored ${formatBytes(removedStoredBytes)}; what other points share stays`
      : `\`tidemark collect\` would then free ${formatBytes(freedBytes)}`;
  return `${what}${held}${skipped} (${formatDuration(elapsedMs)})${removedPoints === 0 ? "" : `\n${stored}`}`;
}
