/** Which range is fetched first, and that no client waits for ranges that no client wants. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { expect, test } from "vitest";
import { type QueuedRange, RangeQueue } from "../../../../engine/recovery/mount/range-queue.ts";

/** Queues ranges that end when they are told to, and notes in which order they begin. */
class Rig {
  readonly queue = new RangeQueue(3);
  readonly begun: string[] = [];
  readonly #ends = new Map<string, (error?: Error) => void>();

  add(name: string, isAwaited: boolean): { readonly range: QueuedRange; readonly done: Promise<void> } {
    const range = { isAwaited };
    const done = this.queue.run(range, async () => {
      this.begun.push(name);
      await new Promise<void>((resolve, reject) => {
        this.#ends.set(name, (error) => (error === undefined ? resolve() : reject(error)));
      });
    });
    return { range, done };
  }

  async end(name: string, error?: Error): Promise<void> {
    this.#ends.get(name)?.(error);
    await nextTurn();
  }
}

test("ranges that no client waits for leave one place free, which a waiting client gets at once", async () => {
  const rig = new Rig();
  for (const name of ["a", "b", "c"]) rig.add(name, false);
  await nextTurn();
  expect(rig.begun).toEqual(["a", "b"]);
  rig.add("read", true);
  await nextTurn();
  expect(rig.begun).toEqual(["a", "b", "read"]);
  await rig.end("read");
  expect(rig.begun).toEqual(["a", "b", "read"]);
  await rig.end("a");
  expect(rig.begun).toEqual(["a", "b", "read", "c"]);
});

test("a range that comes to be awaited goes first, and takes the last place too", async () => {
  const rig = new Rig();
  for (const name of ["a", "b", "c"]) rig.add(name, false);
  const { range } = rig.add("d", false);
  await nextTurn();
  rig.queue.raise(range);
  await nextTurn();
  expect(rig.begun).toEqual(["a", "b", "d"]);
});

test("a range that fails gives its place to the next", async () => {
  const rig = new Rig();
  const [first] = ["a", "b", "c"].map((name) => rig.add(name, false));
  await nextTurn();
  const failed = expect(first?.done).rejects.toThrow("away");
  await rig.end("a", new Error("away"));
  await failed;
  expect(rig.begun).toEqual(["a", "b", "c"]);
});
