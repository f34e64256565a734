/**
 * Restore target: a page blob in the vault's container that holds the disk as a fixed VHD, the
 * form in which Azure attaches it.
 *
 * Pages are sent in windows of 4 MiB, the largest page write, because small writes cost a request
 * each. Bytes gather in their window, and the call that completes a window sends it and waits. The
 * number of open windows is bounded; beyond it, the lowest is sent as it is. The footer is written
 * last, so an incomplete image is no VHD.
 *
 * Every run draws a random sequence number for its blob and fences its writes with it. A write
 * whose outcome is unknown is sent again: it carries the same bytes for a range that nothing else
 * writes, so a late first attempt does no harm while the run works. Before the footer the number
 * is raised; from then on no late write can change a blob that may already be attached. If another
 * run replaced the blob, the number differs: our writes fail, and the blob is not deleted.
 *
 * Memory: 8 windows of 4 MiB, and those that are being sent.
 */
import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { hasCode, TidemarkError } from "../../errors.ts";
import { pageAlignmentBytes, pageWriteBytesMax, type Sink } from "../../sink.ts";
import { type BlobOptions, InPlaceBlobTarget } from "./in-place-blob-target.ts";
import type { MaterializeMode, RestoreTarget, TargetImage } from "./target.ts";
import { targetExists } from "./target.ts";
import { planFooter, vhdBlobBytesMax, vhdDiskBytes, vhdFooterBytes, vhdTooLarge } from "./vhd.ts";

const windowBytes: number = pageWriteBytesMax;
/** Windows that may gather bytes at the same time: 32 MiB. */
const windowsOpenMax = 8;
/**
 * Holes up to this size inside a complete window are sent as zeros: cheaper than another request.
 */
const gapBytesMax: number = 256 * 1024;
/** How often a write of unknown outcome is sent in all. */
const attemptsMax = 5;
const reservedNames: readonly string[] = ["vault.json", "copy", "disks", "segments", "reclaim", "failover"];

interface BlobTargetOptions extends BlobOptions, Pick<TargetImage, "format" | "vaultId" | "point"> {
  readonly mode: MaterializeMode;
  readonly pointTimeMs?: number | undefined;
}

/** A stretch of 4 MiB of the image whose bytes are still coming in. */
interface Window {
  readonly index: number;
  /** All zeros but for `runs`; undefined while only zeros came. */
  bytes: Uint8Array | undefined;
  /** Bytes that came so far, as data or as zeros. */
  coveredBytes: number;
  /** Data inside the window as [start, end) pairs in the order they came. */
  readonly runs: (readonly [number, number])[];
}

/**
 * Creates the blob, or opens one that is changed in place. Errors: UNSUPPORTED, INVALID_ARGUMENT (its
 * name), TARGET_EXISTS, TARGET_FAILED, and those of the `Sink`.
 */
export async function openBlobTarget(options: BlobTargetOptions): Promise<RestoreTarget> {
  const { name, sink } = options;
  refuseBlobName(name);
  if (options.format !== "vhd") {
    throw new TidemarkError("INVALID_ARGUMENT", `the target blob:${name} is a page blob, which holds a VHD`, {
      remedy: "leave `--format raw` out",
    });
  }
  if (!sink.capabilities.attachablePages) {
    throw new TidemarkError(
      "UNSUPPORTED",
      `${sink.description} does not hold page blobs that could be attached as disks`,
      {
        remedy: "materialize to a file, or use a vault in Azure Storage",
      },
    );
  }
  if (options.mode === "in-place") return await InPlaceBlobTarget.open(options);
  const sizeBytes = vhdDiskBytes(options.volumeBytes) + vhdFooterBytes;
  if (sizeBytes > vhdBlobBytesMax) throw vhdTooLarge(options.volumeBytes, vhdBlobBytesMax - vhdFooterBytes);
  if (options.mode === "replace") await sink.deleteObject(name, { signal: options.signal });
  // Leaves room above it for the raise before the footer, and repeats with a probability that does
  // not matter.
  const sequenceNumber = randomInt(1, 2 ** 40);
  await create(options, sizeBytes, sequenceNumber);
  return new BlobTarget(options, sequenceNumber);
}

class BlobTarget implements RestoreTarget {
  readonly description: string;
  readonly resumeAt = 0;
  readonly #options: BlobTargetOptions;
  readonly #name: string;
  readonly #sink: Sink;
  readonly #volumeBytes: number;
  /** Windows with bytes that have not been sent, by index. */
  readonly #open = new Map<number, Window>();
  readonly #sending = new Set<Promise<void>>();
  readonly #abandoned = new AbortController();
  readonly #signal: AbortSignal;
  #sequenceNumber: number;
  #bytesWritten = 0;
  #failure: Error | undefined;
  #state: "open" | "finished" | "abandoned" = "open";

