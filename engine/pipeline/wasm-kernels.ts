/**
 * Host side of our WASM kernels, `xxh3.as.ts`, `blake3.as.ts` and `lz4.as.ts`. They work on the slabs in place:
 * the slabs' shared memory is the kernels' memory, and a call passes addresses in it. So nothing is
 * copied and one call processes a whole block.
 *
 * A fingerprint tells whether a granule is unchanged since the last point. It is XXH3-128 under a
 * random 64-bit seed that never leaves this machine, so a program that writes to a protected disk
 * neither knows the seed nor learns it from what is stored.
 */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export type FingerprintSeed = readonly [low: number, high: number];

/** Bytes that a seed is expanded to. */
export const secretBytes = 192;

/**
 * The default secret of XXH3 (its first 192 bytes), to which the seed is added. Source: the xxHash
 * specification.
 */
const defaultSecret: Buffer = Buffer.from(
  "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c" +
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364" +
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e",
  "hex",
);

/** Expands a seed as XXH3 does for inputs above 240 bytes. */
export function expandSeed(seed: FingerprintSeed): Uint8Array {
  const value = (BigInt(seed[1]) << 32n) | BigInt(seed[0]);
  const secret = Buffer.alloc(secretBytes);
  for (let at = 0; at < secretBytes; at += 16) {
    secret.writeBigUInt64LE(BigInt.asUintN(64, defaultSecret.readBigUInt64LE(at) + value), at);
    secret.writeBigUInt64LE(BigInt.asUintN(64, defaultSecret.readBigUInt64LE(at + 8) - value), at + 8);
  }
  return secret;
}

/**
 * The chaining values of a chunk's tree: 32 bytes for each of the 1,024 pieces of a 1 MiB block,
 * and what the kernel asks for on top.
 */
export const treeBytes: number = 32 * 1024 + 512;

/** All arguments but `granules` are addresses in the shared memory; `data` is granule-aligned. */
export interface WasmKernels {
  /**
   * Fingerprints each of `granules` granules to `out`, 16 bytes apiece; a granule of zeros gives
   * zeros. `secret` is an expanded seed.
   */
  fingerprintGranules(data: number, granules: number, out: number, secret: number): void;
  /**
   * Keyed BLAKE3 of the `granules` granules together: 16 bytes to `out`. `key` has 32 bytes, `tree`
   * is scratch of `treeBytes`.
   */
  digestGranules(data: number, granules: number, out: number, key: number, tree: number): void;
  /**
   * Compresses `length` bytes at `source` to an LZ4 block at `target`; returns its length, or 0 when
   * it would not fit in `targetBytes`. `table` is scratch of `lz4TableBytes`. The same bytes give the
   * same block.
   */
  lz4Compress(source: number, length: number, target: number, targetBytes: number, table: number): number;
  /**
   * Decompresses an LZ4 block of `length` bytes to exactly `targetBytes` bytes at `target`; returns 1,
   * or 0 when it is no such block. Nothing outside the two ranges is touched.
   */
  lz4Decompress(source: number, length: number, target: number, targetBytes: number): number;
}

export const lz4TableBytes: number = 16 * 1024;

let compiled: WebAssembly.Module | undefined;

/** Compiled code of WebAssembly: a type that needs no DOM library, as `WasmMemory` is. */
export type WasmModule = object;

/** The kernels, compiled once a process; threads are given them. */
export function compiledKernels(): WasmModule {
  compiled ??= new WebAssembly.Module(readFileSync(fileURLToPath(import.meta.resolve("#kernels-wasm"))));
  return compiled;
}

/**
 * A memory of WebAssembly, as a type that needs neither the DOM library nor a global declaration.
 */
export interface WasmMemory {
  readonly buffer: ArrayBufferLike;
}

export function openWasmKernels(memory: WasmMemory, module: WasmModule = compiledKernels()): WasmKernels {
  const imports = { env: { memory } } as object as ConstructorParameters<typeof WebAssembly.Instance>[1];
  return new WebAssembly.Instance(module as WebAssembly.Module, imports).exports as unknown as WasmKernels;
}
