/** The last point of a command that protects in the foreground: what ^C waits for, and how long. */
import { type StopOptions, TidemarkError } from "../../engine/index.ts";
import { systemClock } from "../agent/engine-adapter.ts";
import { formatDuration } from "../quantities.ts";

/** The last point has this long after the first ^C. */
const drainMsMax = 60_000;

/** What ^C waits for, in words. */
export const lastPointLimit: string = formatDuration(drainMsMax);

/** Ends a protection with a last point. Gives why that could not be taken. */
export async function withLastPoint(
  stop: (options: StopOptions & { readonly signal: AbortSignal }) => Promise<TidemarkError | undefined>,
): Promise<TidemarkError | undefined> {
  const over = new AbortController();
  const limit = new AbortController();
  const tooLong = new TidemarkError("STORE_UNREACHABLE", `the vault took no point for ${lastPointLimit}`);
  const timer = systemClock.sleep(drainMsMax, over.signal).then(() => limit.abort(tooLong));
  try {
    return await stop({ drain: true, signal: limit.signal });
  } finally {
    over.abort();
    await timer;
  }
}
