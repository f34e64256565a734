/** Store of a benchmark, as a process that the benchmark starts opens it. */
import type { StoreAddress } from "../../bench/index.ts";
import { type Environment, sinkOptions } from "../settings.ts";

/** The store for a process that the benchmark starts. */
export function storeAddress(address: string, environment: Environment, signal: AbortSignal): StoreAddress {
  const { credentials, proxy } = sinkOptions(address, environment, signal);
  return { address, credentials, proxy };
}
