/**
 * Copies of bytes from and to memory that threads share.
 *
 * Where either side is shared, V8 copies with atomic accesses: `TypedArray.set` and `Buffer.copy` go
 * byte by byte unless both sides have the same alignment, which is forty times slower. `Buffer.fill`
 * with bytes is a plain memcpy. The engine never lets two threads touch the same bytes at once, so it
 * needs no atomic access.
 */
import { digestBytes } from "./limits.ts";

/** Copies the digest at `digests[from…]` to `into[at…]`, which takes no view of either. */
export function copyDigest(digests: Uint8Array, from: number, into: Uint8Array, at: number): void {
  for (let index = 0; index < digestBytes; index += 1) into[at + index] = digests[from + index] ?? 0;
}

/** Copies `bytes` into `into[at…]`. They must not overlap, and must have room there. */
export function copyBytes(bytes: Uint8Array, into: Uint8Array, at: number): void {
  if (bytes.length === 0) return;
  const buffer = Buffer.isBuffer(into) ? into : Buffer.from(into.buffer, into.byteOffset, into.byteLength);
  buffer.fill(bytes, at, at + bytes.length);
}
