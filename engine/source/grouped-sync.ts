/**
 * fdatasync for many callers. One that comes while a sync is under way must not share it, because the kernel may have passed its
 * pages already; so it waits for the next, which all who came meanwhile share.
 *
 * A sync that failed is never repeated with success: the kernel marks the pages that it could not write as clean, so that the next
 * fdatasync would report a health that is not there.
 */
import { systemCode, TidemarkError } from "../errors.ts";

/** Groups the syncs of one open file. */
export class GroupedSync {
  readonly #datasync: () => Promise<void>;
  readonly #path: string;
  #underWay: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #failure: TidemarkError | undefined;

  /** `path` names the file in messages. */
  constructor(datasync: () => Promise<void>, path: string) {
    this.#datasync = datasync;
    this.#path = path;
  }

  /** When it resolves, what had been written when it was called is durable. Errors: DEVICE_FAILED, from the first failure on for good. */
  sync(): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.#underWay === undefined) return this.#start();
    this.#next ??= this.#underWay.then(
      () => this.#startNext(),
      () => this.#startNext(),
    );
    return this.#next;
  }

  #startNext(): Promise<void> {
    this.#next = undefined;
    return this.#start();
  }

  #start(): Promise<void> {
    this.#underWay = this.#run();
    return this.#underWay;
  }

  async #run(): Promise<void> {
    try {
      if (this.#failure !== undefined) throw this.#failure;
      await this.#datasync();
    } catch (error) {
      this.#failure ??= this.#failed(error);
      throw this.#failure;
    } finally {
      // While a next one is waiting, newcomers have to join it; it takes this one's place itself.
      if (this.#next === undefined) this.#underWay = undefined;
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
          "stop whoever writes it, check the device and the space on it, then bring the disk back from the newest point or check its content",
        detail: { path: this.#path, errno },
        cause,
      },
    );
  }
}
