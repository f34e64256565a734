/** The documents of scrubs and verifications: what is written is read back, and anything else is refused. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { hasCode } from "../../../../engine/errors.ts";
import {
  decodeProved,
  decodeQuarantine,
  encodeProved,
  encodeQuarantine,
  quarantineName,
} from "../../../../engine/store/format/proof.ts";

const vault = "0123456789abcdef".repeat(2);
const owner = { vault, disk: "web" };

function expectThrown(work: () => unknown, code: "DAMAGED"): void {
  expect(work).toThrow(expect.toSatisfy((error: unknown) => hasCode(error, code)) as Error);
}
const segment = "segments/web/00000001-0-00000000";

describe("the times of points", () => {
  const rising = fc
    .uniqueArray(fc.integer({ min: 1, max: 100_000 }), { maxLength: 40 })
    .map((numbers) => numbers.sort((a, b) => a - b))
    .map((numbers) =>
      numbers.flatMap((first, index) =>
        index % 2 === 0 ? [{ first, last: numbers[index + 1] ?? first, provedMs: first * 7 }] : [],
      ),
    );

  test("are read back as they were written", () => {
    fc.assert(
      fc.property(rising, (ranges) => {
        expect(decodeProved(encodeProved({ ...owner, ranges }), "disks/web/proved", owner)).toEqual({
          ...owner,
          ranges,
        });
      }),
    );
  });

  test.each([
    ["of another disk", { ...owner, disk: "db", ranges: [] }],
    ["of another vault", { ...owner, vault: "f".repeat(32), ranges: [] }],
    [
      "that overlap",
      {
        ...owner,
        ranges: [
          { first: 1, last: 5, provedMs: 1 },
          { first: 5, last: 6, provedMs: 1 },
        ],
      },
    ],
    ["that end before they begin", { ...owner, ranges: [{ first: 5, last: 4, provedMs: 1 }] }],
  ])("%s are refused", (_what, document) => {
    expectThrown(() => decodeProved(encodeProved(document), "disks/web/proved", owner), "DAMAGED");
  });
});

describe("a quarantine", () => {
  const offsets = fc
    .uniqueArray(fc.integer({ min: 128, max: 2 ** 30 - 1 }), { maxLength: 50 })
    .map((numbers) => numbers.sort((a, b) => a - b));

  test("is read back as it was written", () => {
    fc.assert(
      fc.property(offsets, (list) => {
        const document = { vault, segment, offsets: list };
        expect(decodeQuarantine(encodeQuarantine(document), quarantineName(segment), vault)).toEqual(document);
      }),
    );
  });

  test.each([
    ["of another vault", { vault: "f".repeat(32), segment, offsets: [] }],
    ["of another segment", { vault, segment: "segments/db/00000001-0-00000000", offsets: [] }],
    ["beyond a segment", { vault, segment, offsets: [2 ** 30] }],
    ["that names a place twice", { vault, segment, offsets: [128, 128] }],
  ])("%s is refused", (_what, document) => {
    expectThrown(() => decodeQuarantine(encodeQuarantine(document), quarantineName(segment), vault), "DAMAGED");
  });
});
