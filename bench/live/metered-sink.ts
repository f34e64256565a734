/**
 * Metered sink: counts the requests that transfer data, and keeps the distribution of their times
 * in an HDR histogram.
 */
import { createHistogram } from "node:perf_hooks";
import type { CallOptions, PageFence, PutCondition, StoredObject } from "../../engine/index.ts";
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

  override async getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    return await this.#metered(super.getObject(name, sizeBytesMax, options), ({ bytes }) => bytes.byteLength);
  }

  override async putObject(
    name: string,
    bytes: Uint8Array,
    condition: PutCondition,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
    return await this.#metered(super.putObject(name, bytes, condition, options), () => bytes.byteLength);
  }

  override async writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
    return await this.#metered(super.writePages(name, offset, bytes, fence, options), () => bytes.byteLength);
  }

  override async readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    await this.#metered(super.readPages(name, offset, into, options), () => into.byteLength);
  }

  async #metered<Result>(request: Promise<Result>, bytesOf: (result: Result) => number): Promise<Result> {
    const startedAt = performance.now();
    const result = await request;
    // HDR histograms begin with 1.
    this.#histogram.record(Math.max(1, Math.round((performance.now() - startedAt) * 1_000)));
    this.#bytes += bytesOf(result);
    return result;
  }
}
