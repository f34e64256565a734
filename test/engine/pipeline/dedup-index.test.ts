import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { ChunkPlace } from "../../../engine/pipeline/dedup-index.ts";
import { DedupIndex, indexEntryBytes } from "../../../engine/pipeline/dedup-index.ts";
import { byDepth } from "../../depth.ts";
import { numbersFrom, randomBytes } from "../../engine-model.ts";

const mebibyte = 1024 * 1024;
const nowhere: ChunkPlace = { segment: -1, offset: -1, storedWord: -1 };

/**
 * Digest number `value` as four words; `clash` of its bits are the same for all, so that shards and
 * chains are shared.
 */
function wordsOf(value: number, clash: "none" | "shard" | "home"): Uint32Array {
  const words = new Uint32Array(randomBytes(16, value).buffer);
  if (clash !== "none") words[0] = (words[0] ?? 0) - ((words[0] ?? 0) % 64);
  if (clash === "home") words[1] = 0xffff_fff0;
  return words;
}

describe("the dedup index", () => {
  test("answers like a map, however its digests collide", () => {
    const step = fc.record({
      digest: fc.nat(400),
      segment: fc.nat(70_000),
      offset: fc.nat(0xffff_ffff),
      storedWord: fc.nat(0xffff_ffff),
    });
    fc.assert(
      fc.property(
        fc.array(step, { maxLength: 800 }),
        fc.constantFrom("none", "shard", "home" as const),
        (steps, clash) => {
          const index = new DedupIndex(mebibyte);
          const model = new Map<number, ChunkPlace>();
          for (const { digest, segment, offset, storedWord } of steps) {
            index.set(wordsOf(digest, clash), 0, segment, offset, storedWord);
            model.set(digest, { segment, offset, storedWord });
          }
          expect(index.count).toBe(model.size);
          for (let digest = 0; digest <= 400; digest += 1) {
            const found = { ...nowhere };
            const known = index.find(wordsOf(digest, clash), 0, found);
            expect(known ? found : undefined).toEqual(model.get(digest));
          }
          const seen = new Map<string, ChunkPlace>();
          index.forEach((words, at, segment, offset, storedWord) => {
            seen.set(words.slice(at, at + 4).join(), { segment, offset, storedWord });
          });
          expect(seen).toEqual(new Map([...model].map(([digest, place]) => [wordsOf(digest, clash).join(), place])));
        },
      ),
      { numRuns: 60 },
    );
  });

  test("finds all that is left when some of it has been dropped, however digests collide", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 500 }),
        fc.integer({ min: 1, max: 7 }),
        fc.constantFrom("none", "shard", "home" as const),
        (count, nth, clash) => {
          const index = new DedupIndex(mebibyte);
          for (let digest = 0; digest < count; digest += 1) index.set(wordsOf(digest, clash), 0, digest % 3, digest, 1);
          const isDropped = (offset: number): boolean => offset % nth === 0;
          index.dropWhere((segment, offset) => {
            expect(segment).toBe(offset % 3);
            return isDropped(offset);
          });
          let left = 0;
          for (let digest = 0; digest < count; digest += 1) {
            expect(index.find(wordsOf(digest, clash), 0, { ...nowhere })).toBe(!isDropped(digest));
            if (!isDropped(digest)) left += 1;
          }
          expect(index.count).toBe(left);
          for (let digest = 0; digest < count; digest += 1) index.set(wordsOf(digest, clash), 0, 5, digest, 1);
          expect(index.count).toBe(count);
        },
      ),
      { numRuns: 40 },
    );
  });

  test.each(["at random", "evenly, so that all shards grow at once"])(
    "needs at most 40 bytes a chunk at every count from 10,000 on, digests spread %s",
    (spread) => {
      const index = new DedupIndex(256 * mebibyte);
      const next = numbersFrom(7);
      const words = new Uint32Array(4);
      let worst = 0;
      const chunks = byDepth(100_000, 2_000_000);
      for (let count = 1; count <= chunks; count += 1) {
        for (let word = 0; word < 4; word += 1) words[word] = next();
        if (spread !== "at random") words[0] = count;
        index.set(words, 0, 1, 2, 3);
        // After every round of the shards, among them those right after a growth, when an entry
        // costs most.
        if (count >= 10_000 && count % 64 === 0) worst = Math.max(worst, index.bytes / count);
      }
      expect(index.count).toBe(chunks);
      expect(worst).toBeGreaterThan(indexEntryBytes);
      expect(worst).toBeLessThanOrEqual(40);
    },
  );

  test("forgets rather than grows beyond its ceiling, and never tells a wrong place", () => {
    const index = new DedupIndex(mebibyte);
    const total = 200_000;
    const words = new Uint32Array(randomBytes(total * 16, 3).buffer);
    for (let value = 0; value < total; value += 1) index.set(words, value * 4, value, value * 2, value * 3);
    expect(index.bytes).toBeLessThanOrEqual(mebibyte);
    expect(index.bytes).toBeGreaterThan(0.9 * mebibyte);
    // Everything beyond seven eighths of the slots has been forgotten.
    expect(index.count + index.forgotten).toBe(total);
    expect(index.count).toBeGreaterThan(0.85 * (mebibyte / indexEntryBytes));
    let known = 0;
    let knownOfNewest = 0;
    const found = { ...nowhere };
    for (let value = 0; value < total; value += 1) {
      if (!index.find(words, value * 4, found)) continue;
      known += 1;
      if (value >= total - 1000) knownOfNewest += 1;
      expect(found).toEqual({ segment: value, offset: value * 2, storedWord: value * 3 });
    }
    expect(known).toBe(index.count);
    // What was added last is what is most likely needed next.
    expect(knownOfNewest).toBeGreaterThan(800);
    const strangers = new Uint32Array(randomBytes(16 * 10_000, 4).buffer);
    for (let at = 0; at < strangers.length; at += 4) expect(index.find(strangers, at, found)).toBe(false);
  });

  test("ends every search when one shard is as full as it gets and all its chunks want the last slot", () => {
    const index = new DedupIndex(mebibyte);
    const found = { ...nowhere };
    for (let value = 0; value < 1500; value += 1) index.set(wordsOf(value, "home"), 0, value, 0, 0);
    expect(index.forgotten).toBeGreaterThan(0);
    let known = 0;
    for (let value = 0; value < 3000; value += 1) {
      if (!index.find(wordsOf(value, "home"), 0, found)) continue;
      known += 1;
      expect(found.segment).toBe(value);
    }
    expect(known).toBe(index.count);
  });

  test("replaces the place of a chunk that it knows, also when it is full", () => {
    const index = new DedupIndex(mebibyte);
    for (let value = 0; value < 60_000; value += 1) index.set(wordsOf(value, "none"), 0, value, 0, 0);
    const found = { ...nowhere };
    const known = Array.from({ length: 60_000 }, (_, value) => value).filter((value) =>
      index.find(wordsOf(value, "none"), 0, found),
    );
    const [one = 0] = known;
    const { count, forgotten } = index;
    index.set(wordsOf(one, "none"), 0, 9, 8, 7);
    expect(index.find(wordsOf(one, "none"), 0, found)).toBe(true);
    expect(found).toEqual({ segment: 9, offset: 8, storedWord: 7 });
    expect([index.count, index.forgotten]).toEqual([count, forgotten]);
  });
});
