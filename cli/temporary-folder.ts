/** Temporary folder: removed at the end of the process, however it ends (except kill -9). */
import { rmSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

/** A server that is just ending may still write into the folder while it is removed. */
const removal = { recursive: true, force: true, maxRetries: 5, retryDelay: 50 } as const;

export class TemporaryFolder implements AsyncDisposable {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
    process.on("exit", this.#removeAtExit);
  }

  static async create(prefix: string): Promise<TemporaryFolder> {
    return new TemporaryFolder(await mkdtemp(join(tmpdir(), prefix)));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.path, removal);
    process.off("exit", this.#removeAtExit);
  }

  readonly #removeAtExit = (): void => {
    rmSync(this.path, removal);
  };
}
