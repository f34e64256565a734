/**
 * Every decoder against bytes that are not what they should be: it ends in one typed error,
 * quickly, in little memory.
 */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import { frameBytesMax, granuleBytes, segmentBytes } from "../../../../engine/limits.ts";
import { checksum, toHex } from "../../../../engine/store/format/checksum.ts";
import type { PageDocument, PageReference } from "../../../../engine/store/format/documents.ts";
import {
  decodeHead,
  decodeManifest,
  decodePage,
  decodeVault,
  encodeHead,
  encodeManifest,
  encodePage,
  encodeVault,
} from "../../../../engine/store/format/documents.ts";
import {
  decodeFrameHeader,
  decodeFrameTable,
  frameChunksMax,
  frameHeaderBytes,
} from "../../../../engine/store/format/frame.ts";
import {
  decodeCondemned,
  decodeLabel,
  decodePin,
  encodeCondemned,
  encodeLabel,
  encodePin,
} from "../../../../engine/store/format/keeping.ts";
import {
  decodeLeaf,
  decodeRoot,
  encodeLeaf,
  encodeRoot,
  leafBytesMax,
  leafEntriesMax,
  newColumns,
  zeroSegment,
} from "../../../../engine/store/format/leaf.ts";
import { segmentName } from "../../../../engine/store/format/names.ts";
import {
  deadName,
  decodeCollected,
  decodeCollection,
  decodeDead,
  encodeCollected,
  encodeCollection,
  encodeDead,
} from "../../../../engine/store/format/reclaim.ts";
import { decodeClaim, decodeRun, encodeClaim, encodeRun } from "../../../../engine/store/format/run.ts";
import { runsOf } from "../../../depth.ts";
import { foreignVaultId, vaultId } from "../../../engine-model.ts";
import { futureHeader, futureLine, resigned } from "./altered.ts";
import {
  besideRuns,
  claimSample,
  collectedSample,
  collectionSample,
  condemnedSample,
  deadSample,
  framePlace,
  headSample,
  indexReference,
  indexSample,
  labelSample,
  leafSample,
  manifestSample,
  pageReference,
  pageSample,
  pinSample,
  replicaRow,
  rootSample,
  runSample,
  sealFrame,
  vaultSample,
} from "./samples.ts";

interface Format {
  readonly kind: string;
  readonly bytes: Uint8Array;
  readonly decode: (bytes: Uint8Array) => unknown;
  /** Sets the version to a number that no build knows yet. */
  readonly future: (bytes: Uint8Array) => Uint8Array;
}

const manifest = encodeManifest(manifestSample);
const runObject = "failover/runs/5f03c2aa";
const leaf = encodeLeaf(leafSample(), vaultId);
const root = encodeRoot(rootSample, vaultId);
const frame = sealFrame();
const frameHeader = decodeFrameHeader(frame, "segment", framePlace);

