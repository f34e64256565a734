/**
 * What a vault is stands in one small object, `vault.json`, without which nothing of the vault can be proved; and once more, byte for byte, in
 * `copy/vault.json`. The copy lies in a folder of its own, so that one slip does not take both.
 *
 *     created:   vault.json (decides who creates the vault)  ─►  copy
 *     looked at by whoever writes the vault, or scrubs it: a copy that is missing or damaged is put there again
 *     vault.json itself is only ever put back by a repair
 *
 * The copy is younger than `vault.json`, and everything else is younger, too. So where any of it is there and `vault.json` is not, a vault has lost it, and no
 * other vault is created in that place: whose chunks and points these are, nobody could say any more.
 */
import { hasCode, isUnreadable, TidemarkError } from "../../errors.ts";
import type { VaultDocument } from "../format/documents.ts";
import { decodeVault, documentBytesMax, encodeVault } from "../format/documents.ts";
import { disksPrefix, segmentsPrefix, vaultCopyName, vaultName } from "../format/names.ts";
import type { Store } from "../store.ts";

export interface Identity {
  readonly document: VaultDocument;
  /** As they stand in the store: a later version may have written fields that we do not know. */
  readonly bytes: Uint8Array;
}

/** Errors: VAULT_NOT_FOUND where there is no vault; DAMAGED where there is one whose `vault.json` is damaged or gone; FORMAT_UNSUPPORTED. */
export async function readIdentity(store: Store, signal: AbortSignal | undefined): Promise<Identity> {
  const first = await find(store, vaultName, signal);
  if (first !== undefined) return first;
  if (!(await hasRemains(store, signal))) {
    throw new TidemarkError("VAULT_NOT_FOUND", `${store.description} holds no vault`, {
      remedy: "check the address, or create a vault with `tidemark vault init`; the first `tidemark replicate` creates one too",
    });
  }
  // It is the first that a vault is given: whatever has come since we looked came after it.
  const second = await find(store, vaultName, signal);
  if (second !== undefined) return second;
  throw identityLost(`${vaultName} of ${store.description} is gone, but the vault's disks are there`);
}

/** Makes a container a vault. Errors: VAULT_EXISTS; DAMAGED where there is one whose `vault.json` is gone. */
export async function createIdentity(store: Store, document: VaultDocument, signal: AbortSignal | undefined): Promise<Uint8Array> {
  const bytes = encodeVault(document);
  if ((await store.etagOf(vaultName, { signal })) === undefined && (await hasRemains(store, signal))) await readIdentity(store, signal);
  try {
    await store.putOnce(vaultName, bytes, { signal });
  } catch (error) {
    if (!hasCode(error, "OBJECT_EXISTS")) throw error;
    throw new TidemarkError("VAULT_EXISTS", `${store.description} holds a vault already`, {
      remedy: "use it, or name another place",
      cause: error,
    });
  }
  await store.putOnce(vaultCopyName, bytes, { signal });
  return bytes;
}

/** What is wrong with one of the two objects. */
export interface IdentityFault {
  readonly name: string;
  /** Of what stands there; undefined: nothing does. */
  readonly etag: string | undefined;
  /** It can be read, but it is another vault's, or a later version's: it is not ours to replace. */
  readonly isForeign: boolean;
  readonly message: string;
}

/** Looks at both objects. Errors: those of the store. */
export async function identityFaults(
  store: Store,
  document: VaultDocument,
  signal: AbortSignal | undefined,
): Promise<readonly IdentityFault[]> {
  const faults: IdentityFault[] = [];
  for (const name of [vaultName, vaultCopyName]) {
    try {
      const there = await find(store, name, signal);
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
  return faults;
}

function foreign(name: string, why: string): IdentityFault {
  const remedy = `If the disks here are that one's, keep both objects elsewhere, remove ${vaultName}, and run \`tidemark vault repair\``;
  return { name, etag: undefined, isForeign: true, message: `${name} is left alone: ${why}. ${remedy}` };
}

/** Puts in the place of what is gone or damaged what the other object still says, or else what is known. Errors: those of the store. */
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
    // Somebody else was faster.
    if (!hasCode(error, "CONDITION_FAILED") || (await find(store, name, signal))?.document.vault !== document.vault) throw error;
  }
}

export function identityLost(message: string, cause?: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", message, {
    remedy: "run `tidemark vault repair`: it puts it back from its copy; nothing is lost yet, and no new vault is created over this one",
    detail: { object: vaultName },
    cause,
  });
}

/** Undefined: there is no such object. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
async function find(store: Store, name: string, signal: AbortSignal | undefined): Promise<Identity | undefined> {
  try {
    const { bytes } = await store.get(name, documentBytesMax, { signal });
    return { document: decodeVault(bytes, name), bytes };
  } catch (error) {
    if (hasCode(error, "OBJECT_NOT_FOUND", "VAULT_NOT_FOUND")) return undefined;
    if (hasCode(error, "DAMAGED")) throw identityLost(error.message, error);
    throw error;
  }
}

/** Whether anything is there that only a vault has. */
async function hasRemains(store: Store, signal: AbortSignal | undefined): Promise<boolean> {
  try {
    if ((await store.etagOf(vaultCopyName, { signal })) !== undefined) return true;
    for (const prefix of [disksPrefix, segmentsPrefix]) for await (const _object of store.list(prefix, { signal })) return true;
  } catch (error) {
    if (!hasCode(error, "VAULT_NOT_FOUND")) throw error;
  }
  return false;
}
