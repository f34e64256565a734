/**
 * Known answers: the cipher by a vector of its authors, every derivation by values that another
 * implementation of HKDF gave, and golden files of each sealed form.
 */
import { scryptSync } from "node:crypto";
import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { checksum, fromHex, toHex } from "../../../../engine/store/format/checksum.ts";
import { decodeVault, documentBytesMax, encodeVault } from "../../../../engine/store/format/documents.ts";
import {
  decodeFrameHeader,
  decodeFrameTable,
  FrameBuilder,
  frameHeaderBytes,
} from "../../../../engine/store/format/frame.ts";
import { segmentName } from "../../../../engine/store/format/names.ts";
import { payloadSeal, sealBytes, sealInPlace, unseal } from "../../../../engine/store/format/sealed.ts";
import type { EncryptedDocument } from "../../../../engine/store/format/vault-document.ts";
import { x25519PrivateKey } from "../../../../engine/store/keys/hpke.ts";
import {
  recipientsOf,
  rewrap,
  type Secrets,
  unwrapVaultKey,
  wrapFor,
} from "../../../../engine/store/keys/recipients.ts";
import { SealedSink } from "../../../../engine/store/keys/sealed-sink.ts";
import { authenticated, unlock } from "../../../../engine/store/keys/unlock.ts";
import {
  generationOf,
  newGeneration,
  publicHalf,
  VaultKeys,
  vaultKeysFrom,
} from "../../../../engine/store/keys/vault-keys.ts";
import { decodeWriterKey, encodeWriterKey } from "../../../../engine/store/keys/writer-key.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { golden } from "../../../golden.ts";
import { frameChunks, vaultSample } from "../format/samples.ts";

const hex = (text: string): Buffer => Buffer.from(text, "hex");
const pem = (name: string): string => readFileSync(new URL(`../../../golden/${name}`, import.meta.url), "utf8");

const vaultId = Buffer.from(Array.from({ length: 16 }, (_, index) => index));
const [firstKey, secondKey] = [Buffer.from(Array.from({ length: 32 }, (_, index) => index)), Buffer.alloc(32, 0xa5)];
const first = new VaultKeys(vaultId, [generationOf(firstKey, vaultId)]);
const secrets: readonly Secrets[] = [
  { privateKey: pem("recipient-rsa-key.pem") },
  { privateKey: pem("recipient-p256-key.pem") },
  { passphrase: "correct horse" },
];

