/**
 * Sinks: the stores that a vault can lie in. `openSink` takes the address that a user writes; the
 * classes are for programs that build their own options. `dir:` and `memory:` need no other
 * package; `azurite:` needs `azurite` and `@azure/storage-blob`, an https address needs
 * `@azure/storage-blob`, and `@azure/identity` to sign in.
 */

export type { AzureSinkOptions } from "./azure-options.ts";
export type { RetryOptions } from "./azure-retry.ts";
export { Azurite, type AzuriteOptions } from "./azurite.ts";
export type { AzureAccess, AzureCredential } from "./credential.ts";
export { DirectorySink, type DirectorySinkOptions } from "./directory.ts";
export {
  type AzureCredentials,
  type OpenSinkOptions,
  openSink,
  parseVaultSpec,
  sasFor,
  type VaultSpec,
} from "./open.ts";
export type { ProxyOptions } from "./proxy.ts";
