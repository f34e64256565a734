/**
 * Bounded concurrency: one piece of work for each of many items, so many at once.
 *
 * Items are taken from the iterator one by one, as work ends, so a generator is never read ahead and nothing is queued. After the
 * first failure no further item is taken; the work that is under way ends first, then that failure is thrown.
 */

/** Runs `work` for each item of `items`, at most `atOnce` of them at a time. Throws the first error of `work` or of the iterator. */
export async function forEachAtOnce<Item>(
  items: Iterable<Item> | AsyncIterable<Item>,
  atOnce: number,
  work: (item: Item) => Promise<void>,
): Promise<void> {
  const next = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  let failure: { readonly error: unknown } | undefined;
  const run = async (): Promise<void> => {
    while (failure === undefined) {
      try {
        const item = await next.next();
        if (item.done === true) return;
        await work(item.value);
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: atOnce }, run));
  if (failure !== undefined) throw failure.error;
}
