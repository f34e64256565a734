/** The plan of a command: its flag, its file read and checked, and its faults printed. */
import type { Command } from "commander";
import { type PlanFault, TidemarkError } from "../../engine/index.ts";
import { type ConfigFault, formatFault } from "../agent/config.ts";
import type { LoadedPlan } from "../plan/plan-file.ts";
import { printable } from "../text.ts";
import type { CommandContext } from "./context.ts";

/** Adds `--plan`. */
export function withPlan(command: Command): Command {
  return command.requiredOption("--plan <file>", "YAML file of the plan");
}

/** Reads a plan. Errors: INVALID_ARGUMENT after every fault has been printed. */
export async function loadFile(context: CommandContext, path: string): Promise<LoadedPlan> {
  const { loadPlan } = await import("../plan/plan-file.ts"); // the reader of YAML is loaded only where one is read
  const loaded = await loadPlan(path);
  if ("plan" in loaded) return loaded;
  throw told(context, path, loaded.faults);
}

/** Errors: INVALID_ARGUMENT after every fault has been printed. */
export function refuseFaults(
  context: CommandContext,
  path: string,
  { place }: LoadedPlan,
  faults: readonly PlanFault[],
): void {
  if (faults.length > 0) throw told(context, path, place(faults));
}

/** Prints every fault, and gives the error that stands for all of them. */
function told({ output }: CommandContext, path: string, faults: readonly ConfigFault[]): TidemarkError {
  for (const found of faults) output.item("fault", found, printable(formatFault(found)));
  const [first] = faults;
  const count = faults.length === 1 ? "a fault" : `${faults.length} faults`;
  const fact = `the plan ${path} has ${count}${first === undefined ? "" : `: ${formatFault(first)}`}`;
  return new TidemarkError("INVALID_ARGUMENT", fact, {
    remedy: `correct it; \`tidemark plan check --plan ${path}\` shows every fault with its line`,
    detail: { path, faults: faults.length },
  });
}
