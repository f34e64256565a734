/**
 * What a process that can write the store, and has no key, can do to an encrypted vault. Every kind
 * of object is changed, cut, exchanged with another of its kind, replaced by an older one and by one
 * of another disk or vault; every change is found and named.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { hasCode } from "../../../../engine/errors.ts";
import type { Notice } from "../../../../engine/notice.ts";
import { documentBytesMax, encodeVault } from "../../../../engine/store/format/documents.ts";
import { refuseUnopened } from "../../../../engine/store/format/unopened.ts";
import { decodeVault, type EncryptedDocument } from "../../../../engine/store/format/vault-document.ts";
import { SealedSink } from "../../../../engine/store/keys/sealed-sink.ts";
import { unlock } from "../../../../engine/store/keys/unlock.ts";
import { Vault } from "../../../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { expectCode } from "../../../../sink/testing/expectations.ts";
import { encryptedFor, testKeyPair } from "../../../encrypted.ts";
import { closeModelVaults, contentOf, ModelDisk, openModelVault, sampleDisk, scribble } from "../../../model-disk.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";
import { contentOfSegments, segmentsOf, spoil, storedBytes } from "../../upkeep/scrub/damaged-vault.ts";
import { flipPage } from "../../upkeep/scrub/tamper.ts";

const encrypted = encryptedFor(testKeyPair());
const secretText = "the quick brown fox keeps accounts";
const diskName = "accounts";

let folder: string;
let memory: MemoryStore;
/** Another vault of the same keys' owner, with the same disks. */
let foreign: MemoryStore;
/** The store as it was one point earlier. */
let earlier: ReadonlyMap<string, Uint8Array>;
let made: ReturnType<MemoryStore["snapshot"]>;
let disk: ModelDisk;

const connect = (): MemorySink => new MemorySink({ store: memory });

function objectsOf(store: MemoryStore): Map<string, Uint8Array> {
  const objects = new Map<string, Uint8Array>();
  for (const [name, stored] of store.objects ?? []) if (stored.kind === "object") objects.set(name, stored.bytes);
  return objects;
}

function put(name: string, bytes: Uint8Array): void {
  const found = memory.objects?.get(name);
  assert(found?.kind === "object", `${name} is an object`);
  memory.objects?.set(name, { ...found, etag: memory.nextEtag(), bytes });
}

async function fill(store: MemoryStore): Promise<Vault> {
  const vault = await openModelVault(new MemorySink({ store }), { ...encrypted, stateFolder: join(folder, "state") });
  disk = sampleDisk(300_000, 1);
  disk.bytes.write(secretText, 70_000);
  await vault.replicate({ disk: diskName, volume: disk });
  await vault.replicate({ disk: "other", volume: new ModelDisk(contentOf(100_000, 9)) });
  await vault.pin({ disk: diskName, point: "1", name: secretText });
  await vault.label({ disk: diskName, point: "1", text: secretText });
  return vault;
}

beforeAll(async () => {
  folder = createFolder("attacks");
  foreign = new MemoryStore();
  await fill(foreign);
  memory = new MemoryStore();
  const vault = await fill(memory);
  earlier = objectsOf(memory);
  scribble(disk, 2);
  await vault.replicate({ disk: diskName, volume: disk });
  await vault.label({ disk: diskName, point: "2", text: "second" });
  await vault.pin({ disk: diskName, point: "2", name: "second" });
  await vault.verify();
  await vault.collect();
  made = memory.snapshot();
});

beforeEach(() => {
  memory.restore(made);
});

afterAll(async () => {
  await closeModelVaults();
  await removeFolder(folder);
});

async function sealedSink(): Promise<SealedSink> {
  const { bytes } = await connect().getObject("vault.json", documentBytesMax);
  const { sink } = await unlock(connect(), decodeVault(bytes, "vault.json"), encrypted.keys, undefined);
  assert(sink instanceof SealedSink);
  return sink;
}

/** Reads an object as its decoders do. */
async function openObject(sink: SealedSink, name: string): Promise<void> {
  refuseUnopened((await sink.getObject(name, documentBytesMax)).bytes, name);
}

/** Objects of the vault that are sealed. */
function sealedNames(): string[] {
  return [...objectsOf(memory).keys()].filter((name) => !name.endsWith("vault.json"));
}

const kindOf = (name: string): string =>
  name
    .split("/")
    .slice(0, -1)
    .join("/")
    .replace(/^disks\/[a-z]+/, "disks") || name;

