/**
 * Measures of a run: latencies as a histogram of logarithmic buckets, requests of the store by
 * operation, and samples over time.
 *
 * A bucket is 5 % wide, so a percentile is right to 5 %, and a histogram takes a few kilobytes
 * however many values it has.
 */
import type { IncomingMessage, ServerResponse } from "node:http";

const bucketBase = 1.05;
/** Smaller values, in ms, share a bucket. */
const smallestMs = 0.01;

export interface Percentiles {
  readonly count: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

export class Histogram {
  readonly #buckets = new Map<number, number>();
  #count = 0;
  #maxMs = 0;

  add(ms: number): void {
    const bucket = Math.ceil(Math.log(Math.max(ms, smallestMs) / smallestMs) / Math.log(bucketBase));
    this.#buckets.set(bucket, (this.#buckets.get(bucket) ?? 0) + 1);
    this.#count += 1;
    this.#maxMs = Math.max(this.#maxMs, ms);
  }

  percentiles(): Percentiles {
    return { count: this.#count, p50Ms: this.#at(0.5), p99Ms: this.#at(0.99), maxMs: this.#maxMs };
  }

  /** Upper end of the bucket that holds the value of this rank; 0 when there is none. */
  #at(share: number): number {
    let rank = Math.ceil(this.#count * share);
    for (const [bucket, count] of [...this.#buckets].sort(([a], [b]) => a - b)) {
      rank -= count;
      if (rank <= 0) return Math.min(this.#maxMs, smallestMs * bucketBase ** bucket);
    }
    return 0;
  }
}

/** Requests of one operation of the store, as the fault proxy saw them. */
export interface OperationStats extends Percentiles {
  readonly operation: string;
  /** Requests that got an error of the server, or no answer. */
  readonly failed: number;
  /** Of the bodies. */
  readonly sentBytes: number;
  /** With headers. */
  readonly receivedBytes: number;
}

interface Tally {
  readonly latency: Histogram;
  failed: number;
  sentBytes: number;
  receivedBytes: number;
}

export class RequestLog {
  readonly #tallies = new Map<string, Tally>();

  /** For `FaultProxyOptions`. */
  readonly onRequest = (request: IncomingMessage, response: ServerResponse): void => {
    const startedAtMs = performance.now();
    const tally = this.#tallyOf(operationOf(request));
    const { socket } = request;
    const writtenBefore = socket.bytesWritten;
    tally.sentBytes += Number(request.headers["content-length"] ?? 0);
    response.once("close", () => {
      tally.latency.add(performance.now() - startedAtMs);
      // 404, 409 and 412 are answers that a client asks for.
      if (!response.writableFinished || response.statusCode >= 500) tally.failed += 1;
      tally.receivedBytes += socket.bytesWritten - writtenBefore;
    });
  };

  stats(): readonly OperationStats[] {
    return [...this.#tallies]
      .map(([operation, { latency, failed, sentBytes, receivedBytes }]) => {
        return { operation, ...latency.percentiles(), failed, sentBytes, receivedBytes };
      })
      .sort((a, b) => b.count - a.count);
  }

  #tallyOf(operation: string): Tally {
    let tally = this.#tallies.get(operation);
    if (tally === undefined) {
      tally = { latency: new Histogram(), failed: 0, sentBytes: 0, receivedBytes: 0 };
      this.#tallies.set(operation, tally);
    }
    return tally;
  }
}

/** The operation of Azure's Blob service that a request asks for. */
export function operationOf({
  method = "",
  url = "",
  headers,
}: Pick<IncomingMessage, "method" | "url" | "headers">): string {
  const parameters = new URL(url, "http://store").searchParams;
  const part = parameters.get("comp");
  if (part === "page") return headers["x-ms-page-write"] === "clear" ? "Clear Pages" : "Put Page";
  if (part === "lease") return "Lease Blob";
  if (part === "list") return "List Blobs";
  if (part === "properties") return "Set Blob Properties";
  if (part === "pagelist") return "Get Page Ranges";
  if (part !== null) return `${method} ${part}`;
  if (parameters.get("restype") === "container")
    return { PUT: "Create Container", DELETE: "Delete Container" }[method] ?? "Get Container Properties";
  if (method === "PUT") return headers["x-ms-blob-type"] === "PageBlob" ? "Put Blob (pages)" : "Put Blob";
  return { GET: "Get Blob", HEAD: "Get Blob Properties", DELETE: "Delete Blob" }[method] ?? method;
}

/** What was seen at one moment of the run. */
export interface StressSample {
  /** Since the beginning of the load. */
  readonly atMs: number;
  readonly writes: number;
  readonly writtenBytes: number;
  /** Points that the agent committed, of all disks. */
  readonly points: number;
  /** Age of the newest committed point of the disk that is furthest behind; null before the first. */
  readonly lagMs: number | null;
  /** Faults that have fired. */
  readonly faults: number;
  /** Resident memory of the agent; null while it is dead, or where the system does not tell it. */
  readonly agentRssBytes: number | null;
  /** Open handles of the agent; null as above. */
  readonly agentHandles: number | null;
}
