/** A client's request for a point: answered by the state machine, or withdrawn by the client. */
import { interrupted } from "../../errors.ts";
import type { PointSummary } from "../../store/points/points.ts";
import { ended, type Input, type PointRequest } from "./protection-state.ts";

/**
 * Gives a request to the state machine through `take`. Resolves with the point; rejects with the
 * machine's refusal, or with INTERRUPTED when `signal` aborts, and the request is withdrawn.
 */
export function requestPoint(
  applicationConsistent: boolean,
  signal: AbortSignal | undefined,
  take: (input: Input) => void,
): Promise<PointSummary> {
  return new Promise<PointSummary>((resolve, reject) => {
    const settled = new AbortController();
    const request: PointRequest = {
      applicationConsistent,
      resolve: (point) => {
        settled.abort();
        resolve(point);
      },
      reject: (error) => {
        settled.abort();
        reject(error);
      },
    };
    const withdraw = (): void => {
      take({ kind: "withdrawn", request });
      reject(signal === undefined ? ended() : interrupted(signal));
    };
    signal?.addEventListener("abort", withdraw, { once: true, signal: settled.signal });
    take({ kind: "requested", request });
  });
}