it("AES-256-GCM opens test case 16 of McGrew and Viega", () => {
  const by = {
    key: hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"),
    associated: hex("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
  };
  const sealed = hex(
    "cafebabefacedbaddecaf888" +
      "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662" +
      "76fc6ece0f4e1768cddf8853bb2d551b",
  );
  expect(toHex(unseal(by, sealed) ?? Buffer.alloc(0))).toBe(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
  );
});

it("a payload sealed in place opens at its own place only, and never twice to the same bytes", () => {
  const by = { key: Buffer.alloc(32, 1), associated: Buffer.from("segment") };
  const room = (): Buffer => Buffer.alloc(50 + sealBytes, 7);
  const [one, two] = [room(), room()];
  sealInPlace(payloadSeal(by, 640), one);
  sealInPlace(payloadSeal(by, 640), two);
  expect(one.equals(two)).toBe(false);
  expect(unseal(payloadSeal(by, 640), one)).toEqual(Buffer.alloc(50, 7));
  expect(unseal(payloadSeal(by, 648), one)).toBeUndefined();
});

it("every key is derived as FORMAT.md says", () => {
  const [{ writingKey }] = [generationOf(firstKey, vaultId)];
  expect({
    writing: toHex(writingKey),
    digest: toHex(first.digestKey),
    object: toHex(first.object("disks/d/head", 1)?.key ?? Buffer.alloc(0)),
    tables: toHex(first.tables(`segments/d/00000007-0-00000000-0001${"09".padEnd(64, "0")}`)),
  }).toEqual({
    writing: "4d33f0fce67f40b9cea7669b169ff9c23ac6e5b16e18bef7db5df1329b04a245",
    digest: "65efa8b2dd5d8625856ee55d477778724f1a49ac6eb9734e45b67755d0946e7c",
    object: "98da143fee613460d7e9f8ee71a2c7df4a20b8b8c1926de76cdd2260b259a8f5",
    tables: "e8839379e206b9e434052908a191d9fe56fc5197e6e3a6750d527587d252f97f",
  });
  // The reading key is the X25519 key of its own derivation.
  const reading = x25519PrivateKey(hex("c53a443d031a36476bd74400f2ad17aa69d05b13ec0ae9d7e2ab5aa9b97eb3f8"));
  expect(publicHalf(reading).export({ format: "jwk" }).x).toBe(
    Buffer.from(generationOf(firstKey, vaultId).readingKey).toString("base64url"),
  );
});

it("vault.json of version 2 opens for each of its recipients, and gives both generations", async () => {
  const made = await goldenVault();
  const bytes = golden("vault-v2.txt", encodeVault(made));
  const document = decodeVault(bytes, "vault.json") as EncryptedDocument;
  for (const one of secrets) {
    const newest = await unwrapVaultKey(document, one);
    expect(vaultKeysFrom(newest, document)).toEqual([firstKey, secondKey]);
    const { document: unlocked } = await unlock(new MemorySink(), document, one, undefined);
    expect(unlocked.digestKey).toBe(toHex(first.digestKey));
  }
  expect(encodeVault(document)).toEqual(Buffer.from(bytes));
});

it("a writer key of version 1 opens what a writer needs", () => {
  const bytes = golden("writer-key-v1.txt", encodeWriterKey(first));
  expect(Buffer.from(bytes).equals(encodeWriterKey(first))).toBe(true);
  const keys = decodeWriterKey(bytes, "writer-key");
  expect(keys.digestKey).toEqual(first.digestKey);
  expect(() => keys.payloads(first.newSegment(segmentName("d", 1, 0, 0)).name)).toThrow(/enrolled to write/);
});

it("a sealed object of version 1 opens under its name", async () => {
  const name = "reclaim/collected";
  const store = new MemoryStore();
  const sink = new SealedSink(new MemorySink({ store }), first);
  await sink.createContainer();
  await sink.putObject(name, Buffer.from("what it holds"), { ifAbsent: true });
  const raw = new MemorySink({ store });
  const { bytes: made, etag } = await raw.getObject(name, documentBytesMax);
  await raw.putObject(name, golden("sealed-object-v1.bin", made), { ifMatch: etag });
  expect(Buffer.from((await sink.getObject(name, 13)).bytes).toString()).toBe("what it holds");
});

it("a frame of version 2 leads to every payload", () => {
  const made = first.newSegment(segmentName("d", 7, 0, 0));
  const name = Buffer.from(golden("frame-v2-segment.txt", Buffer.from(made.name))).toString();
  const place = { vaultId, segmentId: checksum(Buffer.from(name)), offset: 4096, tablesKey: first.tables(name) };
  const bytes = golden("frame-v2.bin", sealedFrame(place, made.payloads));
  const header = decodeFrameHeader(bytes.subarray(0, frameHeaderBytes), name, place);
  const part = bytes.subarray(header.tableOffset, header.tableOffset + header.tableBytes);
  const table = decodeFrameTable(part, name, header);
  const payloads = frameChunks.map((_, index) => {
    const at = table.offsets[index] ?? 0;
    const length = (table.storedWords[index] ?? 0) % 2 ** 31;
    return new Uint8Array(unseal(payloadSeal(first.payloads(name), 4096 + at), bytes.subarray(at, at + length)) ?? []);
  });
  expect(payloads).toEqual(frameChunks.map(({ payload }) => new Uint8Array(payload)));
  expect([...table.granule]).toEqual(frameChunks.map(({ granule }) => granule));
});

/** As `Lanes` seals one. */
function sealedFrame(place: Parameters<FrameBuilder["seal"]>[0], by: ReturnType<VaultKeys["payloads"]>): Uint8Array {
  const builder = new FrameBuilder(true);
  for (const { payload, storedWord, digest, granule, granules } of frameChunks) {
    const length = payload.length + sealBytes;
    const at = builder.append(payload, storedWord + sealBytes, digest, 0, granule, granules);
    sealInPlace(payloadSeal(by, place.offset + at), new Uint8Array(builder.shared, at, length));
  }
  return new Uint8Array(builder.seal(place));
}

async function goldenVault(): Promise<EncryptedDocument> {
  const vault = toHex(vaultId);
  const certificates = ["recipient-rsa-certificate.pem", "recipient-p256-public.pem"];
  const recipients = await recipientsOf({ certificates: certificates.map((name) => ({ pem: pem(name), name })) });
  const salt = toHex(Buffer.alloc(16, 5));
  const privateKey = x25519PrivateKey(scryptSync("correct horse", fromHex(salt), 32, { N: 2 ** 14, r: 8, p: 1 }));
  const passphrase = {
    kind: "passphrase",
    name: "passphrase",
    publicKey: publicHalf(privateKey),
    scrypt: { salt, logCost: 14 },
  } as const;
  const wrapped = [...recipients, passphrase].map((one) => wrapFor(one, vault, firstKey, vaultSample.createdMs));
  const document: EncryptedDocument = {
    ...vaultSample,
    vault,
    digestKey: "",
    encryption: {
      cipher: "aes-256-gcm",
      revision: 2,
      generations: [newGeneration(vaultId, firstKey, undefined), newGeneration(vaultId, secondKey, firstKey)],
      recipients: wrapped.map((recipient) => rewrap(recipient, vault, secondKey)),
      mac: "",
    },
  };
  return authenticated(document, secondKey);
}
