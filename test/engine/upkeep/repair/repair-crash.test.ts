/**
 * A repair of everything at once that dies, is refused, or hears no answer at any call that writes:
 * nothing gets worse, and the next repair ends it.
 */

import assert from "node:assert/strict";
import { afterEach, beforeEach, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { Sink } from "../../../../engine/sink.ts";
import { decodeManifest, documentBytesMax, encodeManifest } from "../../../../engine/store/format/documents.ts";
import { manifestName } from "../../../../engine/store/format/names.ts";
import { collectionName, deadName } from "../../../../engine/store/format/reclaim.ts";
import { Vault } from "../../../../engine/vault.ts";
import { CrashError, type Fault, FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../../sink/memory.ts";
import { sampleOf } from "../../../depth.ts";
import { modelEncryption } from "../../../encrypted.ts";
import {
  checkNewest,
  closeModelVaults,
  committedPoints,
  contentOf,
  ModelDisk,
  modelStore,
  openModelVault,
} from "../../../model-disk.ts";
import { tamperObject } from "../scrub/tamper.ts";

const pointCount = 260; // a head begins with 256 of them
const segment = "segments/d/00000001-0-00000000";
/** Anything that cannot be read will do. */
const noise = Buffer.from("noise");

let store: MemoryStore;
let nowMs: number;
let disk: ModelDisk;
let damaged: MemorySnapshot;
let ids: readonly string[];
beforeEach(async () => {
  store = new MemoryStore();
  nowMs = Date.now();
  disk = new ModelDisk(contentOf(100_000, 1));
  const sink = connect();
  const vault = await openModelVault(sink);
  await vault.replicate({ disk: "d", volume: disk });
  await vault.replicate({ disk: "e", volume: new ModelDisk(contentOf(30_000, 50)) });
  await addPoints(sink, vault.id);
  tamperObject(store, "disks/d/head", "removed", store);
  await vault.repair();
  ids = (await committedPoints(sink, "d")).map(({ id }) => id);
  expect(ids).toHaveLength(pointCount);
  const page = [...(store.objects?.keys() ?? [])].find((name) => name.startsWith("disks/d/history/"));
  assert(page !== undefined, "there is a page");
  for (const name of [page, "vault.json"]) tamperObject(store, name, "removed", store);
  tamperObject(store, "disks/e/head", "flipped", store);
  for (const name of ["disks/d/condemned", collectionName, deadName(segment)])
    await sink.putObject(name, noise, { ifAbsent: true });
  damaged = store.snapshot();
});
afterEach(async () => {
  await closeModelVaults();
});

function connect(): MemorySink {
  return new MemorySink({ store, clock: () => nowMs });
}

/** Points that differ from the first in number and time alone. */
async function addPoints(sink: Sink, vault: string): Promise<void> {
  const [first] = await committedPoints(sink, "d");
  assert(first !== undefined, "there is a point");
  const name = manifestName("d", 1, 1);
  const client = await modelStore(sink);
  const manifest = decodeManifest((await client.get(name, documentBytesMax)).bytes, name, {
    vault,
    disk: "d",
    id: first.id,
  });
  let parent = first.id;
  for (let sequence = 2; sequence <= pointCount; sequence += 1) {
    const { bytes, id } = encodeManifest({ ...manifest, sequence, parent, timeMs: first.timeMs + sequence });
    await client.putOnce(manifestName("d", sequence, 1), bytes);
    parent = id;
  }
}

async function repair(sink: Sink): Promise<{ readonly lost: number; readonly repaired: number }> {
  await using vault = await Vault.openForRepair(sink, { workers: 1, ...modelEncryption });
  const { lost, repaired } = await vault.repair();
  return { lost: lost.length, repaired: repaired.length };
}

/** The numbers of the calls that write, counted from 1. */
async function writingCalls(): Promise<readonly number[]> {
  const counted = new FaultySink(connect(), []);
  expect(await repair(counted)).toEqual({ lost: 0, repaired: 6 });
  return counted.calls.flatMap((call, index) =>
    /^(?:put|acquire|release|change|raise|delete)/.test(call) ? [index + 1] : [],
  );
}

/** Runs a repair in which `fault` happens at that call, and then one to which nothing happens. */
async function survive(call: number, fault: Fault): Promise<void> {
  store.restore(damaged);
  nowMs += 3_600_000; // whoever died holds no lease any more
  await repair(new FaultySink(connect(), [{ on: "any", when: call, fault }])).catch((error: unknown) => {
    if (!(error instanceof CrashError || error instanceof TidemarkError)) throw error;
  });
  nowMs += 3_600_000;
  const sink = connect();
  expect((await repair(sink)).lost).toBe(0);
  expect((await committedPoints(sink, "d")).map(({ id }) => id)).toEqual(ids);
  expect(await committedPoints(sink, "e")).toHaveLength(1);
  await checkNewest(sink, "d", disk.bytes);
}

test("dies before or after the call", async () => {
  const calls = await writingCalls();
  expect(calls.length).toBeGreaterThan(12);
  for (const call of sampleOf(calls))
    for (const effect of ["before", "after"] as const) await survive(call, { kind: "crash", effect });
});

test("is refused, or hears no answer", async () => {
  for (const call of sampleOf(await writingCalls())) {
    await survive(call, { kind: "refused", error: new TidemarkError("ACCESS_REFUSED", "writing is not allowed", {}) });
  }
  const counted = new FaultySink(connect(), []);
  store.restore(damaged);
  await repair(counted);
  for (const [index, call] of counted.calls.entries())
    if (call.startsWith("putObject")) await survive(index + 1, { kind: "unacknowledged" });
});
