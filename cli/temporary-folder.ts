/**
 * Temporary folder of a command, removed when the command ends, by any way but kill -9.
 *
 * Disposal comes after every server and process that works in the folder has ended. The handler of
 * the process's exit cannot wait: a server that is ending may still write, so removal is tried
 * again for a second.
 */
import { rmSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

const atExit = { recursive: true, force: true, maxRetries: 5, retryDelay: 50 } as const;

export class TemporaryFolder implements AsyncDisposable {
  readonly path: string;
  #isKept = false;

  private constructor(path: string) {
    this.path = path;
    process.on("exit", this.#removeAtExit);
  }

  static async create(prefix: string): Promise<TemporaryFolder> {
    return new TemporaryFolder(await mkdtemp(join(tmpdir(), prefix)));
  }

  /** From now on the folder stays when the command ends. */
  keep(): void {
    this.#isKept = true;
    process.off("exit", this.#removeAtExit);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isKept) return;
    await rm(this.path, { recursive: true, force: true });
    process.off("exit", this.#removeAtExit);
  }

  readonly #removeAtExit = (): void => rmSync(this.path, atExit);
}
