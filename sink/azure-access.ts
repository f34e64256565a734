/**
 * Authentication of requests to Azure Storage: the SDK's form of a credential, and the secrets that
 * no message may contain.
 */
import {
  AnonymousCredential,
  ContainerSASPermissions,
  generateBlobSASQueryParameters,
  SASProtocol,
  StorageSharedKeyCredential,
} from "@azure/storage-blob";
import { serviceVersion } from "./azure-wire.ts";
import type { AzureAccess, AzureCredential } from "./credential.ts";
import { type ProxyOptions, parseProxyUrl } from "./proxy.ts";

/** The SDK's form of `access`. A SAS is part of the URL and needs no credential. */
export function credentialOf(access: AzureAccess): AnonymousCredential | StorageSharedKeyCredential | AzureCredential {
  switch (access.kind) {
    case "key":
      return new StorageSharedKeyCredential(access.account, access.key);
    case "sas":
      return new AnonymousCredential();
    case "token":
      return access.credential;
  }
}

/**
 * A SAS for one container, with the rights that a writer needs: to read, add, create, write, delete
 * and list.
 */
export function containerSas(
  { account, key }: Extract<AzureAccess, { readonly kind: "key" }>,
  containerUrl: string,
  untilMs: number,
): string {
  const { protocol, pathname } = new URL(containerUrl);
  return generateBlobSASQueryParameters(
    {
      containerName: pathname.split("/").at(-1) ?? "",
      permissions: ContainerSASPermissions.parse("racwdl"),
      expiresOn: new Date(untilMs),
      protocol: protocol === "https:" ? SASProtocol.Https : SASProtocol.HttpsAndHttp,
      version: serviceVersion,
    },
    new StorageSharedKeyCredential(account, key),
  ).toString();
}

/** Strings that no message may contain. */
export function secretsOf(access: AzureAccess, proxy: ProxyOptions | undefined): string[] {
  const secrets: string[] = [];
  if (access.kind === "key") secrets.push(access.key);
  if (access.kind === "sas") {
    const signature = new URLSearchParams(access.sas).get("sig");
    secrets.push(access.sas);
    if (signature !== null) secrets.push(signature, encodeURIComponent(signature));
  }
  if (proxy !== undefined) {
    const { password } = parseProxyUrl(proxy);
    secrets.push(proxy.url, password, decodeURIComponent(password));
  }
  return secrets.filter((secret) => secret !== "");
}
