/** Sets of pages, against sets of numbers. */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { PageSet } from "../../../../engine/store/segments/page-set.ts";
import { LiveSet } from "../../../../engine/upkeep/collection/live-set.ts";
import { byDepth } from "../../../depth.ts";

const run = fc.record({ from: fc.nat(300), length: fc.integer({ min: 1, max: 60 }) });

describe("a set of pages", () => {
  test("holds what has been added, and tells it as runs", () => {
    fc.assert(
      fc.property(fc.array(run, { maxLength: 20 }), fc.nat(400), (runs, end) => {
        const set = new PageSet();
        const model = new Set<number>();
        for (const { from, length } of runs) {
          set.add(from, from + length);
          for (let page = from; page < from + length; page += 1) model.add(page);
        }
        expect(set.count()).toBe(model.size);
        const told = set
          .runs()
          .flatMap((each) => Array.from({ length: each.end - each.from }, (_, index) => each.from + index));
        expect(told).toEqual([...model].sort((a, b) => a - b));
        for (let page = 0; page < 400; page += 1) expect(set.has(page)).toBe(model.has(page));
        let last = end;
        while (model.has(last)) last += 1;
        expect(set.endOfRun(end)).toBe(last);
        expect(PageSet.ofRuns(set.runs()).runs()).toEqual(set.runs());
      }),
    );
  });

  test("knows a page by any byte of it", () => {
    const set = new PageSet();
    set.addBytes(511, 2);
    expect(set.runs()).toEqual([{ from: 0, end: 2 }]);
    expect(set.touches(1023, 1)).toBe(true);
    expect(set.touches(1024, 5000)).toBe(false);
  });
});

test("what a vault of a hundred million chunks needs is known in less than 2 GiB", () => {
  // 20 KB each, as measured on an ext4 image; in some of the segments, which tell for all:
  // memory is a bit for each 512 bytes that are stored.
  const live = new LiveSet();
  const chunks = byDepth(200_000, 10_000_000);
  const chunkBytes = 20_480;
  const perSegment = Math.floor(2 ** 30 / chunkBytes);
  for (let chunk = 0; chunk < chunks; chunk += 1) {
    live.add(
      `segments/d/00000001-0-${String(Math.floor(chunk / perSegment))}`,
      (chunk % perSegment) * chunkBytes,
      chunkBytes,
    );
  }
  expect(live.bytes * (100_000_000 / chunks)).toBeLessThan(2 * 2 ** 30);
  expect(live.bytes).toBeGreaterThanOrEqual((chunks * chunkBytes) / 4096);
});
