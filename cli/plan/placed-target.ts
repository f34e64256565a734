/** Targets of plans whose folders are named from a folder. */
import { resolve } from "node:path";

/** A target whose folder is the same wherever the run goes on; a relative one is below `folder`. */
export function placedTarget(target: string | undefined, folder: string): string | undefined {
  return target?.replace(
    /^(dir|instant:unix):(.+)$/s,
    (_, kind: string, path: string) => `${kind}:${resolve(folder, path)}`,
  );
}
