import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { TidemarkError } from "../../../engine/errors.ts";
import { frameBytesMax, segmentBytes } from "../../../engine/limits.ts";
import { Catalog } from "../../../engine/pipeline/catalog.ts";
import { Lanes } from "../../../engine/pipeline/lanes.ts";
import type { PageFence } from "../../../engine/sink.ts";
import { checksum } from "../../../engine/store/format/checksum.ts";
import { decodeFrameHeader, frameHeaderBytes } from "../../../engine/store/format/frame.ts";
import { firstSequenceNumber, segmentName } from "../../../engine/store/format/names.ts";
import { Store } from "../../../engine/store/store.ts";
import type { PlannedFault } from "../../../sink/faults.ts";
import { FaultySink, Gate } from "../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../sink/memory.ts";
import { digestOf, disk, namesOf, randomBytes, vaultId } from "../../engine-model.ts";
import { expectCode } from "../../sink/expectations.ts";

const epoch = 3;
const mebibyte = 1024 * 1024;
const segment = segmentName(disk, epoch, 0, 0);
/** One of these fills a frame, so that each begins a new one. */
const wholeFrame = randomBytes(frameBytesMax - 1024, 1);

let memory: MemoryStore;
/** Another client of the same store, to which nothing happens. */
let onlooker: MemorySink;
beforeEach(async () => {
  memory = new MemoryStore();
  onlooker = new MemorySink({ store: memory });
  await onlooker.createContainer();
});

interface Opened {
  readonly sink: FaultySink;
  readonly lanes: Lanes;
  readonly catalog: Catalog;
}

async function open(
  faults: readonly PlannedFault[] = [],
  options: {
    readonly lanes?: number;
    readonly signal?: AbortSignal;
    readonly assertLease?: () => Promise<void>;
    readonly inner?: MemorySink;
  } = {},
): Promise<Opened> {
  const sink = new FaultySink(options.inner ?? new MemorySink({ store: memory }), faults);
  const store = new Store(sink);
  const catalog = await Catalog.load({
    store,
    vaultId,
    indexBytesMax: mebibyte,
    onDamage: (error) => {
      throw error;
    },
  });
  const { lanes = 3, signal, assertLease = async () => Promise.resolve() } = options;
  const sealFrame = (): Promise<void> => Promise.reject(new Error("the vault is not encrypted"));
  const place = { store, catalog, vaultId, disk, epoch, lanes, sealFrame };
  const opened = new Lanes({ ...place, assertLease, signal });
  onTestFinished(async () => await opened.close());
  return { sink, catalog, lanes: opened };
}

interface Packed {
  readonly name: string;
  readonly offset: number;
}

/** Packs chunk number `value`. */
async function pack(
  { lanes, catalog }: Opened,
  value: number,
  payload: Uint8Array = randomBytes(4096, value),
): Promise<Packed> {
  if (!lanes.hasRoom(payload.length)) await lanes.nextFrame();
  const id = lanes.pack(payload, payload.length, digestOf(value), 0, value, 1);
  return { name: catalog.nameOf(id), offset: lanes.placedAt };
}

async function readBack({ name, offset }: Packed, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await onlooker.readPages(name, offset, bytes);
  return bytes;
}

/** What a new catalog, which reads the frames' tables, knows. */
async function chunksStored(): Promise<number> {
  const store = new Store(onlooker);
  const catalog = await Catalog.load({
    store,
    vaultId,
    indexBytesMax: mebibyte,
    onDamage: (error) => {
      throw error;
    },
  });
  return catalog.index.count;
}

