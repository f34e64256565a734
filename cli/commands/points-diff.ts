/** `tidemark points diff`: the extents in which two points of a disk differ. */
import type { Command } from "commander";
import { formatBytes, formatCount, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { printable, table } from "../text.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

/** Extents that are shown to people; JSON has all. */
const shownMax = 40;

interface DiffFlags extends VaultFlags {
  readonly disk: string;
  readonly from: string;
  readonly to: string;
}

export function addDiffCommand(context: CommandContext, points: Command): void {
  const diff = points.command("diff").requiredOption("--disk <name>", "name of the disk in the vault");
  diff.requiredOption("--from <point>", "the point that is known: sequence number, id, `latest` or an ISO time");
  withVaultOptions(diff.requiredOption("--to <point>", "the point that is wanted, named likewise"))
    .description("show the extents in which two recovery points differ")
    .addHelpText(
      "after",
      `
Offsets and lengths are bytes. No data is read: a granule that was stored anew
together with a neighbour counts as different. With --json every extent is a line.

Example:
  $ tidemark points diff --disk web --from 41 --to latest --vault dir:/v`,
    )
    .action(async (flags: DiffFlags) => await showDiff(context, flags));
}

async function showDiff(context: CommandContext, flags: DiffFlags): Promise<void> {
  const { output } = context;
  const { disk, from, to } = flags;
  const rows: string[][] = [];
  const summary = await withVault(context, flags, async (vault) => {
    const diff = await vault.diff({ disk, from, to, ...operation(context) });
    let [extents, differingBytes] = [0, 0];
    for await (const extent of diff) {
      extents += 1;
      differingBytes += extent.length;
      output.item("extent", extent);
      if (rows.length < shownMax) rows.push([formatCount(extent.offset), formatCount(extent.length)]);
    }
    return { disk: diff.to.disk, from: diff.from, to: diff.to, extents, differingBytes };
  });
  const { extents, differingBytes } = summary;
  const more =
    extents > rows.length ? `\n${formatNumberOf(extents - rows.length, "extent")} more: --json prints all` : "";
  const what = `points ${summary.from.sequence} and ${summary.to.sequence} of disk ${printable(summary.disk)}`;
  const text =
    extents === 0
      ? `${what} are the same`
      : `${table(["OFFSET", "LENGTH"], rows, "rr")}${more}\n${what} differ in ${formatNumberOf(extents, "extent")}, ${formatBytes(differingBytes)}`;
  output.summary("points diff", summary, text);
}