describe("the store of an encrypted vault", () => {
  it("holds nothing in plain of disks, documents, labels and pins but names and sizes", () => {
    const stored = [...objectsOf(memory), ...contentOfSegments(memory)];
    expect(stored.length).toBeGreaterThan(12);
    for (const [name, bytes] of stored) {
      const text = Buffer.from(bytes).toString("latin1");
      for (const secret of [secretText, "volumeBytes", "consistency", "digestKey"])
        expect(text.includes(secret), `${name} holds ${secret}`).toBe(false);
    }
  });

  it("holds equal chunks and equal documents as different bytes", async () => {
    const sink = await sealedSink();
    const seen = new Set<string>();
    for (let count = 0; count < 3; count += 1) {
      await sink.putObject(
        "reclaim/x",
        Buffer.from("equal"),
        count === 0 ? { ifAbsent: true } : { ifMatch: (await sink.statObject("reclaim/x")).etag },
      );
      seen.add(Buffer.from(objectsOf(memory).get("reclaim/x") ?? "").toString("hex"));
    }
    expect(seen.size).toBe(3);
    const [mine, theirs] = [memory, foreign].map(
      (store) => [...contentOfSegments(store).values()][0] ?? Buffer.alloc(0),
    );
    assert(mine !== undefined && theirs !== undefined);
    // Behind the header: the same disks give the same chunks of the same lengths.
    expect(mine.subarray(128, 4096).equals(theirs.subarray(128, 4096))).toBe(false);
  });
});

