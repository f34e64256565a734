/**
 * Lanes: log-structured writers. Each lane owns one open segment and appends frames to it; several
 * lanes keep several page writes in flight.
 *
 * One frame is filled at a time, in the buffer of the lane that will send it. Its place is known
 * from the start (the lane's end), so chunks can be referred to before they are sent. Every page
 * write carries the segment's sequence number (the fencing token) and its last ETag.
 *
 * A write with an unknown outcome is resolved in three steps before it is repeated: raise the
 * sequence number, so that a late original fails at the store; check that everything acknowledged
 * is still there; take the ETag that now holds.
 *
 * After a failed write no lane appends any more, because the place of the lost frame must stay
 * empty.
 *
 * Memory: up to 4 MiB for each frame that is filled or sent, and as much again inside the HTTP client
 * while it is sent. A lane that rests holds none.
 */
import assert from "node:assert/strict";
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import { frameBytesMax, segmentBytes } from "../limits.ts";
import { checksum } from "../store/format/checksum.ts";
import { decodeFrameHeader, FrameBuilder } from "../store/format/frame.ts";
import { firstSequenceNumber, segmentName } from "../store/format/names.ts";
import { type Seal, sealBytes } from "../store/format/sealed.ts";
import type { Store } from "../store/store.ts";
import { regressed, unknownOutcomesMax, unreachable } from "../store/store.ts";
import type { Catalog } from "./catalog.ts";
import type { SealTask } from "./worker-tasks.ts";

export interface LanesOptions {
  readonly store: Store;
  readonly catalog: Catalog;
  readonly vaultId: Uint8Array;
  readonly disk: string;
  readonly epoch: number;
  /** One lane is being filled while the others send. */
  readonly lanes: number;
  /** Seals the payloads of a frame of an encrypted vault. */
  readonly sealFrame: (task: Omit<SealTask, "kind">) => Promise<void>;
  /**
   * Asked before a segment is created, which no fence guards: throws if the writer lease is lost.
   */
  readonly assertLease: () => Promise<void>;
  readonly signal?: AbortSignal | undefined;
}

interface Lane {
  readonly number: number;
  /** The frame that it fills or sends. */
  builder: FrameBuilder | undefined;
  segment: OpenSegment | undefined;
  segmentsMade: number;
  sending: Promise<void> | undefined;
}

interface OpenSegment {
  readonly id: number;
  readonly name: string;
  readonly segmentId: Uint8Array;
  /** In an encrypted vault. The key is forgotten with the segment. */
  readonly payloads: Seal | undefined;
  etag: string;
  sequenceNumber: number;
  endBytes: number;
}

export class Lanes {
  readonly #options: LanesOptions;
  readonly #lanes: Lane[] = [];
  #filling: Lane | undefined;
  #failure: Error | undefined;
  #storedBytes = 0;

  constructor(options: LanesOptions) {
    assert(options.lanes >= 1, "there is a lane");
    this.#options = options;
  }

  /** Bytes of frames written so far. */
  get storedBytes(): number {
    return this.#storedBytes;
  }

  /** By how much a payload is longer in its segment. */
  get sealBytes(): number {
    return this.#options.store.keys === undefined ? 0 : sealBytes;
  }

  /** Whether a payload fits into the frame that is being filled. Where it does not, call `nextFrame`. */
  hasRoom(payloadBytes: number): boolean {
    return this.#filling?.builder?.fits(payloadBytes) === true;
  }

  /**
   * Packs one chunk, for which there is room; its stored word tells the length with the seal.
   * Returns the segment's number; the payload's offset in the segment is `placedAt`.
   */
  pack(
    payload: Uint8Array,
    storedWord: number,
    digests: Uint8Array,
    digestAt: number,
    granule: number,
    granules: number,
  ): number {
    const lane = this.#filling;
    assert(lane?.segment !== undefined && lane.builder !== undefined, "a frame is open");
    this.#placedAt =
      lane.segment.endBytes + lane.builder.append(payload, storedWord, digests, digestAt, granule, granules);
    return lane.segment.id;
  }

  #placedAt = 0;

  /** Offset in its segment of the payload that was packed last. */
  get placedAt(): number {
    return this.#placedAt;
  }

  /**
   * Whether the segment is one that these lanes are writing: what they have packed into it is
   * durable once they are flushed.
   */
  owns(segment: number): boolean {
    return this.#lanes.some((lane) => lane.segment?.id === segment);
  }

