/** Fetch plan: neighbours come with one range that fits into a slab. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { orderByPlace, planFetches } from "../../../engine/pipeline/fetch-plan.ts";
import { storedLz4Flag } from "../../../engine/store/format/frame.ts";
import { newColumns } from "../../../engine/store/format/leaf.ts";
import type { Pieces } from "../../../engine/store/map/point-map.ts";

const geometry = { slabCount: 1, slabBytes: 1_000_000, outBytes: 4_096 * 500 };

interface Chunk {
  readonly segment: number;
  readonly offset: number;
  readonly bytes: number;
  readonly granules: number;
}

/** Chunks as pieces of a map, in this order of the disk. */
function piecesOf(chunks: readonly Chunk[]): Pieces {
  const leaf = { ...newColumns(chunks.length), names: ["a", "b", "c"], count: chunks.length };
  chunks.forEach(({ segment, offset, bytes, granules }, index) => {
    leaf.segments[index] = segment;
    leaf.offsets[index] = offset;
    leaf.storedWords[index] = bytes + storedLz4Flag;
    leaf.chunkLengths[index] = granules - 1;
    leaf.digests[index * 16] = index;
  });
  const entries = Uint32Array.from(chunks.keys());
  const lengths = Uint32Array.from(chunks, ({ granules }) => granules);
  const starts = entries.map((_, index) => 16 * index);
  const leaves = chunks.map(() => leaf);
  return { count: chunks.length, starts, lengths, leaves, entries, chunkOffsets: new Uint32Array(chunks.length) };
}

/** Chunks one behind the other in a segment, from `offset` on. */
function run(segment: number, offset: number, count: number, bytes = 40_000, granules = 16): Chunk[] {
  return Array.from({ length: count }, (_, index) => ({ segment, offset: offset + index * bytes, bytes, granules }));
}

function plan(
  chunks: readonly Chunk[],
): { readonly segment: string; readonly offset: number; readonly bytes: number }[] {
  const pieces = piecesOf(chunks);
  return planFetches(pieces, orderByPlace(pieces, undefined), geometry).map(({ segment, offset, bytes }) => ({
    segment,
    offset,
    bytes,
  }));
}

test("chunks of two segments that alternate on the disk come with a range each", () => {
  const [a, b] = [run(0, 0, 10), run(1, 0, 10)];
  const mixed = a.flatMap((chunk, index) => [chunk, ...b.slice(index, index + 1)]);
  expect(plan(mixed)).toEqual([
    { segment: "a", offset: 0, bytes: 400_000 },
    { segment: "b", offset: 0, bytes: 400_000 },
  ]);
});

test("a run that is longer than a slab, stored or plain, is cut where the slab is full", () => {
  expect(plan(run(0, 0, 26)).map(({ bytes }) => bytes)).toEqual([1_000_000, 40_000]);
  expect(plan(run(0, 0, 32, 4_000)).map(({ bytes }) => bytes)).toEqual([124_000, 4_000]);
});

test("a long gap ends a range, a short one is read", () => {
  expect(plan([...run(0, 0, 2), ...run(0, 90_000, 2), ...run(0, 400_000, 2)])).toEqual([
    { segment: "a", offset: 0, bytes: 170_000 },
    { segment: "a", offset: 400_000, bytes: 80_000 },
  ]);
});

test("every piece lies in one range, which fits into a slab", () => {
  const chunk = fc.record({
    segment: fc.nat(2),
    offset: fc.nat(3_000_000).map((value) => value * 8),
    bytes: fc.integer({ min: 1, max: 900_000 }),
    granules: fc.integer({ min: 1, max: 256 }),
  });
  fc.assert(
    fc.property(fc.array(chunk, { minLength: 1, maxLength: 60 }), (chunks) => {
      const pieces = piecesOf(chunks);
      const order = orderByPlace(pieces, undefined);
      let next = 0;
      for (const { segment, offset, bytes, from, end } of planFetches(pieces, order, geometry)) {
        expect(from).toBe(next);
        next = end;
        expect(bytes).toBeLessThanOrEqual(geometry.slabBytes);
        let granules = 0;
        for (const index of order.subarray(from, end)) {
          const of = chunks[index];
          expect(of?.segment).toBe(["a", "b", "c"].indexOf(segment));
          expect(of?.offset).toBeGreaterThanOrEqual(offset);
          expect((of?.offset ?? 0) + (of?.bytes ?? 0)).toBeLessThanOrEqual(offset + bytes);
          granules += of?.granules ?? 0;
        }
        expect(granules * 4_096).toBeLessThanOrEqual(geometry.outBytes);
      }
      expect(next).toBe(order.length);
    }),
  );
});
