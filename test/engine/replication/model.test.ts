/**
 * Two disks share a vault, and anything happens to them in any order. After each step every point
 * of both is what a plain array of bytes says it is.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { MemorySink } from "../../../sink/memory.ts";
import { runsOf } from "../../depth.ts";
import { closeModelVaults, contentOf, Expected, ModelDisk, openModelVault, replicateNoted } from "../../model-disk.ts";

const sizeBytesMax = 200_000;
const seed = 20_260_501;

type Step =
  | {
      readonly kind: "write" | "zero";
      readonly disk: number;
      readonly at: number;
      readonly length: number;
      readonly seed: number;
    }
  | { readonly kind: "grow"; readonly disk: number; readonly by: number }
  | { readonly kind: "replicate" | "verify" | "copyOther"; readonly disk: number }
  | { readonly kind: "loseState" | "reopen" }
  | { readonly kind: "materialize" | "inPlace"; readonly disk: number; readonly point: number };

const disk = fc.nat(1);
// Places cluster around borders of granules and blocks, where mistakes live.
const place = fc.oneof(
  fc.nat(sizeBytesMax),
  fc.nat(48).map((granule) => granule * 4096),
  fc.nat(12).map((block) => block * 16_384),
);
const length = fc.oneof(fc.integer({ min: 1, max: 5000 }), fc.constantFrom(4096, 8192, 16_384, 40_000));
const ranged = { disk, at: place, length, seed: fc.nat(5) };
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant("write" as const), ...ranged }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("zero" as const), ...ranged }) },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("grow" as const), disk, by: fc.integer({ min: 1, max: 20_000 }) }),
  },
  { weight: 6, arbitrary: fc.record({ kind: fc.constant("replicate" as const), disk }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constantFrom("verify" as const, "copyOther" as const), disk }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constantFrom("loseState" as const, "reopen" as const) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constantFrom("materialize" as const, "inPlace" as const),
      disk,
      point: fc.nat(100),
    }),
  },
);

test("every point of two disks stays what the disk was at its time, whatever happens", async () => {
  console.log(`seed ${String(seed)}`);
  await fc.assert(
    fc.asyncProperty(fc.nat(60_000), fc.nat(60_000), fc.array(step, { minLength: 5, maxLength: 30 }), run),
    {
      seed,
      numRuns: runsOf(25),
      endOnFailure: true,
    },
  );
}, 120_000);

async function run(firstBytes: number, secondBytes: number, steps: readonly Step[]): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "model-"));
  const state = join(folder, "state");
  const sink = new MemorySink();
  const disks = [firstBytes, secondBytes].map((bytes, index) => ({
    volume: new ModelDisk(contentOf(bytes, index), `disk ${String(index)}`),
    expected: new Expected(`disk ${String(index)}`),
    contents: [] as Buffer[],
  }));
  try {
    let vault = await openModelVault(sink, { stateFolder: state });
    for (const [number, each] of steps.entries()) {
      const chosen = "disk" in each ? disks[each.disk] : disks[0];
      const other = "disk" in each ? disks[1 - each.disk] : disks[1];
      if (chosen === undefined || other === undefined) throw new Error("there are two disks");
      const { volume, expected, contents } = chosen;
      switch (each.kind) {
        case "write":
          contentOf(each.length, each.seed).copy(volume.bytes, Math.min(each.at, volume.bytes.length));
          break;
        case "zero":
          volume.bytes.fill(
            0,
            Math.min(each.at, volume.bytes.length),
            Math.min(each.at + each.length, volume.bytes.length),
          );
          break;
        case "grow":
          volume.bytes = Buffer.concat([
            volume.bytes,
            Buffer.alloc(Math.min(each.by, sizeBytesMax - volume.bytes.length)),
          ]);
          break;
        case "copyOther":
          other.volume.bytes.copy(volume.bytes);
          break;
        case "replicate":
          await replicateNoted(vault, sink, expected, volume);
          contents.push(Buffer.from(volume.bytes));
          break;
        case "verify":
          expect((await vault.verify()).damaged).toEqual([]);
          break;
        case "loseState":
          await rm(state, { recursive: true, force: true });
          break;
        case "reopen":
          await closeModelVaults();
          vault = await openModelVault(sink, { stateFolder: state });
          break;
        case "materialize":
        case "inPlace": {
          if (contents.length === 0) break;
          const sequence = 1 + (each.point % contents.length);
          const content = contents[sequence - 1] ?? Buffer.alloc(0);
          const isInPlace = each.kind === "inPlace";
          // In place, the image is the one that the last such step of this disk left, or another of
          // the same size.
          const to = join(folder, isInPlace ? `in-place-${expected.disk}` : `new-${String(number)}`);
          if (isInPlace && !(await isOfSize(to, content.length)))
            await writeFile(to, contentOf(content.length, each.point));
          await vault.materialize({
            disk: expected.disk,
            point: String(sequence),
            to,
            mode: isInPlace ? "in-place" : "create",
          });
          expect((await readFile(to)).equals(content), `step ${String(number)}`).toBe(true);
          break;
        }
      }
    }
    for (const { expected, contents } of disks) expect(await expected.check(sink)).toBe(contents.length);
  } finally {
    await closeModelVaults();
    rmSync(folder, { recursive: true });
  }
}

async function isOfSize(path: string, bytes: number): Promise<boolean> {
  const there = await stat(path).catch(() => undefined);
  return there?.size === bytes;
}
