/**
 * LZ4 chunks, as they are stored: the plain length (u32, little-endian), then an LZ4 block. `packChunk`
 * and `unpackChunk` work where the bytes lie in a kernel's memory; `Lz4` takes buffers that lie
 * anywhere, and copies them in and out.
 */
import { TidemarkError } from "../errors.ts";
import {
  compiledKernels,
  lz4TableBytes,
  openWasmKernels,
  type WasmKernels,
  type WasmMemory,
  type WasmModule,
} from "./wasm-kernels.ts";

const prefixBytes = 4;
const wasmPageBytes = 65_536;

/**
 * Compresses `length` bytes at address `source` to address `target`, where `length` bytes are free.
 * Returns the length of the result, or 0 when it is not smaller. `view` is of the kernels' memory.
 */
export function packChunk(
  kernels: WasmKernels,
  view: DataView,
  source: number,
  length: number,
  target: number,
  table: number,
): number {
  const block = kernels.lz4Compress(source, length, target + prefixBytes, length - prefixBytes - 1, table);
  if (block === 0) return 0;
  view.setUint32(target, length, true);
  return block + prefixBytes;
}

/** Decompresses `packedBytes` at `source` to exactly `plainBytes` at `target`. False: it is no such chunk. */
export function unpackChunk(
  kernels: WasmKernels,
  view: DataView,
  source: number,
  packedBytes: number,
  target: number,
  plainBytes: number,
): boolean {
  if (packedBytes < prefixBytes || view.getUint32(source, true) !== plainBytes) return false;
  return kernels.lz4Decompress(source + prefixBytes, packedBytes - prefixBytes, target, plainBytes) === 1;
}

/** A memory, its kernels, and views of it. */
interface Room {
  readonly kernels: WasmKernels;
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

/** One owner's LZ4: its memory grows to the longest chunk, and is used again. */
export class Lz4 {
  readonly #module: WasmModule;
  #room: Room | undefined;

  constructor(module: WasmModule = compiledKernels()) {
    this.#module = module;
  }

  /**
   * Compresses `plain` to `into[at…]` when that makes it smaller: returns the length of the result,
   * or 0. `into` has `plain.length` bytes from `at` on.
   */
  compress(plain: Uint8Array, into: Uint8Array, at: number): number {
    const { kernels, bytes, view } = this.#roomFor(plain.length * 2);
    const target = lz4TableBytes + plain.length;
    bytes.set(plain, lz4TableBytes);
    const length = packChunk(kernels, view, lz4TableBytes, plain.length, target, 0);
    into.set(bytes.subarray(target, target + length), at);
    return length;
  }

  /** Decompresses `packed`, which must give exactly `plainBytes`, to `into[at…]`. Errors: DAMAGED. */
  decompress(packed: Uint8Array, plainBytes: number, into: Uint8Array, at: number): void {
    const { kernels, bytes, view } = this.#roomFor(packed.length + plainBytes);
    const target = lz4TableBytes + packed.length;
    bytes.set(packed, lz4TableBytes);
    if (!unpackChunk(kernels, view, lz4TableBytes, packed.length, target, plainBytes))
      throw new TidemarkError("DAMAGED", "a compressed chunk cannot be decompressed");
    into.set(bytes.subarray(target, target + plainBytes), at);
  }

  #roomFor(length: number): Room {
    const needed = lz4TableBytes + length;
    if (this.#room !== undefined && this.#room.bytes.length >= needed) return this.#room;
    const pages = Math.ceil(needed / wasmPageBytes);
    const memory: WasmMemory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    const kernels = openWasmKernels(memory, this.#module);
    this.#room = { kernels, bytes: new Uint8Array(memory.buffer), view: new DataView(memory.buffer) };
    return this.#room;
  }
}
