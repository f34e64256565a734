/**
 * Kernels for benchmarks: what a worker thread runs, on the caller's thread and its own memory.
 */
import assert from "node:assert/strict";
import { digestBytes, fingerprintBytes, granuleBytes } from "../limits.ts";
import { createDigest, isZero } from "./kernels.ts";
import { packChunk, unpackChunk } from "./lz4.ts";
import { allocateSlabs, viewSlabs } from "./slabs.ts";
import { expandSeed, openWasmKernels } from "./wasm-kernels.ts";

/** The kernels over `data`. Granules are counted from its beginning. */
export interface MeasuredKernels {
  readonly createDigest: typeof createDigest;
  readonly isZero: typeof isZero;
  /** What the kernels work on, in place; the caller fills it. */
  readonly data: Buffer;
  /** What `fingerprint` gave: 16 bytes a granule, zeros for a granule of zeros. */
  readonly prints: Uint8Array;
  /** Fingerprints granules [from, end). */
  readonly fingerprint: (from: number, end: number) => void;
  /** Keyed BLAKE3 of granules [from, end) together: 16 bytes to `into[at …]`. */
  readonly digest: (from: number, end: number, into: Uint8Array, at: number) => void;
  /** Compresses `length` bytes of `data` to the same place in `packed`: length of the result, or 0 when it is not smaller. */
  readonly compress: (at: number, length: number) => number;
  readonly packed: Buffer;
  /** Decompresses the `packedBytes` that `compress` gave at `at` back to `data`. */
  readonly decompress: (at: number, packedBytes: number, plainBytes: number) => boolean;
}

/**
 * The kernels with `dataBytes` bytes to work on, whole granules. Key and seed are fixed, so results
 * can be compared.
 */
export function openKernels(dataBytes: number): MeasuredKernels {
  const shared = allocateSlabs({ slabCount: 1, slabBytes: dataBytes });
  const [slab] = viewSlabs(shared);
  assert(slab !== undefined, "one slab was asked for");
  const { kernel } = slab;
  const wasm = openWasmKernels(shared.memory);
  const view = new DataView(shared.memory.buffer);
  const key = new Uint8Array(kernel.keyView.length).fill(7);
  kernel.secretView.set(expandSeed([7, 7]));
  return {
    createDigest,
    isZero,
    data: slab.data,
    packed: slab.out,
    prints: slab.newPrints,
    fingerprint: (from, end) => {
      const out = kernel.newPrints + from * fingerprintBytes;
      wasm.fingerprintGranules(kernel.data + from * granuleBytes, end - from, out, kernel.secret);
    },
    digest: (from, end, into, at) => {
      kernel.keyView.set(key);
      wasm.digestGranules(kernel.data + from * granuleBytes, end - from, kernel.digest, kernel.key, kernel.tree);
      into.set(kernel.digestView.subarray(0, digestBytes), at);
    },
    compress: (at, length) => packChunk(wasm, view, kernel.data + at, length, kernel.out + at, kernel.tree),
    decompress: (at, packedBytes, plainBytes) =>
      unpackChunk(wasm, view, kernel.out + at, packedBytes, kernel.data + at, plainBytes),
  };
}
