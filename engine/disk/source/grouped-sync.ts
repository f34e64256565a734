/**
 * Grouped fdatasync: concurrent callers share one sync that began after all of them asked.
 *
 * A sync that failed is final. The kernel marks pages that it could not write as clean, so a second
 * fdatasync would succeed although the data is lost.
 */
import { systemCode, TidemarkError } from "../../errors.ts";
import { GroupedCalls } from "./grouped-calls.ts";

/** Groups the syncs of one open file. */
export class GroupedSync {
  readonly #datasync: () => Promise<void>;
  readonly #path: string;
  readonly #syncs: GroupedCalls = new GroupedCalls(() => this.#sync());
  #failure: TidemarkError | undefined;

  /** `path` names the file in messages. */
  constructor(datasync: () => Promise<void>, path: string) {
    this.#datasync = datasync;
    this.#path = path;
  }

  /**
   * When it resolves, what had been written when it was called is durable. Errors: DEVICE_FAILED,
   * from the first failure on for good.
   */
  sync(): Promise<void> {
    return this.#failure === undefined ? this.#syncs.run() : Promise.reject(this.#failure);
  }

  async #sync(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    try {
      await this.#datasync();
    } catch (error) {
      this.#failure = this.#failed(error);
      throw this.#failure;
    }
  }

  #failed(cause: unknown): TidemarkError {
    if (cause instanceof TidemarkError && cause.code === "INTERNAL") return cause;
    const errno = systemCode(cause);
    return new TidemarkError(
      "DEVICE_FAILED",
      `cannot make ${this.#path} durable: writes since its last flush may be lost (${errno ?? "?"})`,
      {
        remedy:
          "stop the programs that write it, check the device and its free space, then restore the disk from the newest point or check its content",
        detail: { path: this.#path, errno },
        cause,
      },
    );
  }
}
