import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DirtyBitmap, regionBytes, regionGranules } from "../../../../engine/disk/tracking/dirty-bitmap.ts";
import { granuleBytes, volumeBytesMax } from "../../../../engine/limits.ts";
import type { Extent } from "../../../../engine/volume.ts";

const mebibyte = 1024 * 1024;

describe("a dirty bitmap", () => {
  it("marks every granule that a range touches", () => {
    const bitmap = new DirtyBitmap(mebibyte);
    bitmap.mark(granuleBytes - 1, 2);
    bitmap.mark(10 * granuleBytes, 1);
    bitmap.mark(20 * granuleBytes, 3 * granuleBytes);
    expect(marked(bitmap)).toEqual([0, 1, 10, 20, 21, 22]);
    expect(bitmap.count).toBe(6);
  });

  it("marks nothing for an empty range, wherever it lies", () => {
    const bitmap = new DirtyBitmap(mebibyte);
    bitmap.mark(0, 0);
    bitmap.mark(mebibyte, 0);
    expect(bitmap.count).toBe(0);
  });

  it.each([
    [-1, 1],
    [mebibyte, 1],
    [0, mebibyte + 1],
    [0, -1],
    [Number.NaN, 1],
    [0, Number.NaN],
  ])("refuses the range from %d of %d bytes, which leaves the disk", (offset, length) => {
    const bitmap = new DirtyBitmap(mebibyte);
    expect(() => {
      bitmap.mark(offset, length);
    }).toThrow(/outside of the disk/);
    expect(bitmap.count).toBe(0);
  });

  it("joins extents across words and regions, and clips the last one to the disk", () => {
    const sizeBytes = 3 * regionBytes + 100;
    const bitmap = new DirtyBitmap(sizeBytes);
    bitmap.mark(regionBytes - granuleBytes, 2 * granuleBytes);
    bitmap.mark(sizeBytes - 1, 1);
    expect([...bitmap.extents()]).toEqual([
      { offset: regionBytes - granuleBytes, length: 2 * granuleBytes },
      { offset: 3 * regionBytes, length: 100 },
    ]);
    expect([...bitmap.regions()]).toEqual([0, 1, 3]);
    bitmap.mark(0, sizeBytes);
    expect([...bitmap.extents()]).toEqual([{ offset: 0, length: sizeBytes }]);
    expect(bitmap.count).toBe(bitmap.granules);
  });

  it("gives the extents from within a run of marks", () => {
    const bitmap = new DirtyBitmap(mebibyte);
    bitmap.mark(0, 10 * granuleBytes);
    expect([...bitmap.extents(7)]).toEqual([{ offset: 7 * granuleBytes, length: 3 * granuleBytes }]);
    expect([...bitmap.extents(10)]).toEqual([]);
  });

  it("reaches the last granule of the largest disk there can be", () => {
    const bitmap = new DirtyBitmap(volumeBytesMax);
    bitmap.mark(volumeBytesMax - 1, 1);
    bitmap.mark(2 ** 31 * granuleBytes - 1, 2);
    expect(bitmap.granules).toBe(2 ** 32);
    expect([...bitmap.extents()]).toEqual([
      { offset: (2 ** 31 - 1) * granuleBytes, length: 2 * granuleBytes },
      { offset: volumeBytesMax - granuleBytes, length: granuleBytes },
    ]);
    bitmap.clear(2 ** 32 - 1, 1);
    expect([...bitmap.regions()]).toEqual([2 ** 21 - 1, 2 ** 21]);
  });

  it("takes a million scattered marks and gives them back", () => {
    const granules = 2 ** 28;
    const bitmap = new DirtyBitmap(granules * granuleBytes);
    const marks = 1_000_000;
    // A step that has no divisor in common with the number of granules never meets one twice.
    const step = 66_666_667;
    for (let index = 0; index < marks; index += 1) bitmap.mark(((index * step) % granules) * granuleBytes + 512, 1024);
    expect(bitmap.count).toBe(marks);
    let sum = 0;
    for (const { length } of bitmap.extents()) sum += length;
    expect(sum).toBe(marks * granuleBytes);
    bitmap.clearAll();
    expect([bitmap.count, ...bitmap.regions()]).toEqual([0]);
  });

  it("keeps its marks when the disk grows, and marks nothing of what is new", () => {
    const bitmap = new DirtyBitmap(100);
    bitmap.mark(0, 100);
    bitmap.grow(40 * regionBytes);
    expect([...bitmap.extents()]).toEqual([{ offset: 0, length: granuleBytes }]);
    bitmap.mark(40 * regionBytes - 1, 1);
    expect([...bitmap.regions()]).toEqual([0, 39]);
  });

  it("behaves like a set of granules under any history", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 3 * regionBytes }),
        fc.array(step(), { maxLength: 40 }),
        (sizeBytes, steps) => {
          const bitmap = new DirtyBitmap(sizeBytes);
          const other = new DirtyBitmap(sizeBytes);
          const model = new Set<number>();
          const otherModel = new Set<number>();
          for (const { kind, from, length } of steps) {
            const offset = Math.floor(from * (sizeBytes - 1));
            const bytes = Math.min(Math.ceil(length), sizeBytes - offset);
            const first = Math.floor(offset / granuleBytes);
            const end = Math.ceil((offset + bytes) / granuleBytes);
            if (kind === "mark") {
              bitmap.mark(offset, bytes);
              for (let granule = first; granule < end; granule += 1) model.add(granule);
            } else if (kind === "mark other") {
              other.mark(offset, bytes);
              for (let granule = first; granule < end; granule += 1) otherModel.add(granule);
            } else if (kind === "or") {
              bitmap.or(other);
              for (const granule of otherModel) model.add(granule);
            } else if (kind === "clear") {
              bitmap.clear(first, end - first);
              for (let granule = first; granule < end; granule += 1) model.delete(granule);
            } else {
              expect(bitmap.anyMarked(first, end - first)).toBe(
                [...model].some((granule) => granule >= first && granule < end),
              );
            }
          }
          expect(marked(bitmap)).toEqual([...model].sort((a, b) => a - b));
          expect(bitmap.count).toBe(model.size);
          expect([...bitmap.regions()]).toEqual(
            [...new Set([...model].map((granule) => Math.floor(granule / regionGranules)))].sort((a, b) => a - b),
          );
          expectWellFormed([...bitmap.extents()], sizeBytes);
          bitmap.clearAll();
          expect(marked(bitmap)).toEqual([]);
        },
      ),
      { numRuns: 200 },
    );
  });
});

