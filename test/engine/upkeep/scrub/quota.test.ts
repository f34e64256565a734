/**
 * The share of a day is one of the vault: a scrubber claims what has come together since the last
 * one came.
 */
import { afterEach, beforeEach, expect, test } from "vitest";
import { encodeScrubbed, scrubbedName } from "../../../../engine/store/format/proof.ts";
import { Store } from "../../../../engine/store/store.ts";
import { claimQuota, endRound } from "../../../../engine/upkeep/scrub/quota.ts";
import { FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { closeModelVaults, contentOf, ModelDisk, modelSink, openModelVault } from "../../../model-disk.ts";
import { tamperObject } from "./tamper.ts";

const vault = "0123456789abcdef".repeat(2);
const hourMs = 3_600_000;
const startMs = 1_000_000 * hourMs;

let memory: MemoryStore;
let sink: MemorySink;
let store: Store;
beforeEach(async () => {
  memory = new MemoryStore();
  sink = new MemorySink({ store: memory });
  await sink.createContainer();
  store = new Store(sink);
});
afterEach(async () => {
  await closeModelVaults();
});

const take = async (nowMs: number, through = store): Promise<number | undefined> =>
  (await claimQuota(through, vault, nowMs, {}))?.dayPart;

test("several scrubbers that claim from time to time get together what one would", async () => {
  expect(await take(startMs)).toBeCloseTo(1 / 24, 9);
  const taken: number[] = [];
  for (let minute = 20; minute <= 24 * 60; minute += 20) taken.push((await take(startMs + minute * 60_000)) ?? 0);
  expect(taken.reduce((sum, part) => sum + part, 0)).toBeCloseTo(1, 9);
});

test("of two that claim at once one gets nothing", async () => {
  await take(startMs);
  const both = await Promise.all([
    take(startMs + hourMs),
    take(startMs + hourMs, new Store(new MemorySink({ store: memory }))),
  ]);
  expect(both.filter((part) => part === undefined)).toHaveLength(1);
  expect(await take(startMs + hourMs)).toBeUndefined();
});

test("a claim after days gets one day's share", async () => {
  await take(startMs);
  expect(await take(startMs + 100 * hourMs)).toBe(1);
});

test("a clock that is a little ahead costs the others that little; one that was years ahead costs nothing", async () => {
  await take(startMs);
  await take(startMs + 10 * 60_000);
  expect(await take(startMs + 5 * 60_000)).toBeUndefined();
  await take(startMs + 20_000 * hourMs);
  expect(await take(startMs + hourMs)).toBeCloseTo(1 / 24, 9);
});

test("a document that is damaged tells nothing", async () => {
  await take(startMs);
  tamperObject(memory, scrubbedName, "flipped", memory);
  expect(await take(startMs + 10 * hourMs)).toBeCloseTo(1 / 24, 9);
  expect(await take(startMs + 11 * hourMs)).toBeCloseTo(1 / 24, 9);
});

test("a lost answer takes it no second time", async () => {
  await take(startMs);
  const faulty = new FaultySink(sink, [{ on: "putObject", when: 1, fault: { kind: "unacknowledged" } }]);
  expect(await take(startMs + hourMs, new Store(faulty))).toBeCloseTo(1 / 24, 9);
  faulty.assertAllFired();
  expect(await take(startMs + hourMs)).toBeUndefined();
});

test("a pass is begun by the first scrubber that ends the one before", async () => {
  const round = async (nowMs: number): Promise<number | undefined> =>
    (await claimQuota(store, vault, nowMs, {}))?.roundMs;
  expect(await round(startMs)).toBe(startMs);
  expect(await round(startMs + hourMs)).toBe(startMs);
  await endRound(store, vault, startMs, startMs + 2, {});
  await endRound(store, vault, startMs, startMs + 3, {});
  expect(await round(startMs + 2 * hourMs)).toBe(startMs + 2);
});

test("two vaults' openers read each point once", async () => {
  const first = await openModelVault(sink);
  for (const disk of ["d", "e"])
    await first.replicate({ disk, volume: new ModelDisk(contentOf(60_000, disk.charCodeAt(0)), disk) });
  const nowMs = Date.now();
  const due = encodeScrubbed({ vault: first.id, roundMs: nowMs - 50 * hourMs, takenMs: nowMs - 48 * hourMs });
  await (await modelSink(sink)).putObject(scrubbedName, due, { ifAbsent: true });
  const second = await openModelVault(sink);
  const sources = new Map([["d", new ModelDisk(contentOf(60_000, 100), "d")]]);
  expect(await first.scrub({ sharePerDay: 0.3, sources })).toMatchObject({ provedPoints: 1, roundEnded: false });
  expect(await second.scrub({ sharePerDay: 0.5 })).toMatchObject({ provedPoints: 0, readBytes: 0 });
  // A day later, as it were.
  const { etag } = await sink.statObject(scrubbedName);
  const later = encodeScrubbed({ vault: first.id, roundMs: nowMs - 50 * hourMs, takenMs: nowMs - 48 * hourMs });
  await (await modelSink(sink)).putObject(scrubbedName, later, { ifMatch: etag });
  expect(await second.scrub({ sharePerDay: 1 })).toMatchObject({ provedPoints: 1, roundEnded: true });
  for (const disk of ["d", "e"]) for (const { proved } of await first.points(disk)) expect(proved).not.toBeNull();
});
