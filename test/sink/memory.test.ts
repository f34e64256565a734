import { describe, expect, test } from "vitest";
import { MemorySink, MemoryStore } from "../../sink/memory.ts";
import { describeSink } from "./conformance.ts";
import { expectCode, namesIn } from "./expectations.ts";

let nowMs = 1_000_000;

describeSink(
  "MemorySink",
  async () => {
    const store = new MemoryStore();
    const clock = (): number => nowMs;
    const a = new MemorySink({ store, clock });
    await a.createContainer();
    return {
      a,
      b: new MemorySink({ store, clock }),
      absent: new MemorySink({ clock }),
      cleanup: () => a[Symbol.asyncDispose](),
    };
  },
  {
    advanceMs: (ms) => {
      nowMs += ms;
    },
  },
);

describe("MemoryStore", () => {
  test("it goes back in time: objects, pages, sequence numbers, leases and the container are what they were", async () => {
    const store = new MemoryStore();
    const sink = new MemorySink({ store });
    const beginning = store.snapshot();
    await sink.createContainer();
    const { etag } = await sink.putObject("head", new Uint8Array([1]), { ifAbsent: true });
    await sink.createPages("segment", 4096, 1);
    await sink.writePages("segment", 0, new Uint8Array(512).fill(1), { sequenceNumber: 1 });
    const snapshot = store.snapshot();

    const id = "00000000-0000-4000-8000-000000000001";
    await sink.acquireLease("head", id, 60);
    const second = await sink.putObject("head", new Uint8Array([2]), { ifMatch: etag, leaseId: id });
    await sink.writePages("segment", 0, new Uint8Array(1024).fill(2), { sequenceNumber: 1 });
    await sink.clearPages("segment", 0, 512);
    await sink.raiseSequenceNumber("segment", 9);
    await sink.putObject("points/1", new Uint8Array(1), { ifAbsent: true });

    store.restore(snapshot);
    expect(await sink.getObject("head", 10)).toEqual({ bytes: new Uint8Array([1]), etag });
    const into = new Uint8Array(1024);
    await sink.readPages("segment", 0, into);
    expect(into).toEqual(new Uint8Array(1024).fill(1, 0, 512));
    expect(await sink.statPages("segment")).toMatchObject({ sequenceNumber: 1, writtenBytes: 512 });
    expect((await namesIn(sink, "")).sort()).toEqual(["head", "segment"]);
    // An ETag from the lost future never comes back, and the lease is not held any more.
    const again = await sink.putObject("head", new Uint8Array([3]), { ifMatch: etag });
    expect(again.etag).not.toBe(second.etag);

    store.restore(beginning);
    await expectCode(sink.getObject("head", 10), "VAULT_NOT_FOUND");
  });

  test("a snapshot can be restored more than once", async () => {
    const store = new MemoryStore();
    const sink = new MemorySink({ store });
    await sink.createContainer();
    await sink.createPages("segment", 4096, 1);
    const snapshot = store.snapshot();
    for (let round = 1; round <= 2; round++) {
      store.restore(snapshot);
      await sink.writePages("segment", 0, new Uint8Array(512).fill(round), { sequenceNumber: 1 });
    }
    store.restore(snapshot);
    expect((await sink.statPages("segment")).writtenBytes).toBe(0);
  });
});

describe("MemorySink", () => {
  test("a snapshot keeps what is cleared afterwards, in whole stored pages and in parts of them", async () => {
    const sink = new MemorySink();
    await sink.createContainer();
    await sink.createPages("segment", 2 ** 20, 1);
    const bytes = new Uint8Array(2 ** 20).fill(5);
    await sink.writePages("segment", 0, bytes, { sequenceNumber: 1 });
    const snapshot = sink.store.snapshot();
    await sink.clearPages("segment", 512, 2 ** 20 - 1024);
    sink.store.restore(snapshot);
    const into = new Uint8Array(2 ** 20);
    await sink.readPages("segment", 0, into);
    expect(Buffer.compare(into, bytes)).toBe(0);
  });

  test("an object in the place of another's folder is refused, as a file system would refuse it", async () => {
    const sink = new MemorySink();
    await sink.createContainer();
    await sink.putObject("a/b", new Uint8Array(1), { ifAbsent: true });
    await expectCode(sink.putObject("a", new Uint8Array(1), { ifAbsent: true }), "INVALID_ARGUMENT");
    await expectCode(sink.putObject("a/b/c", new Uint8Array(1), { ifAbsent: true }), "INVALID_ARGUMENT");
    await expectCode(sink.createPages("a", 512, 1), "INVALID_ARGUMENT");
  });

  test("each kind of object is refused where the other is wanted", async () => {
    const sink = new MemorySink();
    await sink.createContainer();
    await sink.putObject("object", new Uint8Array(512), { ifAbsent: true });
    await sink.createPages("pages", 512, 1);
    await expectCode(sink.readPages("object", 0, new Uint8Array(1)), "DAMAGED");
    await expectCode(sink.getObject("pages", 512), "DAMAGED");
  });
});
