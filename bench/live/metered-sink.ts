/**
 * Metered sink: counts the requests that transfer data, and keeps the distribution of their times
 * in an HDR histogram.
 */
import { createHistogram } from "node:perf_hooks";
import type { Sink, StoredObject } from "../../engine/index.ts";
import type { Answer, SinkRequest } from "../../engine/internal.ts";
import { NestedSink } from "../nested-sink.ts";
import { type Latency, percentilesOf } from "../trace.ts";

/** What went to and from the store so far. */
export interface StoreTraffic {
  readonly requests: number;
  readonly bytes: number;
  readonly latency: Latency;
}

export class MeteredSink extends NestedSink {
  readonly #histogram = createHistogram();
  #bytes = 0;

  traffic(): StoreTraffic {
    const histogram = this.#histogram;
    const { count } = histogram;
    const percentiles = percentilesOf((percent) => histogram.percentile(percent), histogram.max);
    return {
      requests: count,
      bytes: this.#bytes,
      latency: { name: "requests to the store", count, percentiles },
    };
  }

  protected override async send<Method extends SinkRequest>(
    method: Method,
    call: readonly [...Parameters<Sink[Method]>],
  ): Promise<Answer<Method>> {
    const startedAt = performance.now();
    const answer = await super.send(method, call);
    const elapsedMs = performance.now() - startedAt;
    const read = method === "getObject" ? [(answer as StoredObject).bytes] : [];
    const data = [...call, ...read].find((part) => part instanceof Uint8Array);
    if (data === undefined) return answer;
    // HDR histograms begin with 1.
    this.#histogram.record(Math.max(1, Math.round(elapsedMs * 1_000)));
    this.#bytes += data.byteLength;
    return answer;
  }
}
