/**
 * hash-wasm, one hash at a time. The package as a whole takes 45 ms to load in every process and
 * thread, one of its hashes a tenth of that.
 */
import { createRequire } from "node:module";
import type * as HashWasm from "hash-wasm";

const load = createRequire(import.meta.url);

export function blake3Library(): Pick<typeof HashWasm, "createBLAKE3"> {
  return load("hash-wasm/dist/blake3.umd.min.js") as typeof HashWasm;
}

export function xxh3Library(): Pick<typeof HashWasm, "createXXHash128"> {
  return load("hash-wasm/dist/xxhash128.umd.min.js") as typeof HashWasm;
}
