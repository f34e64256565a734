/**
 * Bounded concurrency: `work` runs once for each of many items, a fixed number of them at a time.
 *
 * Each of `atOnce` loops takes an item from the shared iterator, awaits `work` and takes the next
 * one. So a generator is never read ahead, and nothing is queued.
 *
 * Invariant: when the promise settles, no `work` is running and the iterator is closed. After the
 * first failure, or once `signal` has aborted, no further item is taken; the calls of `work` that
 * are running end first.
 */
import { throwIfAborted } from "./errors.ts";

/**
 * Runs `work` for each item of `items`, at most `atOnce` of them at a time, in the order of the
 * items.
 *
 * @throws the first error of `work` or of the iterator; INTERRUPTED when `signal` has aborted
 * before the last item was taken.
 */
export async function forEachAtOnce<Item>(
  items: Iterable<Item> | AsyncIterable<Item>,
  atOnce: number,
  work: (item: Item) => Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const iterator = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  let failure: { readonly error: unknown } | undefined;
  const run = async (): Promise<void> => {
    while (failure === undefined) {
      try {
        const item = await iterator.next();
        if (item.done === true) return;
        throwIfAborted(signal);
        await work(item.value);
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: atOnce }, run));
  if (failure === undefined) return;
  await iterator.return?.();
  throw failure.error;
}
