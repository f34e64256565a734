/** What the command line needs of the sinks and the package does not promise to others. */

export type { AccountFacts } from "./azure-account.ts";
export { FileLock } from "./file-lock.ts";
export { bypassesProxy, describeProxy, isLoopback } from "./proxy.ts";
