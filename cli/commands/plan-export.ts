/** `tidemark plan export`: what starts the machines of a plan's run. */
import { Command, Option } from "commander";
import { withVaultOptions } from "../settings.ts";
import type { CommandContext } from "./context.ts";
import type { ExportFlags } from "./plan-export-run.ts";

const formats: readonly ExportFlags["format"][] = ["arm", "bicep", "qemu", "libvirt"];

/** Adds `--plan`. */
export function withPlan(command: Command): Command {
  return command.requiredOption("--plan <file>", "YAML file of the plan");
}

export function exportCommand(context: CommandContext): Command {
  const command = new Command("export").argument("[run]", "name of the run (default: the newest one of the plan)");
  return withPlan(withVaultOptions(command))
    .description("write what starts the machines of a run: a template for Azure, or guests of this host")
    .addOption(new Option("--format <format>", "what is written").choices(formats).makeOptionMandatory())
    .option("--machine <name>", "only this machine")
    .option("--inventory <file...>", "what `az network vnet list` and `az network nic list` print")
    .option("--out <file>", "write a file, which must not exist (default: print it)")
    .addHelpText(
      "after",
      `
Templates import page blobs as managed disks, and make NICs and virtual machines
from \`os\`, \`size\`, \`nics\` and \`networks\` of the plan. Nothing is deployed.
Guests of this host boot from the images of the run. docs/plans.md has the rules.

Examples:
  $ tidemark plan export --plan shop.yaml --format bicep --out shop.bicep
  $ az deployment group create -g dr --template-file shop.bicep
  $ tidemark plan export --plan shop.yaml --format qemu --out shop.sh && sh shop.sh db`,
    )
    .action(async (run: string | undefined, flags: ExportFlags) => {
      const { exportRun } = await import("./plan-export-run.ts");
      await exportRun(context, run, flags);
    });
}
