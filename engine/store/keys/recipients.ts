/**
 * Recipients: the keys and passphrases that open an encrypted vault, and the vault key wrapped for
 * each of them.
 *
 *     RSA, 2048 bits and more    RSAES-OAEP with SHA-256 (RFC 8017)
 *     P-256, P-384               HPKE (RFC 9180)
 *     passphrase                 scrypt (RFC 7914) gives an X25519 private key; HPKE
 *
 * A passphrase is a recipient with a public key like the others, so a new vault key is wrapped for
 * all recipients without any of their secrets.
 *
 * Wrapping proves nothing about the process that wrapped. The authentication code of `vault.json` does: only a
 * process with the vault key can make it.
 */
import {
  constants,
  createCipheriv,
  createDecipheriv,
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  privateDecrypt,
  publicEncrypt,
  randomBytes,
  scrypt,
} from "node:crypto";
import { promisify } from "node:util";
import { TidemarkError } from "../../errors.ts";
import { checksum, fromHex, toHex } from "../format/checksum.ts";
import type { EncryptedDocument, Recipient, ScryptParameters } from "../format/vault-document.ts";
import { curveOf, decapsulate, encapsulate, wireKey, x25519PrivateKey } from "./hpke.ts";
import { keyRemedy, publicHalf, vaultKeyBytes } from "./vault-keys.ts";

/** What opens a vault. Held in memory only. */
export interface Secrets {
  /** A private key in PEM. */
  readonly privateKey?: string | undefined;
  /** A passphrase of the vault; where `privateKey` is encrypted, the one that opens it. */
  readonly passphrase?: string | undefined;
  /** The newest vault key itself. */
  readonly vaultKey?: Uint8Array | undefined;
}

/** Keys and passphrases that are to open a vault. */
export interface NewRecipients {
  /** Certificates or public keys in PEM: RSA of 2048 bits and more, P-256, P-384. */
  readonly certificates?: readonly { readonly pem: string; readonly name: string }[] | undefined;
  readonly passphrase?: string | undefined;
}

/** A public key for which a vault key is wrapped. */
export interface NewRecipient {
  readonly kind: Recipient["kind"];
  readonly name: string;
  readonly publicKey: KeyObject;
  readonly scrypt: ScryptParameters | null;
}

const rsaBitsMin = 2048;
/** 2¹⁷ takes 128 MiB and about half a second. */
const logCostDefault = 17;
const aead = "aes-256-gcm";
const tagBytes = 16;
const scryptOf = promisify<string, Uint8Array, number, { N: number; r: number; p: number; maxmem: number }, Buffer>(
  scrypt,
);

/** Errors: INVALID_ARGUMENT. */
export async function recipientsOf({ certificates = [], passphrase }: NewRecipients): Promise<NewRecipient[]> {
  const recipients: NewRecipient[] = [];
  for (const { pem, name } of certificates) {
    const recipient = certificateRecipient(pem, name);
    if (!recipients.some(({ publicKey }) => publicKey.equals(recipient.publicKey))) recipients.push(recipient);
  }
  if (passphrase !== undefined) recipients.push(await passphraseRecipient(passphrase, "passphrase"));
  if (recipients.length > 0) return recipients;
  throw new TidemarkError("INVALID_ARGUMENT", "no certificate and no passphrase is given", {
    remedy: "add `--certificate CERT.pem` or `--passphrase-file FILE`",
  });
}

/**
 * For a vault that is created with a key or passphrase in hand and no recipients: the same key or
 * passphrase opens it. Undefined: nothing is given. Errors: INVALID_ARGUMENT.
 */
export function recipientsFor({ privateKey, passphrase }: Secrets = {}): NewRecipients | undefined {
  if (privateKey === undefined) return passphrase === undefined ? undefined : { passphrase };
  const pem = publicHalf(readPrivateKey(privateKey, passphrase)).export({ format: "pem", type: "spki" }).toString();
  return { certificates: [{ pem, name: "the given key" }] };
}

/** A recipient of a certificate, or of a bare public key, in PEM. Errors: INVALID_ARGUMENT. */
function certificateRecipient(pem: string, name: string): NewRecipient {
  let publicKey: KeyObject;
  try {
    if (pem.includes("PRIVATE KEY")) throw new RangeError("it is a private key");
    publicKey = createPublicKey(pem);
  } catch {
    throw unusable(name, "it is no certificate or public key in PEM, or holds a private key too");
  }
  const { asymmetricKeyType: type, asymmetricKeyDetails: details } = publicKey;
  if (type === "rsa" && (details?.modulusLength ?? 0) < rsaBitsMin)
    throw unusable(name, `its RSA key has fewer than ${String(rsaBitsMin)} bits`);
  if (type !== "rsa" && (curveOf(publicKey) === undefined || type === "x25519"))
    throw unusable(name, "its key is neither RSA nor on the curves P-256 or P-384");
  return { kind: "certificate", name, publicKey, scrypt: null };
}

/** A recipient of a passphrase. Errors: INVALID_ARGUMENT when it is empty. */
async function passphraseRecipient(passphrase: string, name: string): Promise<NewRecipient> {
  if (passphrase === "")
    throw new TidemarkError("INVALID_ARGUMENT", "the passphrase is empty", {
      remedy: "write it into the first line of its file",
    });
  const parameters = { salt: toHex(randomBytes(16)), logCost: logCostDefault };
  const publicKey = publicHalf(await passphraseKey(passphrase, parameters));
  return { kind: "passphrase", name, publicKey, scrypt: parameters };
}

