/**
 * Our own kernels against the library's: the same digests and the same fingerprints, wherever in
 * shared memory the data lies.
 */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { granuleBytes } from "../../../engine/limits.ts";
import { createDigest, createFingerprint } from "../../../engine/pipeline/kernels.ts";
import type { Slab } from "../../../engine/pipeline/slabs.ts";
import { SlabPool } from "../../../engine/pipeline/slabs.ts";
import { expandSeed, openWasmKernels } from "../../../engine/pipeline/wasm-kernels.ts";
import { runsOf } from "../../depth.ts";
import { randomBytes } from "../../engine-model.ts";

const blockBytes = 2 ** 20;
const blockGranules: number = blockBytes / granuleBytes;
const pool = new SlabPool({ slabCount: 2, slabBytes: 2 * blockBytes });
const kernels = openWasmKernels(pool.shared.memory);
// The second slab does not begin at the beginning of the memory.
const slabs = [await pool.acquire(), await pool.acquire()];

/** Granules [from, from + count) of a slab with content: random, and every third granule zero. */
const range = fc
  .record({
    slab: fc.constantFrom(...slabs),
    region: fc.constantFrom("data" as const, "out" as const),
    from: fc.nat(blockGranules),
    count: fc.oneof(fc.integer({ min: 1, max: 20 }), fc.constantFrom(31, 32, 33, 64, 127, 255, 256)),
    seed: fc.nat(1000),
  })
  .map((place) => {
    const bytes = place.slab[place.region].subarray(
      place.from * granuleBytes,
      (place.from + place.count) * granuleBytes,
    );
    bytes.set(randomBytes(bytes.length, place.seed));
    for (let granule = place.seed % 3; granule < place.count; granule += 3)
      bytes.fill(0, granule * granuleBytes, (granule + 1) * granuleBytes);
    return { ...place, bytes };
  });

describe("the kernels on shared memory", () => {
  test("digest any run of granules as keyed BLAKE3 does", async () => {
    const key = randomBytes(32, 8);
    const library = await createDigest("blake3", key);
    for (const { kernel } of slabs) kernel.keyView.set(key);
    fc.assert(
      fc.property(range, ({ slab, region, from, count, bytes }) => {
        const expected = new Uint8Array(16);
        library(bytes, expected, 0);
        const { kernel } = slab;
        kernels.digestGranules(kernel[region] + from * granuleBytes, count, kernel.digest, kernel.key, kernel.tree);
        expect(new Uint8Array(kernel.digestView)).toEqual(expected);
      }),
      { numRuns: runsOf(150) },
    );
  });

  test("fingerprint each granule as seeded XXH3 does, and granules of zeros as zeros", async () => {
    for (const seed of [
      [0, 0],
      [0xffff_ffff, 0xffff_ffff],
      [0x89ab_cdef, 0x0123_4567],
    ] as const) {
      const library = await createFingerprint(seed);
      for (const { kernel } of slabs) kernel.secretView.set(expandSeed(seed));
      fc.assert(
        fc.property(range, ({ slab, region, from, count, bytes }) => {
          const expected = new Uint8Array(count * 16);
          for (let granule = 0; granule < count; granule += 1) {
            const part = bytes.subarray(granule * granuleBytes, (granule + 1) * granuleBytes);
            if (part.some((byte) => byte !== 0)) library(part, expected, granule * 16);
          }
          slab.newPrints.fill(0xee);
          const { kernel } = slab;
          kernels.fingerprintGranules(
            kernel[region] + from * granuleBytes,
            count,
            kernel.newPrints + from * 16,
            kernel.secret,
          );
          expect(slab.newPrints.slice(from * 16, (from + count) * 16)).toEqual(expected);
          expect(othersUntouched(slab, from, count)).toBe(true);
        }),
        { numRuns: runsOf(40) },
      );
    }
  });
});

/** True while nothing but the fingerprints of granules [from, from + count) was written. */
function othersUntouched(slab: Slab, from: number, count: number): boolean {
  const prints = slab.newPrints;
  return [prints.subarray(0, from * 16), prints.subarray((from + count) * 16)].every((part) =>
    part.every((byte) => byte === 0xee),
  );
}