describe("an object of an encrypted vault", () => {
  it("that is changed in any byte, cut, or made longer is refused by name", async () => {
    const sink = await sealedSink();
    for (const name of sealedNames()) {
      const bytes = objectsOf(memory).get(name) ?? Buffer.alloc(0);
      const places = [0, 4, 6, 7, 8, 19, 20, Math.floor(bytes.length / 2), bytes.length - 17, bytes.length - 1];
      const changes = places.map((at) => Buffer.from(bytes).fill((bytes[at] ?? 0) ^ 1, at, at + 1));
      changes.push(
        Buffer.from(bytes.subarray(0, -1)),
        Buffer.from(bytes.subarray(0, 20)),
        Buffer.concat([bytes, Buffer.of(0)]),
      );
      for (const changed of changes) {
        put(name, changed);
        const error: unknown = await openObject(sink, name).then(
          () => undefined,
          (reason: unknown) => reason,
        );
        assert(hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED"), `${name} is refused`);
        expect(error.message).toContain(name);
      }
      put(name, bytes);
    }
  });

  it("is refused in the place of another of its kind, of another disk, and of the same name in another vault", async () => {
    const sink = await sealedSink();
    const mine = objectsOf(memory);
    const theirs = objectsOf(foreign);
    const kinds = new Set<string>();
    for (const name of sealedNames()) {
      kinds.add(kindOf(name));
      const others = [...mine]
        .filter(([other]) => other !== name && kindOf(other) === kindOf(name))
        .map(([, bytes]) => bytes);
      for (const bytes of [
        ...others,
        theirs.get(name),
        encodeVault(decodeVault(mine.get("vault.json") ?? Buffer.alloc(0), "v")),
      ]) {
        if (bytes === undefined) continue;
        put(name, bytes);
        const error = await expectCode(openObject(sink, name), "DAMAGED");
        expect(error.message).toContain(name);
      }
      put(name, mine.get(name) ?? Buffer.alloc(0));
    }
    expect([...kinds].sort()).toEqual(
      expect.arrayContaining(["disks", "disks/labels", "disks/map", "disks/pins", "disks/points", "reclaim"]),
    );
  });

  it("that was written once is never there in an older form, and an older list of points is told of", async () => {
    for (const [name, bytes] of earlier) {
      const isReplaced = !Buffer.from(objectsOf(memory).get(name) ?? "").equals(Buffer.from(bytes));
      if (/\/(points|map|history|pins|labels)\//.test(name)) expect(isReplaced, name).toBe(false);
    }
    put(`disks/${diskName}/head`, earlier.get(`disks/${diskName}/head`) ?? Buffer.alloc(0));
    const vault = await openModelVault(connect(), { keys: encrypted.keys, stateFolder: join(folder, "state") });
    const notices: Notice[] = [];
    await vault.points(diskName, { onNotice: (notice) => notices.push(notice) });
    expect(notices.map(({ code }) => code)).toContain("STORE_REGRESSED");
    await expectCode(vault.collect(), "STORE_REGRESSED");
  });
});

describe("a segment of an encrypted vault", () => {
  const damagedIn = async (): Promise<readonly string[]> => {
    const vault = await openModelVault(connect(), { keys: encrypted.keys });
    const told: string[] = [];
    const { damaged } = await vault.verify({ heal: true, onNotice: ({ message }) => told.push(message) });
    return [...told, ...damaged.map(({ message }) => message)];
  };

  it("whose header, table or payload is changed anywhere is found", async () => {
    const [segment] = segmentsOf(memory);
    assert(segment !== undefined);
    const tableOffset = storedBytes(memory, segment.name, 12, 4).readUInt32LE(0);
    for (const at of [
      4,
      20,
      40,
      70,
      130,
      141,
      2000,
      tableOffset - 9,
      tableOffset,
      tableOffset + 12,
      tableOffset + 30,
    ]) {
      memory.restore(made);
      flipPage(memory, segment.name, at);
      const damaged = await damagedIn();
      expect(damaged.length, `byte ${String(at)}`).toBeGreaterThan(0);
      expect(damaged.join()).toContain(segment.name);
    }
  });

  it("does not hold the frames of another segment, of another vault, or of another place in it", async () => {
    const segments = segmentsOf(memory);
    const [first] = segments;
    const others = segments.slice(1).map(({ name }) => storedBytes(memory, name, 0, 4096));
    const theirs = segmentsOf(foreign).map(({ name }) => storedBytes(foreign, name, 0, 4096));
    assert(first !== undefined && others.length > 0);
    const shifted = Buffer.concat([
      storedBytes(memory, first.name, 0, 128),
      storedBytes(memory, first.name, 136, 4096 - 136),
    ]);
    for (const bytes of [...others, ...theirs, shifted]) {
      memory.restore(made);
      spoil(memory, first.name, 0, bytes);
      expect((await damagedIn()).join()).toContain(first.name);
    }
  });

  it("does not open under another name", async () => {
    const [segment] = segmentsOf(memory);
    assert(segment !== undefined);
    const { keys } = await sealedSink();
    const swapped = segment.name.replace(/.$/, (digit) => (digit === "0" ? "1" : "0"));
    expect(Buffer.from(keys.payloads(swapped).key).equals(Buffer.from(keys.payloads(segment.name).key))).toBe(false);
    expect(() => keys.payloads(segment.name.slice(0, -69))).toThrow(/not encrypted/);
  });
});

describe("vault.json of an encrypted vault", () => {
  const parsed = (): EncryptedDocument =>
    decodeVault(objectsOf(memory).get("vault.json") ?? Buffer.alloc(0), "vault.json") as EncryptedDocument;
  const forgeries: readonly (readonly [what: string, forge: (document: EncryptedDocument) => object])[] = [
    ["with another parameter", (document) => ({ ...document, blockBytes: document.blockBytes * 2 })],
    [
      "with other recipients",
      (document) => ({
        ...document,
        encryption: {
          ...document.encryption,
          revision: 7,
          recipients: [...document.encryption.recipients, ...document.encryption.recipients],
        },
      }),
    ],
    [
      "with the reading key of the forger",
      (document) => ({
        ...document,
        encryption: { ...document.encryption, generations: [{ readingKey: "ab".repeat(32), previous: null }] },
      }),
    ],
  ];

  it.each(forgeries)("%s is refused, and a repair restores it from the copy", async (_what, forge) => {
    put("vault.json", encodeVault(forge(parsed()) as EncryptedDocument));
    await expectCode(openModelVault(connect(), { keys: encrypted.keys }), "DAMAGED");
    const vault = await Vault.openForRepair(connect(), { workers: 1, keys: encrypted.keys });
    expect((await vault.repair()).repaired.map(({ message }) => message).join()).toContain("vault.json");
    await vault.close();
    await openModelVault(connect(), { keys: encrypted.keys });
  });

  it("without encryption is refused by every machine that knows the vault or has a key", async () => {
    const plain = { ...parsed(), encryption: "none", digestKey: "00".repeat(32) } as const;
    put("vault.json", encodeVault(plain));
    await expectCode(openModelVault(connect(), { keys: encrypted.keys }), "INVALID_ARGUMENT");
    await expectCode(openModelVault(connect(), { stateFolder: join(folder, "state") }), "DAMAGED");
    put("copy/vault.json", encodeVault(plain));
    await expectCode(Vault.openForRepair(connect(), { keys: encrypted.keys }), "INVALID_ARGUMENT");
    const kept = await Vault.openForRepair(connect(), {
      workers: 1,
      keys: encrypted.keys,
      stateFolder: join(folder, "state"),
    });
    await kept.repair();
    await kept.close();
    await openModelVault(connect(), { keys: encrypted.keys });
  });

  it("with keys that were given up is refused where newer ones were seen, and restored", async () => {
    const state = join(folder, "rotated");
    const vault = await openModelVault(connect(), { keys: encrypted.keys, stateFolder: state });
    const before = objectsOf(memory).get("vault.json") ?? Buffer.alloc(0);
    await vault.keys.rotate();
    put("vault.json", before);
    await expectCode(openModelVault(connect(), { keys: encrypted.keys, stateFolder: state }), "DAMAGED");
    const repairing = await Vault.openForRepair(connect(), { workers: 1, keys: encrypted.keys, stateFolder: state });
    await repairing.repair();
    await repairing.close();
    expect(parsed().encryption.generations).toHaveLength(2);
  });

  it("from before a key was added is restored by that key, also on a machine that has seen nothing", async () => {
    const added = testKeyPair();
    const vault = await openModelVault(connect(), { keys: encrypted.keys });
    const before = objectsOf(memory).get("vault.json") ?? Buffer.alloc(0);
    await vault.keys.add({ certificates: [{ pem: added.publicKey, name: "added" }] });
    put("vault.json", before);
    const keys = { privateKey: added.privateKey };
    await expectCode(Vault.open(connect(), { keys }), "ACCESS_REFUSED");
    await expectCode(
      Vault.openForRepair(connect(), { keys: { privateKey: testKeyPair().privateKey } }),
      "ACCESS_REFUSED",
    );
    await using repairing = await Vault.openForRepair(connect(), { workers: 1, keys });
    await repairing.repair();
    await using again = await Vault.open(connect(), { workers: 1, keys });
    expect((await again.keys.list()).recipients).toHaveLength(2);
  });
});
