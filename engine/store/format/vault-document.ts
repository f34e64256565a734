/**
 * `vault.json`: identity and parameters of a vault.
 *
 * That of an encrypted vault (version 2) holds, in place of the digests' key, the generations of the
 * vault key and its recipients, each with a copy of the newest key that only it can unwrap. Nothing
 * in it is secret. `mac` covers the whole document under a key that comes from the newest vault key,
 * so a document that was made or altered without that key is refused.
 */
import { blockBytesMax, blockBytesMin } from "../../limits.ts";
import { anyText, damaged, type Fields, hex32, hex64, nameText } from "./fields.ts";
import { decode, encode } from "./signed-text.ts";

/**
 * How chunks are identified. `blake3` is keyed with the vault's key. `sha256` is SHA-256 over key
 * and data, for installations that require it. Both are cut to 128 bits. `xxh3-trusted` is XXH3-128
 * seeded from the key: several times faster, but a program that can write to a protected disk and
 * learns the seed can make two different chunks look equal. Use it only where every writer is
 * trusted.
 */
export type DigestName = "blake3" | "sha256" | "xxh3-trusted";
export const digestNames: readonly DigestName[] = ["blake3", "sha256", "xxh3-trusted"];

export interface VaultDocument {
  /** 32 hexadecimal digits, random. */
  readonly vault: string;
  readonly createdMs: number;
  readonly blockBytes: number;
  readonly digest: DigestName;
  /**
   * 64 hexadecimal digits. It keeps a guest from choosing data whose digests collide, and encrypts
   * nothing. In an encrypted vault it is derived from the vault key and not stored: a document that
   * has not been unlocked has none.
   */
  readonly digestKey: string;
  readonly codec: "lz4";
  readonly encryption: "none" | Encryption;
  readonly writtenBy: string;
}

/** The document of an encrypted vault. */
export interface EncryptedDocument extends VaultDocument {
  readonly encryption: Encryption;
}

export function isEncrypted(document: VaultDocument): document is EncryptedDocument {
  return document.encryption !== "none";
}

export const cipherNames = ["aes-256-gcm"] as const;

/** One vault key. Its number is its place in the list, from 1 on. */
export interface KeyGeneration {
  /** X25519 public key for which the payload keys of segments are encapsulated: 64 hex digits. */
  readonly readingKey: string;
  /** The vault key before this one, sealed under this one: hex digits; null for the first. */
  readonly previous: string | null;
}

/** A key or passphrase that opens the vault. */
export interface Recipient {
  /** 32 hexadecimal digits: checksum of the public key. */
  readonly id: string;
  readonly kind: "certificate" | "passphrase";
  /** For people. */
  readonly name: string;
  readonly addedMs: number;
  /** SubjectPublicKeyInfo in DER, as hex digits. */
  readonly publicKey: string;
  /** From which a passphrase gives its private key: null for a certificate. */
  readonly scrypt: ScryptParameters | null;
  /** The newest vault key, wrapped for the public key: hex digits. */
  readonly wrapped: string;
}

export interface ScryptParameters {
  /** 32 hexadecimal digits. */
  readonly salt: string;
  /** Binary logarithm of the cost N; r is 8 and p is 1. */
  readonly logCost: number;
}

export interface Encryption {
  readonly cipher: (typeof cipherNames)[number];
  /** Counts the changes of recipients and generations, from 1 on. */
  readonly revision: number;
  readonly generations: readonly KeyGeneration[];
  readonly recipients: readonly Recipient[];
  /** HMAC-SHA256 over the rest of the document: 64 hex digits. */
  readonly mac: string;
}

const recipientsMax = 64;
/** A generation has four hexadecimal digits in the name of a segment. */
const generationsMax = 1024;
/** 2¹⁸ takes 256 MiB. Below 2¹⁴ a passphrase would be guessed too cheaply. */
const logCostMin = 14;
const logCostMax = 18;

/** The version of the document of an encrypted vault; that of others is 1. */
const encryptedVersion = 2;

const hexText = /^(?:[0-9a-f]{2}){1,2048}$/;

export function encodeVault(document: VaultDocument): Uint8Array {
  if (!isEncrypted(document)) return encode("vault", document).bytes;
  return encode("vault", { ...document, digestKey: undefined }, encryptedVersion).bytes;
}

/** How often the keys of the vault have changed; 0 if it is not encrypted. */
export function revisionOf(document: VaultDocument): number {
  return isEncrypted(document) ? document.encryption.revision : 0;
}

/** What `mac` covers. */
export function authenticatedText(document: EncryptedDocument): string {
  return JSON.stringify({ ...document, digestKey: null, encryption: { ...document.encryption, mac: null } });
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeVault(bytes: Uint8Array, object: string): VaultDocument {
  const { fields, version } = decode("vault", bytes, object, encryptedVersion);
  const isSealed = version === encryptedVersion;
  const document: VaultDocument = {
    vault: fields.text("vault", hex32),
    createdMs: fields.time("createdMs"),
    blockBytes: fields.integer("blockBytes", blockBytesMin, blockBytesMax),
    digest: fields.oneOf("digest", digestNames),
    digestKey: isSealed ? "" : fields.text("digestKey", hex64),
    codec: fields.oneOf("codec", ["lz4"]),
    encryption: isSealed
      ? fields.nested("encryption", (encryption) => readEncryption(encryption, object))
      : fields.oneOf("encryption", ["none"]),
    writtenBy: fields.text("writtenBy", anyText),
  };
  if (!Number.isInteger(Math.log2(document.blockBytes)))
    throw damaged(object, "field blockBytes is not a power of two");
  return document;
}

function readEncryption(fields: Fields, object: string): Encryption {
  const encryption: Encryption = {
    cipher: fields.oneOf("cipher", cipherNames),
    revision: fields.integer("revision", 1),
    generations: fields.list("generations", generationsMax, (generation) => ({
      readingKey: generation.text("readingKey", hex64),
      previous: generation.textOrNull("previous", hexText),
    })),
    recipients: fields.list("recipients", recipientsMax, (recipient) => ({
      id: recipient.text("id", hex32),
      kind: recipient.oneOf("kind", ["certificate", "passphrase"] as const),
      name: recipient.text("name", nameText),
      addedMs: recipient.time("addedMs"),
      publicKey: recipient.text("publicKey", hexText),
      scrypt: recipient.nestedOrNull("scrypt", (scrypt) => ({
        salt: scrypt.text("salt", hex32),
        logCost: scrypt.integer("logCost", logCostMin, logCostMax),
      })),
      wrapped: recipient.text("wrapped", hexText),
    })),
    mac: fields.text("mac", hex64),
  };
  if (encryption.generations.length === 0) throw damaged(object, "it has no key");
  return encryption;
}
