/** Encrypted vaults, as a client of the engine sees them: who opens what, and how keys change. */
import assert from "node:assert/strict";
import { createPrivateKey, generateKeyPairSync } from "node:crypto";
import { copyFileSync, mkdirSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { Plan } from "../../../../engine/index.ts";
import { parseSegmentName } from "../../../../engine/store/format/names.ts";
import type { Secrets } from "../../../../engine/store/keys/recipients.ts";
import { keysTiming } from "../../../../engine/timing.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { Vault } from "../../../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { expectCode } from "../../../../sink/testing/expectations.ts";
import { encryptedFor, testKeyPair } from "../../../encrypted.ts";
import {
  closeModelVaults,
  contentOf as contentBytes,
  ModelDisk,
  openModelVault,
  sampleDisk,
  scribble,
} from "../../../model-disk.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";

const pair = testKeyPair();
const encrypted = encryptedFor(pair);
/** Of somebody else: it opens nothing here. */
const other = testKeyPair();

let folder: string;
let memory: MemoryStore;
let disk: ModelDisk;

const connect = (): MemorySink => new MemorySink({ store: memory });
const open = async (keys: Secrets | undefined = encrypted.keys, stateFolder?: string): Promise<Vault> =>
  await openModelVault(connect(), { keys, stateFolder });

beforeEach(() => {
  folder = createFolder("keys");
  memory = new MemoryStore();
  disk = sampleDisk(200_000, 1);
});

afterEach(async () => {
  await closeModelVaults();
  await removeFolder(folder);
});

async function create(): Promise<Vault> {
  return await openModelVault(connect(), { ...encrypted, encryption: encrypted.encryption });
}

async function contentOf(vault: Vault, name = "a"): Promise<Buffer> {
  const point = await vault.openPoint({ disk: name, point: "latest" });
  const bytes = Buffer.alloc(disk.bytes.length);
  await point.read(0, bytes);
  await point.close();
  return bytes;
}

it("gives back what was replicated, by a private key", async () => {
  const vault = await create();
  await vault.replicate({ disk: "a", volume: disk });
  scribble(disk, 2);
  await vault.replicate({ disk: "a", volume: disk });
  const again = await open();
  expect((await contentOf(again)).equals(disk.bytes)).toBe(true);
  expect((await again.verify()).damaged).toEqual([]);
  expect((await again.summary()).encryption).toBe("aes-256-gcm");
});

it("opens by RSA, P-256, P-384 and by a passphrase in either normal form, and by nothing else", async () => {
  const pairs = [
    generateKeyPairSync("rsa", { modulusLength: 2048 }),
    generateKeyPairSync("ec", { namedCurve: "prime256v1" }),
    generateKeyPairSync("ec", { namedCurve: "secp384r1" }),
  ].map(({ privateKey, publicKey }) => ({
    privateKey: privateKey.export({ format: "pem", type: "pkcs8" }).toString(),
    publicKey: publicKey.export({ format: "pem", type: "spki" }).toString(),
  }));
  const certificates = pairs.map(({ publicKey }, index) => ({ pem: publicKey, name: `key ${String(index)}` }));
  const encryption = { certificates, passphrase: "schöne Brücke" };
  await openModelVault(connect(), { encryption });
  for (const { privateKey } of pairs) await open({ privateKey });
  await open({ passphrase: "schöne Brücke".normalize("NFD") });
  for (const keys of [{ privateKey: other.privateKey }, { passphrase: "schone Brucke" }]) {
    const error = await refusal(Vault.open(connect(), { keys }));
    expect(error.code).toBe("ACCESS_REFUSED");
    expect(error.remedy).toContain("lost for good");
    expect(JSON.stringify([error.message, error.stack, error.cause, error.detail])).not.toMatch(/Brucke|PRIVATE/);
  }
});

it("is refused without a key, with what is no key, and a key is refused where nothing is encrypted", async () => {
  await create();
  await expectCode(Vault.open(connect()), "ACCESS_REFUSED");
  await expectCode(Vault.open(connect(), { keys: { privateKey: "no key" } }), "INVALID_ARGUMENT");
  const plain = new MemorySink();
  await (await Vault.create(plain, { workers: 1 })).close();
  await expectCode(Vault.open(plain, { keys: encrypted.keys }), "INVALID_ARGUMENT");
  await expectCode(Vault.openOrCreate(plain, { encryption: encrypted.encryption }), "INVALID_ARGUMENT");
});

it("is not created for a weak, unknown or private key, for an empty passphrase, or for no key at all", async () => {
  const { publicKey: weak } = generateKeyPairSync("rsa", { modulusLength: 1024 });
  const { publicKey: unknown } = generateKeyPairSync("ed25519");
  const pems = [weak, unknown].map((key) => key.export({ format: "pem", type: "spki" }).toString());
  for (const pem of [...pems, pair.privateKey, "no certificate"])
    await expectCode(
      Vault.create(connect(), { encryption: { certificates: [{ pem, name: "k" }] } }),
      "INVALID_ARGUMENT",
    );
  await expectCode(Vault.create(connect(), { encryption: { passphrase: "" } }), "INVALID_ARGUMENT");
  await expectCode(Vault.create(connect(), { encryption: {} }), "INVALID_ARGUMENT");
  const vault = await openModelVault(new MemorySink(), encrypted);
  await expectCode(vault.keys.add({}), "INVALID_ARGUMENT");
  await expectCode(Vault.open(connect()), "VAULT_NOT_FOUND");
});

it("that is created with a key in hand and no recipients opens with that key", async () => {
  const pem = pair.privateKey;
  const locked = createPrivateKey(pem).export({ format: "pem", type: "pkcs8", cipher: "aes-256-cbc", passphrase: "p" });
  const given = [{ privateKey: pem }, { privateKey: locked.toString(), passphrase: "p" }, { passphrase: "a long one" }];
  for (const keys of given) {
    memory = new MemoryStore();
    const vault = await Vault.openOrCreate(connect(), { keys, workers: 1 });
    expect((await vault.summary()).encryption).toBe("aes-256-gcm");
    expect((await vault.keys.list()).recipients).toHaveLength(1);
    await vault.close();
    await (await Vault.openOrCreate(connect(), { keys, workers: 1 })).close();
    await expectCode(Vault.open(connect(), { keys: { privateKey: other.privateKey } }), "ACCESS_REFUSED");
  }
});

it("never has keys that no process could read, and keeps a recipient", async () => {
  const vault = await create();
  const pem = pair.publicKey;
  const many = Array.from({ length: 65 }, (_, index) => ({ pem: testKeyPair().publicKey, name: String(index) }));
  for (const certificates of [many, [{ pem, name: "n".repeat(201) }], [{ pem, name: "two\nlines" }]]) {
    await expectCode(vault.keys.add({ certificates }), "INVALID_ARGUMENT");
    await expectCode(Vault.create(new MemorySink(), { encryption: { certificates } }), "INVALID_ARGUMENT");
  }
  const twice = [1, 2].map((index) => ({ pem, name: `ops ${String(index)}` }));
  const again = await openModelVault(new MemorySink(), { keys: encrypted.keys, encryption: { certificates: twice } });
  for (const keys of [vault.keys, again.keys]) {
    const { recipients } = await keys.add({ certificates: twice });
    expect(recipients.map(({ name }) => name)).toEqual(["ops 1"]);
    await expectCode(keys.remove(recipients[0]?.id ?? ""), "INVALID_ARGUMENT");
  }
  await open();
});

it("is written, listed, pruned and collected by an enrolled machine, which reads back nothing", async () => {
  const [state, second] = [join(folder, "state"), join(folder, "second")];
  await create();
  const enrolled = await (await open(encrypted.keys, state)).keys.enroll();
  expect(statSync(enrolled.file).mode & 0o777).toBe(0o600);
  const writer = await open({}, state);
  await writer.replicate({ disk: "a", volume: disk });
  expect(await writer.replicate({ disk: "b", volume: disk })).toMatchObject({ newBytes: 0 });
  scribble(disk, 3);
  await writer.replicate({ disk: "a", volume: disk });
  expect((await writer.disks()).map(({ disk: name }) => name)).toEqual(["a", "b"]);
  expect(await writer.prune({ disk: "a", policy: parsePolicy("keep:last=1") })).toMatchObject({ removedPoints: 1 });
  await writer.collect();
  await expectCode(writer.verify(), "ACCESS_REFUSED");
  const image = join(folder, "image");
  await expectCode(writer.openPoint({ disk: "a", point: "latest" }), "ACCESS_REFUSED");
  await expectCode(writer.mount({ disk: "a", point: "latest" }), "ACCESS_REFUSED");
  const failover = { kind: "test", disks: ["a"], to: `file:${image}` } as const;
  await expectCode(writer.failovers.start(failover), "ACCESS_REFUSED");
  expect(await writer.failovers.list()).toEqual([]);
  const plan: Plan = {
    name: "shop",
    machines: [{ name: "web", disks: ["a"], source: null }],
    groups: [{ machines: ["web"], before: [], after: [] }],
    cleanup: [],
    target: `dir:${folder}`,
    testTarget: null,
    objectives: { rpoMs: null, rtoMs: null },
    folder,
    text: "",
  };
  await expectCode(writer.plans.start({ plan, kind: "test" }), "ACCESS_REFUSED");
  expect(await writer.plans.list()).toEqual([]);
  await expectCode(writer.replicas.run({ disk: "a", to: `file:${image}`, once: true }), "ACCESS_REFUSED");
  expect(await writer.replicas.list()).toEqual([]);
  await expectCode(writer.materialize({ disk: "a", point: "latest", to: image }), "ACCESS_REFUSED");
  expect(readdirSync(folder)).toEqual(["state"]);
  await expectCode(writer.keys.rotate(), "ACCESS_REFUSED");
  await expectCode(open({}, second), "ACCESS_REFUSED");
  expect((await contentOf(await open())).equals(disk.bytes)).toBe(true);
});

it("gets and loses recipients, and none of its data is touched", async () => {
  const vault = await create();
  await vault.replicate({ disk: "a", volume: disk });
  const before = new Map(memory.objects);
  await vault.keys.add({ certificates: [{ pem: other.publicKey, name: "other" }] });
  const { recipients } = await vault.keys.list();
  expect(recipients.map(({ name }) => name)).toEqual(["test", "other"]);
  const changed = [...(memory.objects ?? [])].filter(([name, stored]) => before.get(name) !== stored);
  expect(changed.map(([name]) => name).sort()).toEqual(["copy/vault.json", "vault.json"]);
  const second = await open({ privateKey: other.privateKey });
  await second.keys.remove("test");
  await expectCode(open(), "ACCESS_REFUSED");
  await expectCode(second.keys.remove("other"), "INVALID_ARGUMENT");
  await expectCode(second.keys.remove("nobody"), "INVALID_ARGUMENT");
  expect((await contentOf(await open({ privateKey: other.privateKey }))).equals(disk.bytes)).toBe(true);
});

it("begins a new key that opens everything, and with which nothing opens that the old one opened", async () => {
  const state = join(folder, "state");
  const first = await create();
  await (await open(encrypted.keys, state)).keys.enroll();
  await first.replicate({ disk: "a", volume: disk });
  expect(await first.keys.rotate()).toMatchObject({ generation: 2 });
  // The writer that was enrolled before does not go on with the old key.
  await expectCode(open({}, state), "ACCESS_REFUSED");
  const second = await open();
  expect((await contentOf(second)).equals(disk.bytes)).toBe(true);
  scribble(disk, 4);
  await second.replicate({ disk: "a", volume: disk });
  // The process that has rotated the key goes on with the new one.
  expect(await first.points("a")).toHaveLength(2);
  expect((await contentOf(await open())).equals(disk.bytes)).toBe(true);
  await expectCode(second.keys.enroll(), "INVALID_ARGUMENT");
  await (await open(encrypted.keys, state)).keys.enroll();
  await (await open({}, state)).replicate({ disk: "b", volume: disk });
});

describe("a writer that runs while the vault's key is rotated", () => {
  type Written = ReadonlyMap<string, NonNullable<ReturnType<NonNullable<MemoryStore["objects"]>["get"]>>>;
  /** Generations of the keys with which segments and other objects are sealed that were written since. */
  const sealedSince = (before: Written): readonly number[] => {
    const changed = [...(memory.objects ?? [])].filter(([name, stored]) => before.get(name) !== stored);
    const sealed = changed.flatMap(([name, stored]) => {
      const was = before.get(name);
      // A segment of the session before gets another sequence number, and no byte.
      if (stored.kind === "pages" && was?.kind === "pages" && was.writtenBytes === stored.writtenBytes) return [];
      if (stored.kind === "pages") return parseSegmentName(name)?.key?.generation ?? [];
      return name.endsWith("vault.json") ? [] : Buffer.from(stored.bytes).readUInt16LE(6);
    });
    expect(sealed.length).toBeGreaterThan(3);
    return [...new Set(sealed)].sort();
  };
  const written = (): Written => new Map(memory.objects);
  let aheadMs = 0;

  beforeEach(() => {
    const now = performance.now.bind(performance);
    aheadMs = 0;
    vi.spyOn(performance, "now").mockImplementation(() => now() + aheadMs);
  });

  afterEach(() => {
    vi.restoreAllMocks();
  });

  it("uses the new key from its next session on, for every object and every segment", async () => {
    await create();
    const writer = await open();
    await writer.replicate({ disk: "a", volume: disk });
    await (await open()).keys.rotate();
    const before = written();
    scribble(disk, 4);
    await writer.replicate({ disk: "a", volume: disk });
    expect(sealedSince(before)).toEqual([2]);
    expect((await contentOf(writer)).equals(disk.bytes)).toBe(true);
    expect((await contentOf(await open())).equals(disk.bytes)).toBe(true);
  });

  it("begins new segments in the middle of a cycle", async () => {
    await create();
    const admin = await open();
    const sink = connect();
    const writePages = sink.writePages.bind(sink);
    vi.spyOn(sink, "writePages").mockImplementationOnce(async (...given) => {
      await admin.keys.rotate();
      aheadMs = keysTiming.renewEveryMs;
      return await writePages(...given);
    });
    const writer = await openModelVault(sink, { keys: encrypted.keys });
    disk = new ModelDisk(contentBytes(12 * 1024 * 1024, 5));
    const before = written();
    await writer.replicate({ disk: "a", volume: disk });
    expect(sealedSince(before)).toEqual([1, 2]);
    expect((await contentOf(await open())).equals(disk.bytes)).toBe(true);
    expect((await (await open()).verify()).damaged).toEqual([]);
  });

  it("without a private key is refused then, until its machine is enrolled again", async () => {
    const state = join(folder, "state");
    const admin = await create();
    await (await open(encrypted.keys, state)).keys.enroll();
    const writer = await open({}, state);
    await writer.replicate({ disk: "a", volume: disk });
    await admin.keys.rotate();
    const before = written();
    scribble(disk, 5);
    const error = await refusal(writer.replicate({ disk: "a", volume: disk }));
    expect([error.code, error.remedy]).toEqual(["ACCESS_REFUSED", expect.stringContaining("vault keys enroll")]);
    expect(written()).toEqual(before);
    await (await open(encrypted.keys, state)).keys.enroll();
    await writer.replicate({ disk: "a", volume: disk });
    expect(sealedSince(before)).toEqual([2]);
  });

  it("protects a live disk meanwhile, says what to do, and goes on when its machine is enrolled again", async () => {
    const state = join(folder, "state");
    const image = join(folder, "live.img");
    writeFileSync(image, disk.bytes);
    const admin = await create();
    await (await open(encrypted.keys, state)).keys.enroll();
    const writer = await open({}, state);
    const policy = { crashConsistentFrequencyMs: 3_600_000 };
    const protection = await writer.protect({ disk: "a", image, stateFolder: state, policy });
    await protection.point();
    await admin.keys.rotate();
    await protection.device.write(0, Buffer.alloc(4096, 7));
    aheadMs = keysTiming.renewEveryMs;
    const before = written();
    const point = protection.point();
    await vi.waitFor(
      () => {
        const remedies = protection.status().findings.map(({ remedy }) => remedy);
        expect(remedies.join()).toContain("vault keys enroll");
      },
      { timeout: 20_000 },
    );
    await (await open(encrypted.keys, state)).keys.enroll();
    await point;
    expect(sealedSince(before)).toEqual([2]);
    await protection.stop({ drain: false });
  });

  it("by a key that is removed is refused a minute later, and goes on when it is added again", async () => {
    const admin = await create();
    await admin.keys.add({ certificates: [{ pem: other.publicKey, name: "other" }] });
    const writer = await open({ privateKey: other.privateKey });
    await writer.replicate({ disk: "a", volume: disk });
    await admin.keys.remove("other");
    await writer.replicate({ disk: "a", volume: disk });
    aheadMs = keysTiming.renewEveryMs;
    await expectCode(writer.replicate({ disk: "a", volume: disk }), "ACCESS_REFUSED");
    await admin.keys.add({ certificates: [{ pem: other.publicKey, name: "other" }] });
    await writer.replicate({ disk: "a", volume: disk });
  });

  it("goes on with the newest key that it has where vault.json is put back as it was", async () => {
    await create();
    const writer = await open();
    const older = memory.objects?.get("vault.json");
    assert(older !== undefined);
    await writer.keys.rotate();
    memory.objects?.set("vault.json", older);
    aheadMs = keysTiming.renewEveryMs;
    const before = written();
    await writer.replicate({ disk: "a", volume: disk });
    expect(sealedSince(before)).toEqual([2]);
  });

  it("reads at once what was written with the new key, and says so where it cannot", async () => {
    const creator = await openModelVault(connect(), { encryption: encrypted.encryption });
    const [reader, second] = [await open(), await open()];
    await second.keys.rotate();
    await second.replicate({ disk: "a", volume: disk });
    expect((await contentOf(reader)).equals(disk.bytes)).toBe(true);
    // The process that created the vault has its first key, and no private key.
    await expectCode(creator.disks(), "ACCESS_REFUSED");
  });
});

it.each([
  ["that cannot be opened", (file: string) => mkdirSync(file), /EISDIR/],
  ["that is a link", (file: string) => symlinkSync("/dev/null", file), /is a link/],
  ["that is damaged", (file: string) => writeFileSync(file, "what"), /is damaged/],
  ["of another vault", (file: string, others: string) => copyFileSync(others, file), /another vault/],
] as const)("a writer key %s is told of, by its name", async (_what, spoil, fact) => {
  const state = join(folder, "state");
  await create();
  const { file } = await (await open(encrypted.keys, state)).keys.enroll();
  const elsewhere = await Vault.create(new MemorySink(), { ...encrypted, workers: 1, stateFolder: state });
  const { file: others } = await elsewhere.keys.enroll();
  await elsewhere.close();
  rmSync(file);
  spoil(file, others);
  const error = await refusal(open({}, state));
  expect([error.code, error.message]).toEqual(["ACCESS_REFUSED", expect.stringContaining(file)]);
  expect(error.message).toMatch(fact);
  // The private key needs no writer key.
  await open(encrypted.keys, state);
});

it("is not replaced by one without encryption where the store has lost it", async () => {
  const state = join(folder, "state");
  const vault = await openModelVault(connect(), { ...encrypted, stateFolder: state });
  await vault.keys.enroll();
  const { description } = connect();
  memory = new MemoryStore();
  for (const settlingMs of [0, 1_000])
    for (const keys of [undefined, encrypted.keys]) {
      const sink = new MemorySink({ store: memory, settlingMs, description });
      const { remedy } = await expectCode(Vault.openOrCreate(sink, { stateFolder: state, keys }), "VAULT_NOT_FOUND");
      expect(remedy).toContain("vault init --encrypt");
    }
});

async function refusal(work: Promise<unknown>): Promise<TidemarkError> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof TidemarkError)) throw new Error("it was not refused");
  return error;
}
