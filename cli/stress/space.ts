/**
 * Small file system of a run (tmpfs), which can be made full under those that write to it.
 *
 * Invariant: no mount outlives the process, unless it is killed with SIGKILL.
 */
import { execFile, spawnSync } from "node:child_process";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { TidemarkError } from "../../engine/index.ts";

const execute = promisify(execFile);

/** A file system has this size until it is made full, and this much room when it is. */
const spaceBytes: number = 2 * 1024 ** 3;
const shrinksMax = 10;
const spaceLeftBytes: number = 64 * 1024;

export class MountedSpace implements AsyncDisposable {
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
    // Before the handler that removes the folder that it is mounted in.
    process.prependListener("exit", this.#unmountAtExit);
  }

  /** Mounts it on an empty folder. Errors: UNSUPPORTED. */
  static async mount(folder: string): Promise<MountedSpace> {
    try {
      await execute("mount", ["-t", "tmpfs", "-o", `size=${spaceBytes},mode=0700`, "tmpfs", folder]);
    } catch (error) {
      throw new TidemarkError("UNSUPPORTED", "no small file system can be mounted on this machine", {
        remedy: "leave disk-full out of --faults",
        cause: error,
      });
    }
    return new MountedSpace(folder);
  }

  /** Leaves no room for `ms`. */
  async fill(ms: number): Promise<void> {
    await this.#shrink();
    try {
      await delay(ms);
    } finally {
      await this.#resize(spaceBytes);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await execute("umount", [this.#folder]);
    process.off("exit", this.#unmountAtExit);
  }

  /** Leaves little room. Writers go on meanwhile, and no file system becomes smaller than what they have written. */
  async #shrink(): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      const { stdout } = await execute("df", ["--output=used", "--block-size=1", this.#folder]);
      try {
        await this.#resize(Number(stdout.trim().split("\n").at(-1)) + attempt * spaceLeftBytes);
        return;
      } catch (error) {
        if (attempt === shrinksMax) throw error;
      }
    }
  }

  async #resize(sizeBytes: number): Promise<void> {
    await execute("mount", ["-o", `remount,size=${Math.ceil(sizeBytes / 4096) * 4096}`, this.#folder]);
  }

  /** Lazily: processes that are ending may still have files open. */
  readonly #unmountAtExit = (): void => {
    spawnSync("umount", ["--lazy", this.#folder]);
  };
}
