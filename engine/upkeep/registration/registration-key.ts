/**
 * Registration keys: signed with Ed25519 (RFC 8032), checked, and matched with names of disks.
 *
 * The signature binds all that a key says to the vault's registration secret. Any change of a key's
 * bytes is found by its checksum, and any change that mends the checksum by its signature.
 */
import { createPrivateKey, createPublicKey, type KeyObject, sign, verify } from "node:crypto";
import { isUnreadable, TidemarkError } from "../../errors.ts";
import { fromHex, openChecksum, toHex } from "../../store/format/checksum.ts";
import {
  decodeRegistrationKey,
  encodeRegistrationKey,
  type RegistrationKey,
  signedText,
} from "../../store/format/registration.ts";

/** DER of an Ed25519 key up to its 32 bytes (RFC 8410). */
const privatePrefix = Buffer.from("302e020100300506032b657004220420", "hex");
const publicPrefix = Buffer.from("302a300506032b6570032100", "hex");

function privateKeyOf(secret: Uint8Array): KeyObject {
  return createPrivateKey({ key: Buffer.concat([privatePrefix, secret]), format: "der", type: "pkcs8" });
}

/** The public key of a registration secret: 64 hexadecimal digits. */
export function issuerOf(secret: Uint8Array): string {
  const der = createPublicKey(privateKeyOf(secret)).export({ format: "der", type: "spki" });
  return toHex(der.subarray(publicPrefix.length));
}

/** The bytes of a key. They are secret. */
export function signKey(
  secret: Uint8Array,
  unsigned: Omit<RegistrationKey, "issuer" | "signature">,
): { readonly key: RegistrationKey; readonly bytes: Uint8Array } {
  const issued = { ...unsigned, issuer: issuerOf(secret) };
  const key = { ...issued, signature: toHex(sign(null, signedText(issued), privateKeyOf(secret))) };
  return { key, bytes: encodeRegistrationKey(key) };
}

/**
 * Reads a registration key and checks that it is as its issuer made it. The vault tells whether it
 * knows the issuer: see `Agents.register`. `file` names it in errors.
 *
 * @throws `KEY_ALTERED`; `FORMAT_UNSUPPORTED` for a key of a later version.
 */
export async function readRegistrationKey(bytes: Uint8Array, file: string): Promise<RegistrationKey> {
  await openChecksum();
  let key: RegistrationKey;
  try {
    key = decodeRegistrationKey(bytes, file);
  } catch (error) {
    if (!isUnreadable(error) || error.code === "FORMAT_UNSUPPORTED") throw error;
    throw new TidemarkError("KEY_ALTERED", `${file} is no registration key as it was made`, { cause: error });
  }
  const { signature, ...issued } = key;
  const der = Buffer.concat([publicPrefix, fromHex(key.issuer)]);
  const issuer = createPublicKey({ key: der, format: "der", type: "spki" });
  if (verify(null, signedText(issued), issuer, fromHex(signature))) return key;
  throw new TidemarkError("KEY_ALTERED", `the signature of ${file} does not match what the key says`);
}

/** Whether a pattern, in which `*` stands for any characters, is of the disk's name. */
export function isAllowedDisk(patterns: readonly string[], disk: string): boolean {
  return patterns.some((pattern) => matches(pattern, disk.normalize("NFC")));
}

function matches(pattern: string, disk: string): boolean {
  const [first = "", ...rest] = pattern.split("*");
  const last = rest.pop();
  if (last === undefined) return disk === pattern;
  if (!disk.startsWith(first)) return false;
  let at = first.length;
  for (const part of rest) {
    const found = disk.indexOf(part, at);
    if (found === -1) return false;
    at = found + part.length;
  }
  return disk.length - at >= last.length && disk.endsWith(last);
}
