/**
 * Authenticated encryption with associated data: AES-256-GCM (NIST SP 800-38D), by Node's crypto.
 *
 *     sealed bytes:  nonce 12 │ ciphertext, as long as the plain bytes │ tag 16
 *
 * The nonce is random. The probability that two of n nonces under one key are equal is below
 * n² ÷ 2⁹⁷. No key here is used for all of a vault: each object, and each segment, has its own. A
 * segment has at most 2²⁴ payloads and 2²¹ tables, so the probability is below 2⁻⁴⁸ a segment. The
 * head of a disk is written most often: once a second for a hundred years is 2³² times, which gives
 * 2⁻³³.
 *
 * The associated data names the place. Sealed bytes open at the place that they were sealed for,
 * whole and unchanged, or not at all.
 */
import { createCipheriv, createDecipheriv, createSecretKey, type KeyObject, randomFillSync } from "node:crypto";
import { copyBytes } from "../../copy-bytes.ts";

const cipher = "aes-256-gcm";
/** Plain bytes that are sealed where they lie begin behind so many bytes. */
export const nonceBytes = 12;
const tagBytes = 16;

/** Sealed bytes are so much longer than plain ones. */
export const sealBytes: number = nonceBytes + tagBytes;

/** A key and what is bound to everything that is sealed with it. */
export interface Seal {
  /** 32 bytes. */
  readonly key: Uint8Array;
  readonly associated: Uint8Array;
}

/** The seal of a payload. Its key is prepared once for all payloads of a segment. */
export interface PayloadSeal extends Pick<Seal, "associated"> {
  readonly key: KeyObject;
}

const cipherOptions = { authTagLength: tagBytes };

/** Random bytes of nonces to come: one call for each nonce would cost a tenth of sealing. */
const nonces = new Uint8Array(nonceBytes * 256);
let noncesUsed = nonces.length;

function placeNonce(into: Uint8Array): void {
  if (noncesUsed === nonces.length) {
    randomFillSync(nonces);
    noncesUsed = 0;
  }
  into.set(nonces.subarray(noncesUsed, noncesUsed + nonceBytes));
  noncesUsed += nonceBytes;
}

/** Seals the plain bytes in the middle of `room`, which begin behind the nonce, where they lie. */
export function sealInPlace({ key, associated }: Seal | PayloadSeal, room: Uint8Array): void {
  const nonce = room.subarray(0, nonceBytes);
  placeNonce(nonce);
  const encryption = createCipheriv(cipher, key, nonce, cipherOptions).setAAD(associated);
  copyBytes(encryption.update(room.subarray(nonceBytes, room.length - tagBytes)), room, nonceBytes);
  encryption.final();
  room.set(encryption.getAuthTag(), room.length - tagBytes);
}

export function seal(by: Seal | PayloadSeal, plain: Uint8Array): Uint8Array {
  const room = new Uint8Array(plain.length + sealBytes);
  room.set(plain, nonceBytes);
  sealInPlace(by, room);
  return room;
}

/** The plain bytes, or undefined when these bytes were not sealed so. */
export function unseal({ key, associated }: Seal | PayloadSeal, sealed: Uint8Array): Uint8Array | undefined {
  if (sealed.length < sealBytes) return undefined;
  const decryption = createDecipheriv(cipher, key, sealed.subarray(0, nonceBytes), cipherOptions);
  decryption.setAAD(associated).setAuthTag(sealed.subarray(sealed.length - tagBytes));
  const plain = decryption.update(sealed.subarray(nonceBytes, sealed.length - tagBytes));
  try {
    decryption.final();
    return plain;
  } catch {
    return undefined; // the tag does not match: the only way in which `final` fails
  }
}

/**
 * The seal of the payload at `offset` of a segment. `segment`: the seal whose associated data names
 * vault and segment.
 */
export function payloadSeal(segment: Seal, offset: number): PayloadSeal {
  return payloadSeals(segment)(offset);
}

/** `payloadSeal` for many payloads of one segment. Each seal is good until the next one is asked for. */
export function payloadSeals(segment: Seal): (offset: number) => PayloadSeal {
  const at = segment.associated.length;
  const associated = Buffer.concat([segment.associated, Buffer.alloc(8)]);
  const payload = { key: createSecretKey(segment.key), associated };
  return (offset) => {
    associated.writeUInt32LE(offset % 2 ** 32, at);
    associated.writeUInt32LE(Math.floor(offset / 2 ** 32), at + 4);
    return payload;
  };
}
