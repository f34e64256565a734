/** What of a segment is given back, collection after collection, while less and less of it is needed. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { segmentBytes } from "../../../../engine/limits.ts";
import { pageAlignmentBytes } from "../../../../engine/sink.ts";
import { checksum } from "../../../../engine/store/format/checksum.ts";
import { segmentName } from "../../../../engine/store/format/names.ts";
import { walkFrames } from "../../../../engine/store/segments/frame-walk.ts";
import { PageSet } from "../../../../engine/store/segments/page-set.ts";
import type { Store } from "../../../../engine/store/store.ts";
import { planSegment } from "../../../../engine/upkeep/collection/segment-plan.ts";
import { digestOf, openMemory, randomBytes, vaultId } from "../../../engine-model.ts";
import { sealFrame } from "../../store/format/samples.ts";

const name = segmentName("a", 1, 0, 0);

/** Writes frames whose chunks have these sizes. */
async function write(store: Store, frames: readonly (readonly number[])[]): Promise<void> {
  await store.createPages(name, segmentBytes, 1);
  let offset = 0;
  for (const sizes of frames) {
    const chunks = sizes.map((size, granule) => ({
      payload: randomBytes(size, granule),
      storedWord: size,
      digest: digestOf(granule),
      granule,
      granules: 1,
    }));
    const frame = sealFrame({ vaultId, segmentId: checksum(Buffer.from(name)), offset }, chunks);
    await store.writePages(name, offset, frame, { sequenceNumber: 1 });
    offset += frame.length;
  }
}

async function segmentIn(store: Store): Promise<Parameters<typeof planSegment>[2]> {
  const { writtenBytes } = await store.statPages(name);
  return { name, sizeBytes: segmentBytes, writtenBytes };
}

interface Found {
  /** Its number among the frames that were found, and in it. */
  readonly frame: number;
  readonly chunk: number;
  readonly at: number;
  readonly size: number;
}

/** Every chunk that whoever walks the segment comes upon. */
async function walk(store: Store, dead: PageSet): Promise<readonly Found[]> {
  const found: Found[] = [];
  let frame = 0;
  for await (const { offset, table } of walkFrames(store, vaultId, { name, sizeBytes: segmentBytes, dead }, {})) {
    for (let chunk = 0; chunk < table.count; chunk += 1) {
      found.push({ frame, chunk, at: offset + (table.offsets[chunk] ?? 0), size: table.storedWords[chunk] ?? 0 });
    }
    frame += 1;
  }
  return found;
}

test("whoever walks the segment finds every chunk that is needed, however often it has been collected", async () => {
  const size = fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 2000, max: 9000 }));
  const frame = fc.oneof(fc.array(size, { minLength: 1, maxLength: 6 }), fc.array(size, { minLength: 60, maxLength: 120 }));
  const frames = fc.array(frame, { minLength: 2, maxLength: 5 });
  /** Of each step and frame: between which of its chunks, in parts of all, they stay needed. */
  const end = fc.constantFrom(0, 0, 0.02, 0.1, 0.5, 0.9, 1);
  const steps = fc.array(fc.array(fc.tuple(end, end), { minLength: 5, maxLength: 5 }), { minLength: 1, maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(frames, steps, async (sizes, shrinking) => {
      const { store } = await openMemory();
      await write(store, sizes);
      let dead = new PageSet();
      let needed = await walk(store, dead);
      for (const step of shrinking) {
        needed = needed.filter(({ frame, chunk }) => {
          const part = chunk / (sizes[frame]?.length ?? 1);
          const [from, to] = step[frame] ?? [0, 0];
          return part >= from && part <= to;
        });
        const live = new PageSet();
        for (const chunk of needed) live.addBytes(chunk.at, chunk.size);
        const plan = await planSegment(store, vaultId, await segmentIn(store), { live, dead }, {});
        if (plan.isDead) return;
        for (const { from, end } of plan.condemned) {
          expect(live.touchesPages(from, end)).toBe(false);
          await store.clearPages(name, from * pageAlignmentBytes, (end - from) * pageAlignmentBytes);
        }
        dead = PageSet.ofRuns([...dead.runs(), ...plan.condemned]);
        const found = new Set((await walk(store, dead)).map(({ at }) => at));
        expect(needed.filter(({ at }) => !found.has(at))).toEqual([]);
      }
    }),
    { numRuns: 200 },
  );
});
