/** The stores that a vault can lie in. `openSink` takes what a user writes; the classes are there for those who build their own. */

export type { AzureAccess } from "./azure-access.ts";
export type { ProxyOptions } from "./azure-connection.ts";
export type { AzureSinkOptions } from "./azure-options.ts";
export type { RetryOptions } from "./azure-retry.ts";
export { Azurite, type AzuriteOptions } from "./azurite.ts";
export { DirectorySink, type DirectorySinkOptions } from "./directory.ts";
export { CrashError, type Fault, FaultySink, Gate, type PlannedFault, type SinkMethod } from "./faults.ts";
export { FileLock } from "./file-lock.ts";
export { MemorySink, type MemorySinkOptions, type MemorySnapshot, MemoryStore } from "./memory.ts";
export { type AzureCredentials, type OpenSinkOptions, openSink, parseVaultSpec, type VaultSpec } from "./open.ts";
