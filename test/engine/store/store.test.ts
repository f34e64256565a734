import { describe, expect, test } from "vitest";
import { TidemarkError } from "../../../engine/errors.ts";
import type { PlannedFault } from "../../../sink/faults.ts";
import { openMemory } from "../../engine-model.ts";
import { expectCode, textOf, utf8 } from "../../sink/expectations.ts";

async function open(...faults: PlannedFault[]): ReturnType<typeof openMemory> {
  return await openMemory(faults);
}

describe("an object that is written once", () => {
  test.each(["unacknowledged", "late"] as const)(
    "stands after an outcome that was unknown because the write was %s",
    async (kind) => {
      const { sink, store } = await open({ on: "putObject", when: 1, fault: { kind } });
      const etag = await store.putOnce("a", utf8("content"));
      expect(await textOf(sink, "a")).toBe("content");
      expect((await store.stat("a")).etag).toBe(etag);
      for (const result of await sink.releaseLate())
        expect(result).toMatchObject({ status: "rejected", reason: { code: "OBJECT_EXISTS" } });
      expect((await store.stat("a")).etag).toBe(etag);
      sink.assertAllFired();
    },
  );

  test("is never put over what stands there already", async () => {
    const { sink, store } = await open();
    await store.putOnce("a", utf8("theirs"));
    await expectCode(store.putOnce("a", utf8("ours")), "OBJECT_EXISTS");
    await expectCode(store.putOnce("a", utf8("theirs")), "OBJECT_EXISTS");
    expect(await textOf(sink, "a")).toBe("theirs");
  });

  test.each(["theirs", "something longer than ours"])(
    "is not taken for ours after an unknown outcome when %j stands there",
    async (theirs) => {
      const { sink, store } = await open({ on: "putObject", when: 1, fault: { kind: "late" } });
      await sink.inner.putObject("a", utf8(theirs), { ifAbsent: true });
      await expectCode(store.putOnce("a", utf8("ours00")), "OBJECT_EXISTS");
      expect(await textOf(sink, "a")).toBe(theirs);
    },
  );

  test("is given up after eight unknown outcomes", async () => {
    const { sink, store } = await open({ on: "putObject", when: { probability: 1 }, fault: { kind: "late" } });
    await expectCode(store.putOnce("a", utf8("x")), "STORE_UNREACHABLE");
    expect(sink.calls).toHaveLength(8);
  });

  test("fails with what the store says when the outcome is certain", async () => {
    const full = new TidemarkError("NO_SPACE", "the store is full");
    const { store } = await open({ on: "putObject", when: 1, fault: { kind: "refused", error: full } });
    await expect(store.putOnce("a", utf8("x"))).rejects.toBe(full);
  });
});

describe("a page object that is created", () => {
  test.each(["unacknowledged", "late"] as const)(
    "stands after an outcome that was unknown because the call was %s",
    async (kind) => {
      const { sink, store } = await open({ on: "createPages", when: 1, fault: { kind } });
      const etag = await store.createPages("p", 4096, 7);
      await store.writePages("p", 0, new Uint8Array(512).fill(1), { sequenceNumber: 7, etag });
      for (const result of await sink.releaseLate())
        expect(result).toMatchObject({ status: "rejected", reason: { code: "OBJECT_EXISTS" } });
      expect((await store.statPages("p")).writtenBytes).toBe(512);
      sink.assertAllFired();
    },
  );

  test("is not taken for its own when another client has written to it or fenced it", async () => {
    for (const spoil of ["write", "fence"]) {
      const { sink, store } = await open({ on: "createPages", when: 1, fault: { kind: "late" } });
      await sink.inner.createPages("p", 4096, 7);
      if (spoil === "write") await sink.inner.writePages("p", 0, new Uint8Array(512), { sequenceNumber: 7 });
      else await sink.inner.raiseSequenceNumber("p", 8);
      await expectCode(store.createPages("p", 4096, 7), "OBJECT_EXISTS");
    }
  });
});

test("calls and bytes are counted", async () => {
  const { store } = await open();
  await store.putOnce("a", utf8("12345"));
  await store.get("a", 5);
  await store.stat("a");
  await store.createPages("p", 4096, 1);
  await store.writePages("p", 0, new Uint8Array(512), { sequenceNumber: 1 });
  await store.readPages("p", 0, new Uint8Array(4));
  await store.clearPages("p", 0, 512);
  await store.raiseSequenceNumber("p", 2);
  const names: string[] = [];
  for await (const { name } of store.list("")) names.push(name);
  await store.acquireLease("a", "00000000-0000-4000-8000-000000000001", 15);
  expect([store.requests, store.putBytes, names.length]).toEqual([10, 5, 2]);
  expect(store.description).toMatch(/^memory:[0-9a-f]{8}$/);
});

describe("an object that others write, too", () => {
  test("is replaced only while it is the one that is known", async () => {
    const { sink, store } = await open();
    const first = await store.replace("a", utf8("one"), undefined);
    const second = await store.replace("a", utf8("two"), first);
    await expectCode(store.replace("a", utf8("three"), first), "CONDITION_FAILED");
    await expectCode(store.replace("a", utf8("three"), undefined), "CONDITION_FAILED");
    expect(await textOf(sink, "a")).toBe("two");
    expect((await store.stat("a")).etag).toBe(second);
  });

  test.each(["unacknowledged", "late"] as const)(
    "stands after an outcome that was unknown because the write was %s",
    async (kind) => {
      const { sink, store } = await open({ on: "putObject", when: 2, fault: { kind } });
      const first = await store.replace("a", utf8("one"), undefined);
      const second = await store.replace("a", utf8("two"), first);
      for (const result of await sink.releaseLate())
        expect(result).toMatchObject({ status: "rejected", reason: { code: "CONDITION_FAILED" } });
      expect((await store.stat("a")).etag).toBe(second);
      expect(await textOf(sink, "a")).toBe("two");
      sink.assertAllFired();
    },
  );

  test("is not taken for its own when another client was faster", async () => {
    const { sink, store } = await open({ on: "putObject", when: 1, fault: { kind: "late" } });
    await sink.inner.putObject("a", utf8("theirs"), { ifAbsent: true });
    await expectCode(store.replace("a", utf8("ours"), undefined), "CONDITION_FAILED");
    expect(await textOf(sink, "a")).toBe("theirs");
  });
});
