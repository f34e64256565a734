/** Periodic task: work that the agent repeats while it runs, and that ends with it. */
import type { Clock } from "./ports.ts";

export interface PeriodicTaskOptions {
  readonly clock: Clock;
  readonly firstAfterMs: number;
  readonly everyMs: number;
  /** Throws nothing. */
  readonly work: (signal: AbortSignal) => Promise<void>;
}

export class PeriodicTask {
  readonly #options: PeriodicTaskOptions;
  readonly #stopping = new AbortController();
  readonly #running: Promise<void>;
  #sleeping = new AbortController();

  constructor(options: PeriodicTaskOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  /** Ends the current pause, because the settings of the work have changed. */
  hurry(): void {
    this.#sleeping.abort();
  }

  /** Aborts the signal of the work under way and waits for its end. Idempotent. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#sleeping.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { firstAfterMs, everyMs, work } = this.#options;
    const { signal } = this.#stopping;
    await this.#sleep(firstAfterMs);
    while (!signal.aborted) {
      await work(signal);
      await this.#sleep(everyMs);
    }
  }

  async #sleep(delayMs: number): Promise<void> {
    if (this.#stopping.signal.aborted) return;
    this.#sleeping = new AbortController();
    await this.#options.clock.sleep(delayMs, this.#sleeping.signal);
  }
}
