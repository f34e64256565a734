/**
 * Unlocking: from the document of an encrypted vault and what a user or a state folder holds to the
 * keys, and to a sink that seals.
 *
 * Invariant: no key is used before the authentication code of the document has been checked with it.
 */
import { randomBytes } from "node:crypto";
import { TidemarkError } from "../../errors.ts";
import type { Sink } from "../../sink.ts";
import { fromHex, toHex } from "../format/checksum.ts";
import { type EncryptedDocument, isEncrypted, type VaultDocument } from "../format/vault-document.ts";
import { locked, type NewRecipient, type Secrets, unwrapVaultKey, wrapFor } from "./recipients.ts";
import { SealedSink } from "./sealed-sink.ts";
import { generationOf, newGeneration, VaultKeys, vaultKeyBytes, vaultKeysFrom } from "./vault-keys.ts";
import { decodeWriterKey } from "./writer-key.ts";

/** A vault as the engine works with it. */
export interface Unlocked {
  readonly sink: Sink;
  /** With the digests' key. */
  readonly document: VaultDocument;
}

/**
 * Opens an encrypted vault by a private key or passphrase, else by the writer key of this machine;
 * any other vault is returned as it is.
 *
 * @throws ACCESS_REFUSED: no key, or one that opens another vault. DAMAGED: the document was altered.
 * INVALID_ARGUMENT: a key for a vault that is not encrypted.
 */
export async function unlock(
  sink: Sink,
  document: VaultDocument,
  secrets: Secrets | undefined,
  writerKey: Uint8Array | undefined,
): Promise<Unlocked> {
  const isGiven = Object.values(secrets ?? {}).some((secret) => secret !== undefined);
  if (!isEncrypted(document)) {
    if (isGiven || writerKey !== undefined) throw notEncrypted(sink.description);
    return { sink, document };
  }
  return unlocked(sink, document, await keysFor(document, isGiven ? secrets : undefined, writerKey));
}

async function keysFor(
  document: EncryptedDocument,
  secrets: Secrets | undefined,
  writerKey: Uint8Array | undefined,
): Promise<VaultKeys> {
  if (secrets !== undefined) {
    const vaultId = fromHex(document.vault);
    const vaultKeys = vaultKeysFrom(secrets.vaultKey ?? (await unwrapVaultKey(document, secrets)), document);
    return new VaultKeys(
      vaultId,
      vaultKeys.map((vaultKey) => generationOf(vaultKey, vaultId)),
    );
  }
  if (writerKey === undefined) throw locked(`the vault ${document.vault} is encrypted, and no key is given`);
  const keys = decodeWriterKey(writerKey, "the writer key of this machine");
  if (keys.generation >= document.encryption.generations.length) return keys;
  throw new TidemarkError("ACCESS_REFUSED", "the vault's key has been rotated since this machine was enrolled", {
    remedy: "run `tidemark vault keys enroll` on this machine, with the private key or passphrase at hand",
  });
}

function unlocked(sink: Sink, document: EncryptedDocument, keys: VaultKeys): Unlocked {
  keys.check(document);
  return { sink: new SealedSink(sink, keys), document: { ...document, digestKey: toHex(keys.digestKey) } };
}

/** The error for a vault that is expected to be encrypted. */
export function notEncrypted(description: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `a key is given for ${description}, and its vault is not encrypted`, {
    remedy:
      "unset TIDEMARK_KEY_FILE and TIDEMARK_PASSPHRASE_FILE; if the vault was created with `--encrypt`, run `tidemark vault repair`",
  });
}

/**
 * The document of a new encrypted vault, and a secret that opens it now. Errors: INVALID_ARGUMENT when
 * it has no recipient.
 */
export function encrypted(plain: VaultDocument, recipients: readonly NewRecipient[]): [EncryptedDocument, Secrets] {
  if (recipients.length === 0)
    throw new TidemarkError("INVALID_ARGUMENT", "an encrypted vault needs a certificate or a passphrase", {
      remedy: "add `--certificate CERT.pem` or `--passphrase-file FILE`",
    });
  const vaultId = fromHex(plain.vault);
  const vaultKey = randomBytes(vaultKeyBytes);
  const document: EncryptedDocument = {
    ...plain,
    digestKey: "",
    encryption: {
      cipher: "aes-256-gcm",
      revision: 1,
      generations: [newGeneration(vaultId, vaultKey, undefined)],
      recipients: recipients.map((recipient) => wrapFor(recipient, plain.vault, vaultKey, plain.createdMs)),
      mac: "",
    },
  };
  return [authenticated(document, vaultKey), { vaultKey }];
}

/** The document with the authentication code that its newest vault key gives. */
export function authenticated(document: EncryptedDocument, vaultKey: Uint8Array): EncryptedDocument {
  const vaultId = fromHex(document.vault);
  const keys = new VaultKeys(
    vaultId,
    vaultKeysFrom(vaultKey, document).map((key) => generationOf(key, vaultId)),
  );
  return { ...document, encryption: { ...document.encryption, mac: keys.mac(document) } };
}
