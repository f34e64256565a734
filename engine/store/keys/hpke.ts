/**
 * Hybrid public key encryption: RFC 9180, base mode, with HKDF-SHA256 and AES-256-GCM, by Node's
 * crypto. Key encapsulation: DHKEM over X25519 and P-256 with HKDF-SHA256, over P-384 with
 * HKDF-SHA384.
 *
 * A sender who knows a public key encapsulates: it makes a key pair for this once, and both sides
 * compute the same secrets from it. Only the holder of the private key can compute them from what
 * the sender sends. `info` binds the secrets to what they are for.
 *
 * Names of functions and labels are those of the RFC. Its test vectors hold this file.
 */
import {
  createHmac,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  generateKeyPairSync,
  type KeyObject,
} from "node:crypto";

interface Kem {
  readonly id: number;
  readonly hash: "sha256" | "sha384";
  readonly secretBytes: number;
  /** Bytes of a public key on the wire, which are the end of its DER. */
  readonly publicBytes: number;
  readonly generate: () => KeyObject;
  /** The DER of a public key up to its bytes. */
  readonly publicPrefix: string;
}

const generateOn = (namedCurve: string) => (): KeyObject => generateKeyPairSync("ec", { namedCurve }).privateKey;

const kems: Readonly<Record<string, Kem>> = {
  x25519: {
    id: 0x0020,
    hash: "sha256",
    secretBytes: 32,
    publicBytes: 32,
    generate: () => generateKeyPairSync("x25519").privateKey,
    publicPrefix: "302a300506032b656e032100",
  },
  prime256v1: {
    id: 0x0010,
    hash: "sha256",
    secretBytes: 32,
    publicBytes: 65,
    generate: generateOn("prime256v1"),
    publicPrefix: "3059301306072a8648ce3d020106082a8648ce3d030107034200",
  },
  secp384r1: {
    id: 0x0011,
    hash: "sha384",
    secretBytes: 48,
    publicBytes: 97,
    generate: generateOn("secp384r1"),
    publicPrefix: "3076301006072a8648ce3d020106052b81040022036200",
  },
};

/** An AEAD of the RFC. */
interface Aead {
  readonly id: number;
  readonly keyBytes: number;
}

const aes256Gcm: Aead = { id: 0x0002, keyBytes: 32 };

const kdfId = 0x0001;
const nonceBytes = 12;
const none = Buffer.alloc(0);
const version = Buffer.from("HPKE-v1");

/** The name of the key's curve, if keys can be encapsulated for it. */
export function curveOf(key: KeyObject): string | undefined {
  const curve = key.asymmetricKeyType === "ec" ? key.asymmetricKeyDetails?.namedCurve : key.asymmetricKeyType;
  return curve !== undefined && Object.hasOwn(kems, curve) ? curve : undefined;
}

/** What both sides compute: a key, its first nonce, and the secret from which `exportSecret` derives more. */
export interface Secrets {
  readonly suite: Buffer;
  readonly key: Buffer;
  readonly nonce: Buffer;
  readonly exporter: Buffer;
}

/** SetupBaseS. `ephemeral` and `aead` are for test vectors. */
export function encapsulate(
  receiver: KeyObject,
  info: Uint8Array,
  ephemeral: KeyObject = kemOf(receiver).generate(),
  aead: Aead = aes256Gcm,
): { readonly encapsulated: Buffer; readonly secrets: Secrets } {
  const encapsulated = wireKey(ephemeral);
  const dh = diffieHellman({ privateKey: ephemeral, publicKey: receiver });
  const shared = sharedSecret(kemOf(receiver), dh, encapsulated, wireKey(receiver));
  return { encapsulated, secrets: keySchedule(suiteOf(kemOf(receiver), aead), aead, shared, info) };
}

/** SetupBaseR. Undefined: `encapsulated` is no public key of the receiver's kind. */
export function decapsulate(receiver: KeyObject, info: Uint8Array, encapsulated: Uint8Array): Secrets | undefined {
  const kem = kemOf(receiver);
  let dh: Buffer;
  try {
    dh = diffieHellman({ privateKey: receiver, publicKey: publicKeyOf(kem, encapsulated) });
  } catch (error) {
    // Not on the curve, or of small order: OpenSSL refuses it.
    if (!(error instanceof Error)) throw error;
    return undefined;
  }
  const shared = sharedSecret(kem, dh, encapsulated, wireKey(receiver));
  return keySchedule(suiteOf(kem, aes256Gcm), aes256Gcm, shared, info);
}

