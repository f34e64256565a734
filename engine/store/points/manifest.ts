/**
 * Point manifests: reads them, and proves at the store what a new one is about to refer to.
 *
 * A store that went back in time may have lost what it acknowledged a moment ago. So before a
 * commit every object that was written for it is asked for by ETag, and `vault.json` is read.
 *
 * Invariant: a committed manifest refers only to objects that the store held, as they were written,
 * after the head was marked.
 */
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode } from "../../errors.ts";
import type { ManifestDocument, PointRecord } from "../format/documents.ts";
import { decodeManifest, decodeVault, documentBytesMax } from "../format/documents.ts";
import { damaged } from "../format/fields.ts";
import { manifestName, vaultName } from "../format/names.ts";
import { isEncrypted } from "../format/vault-document.ts";
import { getReferred, regressed, type Store, storeRegressed } from "../store.ts";

const objectsProvedAtOnce = 8;

/**
 * Reads the manifest of a point that the head lists. Errors: DAMAGED (also when it is gone),
 * FORMAT_UNSUPPORTED.
 */
export async function readManifest(
  store: Store,
  vault: string,
  disk: string,
  point: PointRecord,
  signal: AbortSignal | undefined,
): Promise<ManifestDocument> {
  const name = manifestName(disk, point.sequence, point.epoch);
  const bytes = await getReferred(store, name, documentBytesMax, { signal });
  const manifest = decodeManifest(bytes, name, { vault, disk, id: point.id });
  for (const field of ["sequence", "epoch", "timeMs", "volumeBytes"] as const) {
    if (manifest[field] !== point[field])
      throw damaged(name, `its ${field} is ${String(manifest[field])}, where the head says ${String(point[field])}`);
  }
  return manifest;
}

/**
 * Makes sure that the store holds the objects `written` (name → ETag) that a commit is about to
 * refer to. Errors: STORE_REGRESSED.
 */
export async function proveObjects(
  store: Store,
  written: ReadonlyMap<string, string>,
  signal: AbortSignal | undefined,
): Promise<void> {
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
 * Makes sure that the store still holds this vault. A store that forgot it may hold another vault
 * by now, whose readers could not read what this writer writes. Takes up a new key of the vault.
 * Errors: STORE_REGRESSED; as `VaultKeys.renewed`.
 */
export async function proveVault(store: Store, vault: string, signal: AbortSignal | undefined): Promise<void> {
  let there: string | undefined;
  try {
    const { bytes } = await store.get(vaultName, documentBytesMax, { signal });
    const document = decodeVault(bytes, vaultName);
    there = document.vault;
    if (there === vault && isEncrypted(document)) await store.keys?.renewed(document.encryption.generations.length);
  } catch (error) {
    if (!hasCode(error, "OBJECT_NOT_FOUND", "VAULT_NOT_FOUND")) throw error; // with the container the vault is gone
  }
  if (there === vault) return;
  throw storeRegressed(vaultName, `${store.description} has forgotten the vault ${vault}`, {
    remedy: "run the command again: it says what is left; the first replication creates a vault where there is nothing",
  });
}
