/**
 * LZ4 of others: lz4-wasm, which our kernel is held against, and the system's `lz4`. Both are looked
 * for, and left out of the comparison where they are missing.
 */
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { type FileHandle, open, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { promisify } from "node:util";
import { throwIfAborted } from "../engine/index.ts";
import type { StepLog } from "./steps.ts";
import type { Mark, MarkOf } from "./targets.ts";

interface Exports {
  readonly memory: WebAssembly.Memory;
  compress(ret: number, at: number, length: number): void;
  decompress(ret: number, at: number, length: number): void;
  __wbindgen_add_to_stack_pointer(delta: number): number;
  __wbindgen_malloc(length: number): number;
  __wbindgen_free(at: number, length: number): void;
}

/**
 * lz4-wasm through its raw exports: the package is made for bundlers, and its glue cannot be imported
 * by Node. What it makes and takes is the plain length (u32, little-endian) and an LZ4 block.
 */
export class ReferenceLz4 {
  readonly #module: WebAssembly.Module;
  #wasm: Exports;

  private constructor(module: WebAssembly.Module) {
    this.#module = module;
    this.#wasm = this.#instantiate();
  }

  /** Undefined where lz4-wasm is not installed. */
  static load(): ReferenceLz4 | undefined {
    let path: string;
    try {
      path = createRequire(import.meta.url).resolve("lz4-wasm/lz4_wasm_bg.wasm");
    } catch {
      return undefined;
    }
    return new ReferenceLz4(new WebAssembly.Module(readFileSync(path)));
  }

  /** The packed bytes: a view that holds until the next call. */
  compress(plain: Uint8Array): Uint8Array {
    return this.#call("compress", plain);
  }

  /** The plain bytes: a view that holds until the next call. Throws when `packed` gives none. */
  decompress(packed: Uint8Array): Uint8Array {
    return this.#call("decompress", packed);
  }

  #instantiate(): Exports {
    const imports = { "./lz4_wasm_bg.js": { __wbindgen_string_new: () => 0 } };
    return new WebAssembly.Instance(this.#module, imports).exports as unknown as Exports;
  }

  #call(name: "compress" | "decompress", bytes: Uint8Array): Uint8Array {
    const wasm = this.#wasm;
    try {
      const result = wasm.__wbindgen_add_to_stack_pointer(-16);
      const input = wasm.__wbindgen_malloc(bytes.length);
      new Uint8Array(wasm.memory.buffer).set(bytes, input);
      wasm[name](result, input, bytes.length); // frees its input
      const [at = 0, length = 0, , failed = 0] = new Uint32Array(wasm.memory.buffer, result, 4);
      if (name === "decompress" && failed !== 0) throw new Error("lz4-wasm refuses the block");
      const view = new Uint8Array(wasm.memory.buffer, at, length);
      wasm.__wbindgen_free(at, length);
      wasm.__wbindgen_add_to_stack_pointer(16);
      return view;
    } catch (error) {
      // After a trap the instance's heap and stack pointer are in doubt.
      this.#wasm = this.#instantiate();
      throw error;
    }
  }
}

const [ownStep, wasmStep, nativeStep, ownBackStep, wasmBackStep] = [
  "LZ4, compressible blocks",
  "the same by lz4-wasm",
  "the same by the system's lz4 -1",
  "LZ4, decompression of these blocks",
  "the same blocks by lz4-wasm",
] as const;
/** About so much of what is compressed is given to the system's lz4: blocks from all over the image. */
const nativeBytesMax: number = 256 * 1024 * 1024;

class Measured {
  readonly name: string;
  bytes = 0;
  elapsedMs = 0;

  constructor(name: string) {
    this.name = name;
  }

  run<Result>(plainBytes: number, work: () => Result): Result {
    const from = performance.now();
    const result = work();
    this.elapsedMs += performance.now() - from;
    this.bytes += plainBytes;
    return result;
  }
}

/** Our kernel on one block. */
export interface BlockKernel {
  readonly plain: Uint8Array;
  /** Length of the result, or 0 where it is not smaller. */
  readonly compress: () => number;
  /** What `compress` made. */
  readonly packed: (length: number) => Uint8Array;
  /** Decompresses that to where `plain` lies. */
  readonly decompress: (length: number) => void;
}

/** Compresses and decompresses the same blocks with our kernel and with others, one after the other. */
export class Lz4Comparison {
  readonly #path: string;
  readonly #file: FileHandle;
  /** One block in so many is given to the system's lz4. */
  readonly #stride: number;
  readonly #reference = ReferenceLz4.load();
  readonly #own = { pack: new Measured(ownStep), unpack: new Measured(ownBackStep), packedBytes: 0 };
  readonly #wasm = { pack: new Measured(wasmStep), unpack: new Measured(wasmBackStep), packedBytes: 0 };
  #nativeBytes = 0;
  #blocks = 0;