function step(): fc.Arbitrary<{ kind: "mark" | "mark other" | "or" | "clear" | "look"; from: number; length: number }> {
  return fc.record({
    kind: fc.constantFrom("mark", "mark", "mark other", "or", "clear", "look"),
    from: fc.double({ min: 0, max: 1, noNaN: true }),
    length: fc.oneof(fc.integer({ min: 1, max: 5 * granuleBytes }), fc.integer({ min: 1, max: 2 * regionBytes })),
  });
}

/** Asks granule by granule, so that it agrees with `extents` only when both are right. */
function marked(bitmap: DirtyBitmap): number[] {
  const single: number[] = [];
  for (let granule = 0; granule < bitmap.granules; granule += 1) if (bitmap.isMarked(granule)) single.push(granule);
  const walked: number[] = [];
  for (const { offset, length } of bitmap.extents()) {
    for (let at = offset; at < offset + length; at += granuleBytes) walked.push(at / granuleBytes);
  }
  expect(walked).toEqual(single);
  return single;
}

function expectWellFormed(extents: readonly Extent[], sizeBytes: number): void {
  let end = -1;
  for (const extent of extents) {
    expect(extent.offset).toBeGreaterThan(end);
    expect(extent.offset % granuleBytes).toBe(0);
    end = extent.offset + extent.length;
    expect(end === sizeBytes || end % granuleBytes === 0).toBe(true);
  }
  expect(end).toBeLessThanOrEqual(sizeBytes);
}
