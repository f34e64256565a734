/** What the cache of a mounted point keeps, and that it never takes more memory than it may. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { BlockCache } from "../../../../engine/recovery/mount/block-cache.ts";
import { GranuleStates, granuleState } from "../../../../engine/recovery/mount/granule-states.ts";

const blockBytes = 16 * 1024;
/** Room for sixteen blocks, with what is known of them. */
const capacityBytes = 17 * blockBytes;

function keepBlock(cache: BlockCache, block: number, reader: "served" | "expected" = "served"): void {
  const buffer = cache.lend();
  buffer.writeUInt32LE(block);
  cache.keep(block, buffer, reader);
}

test("blocks are found with what is in them until others need the room, the oldest first", () => {
  const cache = new BlockCache(blockBytes, capacityBytes);
  for (let block = 0; block < 20; block += 1) keepBlock(cache, block);
  const found = Array.from({ length: 20 }, (_, block) => cache.find(block)?.readUInt32LE());
  expect(found.slice(0, 4)).toEqual([undefined, undefined, undefined, undefined]);
  expect(found.slice(4)).toEqual(Array.from({ length: 16 }, (_, index) => index + 4));
});

test("a block that is read again and again outlives a reader that goes once through the disk", () => {
  const cache = new BlockCache(blockBytes, capacityBytes);
  keepBlock(cache, 1_000_000);
  for (let block = 0; block < 200; block += 1) {
    keepBlock(cache, block);
    expect(cache.find(1_000_000)?.readUInt32LE()).toBe(1_000_000);
  }
});

test("blocks of zeros take next to nothing", () => {
  const cache = new BlockCache(blockBytes, capacityBytes);
  for (let block = 0; block < 500; block += 1) cache.keep(block, undefined, "served");
  expect(cache.find(3)?.every((byte) => byte === 0)).toBe(true);
  expect(cache.heldBytes).toBeLessThan(500 * 300);
});

test("zeros that are read once drive out next to none of what is cached", () => {
  const cache = new BlockCache(blockBytes, capacityBytes);
  for (let block = 0; block < 16; block += 1) keepBlock(cache, block);
  for (let block = 1000; block < 1100; block += 1) cache.keep(block, undefined, "served");
  const kept = Array.from({ length: 16 }, (_, block) => cache.has(block)).filter(Boolean);
  expect(kept.length).toBeGreaterThanOrEqual(12);
  expect(cache.heldBytes).toBeLessThanOrEqual(capacityBytes);
});

test("what was fetched ahead outlives what a reader has passed, however often he reads a block, and not for ever", () => {
  const cache = new BlockCache(blockBytes, capacityBytes);
  for (let block = 0; block < 8; block += 1) keepBlock(cache, block, "expected");
  for (let block = 0; block < 8; block += 1) for (let read = 0; read < 4; read += 1) cache.find(block);
  for (let block = 8; block < 20; block += 1) keepBlock(cache, block, "expected");
  for (let block = 8; block < 20; block += 1) expect(cache.has(block)).toBe(true);
  for (let block = 100; block < 140; block += 1) keepBlock(cache, block, "expected");
  for (let block = 8; block < 20; block += 1) expect(cache.has(block)).toBe(false);
});

test("whatever is lent, kept and given back, memory stays within what was allowed, and what is found is right", () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant("keep" as const), block: fc.nat(60) }),
    fc.record({ kind: fc.constant("zeros" as const), block: fc.nat(2000) }),
    fc.record({ kind: fc.constant("find" as const), block: fc.nat(60) }),
    fc.record({ kind: fc.constant("fail" as const), block: fc.nat(60) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
      const cache = new BlockCache(blockBytes, capacityBytes);
      for (const { kind, block } of steps) {
        if (kind === "find") {
          const found = cache.find(block);
          if (found !== undefined) expect([0, block]).toContain(found.readUInt32LE());
        } else if (kind === "fail") cache.giveBack(cache.lend());
        else if (!cache.has(block)) {
          if (kind === "keep") keepBlock(cache, block);
          else cache.keep(block, undefined, "served");
        }
        expect(cache.heldBytes).toBeLessThanOrEqual(capacityBytes);
      }
    }),
    { numRuns: 100 },
  );
});

test("the states of granules are those of an array, run by run", () => {
  const granules = 300;
  const change = fc.record({
    from: fc.nat(granules - 1),
    length: fc.nat(granules),
    state: fc.constantFrom(granuleState.data, granuleState.zeros),
  });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 12 }), (changes) => {
      // Pages of 20 bytes: eighty granules.
      const states = new GranuleStates(20);
      const model = new Uint8Array(granules);
      for (const { from, length, state } of changes) {
        const end = Math.min(granules, from + length);
        states.set(from, end, state);
        model.fill(state, from, end);
      }
      for (let granule = 0; granule < granules; granule += 1) {
        expect(states.get(granule)).toBe(model[granule]);
        let end = granule + 1;
        while (end < granules && model[end] === model[granule]) end += 1;
        expect(states.runEnd(granule, granules)).toBe(end);
      }
      const copy = new GranuleStates(20);
      for (const page of states.changedPages()) copy.load(page, states.take(page));
      expect(states.changedPages()).toEqual([]);
      for (let granule = 0; granule < granules; granule += 1) expect(copy.get(granule)).toBe(model[granule]);
      expect(states.has(granuleState.data, 10, 200)).toBe(model.subarray(10, 200).includes(granuleState.data));
    }),
    { numRuns: 60 },
  );
});
