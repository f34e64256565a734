/** What a benchmark gets from its command: its store, and time to end after ^C. */
import { caseEndMsMax, type StoreAddress } from "../../bench/index.ts";
import { type Environment, sinkOptions } from "../settings.ts";
import type { CommandContext } from "./context.ts";

/** The store for a process that the benchmark starts. */
export function storeAddress(address: string, environment: Environment, signal: AbortSignal): StoreAddress {
  const { credentials, proxy } = sinkOptions(address, environment, signal);
  return { address, credentials, proxy };
}

/**
 * Lets the case that is measured end in good order after ^C: what it made in the store and on disk
 * is removed by the processes that made it.
 */
export function endCaseFirst({ allowRest, signal, output }: CommandContext): void {
  allowRest(caseEndMsMax);
  const step = "ending the case; a second ^C ends at once and leaves what the case made";
  signal.addEventListener("abort", () => output.step({ step }, step), { once: true });
}