describe("lanes", () => {
  test("keep a small cycle in one segment, and what is packed can be read where they said", async () => {
    const opened = await open();
    const places = [];
    for (let value = 0; value < 50; value += 1) places.push(await pack(opened, value));
    expect(await namesOf(onlooker)).toEqual([segment]);
    expect((await onlooker.statPages(segment)).writtenBytes).toBe(0);
    await opened.lanes.flush();
    for (const [value, place] of places.entries())
      expect(await readBack(place, 4096)).toEqual(randomBytes(4096, value));
    expect(await namesOf(onlooker)).toEqual([segment]);
    const { writtenBytes, sequenceNumber } = await onlooker.statPages(segment);
    expect(opened.lanes.storedBytes).toBe(writtenBytes);
    expect(sequenceNumber).toBe(firstSequenceNumber(epoch));
    expect(opened.sink.calls.filter((call) => call.startsWith("writePages"))).toHaveLength(1);
  });

  test("write nothing and create nothing when nothing was packed", async () => {
    const { lanes, sink } = await open();
    const calls = [...sink.calls];
    await lanes.flush();
    await lanes.flush();
    expect(sink.calls).toEqual(calls);
    expect(await namesOf(onlooker)).toEqual([]);
  });

  test("append the frames of each segment in order and without a gap, over several flushes", async () => {
    const opened = await open();
    for (let value = 0; value < 9; value += 1) await pack(opened, value, wholeFrame);
    await opened.lanes.flush();
    for (let value = 9; value < 12; value += 1) await pack(opened, value);
    await opened.lanes.flush();
    let stored = 0;
    for (const name of await namesOf(onlooker)) {
      const segmentId = checksum(Buffer.from(name));
      const { writtenBytes } = await onlooker.statPages(name);
      let offset = 0;
      while (offset < writtenBytes) {
        const header = new Uint8Array(frameHeaderBytes);
        await onlooker.readPages(name, offset, header);
        offset += decodeFrameHeader(header, name, { vaultId, segmentId, offset }).frameBytes;
      }
      expect(offset).toBe(writtenBytes);
      stored += offset;
    }
    expect(stored).toBe(opened.lanes.storedBytes);
    expect(await chunksStored()).toBe(12);
  });

  test("have as many frames in flight as there are lanes, and then make the packer wait", async () => {
    const gate = new Gate();
    const faults = [1, 2, 3].map((when): PlannedFault => ({ on: "writePages", when, fault: { kind: "slow", gate } }));
    const opened = await open(faults);
    for (let value = 0; value < 3; value += 1) await pack(opened, value, wholeFrame);
    let fourth = false;
    const waiting = pack(opened, 3, wholeFrame).then(() => {
      fourth = true;
    });
    await gate.reached;
    // Long enough for anything that does not wait for the gate.
    for (let turn = 0; turn < 50; turn += 1) await onlooker.statPages(segment);
    expect(fourth).toBe(false);
    expect(opened.sink.calls.filter((call) => call.startsWith("writePages"))).toHaveLength(3);
    gate.open();
    await waiting;
    await opened.lanes.flush();
    opened.sink.assertAllFired();
    expect(await chunksStored()).toBe(4);
  });

  test("send smaller frames while many disks fill theirs, and whole ones again when these have closed", async () => {
    const others: Opened[] = [];
    for (let other = 0; other < 20; other += 1) {
      memory = new MemoryStore();
      await new MemorySink({ store: memory }).createContainer();
      const opened = await open();
      await pack(opened, other);
      others.push(opened);
    }
    const sent = async (first: number): Promise<number> => {
      memory = new MemoryStore();
      await new MemorySink({ store: memory }).createContainer();
      const opened = await open();
      for (let value = first; value < first + 3; value += 1) await pack(opened, value, randomBytes(300 * 1024, value));
      await opened.lanes.flush();
      return opened.sink.calls.filter((call) => call.startsWith("writePages")).length;
    };
    expect(await sent(0)).toBe(3);
    for (const { lanes } of others) await lanes.close();
    expect(await sent(3)).toBe(1);
  });

  test("begin another segment when one has no room for a frame", async () => {
    const sink = new UnkeptPages({ store: memory });
    const opened = await open([], { lanes: 1, inner: sink });
    const frames = segmentBytes / frameBytesMax + 2;
    for (let value = 0; value < frames; value += 1) await pack(opened, value, wholeFrame);
    await opened.lanes.flush();
    expect(sink.ends.size).toBe(2);
    const [first = 0, second = 0] = [0, 1].map((ordinal) => sink.ends.get(segmentName(disk, epoch, 0, ordinal)));
    expect(first).toBeLessThanOrEqual(segmentBytes);
    expect(first).toBeGreaterThan(segmentBytes - 2 * frameBytesMax);
    expect(first + second).toBe(opened.lanes.storedBytes);
  });

  test("ask for the writer lease before each segment that they create", async () => {
    let asked = 0;
    const refusal = new TidemarkError("SEAT_LOST", "taken over");
    const assertLease = async (): Promise<void> => {
      asked += 1;
      if (asked === 2) throw refusal;
      return Promise.resolve();
    };
    const opened = await open([], { assertLease });
    await pack(opened, 0, wholeFrame);
    await expect(pack(opened, 1, wholeFrame)).rejects.toBe(refusal);
    await opened.lanes.settle();
    expect(await namesOf(onlooker)).toEqual([segment]);
  });
});