const formats: readonly Format[] = [
  { kind: "vault", bytes: encodeVault(vaultSample), decode: (bytes) => decodeVault(bytes, "o"), future: futureLine },
  {
    kind: "head",
    bytes: encodeHead(headSample),
    decode: (bytes) => decodeHead(bytes, "o", headSample),
    future: futureLine,
  },
  {
    kind: "page",
    bytes: encodePage(pageSample).bytes,
    decode: (bytes) => decodePage(bytes, "o", { ...headSample, reference: pageReference }),
    future: futureLine,
  },
  {
    kind: "manifest",
    bytes: manifest.bytes,
    decode: (bytes) => decodeManifest(bytes, "o", { ...manifestSample, id: manifest.id }),
    future: futureLine,
  },
  {
    kind: "label",
    bytes: encodeLabel(labelSample),
    decode: (bytes) => decodeLabel(bytes, "o", labelSample),
    future: futureLine,
  },
  {
    kind: "run",
    bytes: encodeRun(runSample),
    decode: (bytes) => decodeRun(bytes, runObject, runSample.vault),
    future: futureLine,
  },
  ...besideRuns.map((row) => ({ ...row, future: futureLine })),
  { kind: "replica", ...replicaRow(), future: futureLine },
  {
    kind: "claim",
    bytes: encodeClaim(claimSample),
    decode: (bytes) => decodeClaim(bytes, "o", claimSample),
    future: futureLine,
  },
  { kind: "pin", bytes: encodePin(pinSample), decode: (bytes) => decodePin(bytes, "o", pinSample), future: futureLine },
  {
    kind: "list of condemned points",
    bytes: encodeCondemned(condemnedSample),
    decode: (bytes) => decodeCondemned(bytes, "o", condemnedSample),
    future: futureLine,
  },
  {
    kind: "collection",
    bytes: encodeCollection(collectionSample),
    decode: (bytes) => decodeCollection(bytes, "o", collectionSample.vault),
    future: futureLine,
  },
  {
    kind: "time of a collection",
    bytes: encodeCollected(collectedSample),
    decode: (bytes) => decodeCollected(bytes, "o", collectedSample.vault),
    future: futureLine,
  },
  {
    kind: "record of dead pages",
    bytes: encodeDead(deadSample),
    decode: (bytes) => decodeDead(bytes, deadName(deadSample.segment), deadSample.vault),
    future: futureLine,
  },
  {
    kind: "frame header",
    bytes: frame.subarray(0, frameHeaderBytes),
    decode: (bytes) => decodeFrameHeader(bytes, "o", framePlace),
    future: futureHeader,
  },
  {
    kind: "leaf",
    bytes: leaf.bytes,
    decode: (bytes) => decodeLeaf(bytes, "o", vaultId, leaf.checksum),
    future: futureHeader,
  },
  {
    kind: "root",
    bytes: root.bytes,
    decode: (bytes) => decodeRoot(bytes, "o", vaultId, root.checksum),
    future: futureHeader,
  },
];

const tableBytes = frame.subarray(frameHeader.tableOffset, frameHeader.tableOffset + frameHeader.tableBytes);
const damageable = [
  ...formats,
  { kind: "frame table", bytes: tableBytes, decode: (bytes: Uint8Array) => decodeFrameTable(bytes, "o", frameHeader) },
];

describe.each(damageable)("a $kind", ({ bytes, decode }) => {
  test("is read back when nothing happened to it", () => {
    expect(() => decode(bytes)).not.toThrow();
  });

  test("is refused when it ends anywhere before its end", () => {
    for (let length = 0; length < bytes.length; length += 1)
      refused(() => decode(new Uint8Array(bytes.subarray(0, length))));
  });

  test("is refused when any one of its bytes is another", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 255 }), (difference) => {
        for (let at = 0; at < bytes.length; at += 1) {
          const other = new Uint8Array(bytes);
          other[at] = (other[at] ?? 0) ^ difference;
          refused(() => decode(other));
        }
      }),
      { numRuns: runsOf(8) },
    );
  });

  test("is refused when it is any other bytes", () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 1000 }), (other) => void refused(() => decode(other))));
    fc.assert(
      fc.property(fc.nat(bytes.length), fc.uint8Array({ minLength: 1, maxLength: 600 }), (keep, rest) => {
        const other = Uint8Array.from([...bytes.subarray(0, keep), ...rest]);
        fc.pre(Buffer.compare(other.subarray(0, bytes.length), bytes) !== 0);
        refused(() => decode(other));
      }),
    );
  });
});

describe.each(formats)("a $kind", ({ bytes, decode, future }) => {
  test("of a future version is refused by that name", () => {
    expect(refused(() => decode(future(bytes))).code).toBe("FORMAT_UNSUPPORTED");
  });

  test("is refused where another kind belongs", () => {
    for (const other of formats)
      if (other.bytes !== bytes) expect(refused(() => decode(other.bytes)).code).toBe("DAMAGED");
  });
});

