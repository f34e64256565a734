/** What the command line needs of the sinks and the package does not promise to others. */

export { FileLock } from "./file-lock.ts";
export { isLoopback } from "./proxy.ts";
