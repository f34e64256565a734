/** Points that somebody has asked for and waits for, until one is committed whose cut was made after they were asked for. */
import { interrupted, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { PointSummary } from "../../store/points/points.ts";

export interface PointRequest {
  readonly applicationConsistent: boolean;
  readonly resolve: (point: PointSummary) => void;
  readonly reject: (error: TidemarkError) => void;
}

export class PointRequests {
  readonly #waiting: PointRequest[] = [];

  get count(): number {
    return this.#waiting.length;
  }

  /** Resolves with the point; rejects with INTERRUPTED when `signal` aborts first. */
  async add(applicationConsistent: boolean, signal: AbortSignal | undefined): Promise<PointSummary> {
    throwIfAborted(signal);
    return await new Promise<PointSummary>((resolve, reject) => {
      const giveUp = (): void => {
        const at = this.#waiting.indexOf(request);
        if (at >= 0) this.#waiting.splice(at, 1);
        reject(signal === undefined ? ended() : interrupted(signal));
      };
      const request: PointRequest = {
        applicationConsistent,
        resolve: (point) => {
          signal?.removeEventListener("abort", giveUp);
          resolve(point);
        },
        reject: (error) => {
          signal?.removeEventListener("abort", giveUp);
          reject(error);
        },
      };
      signal?.addEventListener("abort", giveUp, { once: true });
      this.#waiting.push(request);
    });
  }

  /** Takes all of them: a cut is being made that will answer them. */
  take(): PointRequest[] {
    return this.#waiting.splice(0);
  }

  /** Nothing came of that cut. */
  putBack(requests: readonly PointRequest[]): void {
    this.#waiting.unshift(...requests);
  }

  refuse(error: TidemarkError): void {
    for (const request of this.take()) request.reject(error);
  }
}

export function ended(): TidemarkError {
  return new TidemarkError("INTERRUPTED", "the protection was ended or paused before the point was committed", {
    remedy: "start or resume it; what has changed is known and is in the next point",
  });
}