describe("an object that is whole", () => {
  test("is refused in another vault", () => {
    const vault = toHex(foreignVaultId);
    refused(() => decodeHead(encodeHead(headSample), "o", { ...headSample, vault }), /belongs to vault/);
    refused(
      () => decodePage(encodePage(pageSample).bytes, "o", { ...headSample, vault, reference: pageReference }),
      /belongs to vault/,
    );
    refused(
      () => decodeManifest(manifest.bytes, "o", { ...manifestSample, id: manifest.id, vault }),
      /belongs to vault/,
    );
    refused(() => decodePin(encodePin(pinSample), "o", { ...pinSample, vault }), /belongs to vault/);
    refused(
      () => decodeCondemned(encodeCondemned(condemnedSample), "o", { ...condemnedSample, vault }),
      /belongs to vault/,
    );
    refused(() => decodeCollection(encodeCollection(collectionSample), "o", vault), /belongs to vault/);
    refused(() => decodeCollected(encodeCollected(collectedSample), "o", vault), /belongs to vault/);
    refused(() => decodeDead(encodeDead(deadSample), deadName(deadSample.segment), vault), /belongs to vault/);
    refused(() => decodeFrameHeader(frame, "o", { ...framePlace, vaultId: foreignVaultId }), /another vault/);
    refused(() => decodeLeaf(leaf.bytes, "o", foreignVaultId, leaf.checksum), /another vault/);
    refused(() => decodeRoot(root.bytes, "o", foreignVaultId, root.checksum), /another vault/);
  });

  test("is refused in the place of another", () => {
    refused(
      () => decodeDead(encodeDead(deadSample), deadName("segments/web/00000007-0-00000004"), deadSample.vault),
      /is of segment/,
    );
    refused(() => decodeHead(encodeHead(headSample), "o", { ...headSample, disk: "other" }), /belongs to disk/);
    refused(
      () => decodeManifest(manifest.bytes, "o", { ...manifestSample, id: "0".repeat(32) }),
      /where the head names/,
    );
    refused(
      () => decodePage(encodePage(indexSample).bytes, "o", { ...headSample, reference: pageReference }),
      /must be/,
    );
    refused(() => decodeFrameHeader(frame, "o", { ...framePlace, offset: 8192 }), /another place/);
    refused(() => decodeFrameHeader(frame, "o", { ...framePlace, segmentId: vaultId }), /another place/);
    refused(() => decodeLeaf(leaf.bytes, "o", vaultId, root.checksum), /not the one/);
    refused(() => decodeRoot(root.bytes, "o", vaultId, leaf.checksum), /not the one/);
  });
});

/**
 * A document with a correct checksum and wrong content is refused, and allocates nothing by its
 * sizes.
 */
