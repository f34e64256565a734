/**
 * Retry with a deadline: a mounted point whose store may be away. It opens the point when it is
 * first read, and tries again what failed because the store could not be reached, until the read's
 * time is over. Then the read fails; it never gives zeros instead.
 *
 * A try that is still running when its read gives up goes on into a buffer of its own, which no
 * caller sees.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { DeviceExtent } from "../../device.ts";
import { hasCode, TidemarkError } from "../../errors.ts";
import { hydrationTiming } from "../../timing.ts";
import type { HeldPoint } from "./held-point.ts";
import type { MountedPoint } from "./mounted-point.ts";
import { ReadOnlyDevice } from "./read-only-device.ts";

export interface PatientPointOptions {
  readonly description: string;
  readonly sizeBytes: number;
  /** Opens the point. */
  readonly open: () => Promise<HeldPoint>;
  /** How long a read waits. */
  readonly waitMs: number;
}

export class PatientPoint extends ReadOnlyDevice {
  readonly description: string;
  readonly sizeBytes: number;
  readonly #options: PatientPointOptions;
  #opening: Promise<HeldPoint> | undefined;
  #held: HeldPoint | undefined;
  /** What ends each read that waits. */
  readonly #waiting = new Set<(error: TidemarkError) => void>();
  #underWay = 0;
  #idle: () => void = () => undefined;
  #unreachable: TidemarkError | undefined;
  #closing: Promise<void> | undefined;

  constructor(options: PatientPointOptions) {
    super();
    this.#options = options;
    this.description = options.description;
    this.sizeBytes = options.sizeBytes;
  }

  /** Why the store could not be reached the last time; undefined since it could be. */
  get unreachable(): TidemarkError | undefined {
    return this.#unreachable;
  }

  /** Bytes read from the store. */
  get bytesFetched(): number {
    return this.#held?.point.counts.bytesFetched ?? 0;
  }

  /** Begins to open the point, so that the first read waits less. What fails is tried again by it. */
  prepare(): void {
    this.#open().catch(() => undefined);
  }

  tryRead(offset: number, into: Uint8Array): boolean {
    return this.#held?.point.tryRead(offset, into) === true;
  }

  /** Errors: STORE_UNREACHABLE when the time is over; DAMAGED and the other errors of the store at once. */
  async read(offset: number, into: Uint8Array): Promise<void> {
    const bytes = Buffer.allocUnsafe(into.byteLength);
    await this.#patiently(async (point) => await point.read(offset, bytes));
    into.set(bytes);
  }

  extents(offset: number, length: number, countMax: number): DeviceExtent[] {
    return this.#held?.point.extents(offset, length, countMax) ?? [];
  }

  async lookUp(offset: number, length: number, countMax: number): Promise<DeviceExtent[]> {
    return await this.#patiently(async (point) => await point.lookUp(offset, length, countMax));
  }

  /** As `MountedPoint.ahead`. */
  async ahead(offset: number, end: number): Promise<number> {
    return await this.#patiently(async (point) => await point.ahead(offset, end));
  }

  /** As `MountedPoint.settled`. */
  async settled(): Promise<void> {
    await this.#held?.point.settled();
  }

  /** Closes it when no read is under way any more. The caller begins none. */
  async retire(): Promise<void> {
    if (this.#underWay > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    await this.close();
  }

  /** Ends reads under way with DEVICE_FAILED. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    for (const giveUp of this.#waiting) giveUp(this.#closed());
    const [opened] = await Promise.allSettled([this.#opening]);
    if (opened.status === "fulfilled") await opened.value?.close();
  }

  async #patiently<Result>(work: (point: MountedPoint) => Promise<Result>): Promise<Result> {
    if (this.#closing !== undefined) throw this.#closed();
    const { waitMs } = this.#options;
    let timer: NodeJS.Timeout | undefined;
    const over = new AbortController();
    const given = new Promise<never>((_, reject) => {
      const giveUp = (error: TidemarkError): void => {
        over.abort(error);
        reject(error);
      };
      this.#waiting.add(giveUp);
      over.signal.addEventListener("abort", () => this.#waiting.delete(giveUp));
      timer = setTimeout(() => giveUp(this.#tooLate()), waitMs);
    });
    this.#underWay += 1;
    try {
      return await Promise.race([given, this.#tries(work, over.signal)]);
    } finally {
      clearTimeout(timer);
      over.abort();
      this.#underWay -= 1;
      if (this.#underWay === 0) this.#idle();
    }
  }

  async #tries<Result>(work: (point: MountedPoint) => Promise<Result>, over: AbortSignal): Promise<Result> {
    for (;;) {
      try {
        const result = await work((await this.#open()).point);
        this.#unreachable = undefined;
        return result;
      } catch (error) {
        if (!hasCode(error, "STORE_UNREACHABLE")) throw error;
        this.#unreachable = error;
        if (over.aborted) throw error;
        await sleep(Math.min(hydrationTiming.retryMs, this.#options.waitMs / 4));
      }
    }
  }

  async #open(): Promise<HeldPoint> {
    if (this.#closing !== undefined) throw this.#closed();
    this.#opening ??= this.#options.open();
    try {
      this.#held = await this.#opening;
      return this.#held;
    } catch (error) {
      this.#opening = undefined;
      throw error;
    }
  }

  #tooLate(): TidemarkError {
    const { waitMs } = this.#options;
    return new TidemarkError(
      "STORE_UNREACHABLE",
      `${this.description} could not be read within ${waitMs} ms: ${this.#unreachable?.message ?? "the store has not answered"}`,
      { remedy: "bring the store back; the next read tries again", cause: this.#unreachable },
    );
  }

  #closed(): TidemarkError {
    return new TidemarkError("DEVICE_FAILED", `${this.description} has been closed`, {
      remedy: "open the image again",
    });
  }
}
