/**
 * Decoders against documents and tables with right checksums and changed content: each gives
 * something of the right shape or refuses it by a code, in bounded memory. Seeded.
 */
import { randomInt } from "node:crypto";
import { expect, test } from "vitest";
import { isUnreadable } from "../../../../engine/errors.ts";
import { checksum } from "../../../../engine/store/format/checksum.ts";
import * as documents from "../../../../engine/store/format/documents.ts";
import { decodeFrameHeader, frameHeaderBytes } from "../../../../engine/store/format/frame.ts";
import * as keeping from "../../../../engine/store/format/keeping.ts";
import { decodeLeaf, decodeRoot, encodeLeaf, encodeRoot } from "../../../../engine/store/format/leaf.ts";
import * as proof from "../../../../engine/store/format/proof.ts";
import * as reclaim from "../../../../engine/store/format/reclaim.ts";
import { byDepth } from "../../../depth.ts";
import { numbersFrom, vaultId } from "../../../engine-model.ts";
import * as samples from "./samples.ts";

const mutations = byDepth(1_600, 60_000);
const seed = byDepth(20_261_129, randomInt(2 ** 31));
const heapGrowthMax = 256 * 1024 * 1024;

interface Mutant {
  readonly kind: string;
  /** Changes something by the numbers, makes the checksum right again, and decodes it. */
  readonly decode: (next: () => number) => unknown;
}

/** Documents are changed as JSON: a value somewhere in them becomes another. */
function ofDocument<Document extends object>(
  kind: string,
  sample: Document,
  decode: (document: Document) => unknown,
): Mutant {
  return {
    kind,
    decode: (next) => {
      const document = structuredClone(sample);
      for (let count = 1 + (next() % 2); count > 0; count -= 1) changeSomewhere(document, next);
      return decode(document);
    },
  };
}

/** Tables are changed byte by byte. */
function ofTable(
  kind: string,
  bytes: Uint8Array,
  sign: (bytes: Buffer) => void,
  decode: (bytes: Buffer) => unknown,
): Mutant {
  return {
    kind,
    decode: (next) => {
      const changed = Buffer.from(bytes);
      for (let count = 1 + (next() % 4); count > 0; count -= 1) changed[next() % changed.length] = next() % 256;
      sign(changed);
      return decode(changed);
    },
  };
}

const odd: readonly unknown[] = [
  null,
  true,
  -1,
  0,
  0.5,
  2 ** 31,
  2 ** 32,
  2 ** 36 + 1,
  Number.MAX_SAFE_INTEGER,
  2 ** 53,
  8.64e15,
  8.64e15 + 1,
  1e300,
  "",
  "x",
  "0".repeat(32),
  "f".repeat(64),
  "segments/d/00000001-0-00000000",
  "segments/../head",
  "1 1 1 1",
  " ",
  "\u0000",
  "\ud800",
  "x".repeat(1000),
  [],
  {},
  [null],
  [[]],
  Array.from({ length: 100 }, () => ({})),
];

function changeSomewhere(document: object, next: () => number): void {
  let at = document as Record<string, unknown>;
  for (;;) {
    const keys = Object.keys(at);
    const key = keys[next() % Math.max(1, keys.length)];
    if (key === undefined) return;
    const value = at[key];
    if (typeof value === "object" && value !== null && next() % 4 !== 0) {
      at = value as Record<string, unknown>;
      continue;
    }
    if (Array.isArray(at) && next() % 3 === 0) at.push(structuredClone(value));
    else if (next() % 8 === 0) Reflect.deleteProperty(at, key);
    else
      at[key] =
        typeof value === "number" && next() % 2 === 0
          ? value + (next() % 3) - 1
          : structuredClone(odd[next() % odd.length]);
    return;
  }
}

const { vault } = samples.vaultSample;
const leaf = encodeLeaf(samples.leafSample(), vaultId);
const root = encodeRoot(samples.rootSample, vaultId);
const signTable = (bytes: Buffer): void => {
  bytes.set(checksum(bytes.subarray(0, 48), bytes.subarray(64)), 48);
};
const dead = reclaim.deadName(samples.deadSample.segment);
const quarantined = proof.quarantineName(samples.quarantineSample.segment);

