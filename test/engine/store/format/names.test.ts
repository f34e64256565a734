import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import {
  condemnedName,
  decodeDiskName,
  diskNameBytesMax,
  encodeDiskName,
  epochMax,
  headName,
  manifestName,
  mapName,
  pageName,
  parseSegmentName,
  segmentEpochPrefix,
  segmentName,
  sidecarName,
  sidecarPrefix,
  sidecarSequence,
} from "../../../../engine/store/format/names.ts";
import { nameLengthMax, namePartLengthMax } from "../../../../sink/rules.ts";

/**
 * Names of disks as people and machines may give them: any text without control characters, short
 * enough.
 */
const diskName = fc
  .oneof(
    fc.string({ unit: "binary", minLength: 1, maxLength: 60 }),
    fc.string({
      unit: fc.constantFrom(...Array.from("aA.~/-_ ä\u00e4a\u0308ßI\u0130ı%0😀\\:*")),
      minLength: 1,
      maxLength: 12,
    }),
  )
  .filter((name) => !/[\p{Cc}\p{Cs}]/u.test(name) && Buffer.byteLength(name.normalize("NFC")) <= diskNameBytesMax);

describe("a disk's name", () => {
  test("comes back from its spelling, in Unicode's composed form", () => {
    fc.assert(
      fc.property(diskName, (name) => {
        expect(decodeDiskName(encodeDiskName(name))).toBe(name.normalize("NFC"));
      }),
      { numRuns: 1000 },
    );
  });

  test("shares its spelling with no other, even where case is folded", () => {
    fc.assert(
      fc.property(diskName, diskName, (a, b) => {
        const same = a.normalize("NFC") === b.normalize("NFC");
        expect(encodeDiskName(a).toUpperCase() === encodeDiskName(b).toUpperCase()).toBe(same);
      }),
      { numRuns: 1000 },
    );
    expect(encodeDiskName("A")).not.toBe(encodeDiskName("a"));
    expect(encodeDiskName("\u00e4")).toBe(encodeDiskName("a\u0308"));
  });

  test("is spelled as a part of a path that every store accepts", () => {
    const check = (name: string): void => {
      const encoded = encodeDiskName(name);
      expect(encoded).toMatch(/^(?!\.)[a-z0-9._~-]+$/);
      expect(encoded.length).toBeLessThanOrEqual(namePartLengthMax);
    };
    for (const odd of [
      ".",
      "..",
      "...",
      "~",
      "~2e",
      "/",
      "../x",
      "a/b",
      "A",
      " ",
      "😀",
      "%2e",
      "CON",
      "nul\\x",
      "-rf",
      "z".repeat(80),
    ])
      check(odd);
    fc.assert(fc.property(diskName, check), { numRuns: 1000 });
  });

  test("is refused when it is empty, too long, ill-formed or holds control characters", () => {
    for (const name of [
      "",
      "z".repeat(81),
      "ä".repeat(41),
      "a\nb",
      "\u0000",
      "\u007f",
      "\u0085",
      "a\ud800",
      "\udc00",
    ]) {
      expect(() => encodeDiskName(name)).toThrow(
        expect.objectContaining({ name: "TidemarkError", code: "INVALID_ARGUMENT" }),
      );
    }
  });

  test("is not read from any text that is not its one spelling", () => {
    const foreign = [
      "",
      ".a",
      "~",
      "~2",
      "~zz",
      "A",
      "~41~",
      "~61",
      "~2d",
      "~C3~A4",
      "~c3",
      "~ff",
      "a~cc~88",
      "~00",
      "a/b",
      "~0a",
    ];
    expect(foreign.map(decodeDiskName)).toEqual(foreign.map(() => undefined));
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...Array.from("~.a2ec389-")), maxLength: 12 }), (text) => {
        const decoded = decodeDiskName(text);
        if (decoded !== undefined) expect(encodeDiskName(decoded)).toBe(text);
      }),
      { numRuns: 2000 },
    );
  });
});

describe("the names of objects", () => {
  const number = fc.oneof(fc.nat(1000), fc.nat(2 ** 31), fc.constantFrom(0, 99_999_999, 100_000_000, 2 ** 50));

  test("of segments give back their parts, and only they do", () => {
    fc.assert(
      fc.property(diskName, fc.nat(epochMax), fc.nat(255), number, (disk, epoch, lane, ordinal) => {
        const name = segmentName(disk, epoch, lane, ordinal);
        expect(parseSegmentName(name)).toEqual({ encodedDisk: encodeDiskName(disk), epoch, lane, ordinal });
        expect(name.startsWith(segmentEpochPrefix(disk, epoch))).toBe(true);
        expect(name.length).toBeLessThanOrEqual(nameLengthMax);
      }),
    );
    for (const name of [
      "segments/a",
      "segments/a/1-0-1",
      "segments/a/00000001-0-00000001.tmp",
      "disks/a/head",
      "segments//00000001-0-00000001",
      `segments/a/${String(epochMax + 1)}-0-00000001`,
    ]) {
      expect(parseSegmentName(name)).toBeUndefined();
    }
  });

  test("of holds and pins give back the point that they keep, and only they do", () => {
    const unique = "0123456789abcdef0123456789abcdef";
    fc.assert(
      fc.property(diskName, number, fc.constantFrom("holds" as const, "pins" as const), (disk, sequence, kind) => {
        const name = sidecarName(kind, disk, sequence, unique);
        expect(sidecarSequence(name)).toBe(sequence);
        expect(name.startsWith(sidecarPrefix(kind, disk))).toBe(true);
        expect(name.length).toBeLessThanOrEqual(nameLengthMax);
      }),
    );
    for (const name of [
      condemnedName("a"),
      manifestName("a", 1, 2),
      `disks/a/holds/1-${unique}`,
      `disks/a/pins/00000001-${unique}0`,
      `disks/a/pins/00000001`,
      `disks/a/keys/00000001-${unique}`,
    ]) {
      expect(sidecarSequence(name)).toBeUndefined();
    }
  });

  test("of one epoch never begin like those of another", () => {
    fc.assert(
      fc.property(number, number, fc.nat(255), number, (a, b, lane, ordinal) => {
        fc.pre(a !== b);
        expect(segmentName("d", a, lane, ordinal).startsWith(segmentEpochPrefix("d", b))).toBe(false);
      }),
    );
  });

  test("differ wherever disk, sequence, epoch, lane or ordinal do", () => {
    const parts = fc.tuple(diskName, number, number);
    fc.assert(
      fc.property(parts, parts, ([diskA, a1, a2], [diskB, b1, b2]) => {
        const same = diskA.normalize("NFC") === diskB.normalize("NFC");
        expect(headName(diskA) === headName(diskB)).toBe(same);
        expect(manifestName(diskA, a1, a2) === manifestName(diskB, b1, b2)).toBe(same && a1 === b1 && a2 === b2);
        expect(pageName(diskA, a1, a2) === pageName(diskB, b1, b2)).toBe(same && a1 === b1 && a2 === b2);
        expect(mapName(diskA, a1, a2) === mapName(diskB, b1, b2)).toBe(same && a1 === b1 && a2 === b2);
      }),
    );
  });

  test("cannot be made for a disk without a proper name", () => {
    expect(() => headName("a\u0000b")).toThrow(TidemarkError);
  });
});