  constructor(options: BlobTargetOptions, sequenceNumber: number) {
    this.description = `blob:${options.name} in ${options.sink.description}`;
    this.#options = options;
    this.#name = options.name;
    this.#sink = options.sink;
    this.#volumeBytes = options.volumeBytes;
    this.#sequenceNumber = sequenceNumber;
    this.#signal =
      options.signal === undefined ? this.#abandoned.signal : AbortSignal.any([options.signal, this.#abandoned.signal]);
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#gather(offset, bytes.byteLength, bytes);
  }

  async zero(offset: number, length: number): Promise<void> {
    await this.#gather(offset, length, undefined);
  }

  /**
   * Nothing is noted for a later run, but windows that are wholly below need not wait any longer.
   */
  async checkpoint(doneBytes: number): Promise<void> {
    const below = [...this.#open.values()].filter((window) => (window.index + 1) * windowBytes <= doneBytes);
    await this.#sendAll(below);
  }

  async finish(): Promise<void> {
    assert(this.#state === "open", "it is finished once");
    await this.#sendAll([...this.#open.values()]);
    await Promise.all(this.#sending);
    if (this.#failure !== undefined) throw this.#failure;
    const plan = this.#options;
    const footer = planFooter({ ...plan, pointTimeMs: plan.pointTimeMs ?? 0 });
    const offset = vhdDiskBytes(this.#volumeBytes);
    for (let attempt = 1; ; attempt += 1) {
      try {
        const raised = await this.#sink.raiseSequenceNumber(this.#name, this.#sequenceNumber + 1, {
          signal: this.#signal,
        });
        this.#sequenceNumber = raised.sequenceNumber;
        await this.#sink.writePages(
          this.#name,
          offset,
          footer,
          { sequenceNumber: this.#sequenceNumber },
          { signal: this.#signal },
        );
        break;
      } catch (error) {
        if (!hasCode(error, "OUTCOME_UNKNOWN") || attempt >= attemptsMax) throw this.#translated(error);
      }
    }
    this.#bytesWritten += footer.byteLength;
    this.#state = "finished";
  }

  /** Deletes the blob, unless another run has replaced it. */
  async abandon(): Promise<void> {
    if (this.#state !== "open") return;
    this.#state = "abandoned";
    this.#open.clear();
    this.#abandoned.abort();
    await Promise.allSettled(this.#sending);
    try {
      const found = await this.#sink.statPages(this.#name);
      if (found.sequenceNumber >= this.#sequenceNumber && found.sequenceNumber <= this.#sequenceNumber + 1)
        await this.#sink.deleteObject(this.#name);
    } catch (error) {
      if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.abandon();
  }

  /**
   * Puts a range into its windows and sends those that became complete; `bytes` undefined stands
   * for zeros.
   */
  async #gather(offset: number, length: number, bytes: Uint8Array | undefined): Promise<void> {
    assert(this.#state === "open", "it is not used after its end");
    assert(offset % pageAlignmentBytes === 0 && offset + length <= this.#volumeBytes, "pages of the volume");
    const complete: Window[] = [];
    for (let at = offset; at < offset + length; ) {
      const index = Math.floor(at / windowBytes);
      const start = at - index * windowBytes;
      const part = Math.min(offset + length - at, windowBytes - start);
      // Zeros for a whole window need no bookkeeping: the blob was created as zeros.
      if (bytes !== undefined || this.#open.has(index) || part < this.#windowLength(index)) {
        const window = this.#window(index);
        if (bytes !== undefined) {
          window.bytes ??= new Uint8Array(windowBytes);
          window.bytes.set(bytes.subarray(at - offset, at - offset + part), start);
          window.runs.push([start, start + part]);
        }
        window.coveredBytes += part;
        if (window.coveredBytes >= this.#windowLength(index)) complete.push(this.#take(window));
      }
      at += part;
    }
    const excess = [...this.#open.values()].filter((window) => window.bytes !== undefined);
    const evicted =
      excess.length > windowsOpenMax
        ? excess.sort((a, b) => a.index - b.index).slice(0, excess.length - windowsOpenMax)
        : [];
    await this.#sendAll([...complete, ...evicted]);
  }

  /**
   * Takes the windows out at once, so that no other call sends them too, and sends them one by one:
   * the caller's own calls are the lanes.
   */
  async #sendAll(windows: readonly Window[]): Promise<void> {
    for (const window of windows) this.#take(window);
    for (const window of windows) await this.#send(window);
  }

  #window(index: number): Window {
    let window = this.#open.get(index);
    if (window === undefined) {
      window = { index, bytes: undefined, coveredBytes: 0, runs: [] };
      this.#open.set(index, window);
    }
    return window;
  }

  #windowLength(index: number): number {
    return Math.min(windowBytes, this.#volumeBytes - index * windowBytes);
  }

  /** Takes the window out: from now on it belongs to the caller, which sends it. */
  #take(window: Window): Window {
    this.#open.delete(window.index);
    return window;
  }

  async #send(window: Window): Promise<void> {
    const { bytes } = window;
    if (bytes === undefined) return;
    // Gaps may be sent as zeros only when nothing else can ever write there, that is, when all of
    // the window came while it was open.
    const gapBytes = window.coveredBytes >= this.#windowLength(window.index) ? gapBytesMax : 0;
    for (const [start, end] of merged(window.runs, gapBytes)) {
      const alignedEnd = Math.ceil(end / pageAlignmentBytes) * pageAlignmentBytes;
      const sending = this.#put(window.index * windowBytes + start, bytes.subarray(start, alignedEnd));
      this.#sending.add(sending);
      try {
        await sending;
      } catch (error) {
        // Other calls had bytes in this window and have returned without an error: the image cannot
        // be finished any more.
        this.#failure ??= this.#translated(error);
        throw error;
      } finally {
        this.#sending.delete(sending);
      }
    }
  }

  async #put(offset: number, bytes: Uint8Array): Promise<void> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        await this.#sink.writePages(
          this.#name,
          offset,
          bytes,
          { sequenceNumber: this.#sequenceNumber },
          { signal: this.#signal },
        );
        this.#bytesWritten += bytes.byteLength;
        return;
      } catch (error) {
        if (!hasCode(error, "OUTCOME_UNKNOWN") || attempt >= attemptsMax) throw this.#translated(error);
      }
    }
  }

  #translated(error: unknown): Error {
    if (!hasCode(error, "CONDITION_FAILED", "OBJECT_NOT_FOUND"))
      return error instanceof Error ? error : new Error(String(error));
    return new TidemarkError("TARGET_FAILED", `${this.description} was replaced or deleted while it was written`, {
      remedy: "let only one run write this blob, then run the command again",
      detail: { name: this.#name },
      cause: error,
    });
  }
}

async function create(options: BlobTargetOptions, sizeBytes: number, sequenceNumber: number): Promise<void> {
  const { name, sink, signal } = options;
  for (let attempt = 1; ; attempt += 1) {
    try {
      await sink.createPages(name, sizeBytes, sequenceNumber, { signal });
      return;
    } catch (error) {
      // After an attempt of unknown outcome, a blob with our random number was created by that
      // attempt.
      if (
        hasCode(error, "OBJECT_EXISTS") &&
        attempt > 1 &&
        (await sink.statPages(name, { signal })).sequenceNumber === sequenceNumber
      )
        return;
      if (hasCode(error, "OBJECT_EXISTS")) throw targetExists(`blob:${name}`, false);
      if (!hasCode(error, "OUTCOME_UNKNOWN") || attempt >= attemptsMax) throw error;
    }
  }
}

/** Refuses what cannot be the name of an image, and the vault's own names. Errors: INVALID_ARGUMENT. */
export function refuseBlobName(name: string): void {
  const parts = name.split("/");
  const wellFormed =
    name.length <= 512 &&
    /^[a-z0-9._~/-]+$/.test(name) &&
    parts.every((part) => part !== "" && part !== "." && part !== "..");
  if (!wellFormed) {
    throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(name)} cannot be the name of a blob`, {
      remedy: "use a-z, 0-9, `.`, `_`, `~`, `-` and `/`, as in `blob:replicas/web.vhd`",
    });
  }
  if (reservedNames.includes(parts[0] ?? "")) {
    throw new TidemarkError("INVALID_ARGUMENT", `the blob name ${name} belongs to the vault itself`, {
      remedy: "name the blob outside, as in `blob:replicas/web.vhd`",
    });
  }
}

/** Sorted runs, joined where at most `gapBytes` lie between them. */
function merged(runs: readonly (readonly [number, number])[], gapBytes: number): [number, number][] {
  const result: [number, number][] = [];
  for (const [start, end] of [...runs].sort((a, b) => a[0] - b[0])) {
    const last = result.at(-1);
    if (last !== undefined && start - last[1] <= gapBytes) last[1] = Math.max(last[1], end);
    else result.push([start, end]);
  }
  return result;
}
