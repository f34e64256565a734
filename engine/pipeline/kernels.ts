/**
 * Kernels from libraries: LZ4, digests other than BLAKE3, the zero test, and the early test for
 * incompressible data. Each instance belongs to one thread. Fingerprints and BLAKE3 are our own
 * kernels, see `wasm-kernels.ts`.
 *
 * Measured on one core (`tidemark bench kernels`, `bench pipeline`): fingerprint 9 GB/s, BLAKE3 1.3
 * to 1.8, LZ4 0.4 to 0.5. So an unchanged byte costs 0.1 ns, a byte of a known chunk 0.7 ns, a byte
 * that must be shipped 3 ns.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { TidemarkError } from "../errors.ts";
import { blake3Library, xxh3Library } from "../hash-library.ts";
import { digestBytes, fingerprintBytes } from "../limits.ts";
import type { DigestName } from "../store/format/documents.ts";
import type { WasmModule } from "./wasm-kernels.ts";

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

/**
 * How looksIncompressible samples: 64 bytes at 32 places. For 2,048 bytes drawn from a uniform
 * source the sum of squared counts is 2048²/256 + 2048 ≈ 18,400 with a deviation of about 180;
 * English text or machine code lies above 40,000.
 */
const sampleRuns = 32;
const sampleRunBytes = 64;
const sampleSquaresMax = 19_400;
const histogram = new Uint16Array(256);

/**
 * Cheap early answer whether LZ4 would be wasted on `bytes`: encrypted, compressed and random data
 * have a flat histogram. 3 µs for a chunk of any size against 35 µs for letting LZ4 find out on 64
 * KiB. Short chunks are simply tried.
 */
export function looksIncompressible(bytes: Uint8Array): boolean {
  if (bytes.length < 16 * 1024) return false;
  histogram.fill(0);
  const stride = Math.floor((bytes.length - sampleRunBytes) / (sampleRuns - 1));
  for (let run = 0; run < sampleRuns; run += 1) {
    const from = run * stride;
    for (let at = from; at < from + sampleRunBytes; at += 1) {
      const value = bytes[at] ?? 0;
      histogram[value] = (histogram[value] ?? 0) + 1;
    }
  }
  let squares = 0;
  for (let value = 0; value < 256; value += 1) {
    const count = histogram[value] ?? 0;
    squares += count * count;
  }
  return squares < sampleSquaresMax;
}

interface Lz4Exports {
  readonly memory: WebAssembly.Memory;
  compress(ret: number, at: number, length: number): void;
  decompress(ret: number, at: number, length: number): void;
  __wbindgen_add_to_stack_pointer(delta: number): number;
  __wbindgen_malloc(length: number): number;
  __wbindgen_free(at: number, length: number): void;
}

/**
 * lz4-wasm's module through its raw exports. The package is made for bundlers, whose glue copies
 * each result twice and cannot be imported by Node; here input is copied in once and output copied
 * out once, to where the caller wants it. What the module makes, and we store, is the plain length
 * (u32, little-endian) and an LZ4 block.
 */
export class Lz4 {
  static #compiled: WebAssembly.Module | undefined;

  readonly #module: WasmModule;
  #wasm: Lz4Exports;
  #memory: Uint8Array;

  constructor(module: WasmModule = Lz4.compiled()) {
    this.#module = module;
    this.#wasm = this.#instantiate();
    this.#memory = new Uint8Array(this.#wasm.memory.buffer);
  }

  /** The code, compiled once a process; threads are given it. */
  static compiled(): WasmModule {
    Lz4.#compiled ??= new WebAssembly.Module(
      readFileSync(createRequire(import.meta.url).resolve("lz4-wasm/lz4_wasm_bg.wasm")),
    );
    return Lz4.#compiled;
  }

  #instantiate(): Lz4Exports {
    const imports = { "./lz4_wasm_bg.js": { __wbindgen_string_new: () => 0 } };
    return new WebAssembly.Instance(this.#module as WebAssembly.Module, imports).exports as unknown as Lz4Exports;
  }

  /** The view, renewed when the memory has grown. */
  #view(): Uint8Array {
    if (this.#memory.buffer !== this.#wasm.memory.buffer) this.#memory = new Uint8Array(this.#wasm.memory.buffer);
    return this.#memory;
  }

  /**
   * Compresses `plain` to `into[at…]` when that makes it smaller: returns the length of the result,
   * or 0. `into` has `plain.length` bytes from `at` on.
   */
  compress(plain: Uint8Array, into: Uint8Array, at: number): number {
    const wasm = this.#wasm;
    const ret = wasm.__wbindgen_add_to_stack_pointer(-16);
    const input = wasm.__wbindgen_malloc(plain.length);
    this.#view().set(plain, input);
    wasm.compress(ret, input, plain.length); // frees its input
    const memory = this.#view();
    const words = new Uint32Array(memory.buffer, ret, 2);
    const output = words[0] ?? 0;
    const outputBytes = words[1] ?? 0;
    const smaller = outputBytes < plain.length;
    if (smaller) into.set(memory.subarray(output, output + outputBytes), at);
    wasm.__wbindgen_free(output, outputBytes);
    wasm.__wbindgen_add_to_stack_pointer(16);
    return smaller ? outputBytes : 0;
  }

  /**
   * Decompresses `packed`, which must give exactly `plainBytes`, to `into[at…]`. Errors: DAMAGED.
   */
  decompress(packed: Uint8Array, plainBytes: number, into: Uint8Array, at: number): void {
    try {
      // Checked first: the module allocates as much as is written there.
      const told = packed.length < 4 ? -1 : new DataView(packed.buffer, packed.byteOffset).getUint32(0, true);
      if (told !== plainBytes) throw new Error("it tells a length that it must not have");
      const wasm = this.#wasm;
      const ret = wasm.__wbindgen_add_to_stack_pointer(-16);
      const input = wasm.__wbindgen_malloc(packed.length);
      this.#view().set(packed, input);
      wasm.decompress(ret, input, packed.length); // frees its input
      const after = this.#view();
      const words = new Uint32Array(after.buffer, ret, 4);
      const output = words[0] ?? 0;
      const outputBytes = words[1] ?? 0;
      if (words[3] !== 0 || outputBytes !== plainBytes)
        throw new Error("the block does not give the length that it must");
      into.set(after.subarray(output, output + outputBytes), at);
      wasm.__wbindgen_free(output, outputBytes);
      wasm.__wbindgen_add_to_stack_pointer(16);
    } catch (error) {
      // After a trap the instance's heap and stack pointer are in doubt: take a fresh one.
      this.#wasm = this.#instantiate();
      throw new TidemarkError("DAMAGED", "a compressed chunk cannot be decompressed", { cause: error });
    }
  }
}
