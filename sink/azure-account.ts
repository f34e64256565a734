/**
 * What a storage account and a container tell of themselves: how the connection is secured, kind and
 * redundancy of the account, and settings that keep what a vault deletes.
 *
 * Each fact is asked for on its own. What an identity may not ask, or a store does not know, is null.
 */
import type { Agent } from "node:http";
import { TLSSocket } from "node:tls";
import { BlobServiceClient, type ContainerClient, type Pipeline } from "@azure/storage-blob";
import { TidemarkError } from "../engine/index.ts";
import type { Caller } from "./azure-retry.ts";

/** Null: the store does not tell. */
export interface AccountFacts {
  /** Of a connection that is open; null over plain http, too. */
  readonly tls: { readonly protocol: string; readonly validToMs: number | null } | null;
  /** Such as `StorageV2`. */
  readonly kind: string | null;
  /** Performance and redundancy, such as `Standard_GRS`. */
  readonly sku: string | null;
  /** Data Lake Storage. */
  readonly isHierarchical: boolean | null;
  /** A policy or a legal hold forbids to change what is stored. */
  readonly isImmutable: boolean | null;
  /** Anybody may read. */
  readonly isPublic: boolean | null;
  /** How long deleted blobs are kept; 0: they are not. */
  readonly softDeleteDays: number | null;
}

interface AccountQuestion {
  readonly container: ContainerClient;
  readonly pipeline: Pipeline;
  readonly calls: Caller;
  readonly agent: Agent;
  readonly signal: AbortSignal | undefined;
}

/** Asks. Errors: INTERRUPTED. */
export async function accountFacts({
  container,
  pipeline,
  calls,
  agent,
  signal,
}: AccountQuestion): Promise<AccountFacts> {
  const asked = async <Answer>(
    action: string,
    send: (abortSignal: AbortSignal) => Promise<Answer>,
  ): Promise<Answer | null> => {
    try {
      return await calls.run({ kind: "idempotent", action, right: "read", name: undefined, signal, send });
    } catch (error) {
      if (error instanceof TidemarkError && error.code !== "INTERRUPTED") return null;
      throw error;
    }
  };
  const service = new BlobServiceClient(serviceUrl(container.url), pipeline);
  const account = await asked("read what the account is", async (abortSignal) => {
    return await container.getAccountInfo({ abortSignal });
  });
  const properties = await asked("read the container's properties", async (abortSignal) => {
    return await container.getProperties({ abortSignal });
  });
  const settings = await asked("read the account's settings", async (abortSignal) => {
    return await service.getProperties({ abortSignal });
  });
  const retention = settings?.deleteRetentionPolicy;
  return {
    tls: tlsOf(agent),
    kind: account?.accountKind ?? null,
    sku: account?.skuName ?? null,
    isHierarchical: account?.isHierarchicalNamespaceEnabled ?? null,
    isImmutable: properties && (properties.hasImmutabilityPolicy === true || properties.hasLegalHold === true),
    isPublic: properties && properties.blobPublicAccess !== undefined,
    softDeleteDays: retention === undefined ? null : retention.enabled ? (retention.days ?? 1) : 0,
  };
}

/** The container's URL without its last part. */
function serviceUrl(containerUrl: string): string {
  const url = new URL(containerUrl);
  url.pathname = url.pathname.replace(/\/[^/]+\/?$/, "/");
  return url.href;
}

/** What secures the connections that `agent` keeps. */
export function tlsOf(agent: Pick<Agent, "freeSockets">): AccountFacts["tls"] {
  for (const socket of Object.values(agent.freeSockets).flat()) {
    if (!(socket instanceof TLSSocket)) continue;
    // A session that was resumed may have no certificate.
    const validToMs = Date.parse(socket.getPeerCertificate().valid_to);
    return { protocol: socket.getProtocol() ?? "TLS", validToMs: Number.isNaN(validToMs) ? null : validToMs };
  }
  return null;
}
