/**
 * Identity of a vault: `vault.json`, without which nothing in the vault can be proved, and its copy
 * `copy/vault.json`, byte for byte.
 *
 *     create:            put vault.json (decides which of two processes creates the vault)  →  put the copy
 *     write, scrub:      a copy that is missing or damaged is put again
 *     vault repair:      the only command that puts vault.json again
 *
 * The copy stands in a folder of its own, so that one mistaken deletion does not take both.
 *
 * Invariant: where anything of a vault is there and `vault.json` is not, no other vault is created.
 * `vault.json` is the oldest object of its vault, so it was lost; with a new one nothing could tell
 * any more to which vault the chunks and points belong.
 */
import { hasCode, isUnreadable, TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { VaultDocument } from "../format/documents.ts";
import { decodeVault, documentBytesMax, encodeVault } from "../format/documents.ts";
import { disksPrefix, segmentsPrefix, vaultCopyName, vaultName } from "../format/names.ts";
import { isEncrypted, revisionOf } from "../format/vault-document.ts";
import type { Store } from "../store.ts";

export interface Identity {
  readonly document: VaultDocument;
  /** As they stand in the store, with fields of later versions that this one does not know. */
  readonly bytes: Uint8Array;
}

/**
 * Reads `vault.json`. Errors: VAULT_NOT_FOUND; DAMAGED when it is damaged, or gone from a vault;
 * FORMAT_UNSUPPORTED.
 */
export async function readIdentity(store: Store, signal: AbortSignal | undefined): Promise<Identity> {
  const first = await find(store, vaultName, signal);
  if (first !== undefined) return first;
  if (!(await hasRemains(store, signal))) {
    throw new TidemarkError("VAULT_NOT_FOUND", `${store.description} holds no vault`, {
      remedy:
        "check the address, or create a vault with `tidemark vault init`; the first `tidemark replicate` creates one too",
    });
  }
  // Another process may have created the vault since the first look; vault.json is its first
  // object.
  const second = await find(store, vaultName, signal);
  if (second !== undefined) return second;
  throw identityLost(`${vaultName} of ${store.description} is gone, but the vault's disks are there`);
}

/**
 * Creates a vault. Returns the bytes of `vault.json`. A copy that cannot be written is a notice
 * VAULT_AT_RISK. Errors: VAULT_EXISTS; DAMAGED when the
 * container holds a vault whose `vault.json` is gone.
 */
export async function createIdentity(
  store: Store,
  document: VaultDocument,
  onNotice: ((notice: Notice) => void) | undefined,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  const bytes = encodeVault(document);
  if ((await store.etagOf(vaultName, { signal })) === undefined && (await hasRemains(store, signal)))
    await readIdentity(store, signal);
  try {
    await store.putOnce(vaultName, bytes, { signal });
  } catch (error) {
    if (!hasCode(error, "OBJECT_EXISTS")) throw error;
    throw new TidemarkError("VAULT_EXISTS", `${store.description} holds a vault already`, {
      remedy: "use that vault, or give another address",
      cause: error,
    });
  }
  try {
    await store.putOnce(vaultCopyName, bytes, { signal });
  } catch (error) {
    // The vault is there. An error would say to create it again, which cannot be done.
    if (!(error instanceof TidemarkError) || error.code === "INTERRUPTED") throw error;
    const message = `the second copy of the vault's identity (${vaultCopyName}) could not be written: ${error.message}`;
    onNotice?.({ code: "VAULT_AT_RISK", message: `${message}; the next \`tidemark replicate\` writes it` });
  }
  return bytes;
}

/** A fault of one of the two objects. */
export interface IdentityFault {
  readonly name: string;
  /** ETag of the faulty object; undefined when there is none. */
  readonly etag: string | undefined;
  /**
   * True when the object belongs to another vault or a later version: this version does not replace
   * it.
   */
  readonly isForeign: boolean;
  readonly message: string;
}

/** The faults of both objects. Errors: those of the store. */
export async function identityFaults(
  store: Store,
  document: VaultDocument,
  signal: AbortSignal | undefined,
): Promise<readonly IdentityFault[]> {
  const faults: IdentityFault[] = [];
  const revisions = new Map<string, number>();
  for (const name of [vaultName, vaultCopyName]) {
    try {
      const there = await find(store, name, signal);
      if (there !== undefined) revisions.set(name, revisionOf(there.document));
      if (there === undefined) faults.push({ name, etag: undefined, isForeign: false, message: `${name} is gone` });
      else if (there.document.vault !== document.vault)
        faults.push(foreign(name, `it is of vault ${there.document.vault}, not of this one`));
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      const etag = await store.etagOf(name, { signal });
      if (error.code === "FORMAT_UNSUPPORTED") faults.push(foreign(name, error.message));
      else faults.push({ name, etag, isForeign: false, message: error.message });
    }
  }
  const newest = Math.max(...revisions.values());
  for (const [name, revision] of revisions) {
    if (faults.length > 0 || revision === newest) continue;
    const etag = await store.etagOf(name, { signal });
    faults.push({ name, etag, isForeign: false, message: `${name} holds older keys than the other of both` });
  }
  return faults;
}

function foreign(name: string, why: string): IdentityFault {
  const remedy = `If the disks here belong to that vault, save both objects elsewhere, remove ${vaultName}, and run \`tidemark vault repair\``;
  return { name, etag: undefined, isForeign: true, message: `${name} is left alone: ${why}. ${remedy}` };
}

/**
 * Puts a faulty object again, from the other one if that can be read, else from `document`. Errors:
 * those of the store.
 */
export async function mendIdentity(
  store: Store,
  document: VaultDocument,
  { name, etag }: IdentityFault,
  signal: AbortSignal | undefined,
): Promise<void> {
  const other = await find(store, name === vaultName ? vaultCopyName : vaultName, signal).catch((error: unknown) => {
    if (isUnreadable(error)) return undefined;
    throw error;
  });
  const bytes = other?.document.vault === document.vault ? other.bytes : encodeVault(document);
  try {
    await store.replace(name, bytes, etag, { signal });
  } catch (error) {
    // Another process may have put it again.
    if (!hasCode(error, "CONDITION_FAILED") || (await find(store, name, signal))?.document.vault !== document.vault)
      throw error;
  }
}

function identityLost(message: string, cause?: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", message, {
    remedy:
      "run `tidemark vault repair`: it restores vault.json from its copy; nothing else is lost, and no vault is created over this one",
    detail: { object: vaultName },
    cause,
  });
}

/** Undefined when there is no such object. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
async function find(store: Store, name: string, signal: AbortSignal | undefined): Promise<Identity | undefined> {
  try {
    const { bytes } = await store.get(name, documentBytesMax, { signal });
    const document = decodeVault(bytes, name);
    if (isEncrypted(document)) await store.keys?.renewed(document.encryption.generations.length);
    store.keys?.check(document, name);
    return { document, bytes };
  } catch (error) {
    if (hasCode(error, "OBJECT_NOT_FOUND", "VAULT_NOT_FOUND")) return undefined;
    if (hasCode(error, "DAMAGED")) throw identityLost(error.message, error);
    throw error;
  }
}

/** Whether the container holds anything that only a vault has. */
async function hasRemains(store: Store, signal: AbortSignal | undefined): Promise<boolean> {
  try {
    if ((await store.etagOf(vaultCopyName, { signal })) !== undefined) return true;
    for (const prefix of [disksPrefix, segmentsPrefix])
      for await (const _object of store.list(prefix, { signal })) return true;
  } catch (error) {
    if (!hasCode(error, "VAULT_NOT_FOUND")) throw error;
  }
  return false;
}