describe("a page write of unknown outcome", () => {
  test("whose acknowledgement was lost is resolved and repeated", async () => {
    const opened = await open([{ on: "writePages", when: 1, fault: { kind: "unacknowledged" } }]);
    const place = await pack(opened, 1);
    await opened.lanes.flush();
    const after = await pack(opened, 2);
    await opened.lanes.flush();
    opened.sink.assertAllFired();
    expect(await readBack(place, 4096)).toEqual(randomBytes(4096, 1));
    expect(await readBack(after, 4096)).toEqual(randomBytes(4096, 2));
    expect((await onlooker.statPages(segment)).sequenceNumber).toBe(firstSequenceNumber(epoch) + 1);
    expect(await chunksStored()).toBe(2);
  });

  test("that arrives late fails at the fence and changes nothing", async () => {
    const opened = await open([{ on: "writePages", when: 1, fault: { kind: "late" } }]);
    await pack(opened, 1);
    await opened.lanes.flush();
    await pack(opened, 2);
    await opened.lanes.flush();
    const { etag } = await onlooker.statPages(segment);
    expect(await opened.sink.releaseLate()).toMatchObject([
      { status: "rejected", reason: { code: "CONDITION_FAILED" } },
    ]);
    expect((await onlooker.statPages(segment)).etag).toBe(etag);
    opened.sink.assertAllFired();
  });

  test("is given up after eight of them as STORE_UNREACHABLE", async () => {
    const opened = await open([{ on: "writePages", when: { probability: 1 }, fault: { kind: "late" } }]);
    await pack(opened, 1);
    await expectCode(opened.lanes.flush(), "STORE_UNREACHABLE");
    expect(opened.sink.calls.filter((call) => call.startsWith("writePages"))).toHaveLength(8);
    for (const result of await opened.sink.releaseLate())
      expect(result).toMatchObject({ status: "rejected", reason: { code: "CONDITION_FAILED" } });
    expect((await onlooker.statPages(segment)).writtenBytes).toBe(0);
  });

  test("is not repeated into a store that went back in time meanwhile", async () => {
    const opened = await open([{ on: "writePages", when: 2, fault: { kind: "late" } }]);
    await pack(opened, 1);
    const before = memory.snapshot();
    await opened.lanes.flush();
    memory.restore(before);
    await pack(opened, 2);
    await expectCode(opened.lanes.flush(), "STORE_REGRESSED");
    opened.sink.assertAllFired();
  });

  test("is not repeated once another writer has raised the fence", async () => {
    const gate = new Gate();
    const opened = await open([
      { on: "writePages", when: 1, fault: { kind: "late" } },
      { on: "raiseSequenceNumber", when: 1, fault: { kind: "slow", gate } },
    ]);
    await pack(opened, 1);
    const flushed = expectCode(opened.lanes.flush(), "SEAT_LOST");
    await gate.reached;
    await onlooker.raiseSequenceNumber(segment, firstSequenceNumber(epoch + 1));
    gate.open();
    await flushed;
    expect(await opened.sink.releaseLate()).toMatchObject([{ status: "rejected" }]);
    expect((await onlooker.statPages(segment)).writtenBytes).toBe(0);
    opened.sink.assertAllFired();
  });

  test("of a segment's creation is resolved too", async () => {
    const opened = await open([{ on: "createPages", when: 1, fault: { kind: "unacknowledged" } }]);
    await pack(opened, 1);
    await opened.lanes.flush();
    opened.sink.assertAllFired();
    expect(await chunksStored()).toBe(1);
  });
});

