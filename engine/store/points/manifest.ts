/** Point manifests: reading them, and proving at the store what a new one is about to refer to. */
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode, TidemarkError } from "../../errors.ts";
import type { ManifestDocument, PointRecord } from "../format/documents.ts";
import { decodeManifest, decodeVault, documentBytesMax } from "../format/documents.ts";
import { manifestName, vaultName } from "../format/names.ts";
import { getReferred, regressed, type Store } from "../store.ts";

const objectsProvedAtOnce = 8;

/** Reads the manifest that the head names. Errors: DAMAGED (also when it is gone), FORMAT_UNSUPPORTED. */
export async function readManifest(
  store: Store,
  vault: string,
  disk: string,
  point: PointRecord,
  signal: AbortSignal | undefined,
): Promise<ManifestDocument> {
  const name = manifestName(disk, point.sequence, point.epoch);
  const bytes = await getReferred(store, name, documentBytesMax, { signal });
  return decodeManifest(bytes, name, { vault, disk, id: point.id });
}

/**
 * Asks the store for objects that are about to be referred to, by name and ETag: every one that was written for it. Errors: STORE_REGRESSED.
 */
export async function proveObjects(store: Store, written: ReadonlyMap<string, string>, signal: AbortSignal | undefined): Promise<void> {
  await forEachAtOnce(written, objectsProvedAtOnce, async ([name, etag]) => {
    try {
      const there = await store.stat(name, { signal });
      if (there.etag !== etag) throw regressed(name, 1, 0);
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) throw regressed(name, 1, 0);
      throw error;
    }
  });
}

/**
 * Makes sure that the store still holds this very vault: one that forgot it may have been given another, in which nobody could read
 * what we write. Errors: STORE_REGRESSED.
 */
export async function proveVault(store: Store, vault: string, signal: AbortSignal | undefined): Promise<void> {
  let there: string | undefined;
  try {
    const { bytes } = await store.get(vaultName, documentBytesMax, { signal });
    there = decodeVault(bytes, vaultName).vault;
  } catch (error) {
    if (!hasCode(error, "OBJECT_NOT_FOUND", "VAULT_NOT_FOUND")) throw error; // a container that is gone took it along
  }
  if (there === vault) return;
  throw new TidemarkError("STORE_REGRESSED", `${store.description} has forgotten the vault ${vault}`, {
    remedy: "run the command again: it says what is left; the first replication creates a vault where there is nothing",
    detail: { object: vaultName },
  });
}
