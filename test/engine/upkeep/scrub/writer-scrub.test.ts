/** What a machine that can only write to an encrypted vault proves of it, and what it leaves to others. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Notice } from "../../../../engine/notice.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { encryptedFor, testKeyPair } from "../../../encrypted.ts";
import { closeModelVaults, openModelVault, sampleDisk, scribble } from "../../../model-disk.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";
import { segmentsOf, storedBytes } from "./damaged-vault.ts";
import { flipPage } from "./tamper.ts";

const encrypted = encryptedFor(testKeyPair());
let folder: string;
let memory: MemoryStore;
let writer: Vault;

const connect = (): MemorySink => new MemorySink({ store: memory });

beforeEach(async () => {
  folder = createFolder("writer-scrub");
  memory = new MemoryStore();
  const stateFolder = join(folder, "state");
  const admin = await openModelVault(connect(), { ...encrypted, stateFolder });
  await admin.keys.enroll();
  writer = await openModelVault(connect(), { keys: {}, stateFolder });
  const disk = sampleDisk(200_000, 1);
  await writer.replicate({ disk: "a", volume: disk });
  scribble(disk, 2);
  await writer.replicate({ disk: "a", volume: disk });
});

afterEach(async () => {
  await closeModelVaults();
  await removeFolder(folder);
});

it("is read but for its payloads, and nothing of it is noted as proved or taken of the quota", async () => {
  const before = new Map(memory.objects);
  const summary = await writer.scrub();
  expect(summary).toMatchObject({ readsPayloads: false, provedPoints: 0, damaged: [], healed: [], roundEnded: true });
  expect(await writer.scrub({ sharePerDay: 1 })).toMatchObject({ readsPayloads: false, damaged: [] });
  expect(new Map(memory.objects)).toEqual(before);
  const reader = await openModelVault(connect(), { keys: encrypted.keys });
  expect(await reader.scrub({ sharePerDay: 1 })).toMatchObject({ readsPayloads: true, damaged: [] });
});

it("is looked at by a daily share of its bytes, pass by pass", async () => {
  const shares: number[] = [];
  for (let ended = false; !ended; ) {
    const { readBytes, roundEnded } = await writer.scrub({ budgetBytes: 1 });
    shares.push(readBytes);
    ended = roundEnded;
  }
  expect(shares.length).toBeGreaterThan(1);
  expect(shares.reduce((sum, bytes) => sum + bytes)).toBe(
    segmentsOf(memory).reduce((sum, { writtenBytes }) => sum + writtenBytes, 0),
  );
});

it("is damaged where a map is, or a segment is gone or ends too early", async () => {
  const made = memory.snapshot();
  const map = [...(memory.objects ?? [])].find(([name]) => name.includes("/map/"))?.[0] ?? "";
  const [segment] = segmentsOf(memory);
  assert(segment !== undefined);
  const cases: readonly (readonly [name: string, spoil: () => void, code: string])[] = [
    [
      map,
      () => {
        const found = memory.objects?.get(map);
        assert(found?.kind === "object");
        memory.objects?.set(map, { ...found, bytes: found.bytes.map((byte, at) => (at === 60 ? byte ^ 1 : byte)) });
      },
      "DAMAGED",
    ],
    [segment.name, () => memory.objects?.delete(segment.name), "OBJECT_NOT_FOUND"],
    [
      segment.name,
      () => {
        const found = memory.objects?.get(segment.name);
        assert(found?.kind === "pages");
        memory.objects?.set(segment.name, { ...found, writtenBytes: 512, pages: new Map() });
      },
      "DAMAGED",
    ],
  ];
  for (const [name, spoil, code] of cases) {
    memory.restore(made);
    spoil();
    const { damaged } = await writer.scrub();
    expect(damaged).toContainEqual(expect.objectContaining({ disk: "a", sequence: 1, object: name, code }));
    memory.restore(made);
    while ((await writer.scrub()).damaged.length > 0);
  }
});

it("has frame tables that are proved, and payloads that only a reader proves", async () => {
  const [segment] = segmentsOf(memory);
  assert(segment !== undefined);
  const tableOffset = storedBytes(memory, segment.name, 12, 4).readUInt32LE(0);
  flipPage(memory, segment.name, 140);
  const notices: Notice[] = [];
  expect((await writer.scrub({ onNotice: (notice) => notices.push(notice) })).damaged).toEqual([]);
  expect(notices).toEqual([]);
  const reader = await openModelVault(connect(), { keys: encrypted.keys });
  expect((await reader.scrub()).damaged).toMatchObject([
    { disk: "a", sequence: 1, object: segment.name },
    { disk: "a", sequence: 2, object: segment.name },
  ]);
  flipPage(memory, segment.name, tableOffset + 20);
  await writer.scrub({ onNotice: (notice) => notices.push(notice) });
  expect(notices.map(({ code }) => code)).toEqual(["SEGMENT_DAMAGED"]);
});
