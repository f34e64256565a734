/**
 * What changed since a point of the last minute can be told again: exactly, or with more, never
 * with less.
 */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DirtyBitmap, regionBytes, regionGranules } from "../../../../engine/disk/tracking/dirty-bitmap.ts";
import { Unsettled } from "../../../../engine/disk/tracking/unsettled.ts";
import { granuleBytes } from "../../../../engine/limits.ts";

const sizeBytes: number = 16 * regionBytes - 1000;
const granules: number = Math.ceil(sizeBytes / granuleBytes);
const manyMarks = fc.array(fc.integer({ min: 0, max: granules - 1 }), { maxLength: 60 });

describe("unsettled points", () => {
  it("give back all that changed since one of them, whether there is room for it or not", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(manyMarks, { minLength: 1, maxLength: 12 }),
        fc.nat(),
        fc.constantFrom(2 ** 26, 2000, 100, 0),
        async (cuts, pick, bytesMax) => {
          const unsettled = new Unsettled(60_000, bytesMax);
          for (const [index, marks] of cuts.entries()) {
            unsettled.push(`p${index}`, marked(marks), 0, (bitmap) => expect(bitmap.count).toBe(0));
            await unsettled.compacted;
          }
          const since = pick % cuts.length;
          const truth = marked(cuts.slice(since).flat());
          for (const { offset } of truth.extents()) expect(unsettled.anyMarked(offset / granuleBytes, 1)).toBe(true);
          const into = new DirtyBitmap(sizeBytes);
          expect(unsettled.goBack(`p${since}`, into)).toBe(true);
          const isExact = bytesMax === 2 ** 26;
          const wrong: number[] = [];
          for (let granule = 0; granule < granules; granule += 1) {
            const isWrong = truth.isMarked(granule) ? !into.isMarked(granule) : isExact && into.isMarked(granule);
            if (isWrong) wrong.push(granule);
          }
          expect(wrong).toEqual([]);
          expect(unsettled.bases).toEqual(cuts.slice(0, since).map((_, index) => `p${index}`));
        },
      ),
      { numRuns: 30 },
    );
  });

  it("are known before their bitmap has been turned into runs", async () => {
    const unsettled = new Unsettled(60_000);
    const free: DirtyBitmap[] = [];
    // More runs than are made in one turn.
    const bitmap = marked(Array.from({ length: granules / 2 - 1 }, (_, at) => at * 2));
    const { count } = bitmap;
    unsettled.push("p0", bitmap, 0, (freed) => free.push(freed));
    expect(free).toEqual([]);
    expect(unsettled.anyMarked(0, 1)).toBe(true);
    const into = new DirtyBitmap(sizeBytes);
    expect(unsettled.goBack("p0", into)).toBe(true);
    expect(into.count).toBe(count);
    await unsettled.compacted;
    expect(free).toEqual([bitmap]);
    expect(bitmap.count).toBe(0);
  });

  it("take no more memory than they may, by telling whole regions", async () => {
    const unsettled = new Unsettled(60_000, 1000);
    for (let index = 0; index < 20; index += 1) {
      unsettled.push(`p${index}`, marked(Array.from({ length: 100 }, (_, at) => at * 3 + index)), 0, () => undefined);
      await unsettled.compacted;
      expect(unsettled.bytes).toBeLessThanOrEqual(1000);
    }
    // All marks lie in the first region.
    expect(unsettled.anyMarked(regionGranules, granules)).toBe(false);
    expect(unsettled.bases).toHaveLength(20);
  });

  it("are forgotten when they have settled, oldest first", () => {
    const unsettled = new Unsettled(1000);
    unsettled.note("a", 0);
    unsettled.note("b", 500);
    expect(unsettled.settle(1000)).toEqual(["a", "b"]);
    expect(unsettled.settle(1001)).toEqual(["b"]);
    expect(unsettled.goBack("a", new DirtyBitmap(sizeBytes))).toBe(false);
  });

  it("are no more than 64 once they settle", () => {
    const unsettled = new Unsettled(1000);
    for (let index = 0; index <= 64; index += 1) unsettled.note(`p${index}`, 0);
    expect(unsettled.isFull).toBe(true);
    expect(unsettled.settle(0)).toHaveLength(64);
    expect(unsettled.bases[0]).toBe("p1");
  });
});

function marked(marks: readonly number[]): DirtyBitmap {
  const bitmap = new DirtyBitmap(sizeBytes);
  for (const granule of marks) bitmap.mark(granule * granuleBytes, 1);
  return bitmap;
}
