import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { granuleBytes } from "../../../engine/limits.ts";
import type { Extent, Volume } from "../../../engine/volume.ts";
import { runsOf } from "../../depth.ts";
import { randomBytes } from "../../engine-model.ts";
import { CaptureRig } from "./capture-rig.ts";

const blockBytes = 16 * 1024;
const blockGranules = blockBytes / granuleBytes;
let rig: CaptureRig;
beforeAll(async () => {
  rig = await CaptureRig.open(blockBytes, "blake3");
});
afterAll(async () => {
  await rig[Symbol.asyncDispose]();
});

/**
 * A disk of which only `extents` may be read: everywhere else stands what must never reach a point.
 */
function named(bytes: Buffer, extents: readonly Extent[]): Volume {
  return {
    description: "named",
    sizeBytes: () => Promise.resolve(bytes.length),
    read: async (offset, into) => {
      const inside = extents.some(
        (extent) => extent.offset <= offset && offset + into.length <= extent.offset + extent.length,
      );
      if (!inside) throw new Error(`a read at ${String(offset)}, which nobody named`);
      into.set(bytes.subarray(offset, offset + into.length));
      await Promise.resolve();
    },
    allocated: async function* allocated() {
      yield* await Promise.resolve(extents);
    },
  };
}

/** The granules of a set as extents, each as wide as a granule or joined to its neighbour. */
function extentsOf(granules: ReadonlySet<number>, sizeBytes: number): Extent[] {
  const extents: Extent[] = [];
  for (const granule of [...granules].sort((a, b) => a - b)) {
    const offset = granule * granuleBytes;
    const length = Math.min(granuleBytes, sizeBytes - offset);
    const last = extents.at(-1);
    if (last !== undefined && last.offset + last.length === offset)
      extents[extents.length - 1] = { offset: last.offset, length: last.length + length };
    else extents.push({ offset, length });
  }
  return extents;
}

const sizes = fc.constantFrom(5 * blockBytes, 40 * blockBytes, 30 * blockBytes + 5000);
const edits = fc.array(
  fc.record({ granule: fc.nat(200), fill: fc.constantFrom("random" as const, "zero" as const), seed: fc.nat(9) }),
  {
    maxLength: 30,
  },
);

test.each(["changed", "map"] as const)(
  "a point of named granules holds them, and the parent elsewhere, knowing what is %s",
  async (knowing) => {
    await fc.assert(
      fc.asyncProperty(
        sizes,
        fc.nat(9),
        fc.array(fc.record({ edits, extra: fc.array(fc.nat(200), { maxLength: 20 }) }), { minLength: 1, maxLength: 3 }),
        async (size, seed, cycles) => {
          await rig.empty();
          const granules = Math.ceil(size / granuleBytes);
          const bytes = Buffer.from(randomBytes(size, seed));
          bytes.fill(0, 0, Math.min(size, 3 * blockBytes));
          let { point } = await rig.cycle(named(bytes, [{ offset: 0, length: size }]));
          for (const cycle of cycles) {
            const dirty = new Set(cycle.extra.map((granule) => granule % granules));
            for (const edit of cycle.edits) {
              const granule = edit.granule % granules;
              const end = Math.min(size, (granule + 1) * granuleBytes);
              if (edit.fill === "zero") bytes.fill(0, granule * granuleBytes, end);
              else bytes.set(randomBytes(end - granule * granuleBytes, edit.seed), granule * granuleBytes);
              dirty.add(granule);
            }
            const expected = Buffer.from(bytes);
            const made = await rig.cycle(named(bytes, extentsOf(dirty, size)), {
              parent: point,
              knowing,
              scope: "named",
            });
            if (knowing === "changed") expect(made.statistics.changedBytes).toBe(dirty.size * granuleBytes);
            else expect(made.statistics.changedBytes).toBeLessThanOrEqual(dirty.size * granuleBytes);
            expect(made.statistics.scannedBytes).toBe(
              extentsOf(dirty, size).reduce((sum, { length }) => sum + length, 0),
            );
            expect((await rig.read(made.point)).equals(expected)).toBe(true);
            ({ point } = made);
          }
        },
      ),
      { numRuns: runsOf(25) },
    );
  },
);

test("what is named block by block and has not changed is neither shipped nor mapped again", async () => {
  await rig.empty();
  const bytes = Buffer.from(randomBytes(20 * blockBytes, 1));
  const { point } = await rig.cycle(named(bytes, [{ offset: 0, length: bytes.length }]));
  bytes.set(randomBytes(granuleBytes, 2), 6 * blockBytes + granuleBytes);
  const region = [{ offset: 4 * blockBytes, length: 8 * blockBytes }];
  const { statistics, delta } = await rig.cycle(named(bytes, region), {
    parent: point,
    knowing: "map",
    scope: "named",
  });
  // Of a changed block all granules count, because only a whole chunk can be proved by its digest.
  expect(statistics).toMatchObject({ changedBytes: blockGranules * granuleBytes, scannedBytes: 8 * blockBytes });
  expect(delta?.entries).toBe(1);
});