function unusable(name: string, why: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `${name} cannot open a vault: ${why}`, {
    remedy:
      "make one with `openssl req -x509 -newkey rsa:3072 -nodes -keyout key.pem -out cert.pem -subj /CN=backup`, and give cert.pem",
  });
}

async function passphraseKey(passphrase: string, { salt, logCost }: ScryptParameters): Promise<KeyObject> {
  const [N, r, p] = [2 ** logCost, 8, 1];
  const bytes = await scryptOf(passphrase.normalize("NFC"), fromHex(salt), 32, { N, r, p, maxmem: 256 * N * r });
  return x25519PrivateKey(bytes);
}

/** Wraps the vault key. */
export function wrapFor(to: NewRecipient, vault: string, vaultKey: Uint8Array, addedMs: number): Recipient {
  const { kind, name, publicKey, scrypt: parameters } = to;
  const der = publicKey.export({ format: "der", type: "spki" });
  const id = toHex(checksum(der));
  const wrapped = toHex(wrap(publicKey, vault, vaultKey));
  return { id, kind, name, addedMs, publicKey: toHex(der), scrypt: parameters, wrapped };
}

/** The same recipient with another vault key. */
export function rewrap(recipient: Recipient, vault: string, vaultKey: Uint8Array): Recipient {
  const publicKey = createPublicKey({ key: Buffer.from(recipient.publicKey, "hex"), format: "der", type: "spki" });
  return { ...recipient, wrapped: toHex(wrap(publicKey, vault, vaultKey)) };
}

function wrap(publicKey: KeyObject, vault: string, vaultKey: Uint8Array): Uint8Array {
  const label = wrapLabel(vault);
  if (publicKey.asymmetricKeyType === "rsa") return publicEncrypt(oaep(publicKey, label), vaultKey);
  const { encapsulated, secrets } = encapsulate(publicKey, label);
  const encryption = createCipheriv(aead, secrets.key, secrets.nonce, { authTagLength: tagBytes });
  return Buffer.concat([encapsulated, encryption.update(vaultKey), encryption.final(), encryption.getAuthTag()]);
}

function unwrap(privateKey: KeyObject, vault: string, wrapped: Buffer): Uint8Array | undefined {
  const label = wrapLabel(vault);
  try {
    if (privateKey.asymmetricKeyType === "rsa") return privateDecrypt(oaep(privateKey, label), wrapped);
    const publicBytes = wireKey(privateKey).length;
    const secrets = decapsulate(privateKey, label, wrapped.subarray(0, publicBytes));
    if (secrets === undefined || wrapped.length !== publicBytes + vaultKeyBytes + tagBytes) return undefined;
    const decryption = createDecipheriv(aead, secrets.key, secrets.nonce, { authTagLength: tagBytes });
    decryption.setAuthTag(wrapped.subarray(-tagBytes));
    return Buffer.concat([decryption.update(wrapped.subarray(publicBytes, -tagBytes)), decryption.final()]);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    return undefined; // it was altered: the code of vault.json would not match either
  }
}

function wrapLabel(vault: string): Buffer {
  return Buffer.from(`tidemark/1 vault key ${vault}`);
}

function oaep(key: KeyObject, oaepLabel: Buffer) {
  return { key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: "sha256", oaepLabel };
}

/**
 * The newest vault key, by a private key or a passphrase. Errors: ACCESS_REFUSED when none of them
 * is a recipient's; INVALID_ARGUMENT when the private key cannot be read.
 */
export async function unwrapVaultKey(document: EncryptedDocument, secrets: Secrets): Promise<Uint8Array> {
  const { recipients } = document.encryption;
  for await (const key of keysOf(secrets, recipients)) {
    const publicKey = toHex(publicHalf(key).export({ format: "der", type: "spki" }));
    const recipient = recipients.find((candidate) => candidate.publicKey === publicKey);
    const vaultKey = recipient && unwrap(key, document.vault, Buffer.from(recipient.wrapped, "hex"));
    if (vaultKey?.length === vaultKeyBytes) return vaultKey;
  }
  const what = secrets.privateKey === undefined ? "passphrase" : "key";
  throw locked(`the ${what} does not open the encrypted vault ${document.vault}`);
}

/** The private keys that the secrets give. Each passphrase that is tried takes half a second. */
async function* keysOf(
  { privateKey, passphrase }: Secrets,
  recipients: readonly Recipient[],
): AsyncGenerator<KeyObject, void> {
  if (privateKey !== undefined) yield readPrivateKey(privateKey, passphrase);
  if (passphrase === undefined) return;
  for (const { scrypt: parameters } of recipients)
    if (parameters !== null) yield await passphraseKey(passphrase, parameters);
}

/** The error for a vault that cannot be opened. */
export function locked(message: string): TidemarkError {
  return new TidemarkError("ACCESS_REFUSED", message, {
    remedy: `${keyRemedy}; if all of them are lost, what the vault holds is lost for good`,
  });
}

function readPrivateKey(pem: string, passphrase: string | undefined): KeyObject {
  try {
    return createPrivateKey({ key: pem, passphrase });
  } catch {
    // The cause is left out: what OpenSSL says of a key might hold a part of it.
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      "the private key cannot be read: it is no private key in PEM, or it is encrypted",
      {
        remedy:
          "give a file that begins with `-----BEGIN PRIVATE KEY-----`; put the passphrase of an encrypted one into TIDEMARK_PASSPHRASE_FILE",
      },
    );
  }
}