describe("an object with a right checksum and wrong content", () => {
  const strange = fc.oneof(
    fc.jsonValue(),
    fc.constantFrom(-1, 0.5, 2 ** 53, 1e300, "", "x".repeat(32), "0".repeat(31), null, [], {}, [null], "__proto__"),
  );

  test("gives a document of the right types or DAMAGED, whatever stands in a field", () => {
    const cases: readonly (readonly [object, (body: object) => unknown])[] = [
      [vaultSample, (body) => decodeVault(encodeVault(body as typeof vaultSample), "o")],
      [headSample, (body) => decodeHead(encodeHead(body as typeof headSample), "o", headSample)],
      [pageSample, (body) => decodePage(...pageAs(body as PageDocument, pageReference))],
      [
        manifestSample,
        (body) => {
          const { bytes, id } = encodeManifest(body as typeof manifestSample);
          return decodeManifest(bytes, "o", { ...manifestSample, id });
        },
      ],
      [
        collectedSample,
        (body) => decodeCollected(encodeCollected(body as typeof collectedSample), "o", collectedSample.vault),
      ],
      [
        collectionSample,
        (body) => decodeCollection(encodeCollection(body as typeof collectionSample), "o", collectionSample.vault),
      ],
      [labelSample, (body) => decodeLabel(encodeLabel(body as typeof labelSample), "o", labelSample)],
      [runSample, (body) => decodeRun(encodeRun(body as typeof runSample), runObject, runSample.vault)],
      [pinSample, (body) => decodePin(encodePin(body as typeof pinSample), "o", pinSample)],
      [
        condemnedSample,
        (body) => decodeCondemned(encodeCondemned(body as typeof condemnedSample), "o", condemnedSample),
      ],
    ];
    for (const [sample, decode] of cases) {
      fc.assert(
        fc.property(fc.constantFrom(...Object.keys(sample)), strange, (field, value) => {
          const decoded = decodedOrRefused(() => decode({ ...sample, [field]: value }));
          // JSON has one zero.
          if (decoded !== undefined) expect(decoded).toEqual({ ...sample, [field]: Object.is(value, -0) ? 0 : value });
        }),
        { numRuns: runsOf(300) },
      );
    }
  });

  test("is refused when points are not in order, blocks no power of two, lists too long", () => {
    const [first, second] = headSample.points;
    refused(
      () =>
        decodeHead(
          encodeHead({ ...headSample, points: [second, first].flatMap((point) => point ?? []) }),
          "o",
          headSample,
        ),
      /order/,
    );
    for (const ranges of [
      [{ first: 2, last: 1 }],
      [
        { first: 1, last: 3 },
        { first: 3, last: 4 },
      ],
      [{ first: 0, last: 1 }],
    ]) {
      refused(
        () => decodeCondemned(encodeCondemned({ ...condemnedSample, ranges }), "o", condemnedSample),
        /order|whole number/,
      );
    }
    refused(() => decodeVault(encodeVault({ ...vaultSample, blockBytes: 65_537 }), "o"), /power of two/);
    const run = manifestSample.runs[0];
    const long = encodeManifest({
      ...manifestSample,
      runs: Array.from({ length: 4097 }, () => run).flatMap((item) => item ?? []),
    });
    refused(() => decodeManifest(long.bytes, "o", { ...manifestSample, id: long.id }), /at most 4096/);
  });

  test("is refused when it is JSON's edge rather than an object", () => {
    for (const body of [null, 1, "text", [], [manifestSample]]) {
      const { bytes, id } = encodeManifest(body as never);
      refused(() => decodeManifest(bytes, "o", { ...manifestSample, id }), /not a JSON object/);
    }
  });

  test("is a manifest whose hook and group are within bounds, or refused", () => {
    const { application, group } = manifestSample;
    const step = application?.steps[0];
    if (application === null || group === null || step === undefined)
      throw new Error("the sample has a hook and a group");
    const sound = [
      { application: null, group: null },
      { application: { ...application, outcome: "failed", reason: "x".repeat(32_768), steps: [] } },
      {
        application: {
          ...application,
          steps: [{ ...step, command: "x".repeat(8192), output: "\n\t".repeat(2048), exitCode: 255 }],
        },
      },
      { application: { ...application, steps: Array.from({ length: 64 }, () => step) } },
      { group: { ...group, disks: Array.from({ length: 64 }, (_, index) => `disk ${String(index)}`) } },
    ];
    const wrong = [
      { application: { ...application, outcome: "thawed" } },
      { application: { ...application, reason: "x".repeat(32_769) } },
      { application: { ...application, steps: [{ ...step, command: "x".repeat(8193) }] } },
      { application: { ...application, steps: [{ ...step, output: "x".repeat(4097) }] } },
      { application: { ...application, steps: [{ ...step, output: "\u001b[2J" }] } },
      { application: { ...application, steps: [{ ...step, signal: "9" }] } },
      { application: { ...application, steps: [{ ...step, exitCode: 0.5 }] } },
      { application: { ...application, steps: Array.from({ length: 65 }, () => step) } },
      { group: { ...group, disks: Array.from({ length: 65 }, () => "d") } },
      { group: { ...group, disks: [1] } },
      { group: { ...group, id: "1" } },
    ];
    const decodeWith = (part: object): unknown => {
      const { bytes, id } = encodeManifest({ ...manifestSample, ...part });
      return decodeManifest(bytes, "o", { ...manifestSample, id });
    };
    for (const part of sound) expect(decodeWith(part)).toEqual({ ...manifestSample, ...part });
    for (const part of wrong) refused(() => decodeWith(part));
  });

  test("is a head or page whose pages are in order and say what is in them, or refused", () => {
    const head = (part: object): unknown => decodeHead(encodeHead({ ...headSample, ...part }), "o", headSample);
    const [reference] = headSample.pages;
    const [point] = headSample.points;
    if (reference === undefined || point === undefined) throw new Error("the sample has a page and points");
    expect(head({ pages: [] })).toEqual({ ...headSample, pages: [] });
    refused(() => head({ points: [] }), /newest point/);
    refused(() => head({ pages: [reference, reference] }), /pages are not in order/);
    refused(() => head({ pages: [{ ...reference, count: 4 }] }), /pages are not in order/);
    refused(() => head({ pages: [{ ...reference, lastSequence: 4 }] }), /points are not in order/);
    refused(() => head({ pages: [{ ...reference, lastTimeMs: point.timeMs }] }), /points are not in order/);
    refused(() => head({ pages: [{ ...reference, level: 2 }] }), /level/);
    refused(() => head({ points: Array.from({ length: 513 }, () => point) }), /at most 512/);
    const page = (part: Partial<PageDocument>, claims: Partial<PageReference>): unknown =>
      decodePage(...pageAs({ ...pageSample, ...part }, { ...pageReference, ...claims }));
    for (const name of [
      "count",
      "firstSequence",
      "lastSequence",
      "firstTimeMs",
      "lastTimeMs",
      "ordinal",
      "epoch",
    ] as const) {
      refused(() => page({}, { [name]: 77 }), new RegExp(`its ${name} is not`));
    }
    refused(() => page({ points: [] }, {}), /level/);
    refused(() => page({}, { level: 1 }), /another level/);
    refused(() => page({ pages: [pageReference], points: [] }, {}), /another level/);
    refused(() => page({ pages: [indexReference], points: [] }, { level: 1 }), /another level/);
  });

  test("is a frame header whose sizes fit together, or refused", () => {
    const word = fc.oneof(
      fc.nat(8192),
      fc.constantFrom(0, 0xffff_ffff, frameBytesMax, frameBytesMax + 512, 0x8000_0000),
    );
    fc.assert(
      fc.property(word, word, word, (frameBytes, tableOffset, count) => {
        const bytes = Buffer.from(frame.subarray(0, frameHeaderBytes));
        bytes.writeUInt32LE(frameBytes, 8);
        bytes.writeUInt32LE(tableOffset, 12);
        bytes.writeUInt32LE(count, 16);
        bytes.set(checksum(bytes.subarray(0, 112)), 112);
        const header = decodedOrRefused(() => decodeFrameHeader(bytes, "o", framePlace));
        if (header === undefined) return;
        expect(header.frameBytes).toBeLessThanOrEqual(frameBytesMax);
        expect(header.chunkCount).toBeLessThanOrEqual(frameChunksMax);
        expect(header.tableOffset + header.tableBytes).toBeLessThanOrEqual(header.frameBytes);
        expect(framePlace.offset + header.frameBytes).toBeLessThanOrEqual(segmentBytes);
      }),
      { numRuns: runsOf(500) },
    );
  });

  test("is a frame table whose payloads lie before it, or refused", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(0xffff_ffff), { minLength: 3, maxLength: 3 }), (words) => {
        const bytes = Buffer.from(tableBytes);
        for (const [index, word] of words.entries()) bytes.writeUInt32LE(word, 48 + index * 4);
        const table = decodedOrRefused(() =>
          decodeFrameTable(bytes, "o", { ...frameHeader, tableChecksum: checksum(bytes) }),
        );
        if (table === undefined) return;
        for (const offset of table.offsets) expect(offset).toBeLessThanOrEqual(frameHeader.tableOffset);
      }),
    );
  });

  test("is a leaf with sorted windows into known chunks, or refused", () => {
    const entry = fc.record({
      start: fc.oneof(fc.nat(100), fc.nat(0xffff_ffff)),
      length: fc.oneof(fc.nat(20), fc.nat(0xffff_ffff)),
      segment: fc.constantFrom(0, 1, 2, zeroSegment),
      chunkOffset: fc.nat(255),
      chunkLength: fc.nat(255),
    });
    const [first, second] = [segmentName("d", 1, 0, 0), segmentName("d", 1, 0, 1)];
    fc.assert(
      fc.property(
        fc.array(entry, { maxLength: 4 }),
        fc.constantFrom([], [first], [first, second]),
        (entries, names) => {
          const columns = newColumns(4);
          for (const [index, { start, length, segment, chunkOffset, chunkLength }] of entries.entries()) {
            columns.starts[index] = start;
            columns.lengths[index] = length;
            columns.segments[index] = segment;
            columns.chunkOffsets[index] = chunkOffset;
            columns.chunkLengths[index] = chunkLength;
            columns.storedWords[index] = (chunkLength + 1) * granuleBytes;
          }
          columns.count = entries.length;
          columns.names.push(...names);
          const encoded = encodeLeaf(columns, vaultId);
          const decoded = decodedOrRefused(() => decodeLeaf(encoded.bytes, "o", vaultId, encoded.checksum));
          const sound =
            entries.length > 0 &&
            names.length <= entries.length &&
            entries.every(({ start, length, segment, chunkOffset, chunkLength }, index) => {
              const before = entries[index - 1];
              const ordered = before === undefined || start >= before.start + before.length;
              const window =
                segment === zeroSegment || (segment < names.length && chunkOffset + length <= chunkLength + 1);
              return ordered && length > 0 && start + length <= 2 ** 32 && window;
            });
          expect(decoded !== undefined).toBe(sound);
        },
      ),
      { numRuns: runsOf(500) },
    );
  });

  test("is refused when a map's table claims more entries than it has", () => {
    for (const count of [0, 2, 4, 32_769, 65_537, 0x7fff_ffff, 0xffff_ffff]) {
      const forgedLeaf = resigned(leaf.bytes, (bytes) => bytes.writeUInt32LE(count, 8));
      refused(() => decodeLeaf(forgedLeaf, "o", vaultId, forgedLeaf.subarray(48, 64)));
      if (count === 2) continue;
      const forgedRoot = resigned(root.bytes, (bytes) => bytes.writeUInt32LE(count, 8));
      refused(() => decodeRoot(forgedRoot, "o", vaultId, forgedRoot.subarray(48, 64)));
    }
    const names = resigned(leaf.bytes, (bytes) => bytes.writeUInt32LE(0xffff_ffff, 12));
    refused(() => decodeLeaf(names, "o", vaultId, names.subarray(48, 64)));
  });

  test("is refused when a leaf really has more entries than a leaf may", () => {
    for (const count of [leafEntriesMax, leafEntriesMax + 1]) {
      const columns = newColumns(count);
      for (let index = 0; index < count; index += 1) columns.starts[index] = index;
      columns.lengths.fill(1);
      columns.segments.fill(zeroSegment);
      columns.count = count;
      const { bytes, checksum: sum } = encodeLeaf(columns, vaultId);
      if (count === leafEntriesMax) expect(decodeLeaf(bytes, "o", vaultId, sum).count).toBe(count);
      else refused(() => decodeLeaf(bytes, "o", vaultId, sum), /claims 32769 entries/);
    }
  });

  test("is refused when a root's leaves overlap or are larger than a leaf can be", () => {
    const [a, b] = rootSample;
    if (a === undefined || b === undefined) throw new Error("the sample has two leaves");
    for (const leaves of [
      [b, a],
      [a, { ...b, first: a.last }],
      [{ ...a, first: 5, last: 4 }],
      [{ ...a, bytes: leafBytesMax + 1 }],
      [{ ...a, epoch: -1 }],
      [{ ...a, epoch: 2 ** 36 + 1 }],
      [{ ...a, entries: leafEntriesMax + 1 }],
    ]) {
      const { bytes, checksum: sum } = encodeRoot(leaves, vaultId);
      refused(() => decodeRoot(bytes, "o", vaultId, sum), /out of order or out of bounds/);
    }
    const twice = encodeRoot([a, { ...b, epoch: a.epoch, ordinal: a.ordinal }], vaultId);
    refused(() => decodeRoot(twice.bytes, "o", vaultId, twice.checksum), /twice/);
  });
});

/**
 * What `decodePage` takes for a page that its reference names by its true checksum, whatever else
 * it claims.
 */
function pageAs(page: PageDocument, claims: PageReference): Parameters<typeof decodePage> {
  const { bytes, id } = encodePage(page);
  return [bytes, "o", { ...headSample, reference: { ...claims, bytes: bytes.byteLength, checksum: id } }];
}

/** The TidemarkError that `decode` throws; fails when it succeeds or throws anything else. */
function refused(decode: () => unknown, fact?: RegExp): TidemarkError {
  try {
    decode();
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    expect(["DAMAGED", "FORMAT_UNSUPPORTED"]).toContain(error.code);
    if (fact !== undefined) expect(error.message).toMatch(fact);
    return error;
  }
  throw new Error("the decoder accepted it");
}

/** What `decode` gives, or undefined when it refuses as it must. */
function decodedOrRefused<Decoded>(decode: () => Decoded): Decoded | undefined {
  try {
    return decode();
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    expect(error.code).toBe("DAMAGED");
    return undefined;
  }
}
