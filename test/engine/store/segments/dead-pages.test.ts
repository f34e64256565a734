/**
 * What writers know of dead pages: little enough for a vault of any size, and read when it is
 * needed.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, expect, onTestFinished, test } from "vitest";
import type { StoredObject } from "../../../../engine/sink.ts";
import { fromHex } from "../../../../engine/store/format/checksum.ts";
import { segmentName } from "../../../../engine/store/format/names.ts";
import { collectionName, deadName, encodeCollection, encodeDead } from "../../../../engine/store/format/reclaim.ts";
import { DeadPages } from "../../../../engine/store/segments/dead-pages.ts";
import { Store } from "../../../../engine/store/store.ts";
import { FaultySink, Gate } from "../../../../sink/faults.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { closeModelVaults } from "../../../model-disk.ts";
import { ChurnedVault } from "../../upkeep/collection/churned-vault.ts";

const vault = "ab".repeat(16);

afterEach(async () => {
  await closeModelVaults();
});

function recordsRead(sink: FaultySink): number {
  return sink.calls.filter((call) => call.startsWith("getObject reclaim/dead/")).length;
}

test("records are read one by one as they are asked for, and kept for a few segments only", async () => {
  const plain = new MemorySink();
  await plain.createContainer();
  const collection = "cd".repeat(16);
  const segments = Array.from({ length: 100 }, (_, ordinal) => segmentName("a", 1, 0, ordinal));
  for (const [index, segment] of segments.entries()) {
    const dead = [{ from: index, end: index + 10 }];
    const bytes = encodeDead({ vault, collection, segment, clearing: false, kept: 0, dead, condemned: [] });
    await plain.putObject(deadName(segment), bytes, { ifAbsent: true });
  }
  await plain.putObject(collectionName, encodeCollection({ vault, collection, startedMs: 1 }), { ifAbsent: true });
  const sink = new FaultySink(plain, []);
  const store = new Store(sink);
  const pages = new DeadPages(fromHex(vault));
  expect(await pages.refresh(store, {})).toEqual(new Set(segments));
  expect(recordsRead(sink)).toBe(0);
  const [first = "", second = ""] = segments;
  for (const segment of [first, second, first, second]) expect((await pages.of(store, segment, {}))?.count()).toBe(10);
  expect(recordsRead(sink)).toBe(2);
  expect(await pages.of(store, segmentName("a", 2, 0, 0), {})).toBeUndefined();
  for (const segment of segments) await pages.of(store, segment, {});
  expect((await pages.of(store, first, {}))?.has(0)).toBe(true);
  expect(recordsRead(sink)).toBe(101);
});

test("an answer that was under way when more was learned is not what is remembered", async () => {
  const gate = new Gate();
  class Late extends MemorySink {
    isLate = true;
    override async getObject(...call: Parameters<MemorySink["getObject"]>): Promise<StoredObject> {
      const answer = await super.getObject(...call);
      if (this.isLate && call[0].startsWith("reclaim/dead/")) await gate.pass(undefined);
      return answer;
    }
  }
  const sink = new Late();
  await sink.createContainer();
  const store = new Store(sink);
  const segment = segmentName("a", 1, 0, 0);
  const condemn = async (collection: string, end: number): Promise<void> => {
    const record = { vault, collection, segment, clearing: false, kept: 0, dead: [], condemned: [{ from: 0, end }] };
    await store.replace(deadName(segment), encodeDead(record), await store.etagOf(deadName(segment)));
    const bytes = encodeCollection({ vault, collection, startedMs: 1 });
    await store.replace(collectionName, bytes, await store.etagOf(collectionName));
  };
  const pages = new DeadPages(fromHex(vault));
  await condemn("cd".repeat(16), 10);
  await pages.refresh(store, {});
  const late = pages.of(store, segment, {});
  await gate.reached;
  await condemn("ef".repeat(16), 20);
  await pages.refresh(store, {});
  sink.isLate = false;
  gate.open();
  await late;
  expect((await pages.of(store, segment, {}))?.count()).toBe(20);
});

test("a writer that comes back with what it has saved reads those records only that are new", async () => {
  const churned = new ChurnedVault();
  churned.stateFolder = await mkdtemp(path.join(tmpdir(), "tidemark-records-"));
  onTestFinished(async () => await rm(churned.stateFolder ?? "", { recursive: true }));
  const next = async (): Promise<number> => {
    const sink = new FaultySink(churned.connect(), []);
    churned.through(sink);
    await churned.replicate("a");
    return recordsRead(sink);
  };
  for (let point = 0; point < 5; point += 1) {
    churned.change("a", point * 4, 12);
    await next();
  }
  await churned.drop("a", [2, 3]);
  await churned.collect();
  const records = (await churned.names("reclaim/dead/")).length;
  expect(records).toBeGreaterThan(0);
  expect(await next()).toBe(records);
  expect(await next()).toBe(0);
  // What had been given back is not referred to by what was saved.
  churned.change("a", 7, 6, 5);
  await next();
  expect(await churned.check()).toBe((await churned.points("a")).length);
});
