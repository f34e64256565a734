import { expect, test } from "vitest";
import {
  bitsOf,
  ChangeHistory,
  type ChangeSketch,
  decodeBlocks,
  encodeBlocks,
  isWithin,
  rankOf,
  sketchOf,
} from "../../../cli/capacity/sketch.ts";
import { numbersFrom } from "../../engine-model.ts";

/** Changes of so many random blocks below `blocks`, each with a random mask. */
function changesOf(next: () => number, count: number, blocks: number): Map<number, number> {
  const changed = new Map<number, number>();
  for (let index = 0; index < count; index += 1) changed.set(next() % blocks, (next() % 0xffff) + 1);
  return changed;
}

test("ranks are the same in every run, and differ for all blocks", () => {
  expect([0, 1, 2, 2 ** 27].map(rankOf)).toEqual([0, 1_364_076_727, 821_347_078, 2_793_904_997]);
  expect(new Set(Array.from({ length: 100_000 }, (_, block) => rankOf(block))).size).toBe(100_000);
});

test("a sketch of few blocks is exact, over any union", () => {
  const next = numbersFrom(1);
  const slots = Array.from({ length: 10 }, () => changesOf(next, 80, 200));
  const history = new ChangeHistory(slots.map((slot) => [sketchOf(1, [...slot])]));
  for (const [from, end] of [
    [0, 1],
    [3, 7],
    [0, 10],
    [5, 5],
  ] as const) {
    const union = new Map<number, number>();
    for (const slot of slots.slice(from, end))
      for (const [block, mask] of slot) union.set(block, (union.get(block) ?? 0) | mask);
    expect(history.granules(from, end)).toBe([...union.values()].reduce((sum, mask) => sum + bitsOf(mask), 0));
  }
});

test("a sketch of many blocks of a part of the disk estimates within 10 %, also over a union", () => {
  const next = numbersFrom(2);
  const share = 0.25;
  const slots = Array.from({ length: 6 }, () => changesOf(next, 12_000, 60_000));
  const sketches = slots.map((slot) =>
    sketchOf(
      share,
      [...slot].filter(([block]) => isWithin(block, share)),
    ),
  );
  for (const sketch of sketches) expect(sketch.blocks.length).toBe(1_024);
  const history = new ChangeHistory(sketches.map((sketch) => [sketch]));
  for (const end of [1, 4, 6]) {
    const union = new Map<number, number>();
    for (const slot of slots.slice(0, end))
      for (const [block, mask] of slot) union.set(block, (union.get(block) ?? 0) | mask);
    const real = [...union.values()].reduce((sum, mask) => sum + bitsOf(mask), 0);
    expect(Math.abs(history.granules(0, end) / real - 1)).toBeLessThan(0.1);
  }
});

test("blocks survive their text, and a text that holds none, a block twice or one of another share is refused", () => {
  const sketch = sketchOf(1, [
    [3, 1],
    [2 ** 27, 0xffff],
  ]);
  expect(decodeBlocks(1, encodeBlocks(sketch))).toEqual(sketch);
  const text = (changed: Pick<ChangeSketch, "blocks" | "masks">): string => encodeBlocks({ share: 1, ...changed });
  const twice = text({ blocks: Uint32Array.of(5, 5), masks: Uint16Array.of(1, 1) });
  const empty = text({ blocks: Uint32Array.of(5), masks: Uint16Array.of(0) });
  for (const bad of [twice, empty, "AAAA", "?", "AAAAAAAAAA"]) expect(decodeBlocks(1, bad)).toBeUndefined();
  expect(decodeBlocks(0.1, encodeBlocks(sketch))).toBeUndefined();
});
