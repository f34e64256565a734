/** How requests to Azure Storage prove that they may, and what of that must never be shown. */

import type { TokenCredential } from "@azure/identity";
import { AnonymousCredential, StorageSharedKeyCredential } from "@azure/storage-blob";
import { type ProxyOptions, parseProxyUrl } from "./azure-connection.ts";

/** How a request proves that it may. */
export type AzureAccess =
  | { readonly kind: "key"; readonly account: string; readonly key: string }
  /** `sas` is a query string without its `?`. */
  | { readonly kind: "sas"; readonly sas: string }
  | { readonly kind: "token"; readonly credential: TokenCredential };

/** The SDK's form of it. A SAS is part of the URL and needs none. */
export function credentialOf(access: AzureAccess): AnonymousCredential | StorageSharedKeyCredential | TokenCredential {
  switch (access.kind) {
    case "key":
      return new StorageSharedKeyCredential(access.account, access.key);
    case "sas":
      return new AnonymousCredential();
    case "token":
      return access.credential;
  }
}

/** Every string that no message may hold. */
export function secretsOf(access: AzureAccess, proxy: ProxyOptions | undefined): string[] {
  const secrets: string[] = [];
  if (access.kind === "key") secrets.push(access.key);
  if (access.kind === "sas") {
    const signature = new URLSearchParams(access.sas).get("sig");
    secrets.push(access.sas);
    if (signature !== null) secrets.push(signature, encodeURIComponent(signature));
  }
  if (proxy !== undefined) {
    const { password } = parseProxyUrl(proxy.url);
    secrets.push(proxy.url, password, decodeURIComponent(password));
  }
  return secrets.filter((secret) => secret !== "");
}

/** When the SAS expires, if there is one that says so. */
export function sasExpiry(access: AzureAccess): number | undefined {
  const expiry = access.kind === "sas" ? Date.parse(new URLSearchParams(access.sas).get("se") ?? "") : Number.NaN;
  return Number.isNaN(expiry) ? undefined : expiry;
}