/** Context.Export: 32 bytes. */
export function exportSecret({ suite, exporter }: Secrets, context: Uint8Array): Buffer {
  return labeledExpand("sha256", suite, exporter, "sec", context, 32);
}

/** An X25519 private key of these 32 bytes. */
export function x25519PrivateKey(bytes: Uint8Array): KeyObject {
  const der = Buffer.concat([Buffer.from("302e020100300506032b656e04220420", "hex"), bytes]);
  return createPrivateKey({ key: der, format: "der", type: "pkcs8" });
}

/** An X25519 public key of these 32 bytes. */
export function x25519PublicKey(bytes: Uint8Array): KeyObject {
  return publicKeyOf(kemNamed("x25519"), bytes);
}

/** SerializePublicKey: of a private key, that of its public key. */
export function wireKey(key: KeyObject): Buffer {
  const publicKey = key.type === "private" ? createPublicKey(key) : key;
  return publicKey.export({ format: "der", type: "spki" }).subarray(-kemOf(key).publicBytes);
}

function publicKeyOf({ publicPrefix, publicBytes }: Kem, bytes: Uint8Array): KeyObject {
  if (bytes.length !== publicBytes) throw new RangeError("a public key of another length");
  const key = Buffer.concat([Buffer.from(publicPrefix, "hex"), bytes]);
  return createPublicKey({ key, format: "der", type: "spki" });
}

function kemOf(key: KeyObject): Kem {
  return kemNamed(curveOf(key) ?? "");
}

function kemNamed(curve: string): Kem {
  const kem = kems[curve];
  if (kem === undefined) throw new RangeError("keys can be encapsulated for X25519, P-256 and P-384 only");
  return kem;
}

function sharedSecret(kem: Kem, dh: Uint8Array, encapsulated: Uint8Array, receiver: Uint8Array): Buffer {
  const suite = Buffer.from([0x4b, 0x45, 0x4d, kem.id / 256, kem.id % 256]); // "KEM"
  const prk = labeledExtract(kem.hash, suite, none, "eae_prk", dh);
  return labeledExpand(kem.hash, suite, prk, "shared_secret", Buffer.concat([encapsulated, receiver]), kem.secretBytes);
}

function keySchedule(suite: Buffer, aead: Aead, shared: Uint8Array, info: Uint8Array): Secrets {
  const context = Buffer.concat([
    Buffer.from([0]), // base mode
    labeledExtract("sha256", suite, none, "psk_id_hash", none),
    labeledExtract("sha256", suite, none, "info_hash", info),
  ]);
  const secret = labeledExtract("sha256", suite, shared, "secret", none);
  const expand = (label: string, length: number): Buffer =>
    labeledExpand("sha256", suite, secret, label, context, length);
  const [key, nonce] = [expand("key", aead.keyBytes), expand("base_nonce", nonceBytes)];
  return { suite, key, nonce, exporter: expand("exp", 32) };
}

function suiteOf(kem: Kem, aead: Aead): Buffer {
  const ids = [kem.id, kdfId, aead.id].flatMap((id) => [Math.floor(id / 256), id % 256]);
  return Buffer.concat([Buffer.from("HPKE"), Buffer.from(ids)]);
}

function labeledExtract(hash: string, suite: Buffer, salt: Uint8Array, label: string, ikm: Uint8Array): Buffer {
  return createHmac(hash, salt).update(version).update(suite).update(label).update(ikm).digest();
}

/** HKDF-Expand of RFC 5869: Node's own HKDF always extracts first. */
function labeledExpand(
  hash: string,
  suite: Buffer,
  prk: Uint8Array,
  label: string,
  info: Uint8Array,
  length: number,
): Buffer {
  const labeled = Buffer.concat([Buffer.from([0, length]), version, suite, Buffer.from(label), info]);
  const blocks: Buffer[] = [];
  let block: Buffer = none;
  for (let counter = 1; Buffer.concat(blocks).length < length; counter += 1) {
    block = createHmac(hash, prk)
      .update(block)
      .update(labeled)
      .update(Buffer.from([counter]))
      .digest();
    blocks.push(block);
  }
  return Buffer.concat(blocks).subarray(0, length);
}
