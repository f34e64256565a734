/**
 * Call coalescing (group commit): one call at a time for many callers.
 *
 * A caller that arrives while a call runs cannot share it, because that call may already have
 * passed what the caller needs. It waits for the next call, which all callers that arrived
 * meanwhile share.
 */

/** Groups the calls of one function. */
export class GroupedCalls {
  readonly #call: () => Promise<void>;
  #underWay: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  constructor(call: () => Promise<void>) {
    this.#call = call;
  }

  /** Settles as a call does that began after this one was made. */
  run(): Promise<void> {
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
      await this.#call();
    } finally {
      // While a next one is waiting, newcomers have to join it; it takes this one's place itself.
      if (this.#next === undefined) this.#underWay = undefined;
    }
  }
}
