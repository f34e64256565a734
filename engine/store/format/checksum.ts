/**
 * Checksum of everything that is not chunk data: BLAKE3, unkeyed, cut to 128 bits. The checksum of
 * a manifest is the point's id. It chains manifest → roots → leaves, so a map that was altered
 * anywhere does not match its point's id.
 */
import assert from "node:assert/strict";
import type { IHasher } from "hash-wasm";
import { blake3Library } from "../../hash-library.ts";

let hasher: IHasher | undefined;

/**
 * Compiles the hash. `Vault` awaits it before anything computes a checksum; it is no top-level
 * await, because `require()` cannot load a module that has one.
 */
export async function openChecksum(): Promise<void> {
  hasher ??= await blake3Library().createBLAKE3(128);
}

export const checksumBytes = 16;

/** Checksum of the concatenated `parts`: 16 bytes, freshly allocated. */
export function checksum(...parts: readonly Uint8Array[]): Uint8Array {
  assert(hasher !== undefined, "openChecksum has been awaited");
  hasher.init();
  for (const part of parts) hasher.update(part);
  return hasher.digest("binary");
}

export function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}

export function fromHex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, "hex"));
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}
