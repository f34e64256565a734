/**
 * Unlocking: from the document of an encrypted vault and what a user or a state folder holds to the
 * keys, and to a sink that seals.
 *
 * Invariant: no key is used before the authentication code of the document has been checked with it.
 */
import { randomBytes } from "node:crypto";
import { hasCode, systemCode, TidemarkError } from "../../errors.ts";
import { shellWord } from "../../shell-word.ts";
import type { Sink } from "../../sink.ts";
import { fromHex, toHex } from "../format/checksum.ts";
import { vaultName } from "../format/names.ts";
import {
  decodeVault,
  type EncryptedDocument,
  encodeVault,
  isEncrypted,
  type VaultDocument,
} from "../format/vault-document.ts";
import { locked, type NewRecipient, type Secrets, unwrapVaultKey, wrapFor } from "./recipients.ts";
import { SealedSink } from "./sealed-sink.ts";
import {
  type GenerationKeys,
  generationOf,
  generationsFrom,
  newGeneration,
  type RenewKeys,
  VaultKeys,
  vaultKeyBytes,
} from "./vault-keys.ts";
import { decodeWriterKey } from "./writer-key.ts";

/** Where a machine that is enrolled to write keeps its key. */
export interface WriterKeyFile {
  readonly path: string;
  /** Undefined: there is none. Errors: DAMAGED, and those of the file system. */
  readonly read: () => Promise<Uint8Array | undefined>;
}

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
 * @param renew - opens it again later: see `VaultKeys.renewed`.
 * @throws ACCESS_REFUSED: no key, one that opens another vault, or a writer key that cannot be read.
 * DAMAGED: the document was altered. INVALID_ARGUMENT: a key for a vault that is not encrypted.
 */
export async function unlock(
  sink: Sink,
  document: VaultDocument,
  secrets: Secrets | undefined,
  writerKey: WriterKeyFile | undefined,
  renew?: RenewKeys,
): Promise<Unlocked> {
  const isGiven = Object.values(secrets ?? {}).some((secret) => secret !== undefined);
  if (!isEncrypted(document)) {
    if (isGiven || (await isThere(writerKey))) throw notEncrypted(sink.description);
    return { sink, document };
  }
  const generations = await (isGiven ? readersKeys(document, secrets ?? {}) : writersKeys(document, writerKey));
  const keys = new VaultKeys(fromHex(document.vault), generations, renew);
  keys.check(document);
  return { sink: new SealedSink(sink, keys), document: { ...document, digestKey: toHex(keys.digestKey) } };
}

async function readersKeys(document: EncryptedDocument, secrets: Secrets): Promise<readonly GenerationKeys[]> {
  const { vaultKey } = secrets;
  if (vaultKey === undefined) return generationsFrom(await unwrapVaultKey(document, secrets), document);
  const { readingKey } = generationOf(vaultKey, fromHex(document.vault));
  if (toHex(readingKey) === document.encryption.generations.at(-1)?.readingKey)
    return generationsFrom(vaultKey, document);
  throw locked(`the key of the vault ${document.vault} has been rotated since this process created it`);
}

async function writersKeys(
  document: EncryptedDocument,
  file: WriterKeyFile | undefined,
): Promise<readonly GenerationKeys[]> {
  const generations = file && (await readWriterKey(document, file));
  if (generations === undefined) throw locked(`the vault ${document.vault} is encrypted, and no key is given`);
  if (generations.length < document.encryption.generations.length)
    throw new TidemarkError("ACCESS_REFUSED", "the vault's key has been rotated since this machine was enrolled", {
      remedy: "run `tidemark vault keys enroll` on this machine, with the private key or passphrase at hand",
    });
  return generations;
}

async function readWriterKey(
  { vault }: EncryptedDocument,
  { path, read }: WriterKeyFile,
): Promise<readonly GenerationKeys[] | undefined> {
  try {
    const bytes = await read();
    if (bytes === undefined) return undefined;
    const keys = decodeWriterKey(bytes, path);
    if (toHex(keys.vaultId) === vault) return keys.generations;
    throw new TidemarkError("DAMAGED", `${path} is the key of another vault`);
  } catch (error) {
    if (!hasCode(error, "DAMAGED") && systemCode(error) === undefined) throw error;
    const fact = error instanceof Error ? error.message : String(error);
    throw new TidemarkError("ACCESS_REFUSED", `the writer key of this machine cannot be read: ${fact}`, {
      remedy:
        `run the command as the user that enrolled this machine: see \`ls -l ${shellWord(path)}\`; or remove that file, and run ` +
        "`tidemark vault keys enroll` with the private key or passphrase at hand",
      detail: { path },
      cause: error,
    });
  }
}

/** A bad state folder is told where it is used: most machines have no writer key. */
async function isThere(file: WriterKeyFile | undefined): Promise<boolean> {
  try {
    return (await file?.read()) !== undefined;
  } catch (error) {
    if (!(error instanceof TidemarkError) && systemCode(error) === undefined) throw error;
    return false;
  }
}

/** The error for a vault that is expected to be encrypted. */
export function notEncrypted(description: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `a key is given for ${description}, and its vault is not encrypted`, {
    remedy:
      "unset TIDEMARK_KEY_FILE and TIDEMARK_PASSPHRASE_FILE; if the vault was created with `--encrypt`, run `tidemark vault repair`",
  });
}

/** The document of a new encrypted vault, and a secret that opens it now. Errors: as `authenticated`. */
export function encrypted(plain: VaultDocument, recipients: readonly NewRecipient[]): [EncryptedDocument, Secrets] {
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

/**
 * The document with the authentication code that its newest vault key gives. Errors: INVALID_ARGUMENT
 * when no process could read it, and so none could open the vault any more.
 */
export function authenticated(unsigned: EncryptedDocument, vaultKey: Uint8Array): EncryptedDocument {
  const keys = new VaultKeys(fromHex(unsigned.vault), generationsFrom(vaultKey, unsigned));
  const document = { ...unsigned, encryption: { ...unsigned.encryption, mac: keys.mac(unsigned) } };
  try {
    decodeVault(encodeVault(document), vaultName);
  } catch (error) {
    if (!hasCode(error, "DAMAGED")) throw error;
    throw new TidemarkError("INVALID_ARGUMENT", `a vault cannot have these keys: ${error.message}`, {
      remedy:
        "give at most 64 certificates, in files whose names are one line of at most 200 characters; after 1,023 rotations, `tidemark copy` to a new vault",
    });
  }
  return document;
}
