/**
 * Opening of a vault: reads or creates its document, and unlocks it.
 *
 * The state folder keeps a copy of the document by the store's address. It stands in for a store
 * that cannot be reached. It also tells that a vault was encrypted. A store in which the vault is
 * gone, not encrypted any more, or has older keys again was changed by a process without the key. So it is
 * refused, because what is written there could be read by that process.
 */
import { documentCopy, writerKeyFile } from "./disk/source/local-state.ts";
import { hasCode, TidemarkError } from "./errors.ts";
import type { Sink } from "./sink.ts";
import { openChecksum } from "./store/format/checksum.ts";
import { isEncrypted, revisionOf, type VaultDocument } from "./store/format/vault-document.ts";
import { recipientsFor, recipientsOf } from "./store/keys/recipients.ts";
import { keysOf } from "./store/keys/sealed-sink.ts";
import { encrypted, notEncrypted, type Unlocked, unlock } from "./store/keys/unlock.ts";
import type { RenewKeys } from "./store/keys/vault-keys.ts";
import { createIdentity, readIdentity } from "./store/points/identity.ts";
import { Store } from "./store/store.ts";
import { findIdentities } from "./upkeep/repair/lost-identity.ts";
import { newDocument, type VaultOptions, type VaultParameters } from "./vault-options.ts";

/** Errors: as `Vault.create`. */
export async function createVault(sink: Sink, options: VaultOptions & VaultParameters): Promise<Unlocked> {
  const { keys, onNotice, signal, stateFolder } = options;
  const encryption = options.encryption ?? recipientsFor(keys);
  await openChecksum();
  const plain = newDocument(options);
  let [document, secrets]: [VaultDocument, VaultOptions["keys"]] = [plain, undefined];
  if (encryption !== undefined) {
    [document, secrets] = encrypted(plain, await recipientsOf(encryption));
  }
  await sink.createContainer({ signal });
  const bytes = await createIdentity(new Store(sink), document, onNotice, signal);
  await documentCopy(stateFolder, sink.description).keep(bytes);
  const renew = renewal(sink, document, { ...options, keys: keys ?? secrets, signal: undefined });
  return await unlock(sink, document, secrets, undefined, renew);
}

/** Errors: as `Vault.open`. */
export async function openVault(sink: Sink, options: VaultOptions): Promise<Unlocked> {
  await openChecksum();
  const copy = documentCopy(options.stateFolder, sink.description);
  const kept = await copy.read();
  try {
    const { bytes, document } = await readIdentity(new Store(sink), options.signal);
    refuseOlder(document, kept, sink.description);
    const unlocked = await unlockWith(sink, document, options);
    await copy.keep(bytes);
    return unlocked;
  } catch (error) {
    if (hasCode(error, "STORE_UNREACHABLE") && kept !== undefined) return await unlockWith(sink, kept, options);
    throw error;
  }
}

/** Errors: as `Vault.openForRepair`. */
export async function openVaultForRepair(sink: Sink, options: VaultOptions): Promise<Unlocked> {
  try {
    return await openVault(sink, options);
  } catch (error) {
    // An older document that was put back does not know the given key.
    if (!hasCode(error, "DAMAGED", "ACCESS_REFUSED")) throw error;
  }
  const kept = await documentCopy(options.stateFolder, sink.description).read();
  let failure: unknown;
  for (const document of await findIdentities(new Store(sink), kept, options.signal)) {
    try {
      return await unlockWith(sink, document, options);
    } catch (error) {
      if (!hasCode(error, "DAMAGED", "ACCESS_REFUSED", "INVALID_ARGUMENT")) throw error;
      failure ??= error;
    }
  }
  throw failure;
}

/**
 * Opens the vault, or creates it where this machine has seen none: one that is gone may lie on a file
 * system that is not mounted. A store that may forget its last writes may have forgotten the vault, so
 * there only an encrypted one counts as gone. Errors: as both.
 */
export async function openOrCreateVault(sink: Sink, options: VaultOptions & VaultParameters): Promise<Unlocked> {
  try {
    const opened = await openVault(sink, options);
    if (options.encryption !== undefined && !isEncrypted(opened.document)) throw notEncrypted(sink.description);
    return opened;
  } catch (error) {
    if (!hasCode(error, "VAULT_NOT_FOUND")) throw error;
    const kept = await documentCopy(options.stateFolder, sink.description).read();
    const mayForget = sink.capabilities.settlingMs > 0;
    if (kept !== undefined && (!mayForget || (isEncrypted(kept) && options.encryption === undefined)))
      throw gone(error, kept);
  }
  try {
    return await createVault(sink, options);
  } catch (error) {
    if (!hasCode(error, "VAULT_EXISTS")) throw error;
    return await openVault(sink, options);
  }
}

async function unlockWith(sink: Sink, document: VaultDocument, options: VaultOptions): Promise<Unlocked> {
  const { keys, stateFolder, writerKey } = options;
  const kept = stateFolder === undefined ? undefined : writerKeyFile(stateFolder, document.vault);
  const given = writerKey && { path: "the key of the registration", read: () => Promise.resolve(writerKey) };
  return await unlock(sink, document, keys, given ?? kept, renewal(sink, document, { ...options, signal: undefined }));
}

/** Opens the vault again once its keys or recipients are others than those of `opened`. */
function renewal(sink: Sink, opened: VaultDocument, options: VaultOptions): RenewKeys {
  let known = revisionOf(opened);
  return async () => {
    const { document } = await readIdentity(new Store(sink), undefined);
    if (document.vault !== opened.vault || revisionOf(document) <= known) return undefined;
    const renewed = await openVault(sink, options);
    known = revisionOf(renewed.document);
    return keysOf(renewed.sink);
  };
}

/** Errors: DAMAGED. */
function refuseOlder(found: VaultDocument, kept: VaultDocument | undefined, description: string): void {
  if (kept?.vault !== found.vault || revisionOf(found) >= revisionOf(kept)) return;
  const fact = isEncrypted(found) ? "holds older keys than this machine has seen there" : "is not encrypted any more";
  throw new TidemarkError("DAMAGED", `vault.json of ${description} ${fact}`, {
    remedy:
      "find out which process has put it back, then run `tidemark vault repair` on this machine to restore vault.json",
    detail: { object: "vault.json" },
  });
}

function gone(cause: TidemarkError, kept: VaultDocument): TidemarkError {
  const flag = isEncrypted(kept) ? " --encrypt" : "";
  return new TidemarkError("VAULT_NOT_FOUND", `${cause.message}, where this machine has used one`, {
    remedy: `check the address and what is mounted; \`tidemark vault init${flag}\` makes a new one`,
    cause,
  });
}