describe("a write that the fence refuses", () => {
  test("is SEAT_LOST when another epoch raised it", async () => {
    const opened = await open();
    await pack(opened, 1);
    await opened.lanes.flush();
    await onlooker.raiseSequenceNumber(segment, firstSequenceNumber(epoch + 1));
    const before = await onlooker.statPages(segment);
    await pack(opened, 2);
    await expectCode(opened.lanes.flush(), "SEAT_LOST");
    expect(await onlooker.statPages(segment)).toEqual(before);
  });

  test("is STORE_REGRESSED when the segment is what it was earlier", async () => {
    const opened = await open();
    await pack(opened, 1);
    await opened.lanes.flush();
    const before = memory.snapshot();
    await pack(opened, 2);
    await opened.lanes.flush();
    memory.restore(before);
    await pack(opened, 3);
    await expectCode(opened.lanes.flush(), "STORE_REGRESSED");
  });

  test("is STORE_REGRESSED when the segment is gone", async () => {
    const before = memory.snapshot();
    const opened = await open();
    await pack(opened, 1);
    memory.restore(before);
    await expectCode(opened.lanes.flush(), "STORE_REGRESSED");
  });
});

describe("a lane that failed", () => {
  test("ends the cycle with its own error, once everything else has settled", async () => {
    const gate = new Gate();
    const full = new TidemarkError("NO_SPACE", "the store is full");
    const opened = await open([
      { on: "writePages", when: 1, fault: { kind: "refused", error: full } },
      { on: "writePages", when: 2, fault: { kind: "slow", gate } },
    ]);
    await pack(opened, 0, wholeFrame);
    await pack(opened, 1, wholeFrame);
    const flushing = opened.lanes.flush();
    let settled = false;
    const done = flushing.then(
      () => "flushed",
      (error: unknown) => {
        settled = true;
        return error;
      },
    );
    await gate.reached;
    for (let turn = 0; turn < 50; turn += 1) await onlooker.statPages(segment);
    expect(settled).toBe(false);
    gate.open();
    expect(await done).toBe(full);
    await expect(pack(opened, 2, wholeFrame)).rejects.toBe(full);
    opened.sink.assertAllFired();
  });

  test("by an abort writes nothing more", async () => {
    const aborter = new AbortController();
    const gate = new Gate();
    const opened = await open([{ on: "writePages", when: 1, fault: { kind: "slow", gate } }], {
      signal: aborter.signal,
    });
    await pack(opened, 0, wholeFrame);
    await pack(opened, 1, wholeFrame);
    await gate.reached;
    aborter.abort();
    await expectCode(opened.lanes.flush(), "INTERRUPTED");
    const calls = opened.sink.calls.length;
    await expectCode(pack(opened, 2, wholeFrame), "INTERRUPTED");
    await opened.lanes.settle();
    expect(opened.sink.calls).toHaveLength(calls);
  });
});

/** Keeps how far each page object has been written instead of its bytes. */
class UnkeptPages extends MemorySink {
  readonly ends = new Map<string, number>();

  override async writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
  ): Promise<{ readonly etag: string }> {
    expect(offset).toBe(this.ends.get(name) ?? 0);
    expect(fence.sequenceNumber).toBe(firstSequenceNumber(epoch));
    this.ends.set(name, offset + bytes.length);
    return Promise.resolve({ etag: this.store.nextEtag() });
  }
}
