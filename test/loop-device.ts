/**
 * A block device made of a file, where the machine lets us have one (Linux, root, losetup);
 * elsewhere the tests that need it are skipped with the reason.
 */
import { execFileSync } from "node:child_process";

export interface LoopDevice {
  readonly path: string;
  detach(): void;
}

/** Attaches `file`, or says why it cannot. */
export function attachLoop(file: string): LoopDevice | { readonly reason: string } {
  try {
    const path = execFileSync("losetup", ["--find", "--show", file], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    }).trim();
    return {
      path,
      detach: () => {
        execFileSync("losetup", ["--detach", path]);
      },
    };
  } catch (error) {
    return {
      reason: `no loop device can be had here: ${error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error)}`,
    };
  }
}
