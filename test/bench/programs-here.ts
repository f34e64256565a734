/**
 * What the tests of benchmarks ask of the machine: which programs it has, and which processes they
 * have left behind.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";

/** Why nothing can be measured here, or undefined. */
export function missing(...programs: readonly string[]): string | undefined {
  const absent = programs.filter((program) => spawnSync(program, ["--version"]).error !== undefined);
  return absent.length === 0 ? undefined : `${absent.join(" and ")} are not installed`;
}

/**
 * Names of the processes that this one has started and that are still there. Where there is no
 * /proc, none.
 */
export function children(): string[] {
  if (!existsSync("/proc/self/stat")) return [];
  return readdirSync("/proc").flatMap((entry) => {
    if (!/^\d+$/.test(entry)) return [];
    // A process may end between two looks.
    const path = `/proc/${entry}/stat`;
    const [, name = "", parent] = /\((.*)\) \S (\d+)/.exec(existsSync(path) ? readFileSync(path, "utf8") : "") ?? [];
    return parent === String(process.pid) ? [name] : [];
  });
}
