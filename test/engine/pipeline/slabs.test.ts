import { describe, expect, test } from "vitest";
import { SlabPool, viewSlabs } from "../../../engine/pipeline/slabs.ts";

const geometry = { slabCount: 2, slabBytes: 32_768 };

describe("the pool of slabs", () => {
  test("serves waiting callers in the order of their calls", async () => {
    const pool = new SlabPool(geometry);
    const [a, b] = [await pool.acquire(), await pool.acquire()];
    const served: string[] = [];
    const waiting = ["first", "second", "third"].map(async (name) => {
      const slab = await pool.acquire();
      served.push(name);
      return slab;
    });
    pool.release(b);
    expect(await waiting[0]).toBe(b);
    expect(served).toEqual(["first"]);
    pool.release(a);
    pool.release(b);
    expect(await Promise.all(waiting)).toEqual([b, a, b]);
    expect(served).toEqual(["first", "second", "third"]);
    expect(pool.leasedCount).toBe(2);
    pool.release(a);
    pool.release(b);
    expect(pool.leasedCount).toBe(0);
  });

  test("lends every slab once before it lends one again", async () => {
    const pool = new SlabPool({ ...geometry, slabCount: 5 });
    const slabs = await Promise.all(Array.from({ length: 5 }, async () => await pool.acquire()));
    expect(new Set(slabs.map(({ number }) => number))).toEqual(new Set([0, 1, 2, 3, 4]));
  });

  test("gives a slab without waiting while one is free, and then none", async () => {
    const pool = new SlabPool(geometry);
    const [a, b] = [pool.tryAcquire(), pool.tryAcquire()];
    expect([pool.tryAcquire(), pool.leasedCount]).toEqual([undefined, 2]);
    if (a === undefined || b === undefined) throw new Error("two slabs were free");
    const waiting = pool.acquire();
    pool.release(b);
    // The waiting caller has it now.
    expect(pool.tryAcquire()).toBeUndefined();
    expect(await waiting).toBe(b);
    pool.release(a);
    expect(pool.tryAcquire()).toBe(a);
  });

  test("asserts that a slab is released once", async () => {
    const pool = new SlabPool(geometry);
    const slab = await pool.acquire();
    pool.release(slab);
    expect(() => {
      pool.release(slab);
    }).toThrow(/released once/);
  });

  test("lends nothing after an abort", async () => {
    const pool = new SlabPool(geometry);
    await expect(pool.acquire(AbortSignal.abort())).rejects.toMatchObject({ code: "INTERRUPTED" });
    expect(pool.leasedCount).toBe(0);
  });

  test("cuts its memory into columns that do not overlap and that every thread sees alike", () => {
    const pool = new SlabPool(geometry);
    const here = viewSlabs(pool.shared);
    const there = viewSlabs(pool.shared);
    const columns = (views: typeof here): (Uint8Array | Uint32Array)[] =>
      views.flatMap(({ data, out, oldPrints, newPrints, chunks, expected }) => [
        data,
        out,
        oldPrints,
        newPrints,
        ...[chunks, expected].flatMap(({ start, granules, state, storedWords, offsets, digests }) => [
          start,
          granules,
          state,
          storedWords,
          offsets,
          digests,
        ]),
      ]);
    for (const [index, column] of columns(here).entries()) column.fill(index + 1);
    for (const [index, column] of columns(there).entries())
      expect(column.every((value) => value === index + 1)).toBe(true);
    expect(here[1]?.newPrintWords.byteOffset).toBe(here[1]?.newPrints.byteOffset);
    expect(here[1]?.chunks.digestWords.byteOffset).toBe(here[1]?.chunks.digests.byteOffset);
  });
});
