/**
 * Options of an Azure sink. They stand apart from azure.ts so that their types need none of the
 * Azure packages, which are optional.
 */

import type { RetryOptions } from "./azure-retry.ts";
import type { ProxyOptions } from "./proxy.ts";

/** How an Azure sink connects and retries. */
export interface AzureSinkOptions extends RetryOptions {
  /** The proxy for every request. Default: none; the environment is not read. */
  readonly proxy?: ProxyOptions | undefined;
  /** Most connections at a time. Default: 16. */
  readonly socketsMax?: number | undefined;
  /** What messages call the store. Default: the container's URL. */
  readonly description?: string | undefined;
  /** The server that was started for this sink. The sink disposes of it last. */
  readonly server?: AsyncDisposable | undefined;
}
