/**
 * Bounded concurrency: how many calls run at once, what happens after a failure, and that iterators
 * are closed.
 */
import { describe, expect, it } from "vitest";
import { forEachAtOnce } from "../../engine/concurrency.ts";

/** Work that ends when the test says so, and counts what runs. */
function steppedWork(): {
  readonly started: number[];
  readonly work: (item: number) => Promise<void>;
  readonly end: (item: number, error?: Error) => Promise<void>;
} {
  const started: number[] = [];
  const running = new Map<number, { readonly resolve: () => void; readonly reject: (error: Error) => void }>();
  return {
    started,
    async work(item) {
      started.push(item);
      await new Promise<void>((resolve, reject) => running.set(item, { resolve, reject }));
    },
    async end(item, error) {
      if (error === undefined) running.get(item)?.resolve();
      else running.get(item)?.reject(error);
      await new Promise(setImmediate);
    },
  };
}

describe("forEachAtOnce", () => {
  it("starts the next item when one has ended, and never more than the limit", async () => {
    const { started, work, end } = steppedWork();
    const done = forEachAtOnce([0, 1, 2, 3], 2, work);
    await new Promise(setImmediate);
    expect(started).toEqual([0, 1]);
    await end(1);
    expect(started).toEqual([0, 1, 2]);
    await end(0);
    await end(2);
    await end(3);
    await done;
    expect(started).toEqual([0, 1, 2, 3]);
  });

  it("waits after a failure for what runs, takes nothing more and closes the iterator", async () => {
    let [taken, isClosed, isSettled] = [0, false, false];
    async function* items(): AsyncGenerator<number> {
      try {
        for (; ; taken += 1) yield await Promise.resolve(taken);
      } finally {
        isClosed = true;
      }
    }
    const { started, work, end } = steppedWork();
    const done = forEachAtOnce(items(), 2, work).finally(() => {
      isSettled = true;
    });
    done.catch(() => undefined);
    await new Promise(setImmediate);
    await end(0, new Error("the first"));
    expect(isSettled).toBe(false);
    await end(1, new Error("the second"));
    await expect(done).rejects.toThrow("the first");
    expect(started).toEqual([0, 1]);
    expect(isClosed).toBe(true);
  });

  it("throws what the iterator throws", async () => {
    function* items(): Generator<number> {
      yield 0;
      throw new Error("the list broke off");
    }
    await expect(forEachAtOnce(items(), 4, async () => await Promise.resolve())).rejects.toThrow("the list broke off");
  });

  it("takes no item after its signal has aborted", async () => {
    const { started, work, end } = steppedWork();
    const interruption = new AbortController();
    const done = forEachAtOnce([0, 1, 2], 1, work, interruption.signal);
    done.catch(() => undefined);
    await new Promise(setImmediate);
    interruption.abort();
    await end(0);
    await expect(done).rejects.toMatchObject({ code: "INTERRUPTED" });
    expect(started).toEqual([0]);
  });
});
