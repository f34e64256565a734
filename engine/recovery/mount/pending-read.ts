/** Countdown latch of a read: what it waits for arrives block by block. */
import type { TidemarkError } from "../../errors.ts";

/**
 * A read that waits for blocks. It settles when all blocks have arrived or failed, and fails if any
 * failed.
 */
export class PendingRead {
  readonly done: Promise<void>;
  #left = 1;
  #failure: TidemarkError | undefined;
  #settle: (failure: TidemarkError | undefined) => void = () => undefined;

  constructor() {
    this.done = new Promise((resolve, reject) => {
      this.#settle = (failure) => {
        if (failure === undefined) resolve();
        else reject(failure);
      };
    });
  }

  /** One more to wait for. */
  expect(): void {
    this.#left += 1;
  }

  /**
   * A block has arrived or failed. The read itself calls this once too, when it has requested
   * everything.
   */
  arrived(failure?: TidemarkError): void {
    this.#failure ??= failure;
    this.#left -= 1;
    if (this.#left === 0) this.#settle(this.#failure);
  }
}