const mutants: readonly Mutant[] = [
  ofDocument("vault", samples.vaultSample, (body) => documents.decodeVault(documents.encodeVault(body), "o")),
  ofDocument("vault, encrypted", samples.encryptedSample, (body) =>
    documents.decodeVault(documents.encodeVault(body), "o"),
  ),
  ofDocument("head", samples.headSample, (body) =>
    documents.decodeHead(documents.encodeHead(body), "o", samples.headSample),
  ),
  ofDocument("page", samples.pageSample, (body) => {
    const { bytes, id } = documents.encodePage(body);
    const reference = { ...samples.pageReference, bytes: bytes.byteLength, checksum: id };
    return documents.decodePage(bytes, "o", { ...samples.headSample, reference });
  }),
  ofDocument("manifest", samples.manifestSample, (body) => {
    const { bytes, id } = documents.encodeManifest(body);
    return documents.decodeManifest(bytes, "o", { ...samples.manifestSample, id });
  }),
  ofDocument("pin", samples.pinSample, (body) => keeping.decodePin(keeping.encodePin(body), "o", samples.pinSample)),
  ofDocument("label", samples.labelSample, (body) =>
    keeping.decodeLabel(keeping.encodeLabel(body), "o", samples.labelSample),
  ),
  ofDocument("condemned", samples.condemnedSample, (body) =>
    keeping.decodeCondemned(keeping.encodeCondemned(body), "o", samples.condemnedSample),
  ),
  ofDocument("collection", samples.collectionSample, (body) =>
    reclaim.decodeCollection(reclaim.encodeCollection(body), "o", vault),
  ),
  ofDocument("collected", samples.collectedSample, (body) =>
    reclaim.decodeCollected(reclaim.encodeCollected(body), "o", vault),
  ),
  ofDocument("proved", samples.provedSample, (body) =>
    proof.decodeProved(proof.encodeProved(body), "o", samples.provedSample),
  ),
  ofDocument("scrubbed", samples.scrubbedSample, (body) =>
    proof.decodeScrubbed(proof.encodeScrubbed(body), "o", vault),
  ),
  ofTable("leaf", leaf.bytes, signTable, (bytes) => decodeLeaf(bytes, "o", vaultId, bytes.subarray(48, 64))),
  ofTable("root", root.bytes, signTable, (bytes) => decodeRoot(bytes, "o", vaultId, bytes.subarray(48, 64))),
  ofTable(
    "frame header",
    samples.sealFrame().subarray(0, frameHeaderBytes),
    (bytes) => {
      bytes.set(checksum(bytes.subarray(0, 112)), 112);
    },
    (bytes) => decodeFrameHeader(bytes, "o", samples.framePlace),
  ),
  ofTable("record of dead pages", reclaim.encodeDead(samples.deadSample), signText, (bytes) =>
    reclaim.decodeDead(bytes, dead, vault),
  ),
  ofTable("quarantine", proof.encodeQuarantine(samples.quarantineSample), signText, (bytes) =>
    proof.decodeQuarantine(bytes, quarantined, vault),
  ),
];

/** Makes the checksum of a document right again, if its signature line still is one. */
function signText(bytes: Buffer): void {
  const lineEnd = bytes.indexOf(0x0a);
  const line = /^tidemark ([a-z]+ \d) [0-9a-f]{32}$/.exec(bytes.toString("latin1", 0, Math.max(0, lineEnd)));
  if (line === null) return;
  const sum = Buffer.from(checksum(Buffer.from(`${line[1] ?? ""}\n`), bytes.subarray(lineEnd + 1))).toString("hex");
  bytes.write(sum, lineEnd - 32, "latin1");
}

test("mutated documents are decoded or refused by a code, and take no memory", { timeout: 3_600_000 }, () => {
  const next = numbersFrom(seed);
  const outcomes = new Map<string, { decoded: number; refused: number }>();
  const heapBefore = process.memoryUsage().heapUsed;
  let heapMost = heapBefore;
  for (let index = 0; index < mutations; index += 1) {
    const mutant = mutants[index % mutants.length];
    if (mutant === undefined) throw new Error("there is a mutant");
    const counts = outcomes.get(mutant.kind) ?? { decoded: 0, refused: 0 };
    outcomes.set(mutant.kind, counts);
    try {
      mutant.decode(next);
      counts.decoded += 1;
    } catch (error) {
      if (!isUnreadable(error))
        throw new Error(`seed ${seed}, mutation ${index} of a ${mutant.kind}`, { cause: error });
      counts.refused += 1;
    }
    if (index % 1000 === 0) heapMost = Math.max(heapMost, process.memoryUsage().heapUsed);
  }
  expect(heapMost - heapBefore).toBeLessThan(heapGrowthMax);
  expect(outcomes.size).toBe(mutants.length);
  for (const [kind, { refused }] of outcomes) expect(refused, kind).toBeGreaterThan(0);
});
