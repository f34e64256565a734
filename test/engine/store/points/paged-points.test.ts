/**
 * A vault whose disk has more points than its head can hold: cycles, listings and proofs go by way
 * of pages.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Notice } from "../../../../engine/notice.ts";
import { encodeHead, encodeManifest } from "../../../../engine/store/format/documents.ts";
import { headName, manifestName } from "../../../../engine/store/format/names.ts";
import { readHead } from "../../../../engine/store/points/head.ts";
import { readManifest } from "../../../../engine/store/points/manifest.ts";
import { Store } from "../../../../engine/store/store.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { FaultySink, Gate } from "../../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import {
  checkNewest,
  closeModelVaults,
  type ModelDisk,
  modelStore,
  openModelVault,
  sampleDisk,
  scribble,
} from "../../../model-disk.ts";
import { recordOf, recordsOf, timeOf } from "../../../point-records.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { tamperObject } from "../../upkeep/scrub/tamper.ts";

let folder: string;
let memory: MemoryStore;
let vault: Vault;
let disk: ModelDisk;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "paged-"));
  memory = new MemoryStore();
  disk = sampleDisk(100_000, 1);
  vault = await openModelVault(connect());
  await vault.replicate({ disk: "d", volume: disk });
  await fillHead(await modelStore(connect()));
});
afterEach(async () => {
  await closeModelVaults();
  rmSync(folder, { recursive: true });
});

const connect = (): MemorySink => new MemorySink({ store: memory });

/** Puts 511 points that have no data before the one that there is. */
async function fillHead(store: Store): Promise<void> {
  const { head, etag } = await readHead(store, vault.id, "d");
  const [real] = head.points;
  if (real === undefined) throw new Error("the cycle made a point");
  const manifest = await readManifest(store, vault.id, "d", real, undefined);
  const moved = { sequence: 512, timeMs: timeOf(512) };
  const { bytes, id } = encodeManifest({ ...manifest, ...moved });
  await store.putOnce(manifestName("d", 512, real.epoch), bytes);
  const points = [...recordsOf(1, 512), { ...real, ...moved, id }];
  await store.put(headName("d"), encodeHead({ ...head, points }), { ifMatch: etag });
}

test("the next cycle proves the page it wrote before the head names it, and every point stays", async () => {
  const sink = new FaultySink(connect(), []);
  scribble(disk, 1);
  const summary = await (await openModelVault(sink)).replicate({ disk: "d", volume: disk });
  expect(summary.sequence).toBe(513);
  const [page] = await namesIn(connect(), "disks/d/history/");
  const ofInterest = sink.calls.filter((call) => call === "putObject disks/d/head" || call.endsWith(String(page)));
  expect(ofInterest).toEqual([
    "putObject disks/d/head", // the writer lease
    `putObject ${String(page)}`,
    "putObject disks/d/head", // the mark
    `statObject ${String(page)}`,
    "putObject disks/d/head", // the commit
  ]);
  expect((await vault.points("d")).map(({ sequence }) => sequence)).toEqual(
    Array.from({ length: 513 }, (_, index) => index + 1),
  );
  expect(await vault.disks()).toMatchObject([{ disk: "d", points: 513, latest: { sequence: 513 } }]);
  expect((await vault.point("d", "512")).parent).toBeNull();
  await expectCode(vault.point("d", "514"), "POINT_NOT_FOUND");
  await checkNewest(connect(), "d", disk.bytes);
  await vault.materialize({ disk: "d", point: "latest", to: join(folder, "image") });
  expect(readFileSync(join(folder, "image")).equals(disk.bytes)).toBe(true);
});

test("a page that the store forgets before the commit is written again, under another name", async () => {
  const gate = new Gate();
  const sink = new FaultySink(connect(), [
    { on: "putObject", prefix: "disks/d/head", when: 2, fault: { kind: "slow", gate } },
  ]);
  const notices: Notice[] = [];
  const onNotice = (notice: Notice): void => void notices.push(notice);
  const running = (await openModelVault(sink)).replicate({ disk: "d", volume: disk, onNotice });
  await Promise.race([gate.reached, running]);
  const [lost] = await namesIn(connect(), "disks/d/history/");
  if (lost !== undefined) tamperObject(memory, lost, "removed", memory);
  gate.open();
  expect((await running).sequence).toBe(513);
  expect(lost).toBeDefined();
  expect(notices.map(({ code }) => code)).toContain("STORE_REGRESSED");
  const pages = await namesIn(connect(), "disks/d/history/");
  expect(pages).toHaveLength(1);
  expect(pages).not.toContain(lost);
  expect(await vault.points("d")).toHaveLength(513);
});

test("a damaged page is named by verify, which goes on with the points that it can find", async () => {
  await vault.replicate({ disk: "d", volume: disk });
  const [page] = await namesIn(connect(), "disks/d/history/");
  for (const [how, code] of [
    ["flipped", "DAMAGED"],
    ["removed", "OBJECT_NOT_FOUND"],
  ] as const) {
    tamperObject(memory, String(page), how, memory);
    const { checkedPoints, damaged } = await vault.verify({ disk: "d" });
    expect(checkedPoints).toBe(513 - 256);
    expect(damaged.filter(({ object }) => object === page)).toMatchObject([
      { disk: "d", sequence: null, point: null, code },
    ]);
    const newest = damaged.filter(({ sequence }) => sequence !== null && sequence >= 512);
    expect(newest).toEqual([]);
  }
  await expectCode(vault.point("d", "1"), "DAMAGED");
  await expectCode(vault.materialize({ disk: "d", point: recordOf(1).id, to: join(folder, "image") }), "DAMAGED");
  await vault.materialize({ disk: "d", point: "latest", to: join(folder, "image") });
  expect(readFileSync(join(folder, "image")).equals(disk.bytes)).toBe(true);
});
