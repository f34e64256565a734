/**
 * What of a segment is freed, collection after collection, while less and less of it is needed; and
 * what of a damaged one.
 */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { segmentBytes } from "../../../../engine/limits.ts";
import { pageAlignmentBytes } from "../../../../engine/sink.ts";
import { checksum } from "../../../../engine/store/format/checksum.ts";
import { segmentName } from "../../../../engine/store/format/names.ts";
import { walkFrames } from "../../../../engine/store/segments/frame-walk.ts";
import { PageSet } from "../../../../engine/store/segments/page-set.ts";
import type { Store } from "../../../../engine/store/store.ts";
import { planSegment } from "../../../../engine/upkeep/collection/segment-plan.ts";
import { runsOf } from "../../../depth.ts";
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

/** Every chunk that a walk of the segment finds. */
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

test("a walk of the segment finds every chunk that is needed, however often it has been collected", async () => {
  const size = fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 2000, max: 9000 }));
  const frame = fc.oneof(
    fc.array(size, { minLength: 1, maxLength: 6 }),
    fc.array(size, { minLength: 60, maxLength: 120 }),
  );
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
    { numRuns: runsOf(200) },
  );
});

describe("a frame that cannot be read", () => {
  const pages = (from: number, end: number): PageSet => PageSet.ofRuns([{ from, end }]);

  /** Three frames of which the second has a damaged header. */
  async function damagedStore(): Promise<{ readonly store: Store; readonly frames: readonly Found[] }> {
    const { store } = await openMemory();
    await write(store, [[4000, 4000], [4000], [4000]]);
    const frames = await walk(store, new PageSet());
    const second = frames.find(({ frame }) => frame === 1)?.at ?? 0;
    await store.writePages(
      name,
      Math.floor(second / pageAlignmentBytes) * pageAlignmentBytes,
      new Uint8Array(512).fill(7),
      {
        sequenceNumber: 1,
      },
    );
    return { store, frames };
  }

  test("keeps everything behind it while a chunk of the segment is needed", async () => {
    const { store, frames } = await damagedStore();
    const [last] = frames.filter(({ frame }) => frame === 2);
    const live = new PageSet();
    live.addBytes(last?.at ?? 0, last?.size ?? 0);
    const { fault, isDead, condemned } = await planSegment(
      store,
      vaultId,
      await segmentIn(store),
      { live, dead: new PageSet() },
      {},
    );
    expect(fault).toMatchObject({ code: "DAMAGED" });
    expect(isDead).toBe(false);
    const second = frames.find(({ frame }) => frame === 1)?.at ?? 0;
    for (const { end } of condemned) expect(end * pageAlignmentBytes).toBeLessThanOrEqual(second);
  });

  test("keeps nothing of a segment of which no chunk is needed", async () => {
    const { store } = await damagedStore();
    const segment = await segmentIn(store);
    const { isDead, condemned } = await planSegment(
      store,
      vaultId,
      segment,
      { live: new PageSet(), dead: new PageSet() },
      {},
    );
    expect(isDead).toBe(true);
    expect(condemned).toEqual([{ from: 0, end: segment.writtenBytes / pageAlignmentBytes }]);
  });

  test("does not hide that a needed page was never written", async () => {
    const { store } = await damagedStore();
    const segment = await segmentIn(store);
    const end = segment.writtenBytes / pageAlignmentBytes;
    const planned = planSegment(store, vaultId, segment, { live: pages(end, end + 1), dead: new PageSet() }, {});
    await expect(planned).rejects.toMatchObject({ code: "DAMAGED" });
  });
});
