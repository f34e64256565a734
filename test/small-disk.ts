/**
 * A folder on a file system that is full after a few hundred KiB, where the machine lets us mount
 * one; elsewhere the tests that need it are skipped with the reason.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";

export interface SmallDisk {
  readonly path: string;
  unmount(): void;
}

/** Mounts a tmpfs of `sizeBytes` at `path`, or says why it cannot. */
export function mountSmallDisk(path: string, sizeBytes: number): SmallDisk | { readonly reason: string } {
  mkdirSync(path);
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${sizeBytes}`, "tmpfs", path], { stdio: "pipe" });
  } catch (error) {
    return {
      reason: `no small file system can be mounted here: ${error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error)}`,
    };
  }
  return {
    path,
    unmount: () => {
      execFileSync("umount", [path]);
    },
  };
}
