/** Programs of others that tests talk to, where they are installed. */
import { spawnSync } from "node:child_process";

/** Why `program` cannot be used here, or undefined when it can. */
export function whyMissing(program: string): string | undefined {
  const { error } = spawnSync(program, ["--version"], { stdio: "ignore" });
  return error === undefined ? undefined : `skipped: ${program} is not installed`;
}