  private constructor(path: string, file: FileHandle, stride: number) {
    this.#path = path;
    this.#file = file;
    this.#stride = stride;
  }

  /** `path` is a file of its own, which `finish` removes; `imageBytes` are the most that is compressed. */
  static async open(path: string, imageBytes: number): Promise<Lz4Comparison> {
    return new Lz4Comparison(path, await open(path, "w"), Math.ceil(imageBytes / nativeBytesMax));
  }

  /** Bytes that the blocks were packed to. */
  get counts(): Readonly<Record<string, number>> {
    return { lz4PackedBytes: this.#own.packedBytes, lz4WasmPackedBytes: this.#wasm.packedBytes };
  }

  async compare(own: BlockKernel): Promise<void> {
    const { plain } = own;
    const reference = this.#reference;
    let length = 0;
    this.#inTurn(
      () => {
        length = this.#own.pack.run(plain.length, own.compress);
        this.#own.packedBytes += length === 0 ? plain.length : length;
      },
      () => {
        const packedBytes = this.#wasm.pack.run(plain.length, () => reference?.compress(plain).length ?? 0);
        this.#wasm.packedBytes += Math.min(packedBytes, plain.length);
      },
    );
    if (length > 0) {
      const packed = own.packed(length);
      this.#inTurn(
        () => this.#own.unpack.run(plain.length, () => own.decompress(length)),
        () => this.#wasm.unpack.run(plain.length, () => reference?.decompress(packed)),
      );
    }
    this.#blocks += 1;
    if (this.#blocks % this.#stride !== 0) return;
    await this.#file.write(plain, 0, plain.length, this.#nativeBytes);
    this.#nativeBytes += plain.length;
  }

  /** The second one finds the block in the cache. */
  #inTurn(own: () => void, others: () => void): void {
    const turns = this.#reference === undefined ? [own] : [own, others];
    if (this.#blocks % 2 === 1) turns.reverse();
    for (const turn of turns) turn();
  }

  /** What was measured, of those that are installed. */
  async finish(signal: AbortSignal | undefined): Promise<readonly Pick<Measured, "name" | "bytes" | "elapsedMs">[]> {
    await this.#file.close();
    const rate = this.#nativeBytes === 0 ? undefined : await nativeLz4Rate(this.#path, signal);
    await rm(this.#path);
    const { bytes } = this.#own.pack;
    const native = rate === undefined ? [] : [{ name: nativeStep, bytes, elapsedMs: (bytes / rate) * 1000 }];
    const others = this.#reference === undefined ? [] : [this.#wasm.pack, this.#wasm.unpack];
    return [this.#own.pack, this.#own.unpack, ...others, ...native];
  }
}

/** Marks for what has been measured. */
export function lz4Marks(markOf: MarkOf, log: StepLog, counts: Readonly<Record<string, number>>): Mark[] {
  const marks: Mark[] = [];
  const { lz4PackedBytes = 0, lz4WasmPackedBytes = 0 } = counts;
  const faster = log.medianMs(wasmStep) / log.medianMs(ownStep);
  const native = log.medianMs(nativeStep) / log.medianMs(ownStep);
  const mark = (name: string, value: number): void => {
    if (value > 0) marks.push(markOf(name, value));
  };
  mark("LZ4 compression, of lz4-wasm's rate", faster);
  mark("LZ4 compression, of lz4-wasm's ratio", lz4WasmPackedBytes / lz4PackedBytes);
  mark("LZ4 compression, of the rate of lz4 -1", native);
  mark("LZ4 decompression, of lz4-wasm's rate", log.medianMs(wasmBackStep) / log.medianMs(ownBackStep));
  return marks;
}

/** Bytes a second that the system's `lz4 -1` compresses of `path` in blocks of 64 KiB; undefined without it. */
async function nativeLz4Rate(path: string, signal: AbortSignal | undefined): Promise<number | undefined> {
  try {
    const { stdout, stderr } = await promisify(execFile)("lz4", ["-b1", "-i1", "-B4", path], { signal });
    // The last figures before `MB/s` are the rates of compression and of decompression.
    const words = `${stdout}${stderr}`.split(/[\s,]+/);
    const rates = words.filter((_, index) => words[index + 1] === "MB/s");
    const rate = Number(rates.at(-2));
    return Number.isFinite(rate) ? rate * 1e6 : undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throwIfAborted(signal);
    throw error;
  }
}
