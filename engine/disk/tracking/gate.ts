/**
 * Write gate: the barrier that makes a cut exact. Writes pass the gate before they touch the disk.
 *
 * The gate closes for the moment of a cut. Writes that have passed it run to their end; writes that
 * arrive wait in order. It opens by itself after a given time, so a caller that forgets it delays
 * writes but never stops them.
 */

/** What `Gate.close` gives: the gate is closed while `held`. */
export interface Barrier {
  /** False once the gate is open again, by whomever. */
  readonly held: boolean;
  /** Writes that had passed and were not done when it opened. */
  readonly inFlight: number;
  /** How long it has been closed by now, or was, in ms. */
  readonly heldMs: number;
  /** Opens the gate. Idempotent. */
  open(): void;
}

const barriersRemembered = 100;

export class Gate {
  readonly #steadyNow: () => number;
  readonly #barriersMs: number[] = [];
  #barrier: ClosedBarrier | undefined;
  #passed = 0;

  constructor(steadyNow: () => number) {
    this.#steadyNow = steadyNow;
  }

  /** While the gate is closed: resolves when it opens. A writer that awaited it asks again. */
  get closed(): Promise<void> | undefined {
    return this.#barrier?.opened;
  }

  /** Writes that have passed and are not done. */
  get inFlight(): number {
    return this.#passed;
  }

  /** How long it was closed, in ms: the last time, and the longest of the last hundred. */
  get barriers(): { readonly lastMs: number; readonly maxMs: number } {
    return { lastMs: this.#barriersMs.at(-1) ?? 0, maxMs: Math.max(0, ...this.#barriersMs) };
  }

  /** A write passes the open gate. Each is followed by one `done`. */
  pass(): void {
    this.#passed += 1;
  }

  done(): void {
    this.#passed -= 1;
    if (this.#passed === 0) this.#barrier?.drain();
  }

  /**
   * Closes the open gate and waits until what has passed it is done, but no longer than until the
   * gate opens again: after `heldMsMax`, or because of `open` or `openNow`. Then the barrier is not
   * held any more. `onOpen` is called when it opens.
   */
  async close(heldMsMax: number, onOpen: () => void): Promise<Barrier> {
    const barrier = new ClosedBarrier(this.#steadyNow, heldMsMax, () => {
      this.#barrier = undefined;
      this.#barriersMs.push(barrier.heldMs);
      if (this.#barriersMs.length > barriersRemembered) this.#barriersMs.shift();
      onOpen();
      return this.#passed;
    });
    this.#barrier = barrier;
    if (this.#passed === 0) barrier.drain();
    await barrier.drained;
    return barrier;
  }

  /** Opens the gate if it is closed. */
  openNow(): void {
    this.#barrier?.open();
  }
}

class ClosedBarrier implements Barrier {
  readonly opened: Promise<void>;
  /** Resolves when nothing is in flight any more, or the gate has opened. */
  readonly drained: Promise<void>;
  drain: () => void = () => undefined;
  inFlight = 0;
  readonly #steadyNow: () => number;
  readonly #closedAtMs: number;
  readonly #onOpen: () => number;
  readonly #timer: NodeJS.Timeout;
  #admit: () => void = () => undefined;
  #openAfterMs: number | undefined;

  constructor(steadyNow: () => number, heldMsMax: number, onOpen: () => number) {
    this.#steadyNow = steadyNow;
    this.#closedAtMs = steadyNow();
    this.#onOpen = onOpen;
    this.opened = new Promise<void>((resolve) => {
      this.#admit = resolve;
    });
    this.drained = new Promise<void>((resolve) => {
      this.drain = resolve;
    });
    this.#timer = setTimeout(() => this.open(), heldMsMax);
  }

  get held(): boolean {
    return this.#openAfterMs === undefined;
  }

  get heldMs(): number {
    return this.#openAfterMs ?? this.#steadyNow() - this.#closedAtMs;
  }

  open(): void {
    if (this.#openAfterMs !== undefined) return;
    this.#openAfterMs = this.#steadyNow() - this.#closedAtMs;
    clearTimeout(this.#timer);
    this.inFlight = this.#onOpen();
    this.#admit();
    this.drain();
  }
}
