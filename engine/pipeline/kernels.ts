/**
 * Digests of libraries, and the zero test. Each instance belongs to one thread. Fingerprints, BLAKE3
 * and LZ4 are our own kernels, see `wasm-kernels.ts`.
 *
 * Measured on one core (`tidemark bench kernels`, `bench pipeline`): fingerprint 9 GB/s, BLAKE3 1.3
 * to 1.8, LZ4 0.4 to 0.5. So an unchanged byte costs 0.1 ns, a byte of a known chunk 0.7 ns, a byte
 * that must be shipped 3 ns.
 */
import { createHash } from "node:crypto";
import { blake3Library, xxh3Library } from "../hash-library.ts";
import { digestBytes, fingerprintBytes } from "../limits.ts";
import type { DigestName } from "../store/format/documents.ts";

/** Writes the digest of `bytes` to `into[at … at+16)`. */
export type DigestKernel = (bytes: Uint8Array, into: Uint8Array, at: number) => void;

/**
 * The vault's digest as libraries compute it; for `blake3` the reference that our own kernel is
 * held against. `key` has 32 bytes.
 */
export async function createDigest(name: DigestName, key: Uint8Array): Promise<DigestKernel> {
  switch (name) {
    case "blake3": {
      const hasher = await blake3Library().createBLAKE3(digestBytes * 8, key);
      return (bytes, into, at) => {
        hasher.init();
        hasher.update(bytes);
        into.set(hasher.digest("binary"), at);
      };
    }
    case "sha256":
      // Node's own SHA-256 uses the processor's instructions and is several times faster than any
      // WASM.
      return (bytes, into, at) => {
        into.set(createHash("sha256").update(key).update(bytes).digest().subarray(0, digestBytes), at);
      };
    case "xxh3-trusted": {
      const words = new DataView(key.buffer, key.byteOffset, key.byteLength);
      return await createFingerprint([words.getUint32(0, true), words.getUint32(4, true)]);
    }
  }
}

/** XXH3-128 seeded with 64 bits: the local fingerprint of a granule. */
export async function createFingerprint(seed: readonly [number, number]): Promise<DigestKernel> {
  const hasher = await xxh3Library().createXXHash128(seed[0], seed[1]);
  return (bytes, into, at) => {
    hasher.init();
    hasher.update(bytes);
    into.set(hasher.digest("binary"), at);
  };
}

/**
 * True when all-zero. Compares with a page of zeros, which ends at the first byte that differs.
 * `zeros` is at least as long as `bytes`.
 */
export function isZero(bytes: Buffer, zeros: Buffer): boolean {
  return bytes.compare(zeros, 0, bytes.length) === 0;
}

/** True when two 16-byte values at `a[atA]` and `b[atB]` (in 32-bit words) are equal. */
export function sameWords(a: Uint32Array, atA: number, b: Uint32Array, atB: number): boolean {
  return a[atA] === b[atB] && a[atA + 1] === b[atB + 1] && a[atA + 2] === b[atB + 2] && a[atA + 3] === b[atB + 3];
}

export const fingerprintWords: number = fingerprintBytes / 4;
