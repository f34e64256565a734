/**
 * Runs `use`, then closes `thing`, also after a failure. A failure to close counts, unless `use` failed
 * already: that says more.
 */
export async function closing<Result>(thing: AsyncDisposable, use: () => Promise<Result>): Promise<Result> {
  const [outcome] = await Promise.allSettled([use()]);
  const [closed] = await Promise.allSettled([thing[Symbol.asyncDispose]()]);
  if (outcome.status === "rejected") throw outcome.reason;
  if (closed.status === "rejected") throw closed.reason;
  return outcome.value;
}