  /**
   * Sends the frame that is being filled and waits until every frame is durable. Errors: what a
   * lane's write ended with.
   */
  async flush(): Promise<void> {
    this.#sendFilling();
    await this.settle();
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Waits until nothing is in flight, be it written or failed. */
  async settle(): Promise<void> {
    await Promise.all(this.#sending());
  }

  /** Gives up a frame that is not sent, and waits until nothing is in flight. Nothing is packed afterwards. */
  async close(): Promise<void> {
    this.#filling?.builder?.release(true);
    this.#filling = undefined;
    await this.settle();
  }

  #sendFilling(): void {
    const lane = this.#filling;
    this.#filling = undefined;
    if (lane?.builder === undefined) return;
    lane.sending = this.#send(lane, lane.builder).catch((error: unknown) => {
      this.#failure ??= error instanceof Error ? error : new Error(String(error));
    });
  }

  /**
   * Sends the frame that is being filled and opens another. Waits while every lane is sending.
   * Errors: what a lane's write ended with.
   */
  async nextFrame(): Promise<void> {
    this.#sendFilling();
    const lane = await this.#idleLane();
    const { store, signal } = this.#options;
    throwIfAborted(signal);
    await store.keys?.renewed();
    const { segment } = lane;
    const isOfOldKey = segment !== undefined && store.keys?.isOfOldKey(segment.name) === true;
    if (segment === undefined || segment.endBytes + frameBytesMax > segmentBytes || isOfOldKey)
      lane.segment = await this.#createSegment(lane);
    lane.builder = FrameBuilder.take(this.sealBytes > 0);
    this.#filling = lane;
  }

  /**
   * The first lane that is not sending, so that a small cycle stays in one segment. A lane is made
   * when the others are sending.
   */
  async #idleLane(): Promise<Lane> {
    for (;;) {
      if (this.#failure !== undefined) throw this.#failure;
      const idle = this.#lanes.find((lane) => lane.sending === undefined);
      if (idle !== undefined) return idle;
      const number = this.#lanes.length;
      if (number < this.#options.lanes) {
        const lane = { number, builder: undefined, segment: undefined, segmentsMade: 0, sending: undefined };
        this.#lanes.push(lane);
        return lane;
      }
      await Promise.race(this.#sending());
    }
  }

  #sending(): Promise<void>[] {
    return this.#lanes.flatMap((lane) => (lane.sending === undefined ? [] : [lane.sending]));
  }

  async #createSegment(lane: Lane): Promise<OpenSegment> {
    const { store, catalog, disk, epoch, assertLease, signal } = this.#options;
    await assertLease();
    const base = segmentName(disk, epoch, lane.number, lane.segmentsMade);
    const { name, payloads } = store.keys?.newSegment(base) ?? { name: base, payloads: undefined };
    lane.segmentsMade += 1;
    const sequenceNumber = firstSequenceNumber(epoch);
    const etag = await store.createPages(name, segmentBytes, sequenceNumber, { signal });
    return {
      id: catalog.add(name, etag),
      name,
      segmentId: checksum(Buffer.from(name)),
      payloads,
      etag,
      sequenceNumber,
      endBytes: 0,
    };
  }

  async #send(lane: Lane, builder: FrameBuilder): Promise<void> {
    const { segment } = lane;
    assert(segment !== undefined, "a lane that sends has a segment");
    const { store, vaultId, sealFrame } = this.#options;
    let isSent = false;
    const { name, segmentId, payloads, endBytes: offset } = segment;
    const place = { vaultId, segmentId, offset, tablesKey: store.keys?.tables(name) };
    try {
      if (payloads !== undefined)
        await sealFrame({ frame: builder.shared, storedWords: builder.storedWords, offset, seal: payloads });
      const frame = builder.seal(place);
      // Pair check: what is about to be trusted with data can be read back.
      decodeFrameHeader(frame, name, place);
      await this.#writeFrame(segment, frame);
      segment.endBytes += frame.byteLength;
      this.#storedBytes += frame.byteLength;
      this.#options.catalog.written(segment.id, segment.etag, segment.endBytes);
      isSent = true;
    } finally {
      builder.release(isSent); // after a failure a late request may still read the buffer
      lane.builder = undefined;
      lane.sending = undefined;
    }
  }

  async #writeFrame(segment: OpenSegment, frame: Uint8Array): Promise<void> {
    const { store, signal } = this.#options;
    let failure: unknown;
    for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
      try {
        const fence = { sequenceNumber: segment.sequenceNumber, etag: segment.etag };
        segment.etag = await store.writePages(segment.name, segment.endBytes, frame, fence, { signal });
        return;
      } catch (error) {
        if (hasCode(error, "OBJECT_NOT_FOUND")) throw regressed(segment.name, segment.endBytes, 0);
        if (hasCode(error, "CONDITION_FAILED")) throw await this.#refused(segment, error);
        if (!hasCode(error, "OUTCOME_UNKNOWN")) throw error;
        failure = error;
        await this.#resolve(segment);
      }
    }
    throw unreachable(`writing to ${segment.name}`, failure);
  }

  /** Makes it safe to write again after an unknown outcome. */
  async #resolve(segment: OpenSegment): Promise<void> {
    const { store, signal } = this.#options;
    try {
      segment.sequenceNumber += 1;
      await store.raiseSequenceNumber(segment.name, segment.sequenceNumber, { signal });
      const there = await store.statPages(segment.name, { signal });
      if (there.writtenBytes < segment.endBytes) throw regressed(segment.name, segment.endBytes, there.writtenBytes);
      if (there.sequenceNumber !== segment.sequenceNumber) throw writerLeaseLost(segment.name);
      segment.etag = there.etag;
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) throw regressed(segment.name, segment.endBytes, 0);
      throw error;
    }
  }

  /** Why the fence held: another writer locked us out, or the segment is not what it was. */
  async #refused(segment: OpenSegment, cause: TidemarkError): Promise<TidemarkError> {
    const { store, signal } = this.#options;
    try {
      const there = await store.statPages(segment.name, { signal });
      if (there.sequenceNumber > segment.sequenceNumber) return writerLeaseLost(segment.name, cause);
      return regressed(segment.name, segment.endBytes, there.writtenBytes);
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) return regressed(segment.name, segment.endBytes, 0);
      throw error;
    }
  }
}

function writerLeaseLost(segment: string, cause?: unknown): TidemarkError {
  return new TidemarkError("SEAT_LOST", `another writer has taken over this disk and locked ${segment}`, {
    remedy: "let the other writer work, or stop it and run the command again",
    detail: { object: segment },
    cause,
  });
}
