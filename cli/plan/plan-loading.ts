/** A plan's file, read and checked; its faults are told one by one, and one error stands for all. */
import type { PlanFault, TidemarkError } from "../../engine/index.ts";
import { type ConfigFault, faultsError, type TellFault } from "../agent/config.ts";
import type { LoadedPlan } from "./plan-file.ts";

/** Reads a plan. Errors: INVALID_ARGUMENT after every fault has been told. */
export async function loadFile(path: string, tell: TellFault | undefined): Promise<LoadedPlan> {
  const { loadPlan } = await import("./plan-file.ts"); // the reader of YAML is loaded only where one is read
  const loaded = await loadPlan(path);
  if ("plan" in loaded) return loaded;
  throw told(path, loaded.faults, tell);
}

/** Errors: INVALID_ARGUMENT after every fault that the vault found has been told. */
export function refuseFaults(
  path: string,
  { place }: LoadedPlan,
  faults: readonly PlanFault[],
  tell: TellFault | undefined,
): void {
  if (faults.length > 0) throw told(path, place(faults), tell);
}

function told(path: string, faults: readonly ConfigFault[], tell: TellFault | undefined): TidemarkError {
  return faultsError({ path, what: `the plan ${path}`, check: "plan check --plan" }, faults, tell);
}
