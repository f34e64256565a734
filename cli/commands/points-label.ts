/** `tidemark points label`: a user's text on a point. */
import type { Command } from "commander";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { printable } from "../text.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

interface LabelFlags extends VaultFlags {
  readonly disk: string;
  readonly point: string;
  readonly text: string;
}

export function addLabelCommand(context: CommandContext, points: Command): void {
  const label = points.command("label").requiredOption("--disk <name>", "name of the disk in the vault");
  label.requiredOption("--point <point>", "sequence number, id, `latest` or an ISO time");
  withVaultOptions(label.requiredOption("--text <text>", "at most 200 characters; empty: the label is removed"))
    .description("put a label on a recovery point, or remove it")
    .addHelpText(
      "after",
      `
A label does not keep a point from being pruned, and goes with it: see
\`tidemark points pin\`.

Examples:
  $ tidemark points label --disk web --point latest \\
      --text "before the upgrade" --vault dir:/v
  $ tidemark points label --disk web --point 1234 --text "" --vault dir:/v`,
    )
    .action(async (flags: LabelFlags) => await labelPoint(context, flags));
}

async function labelPoint(context: CommandContext, flags: LabelFlags): Promise<void> {
  const { disk, point, text } = flags;
  const options = { disk, point, text, ...operation(context) };
  const labelled = await withVault(context, flags, async (vault) => await vault.label(options));
  const what = `point ${labelled.sequence} of disk ${printable(labelled.disk)}`;
  context.output.summary(
    "points label",
    labelled,
    labelled.label === null ? `${what} has no label` : `${what}: ${printable(labelled.label)}`,
  );
}
