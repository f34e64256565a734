/**
 * Tasks of the worker threads: what the main thread asks of them, by structured clone. Content never
 * crosses with a task. It lies in slabs, or in the shared memory of a frame: see `worker.ts`.
 */
import type { DigestName } from "../store/format/documents.ts";
import type { Seal } from "../store/format/sealed.ts";
import type { SharedSlabs } from "./slabs.ts";
import type { FingerprintSeed, WasmModule } from "./wasm-kernels.ts";

export interface WorkerSetup {
  /** For scan and compress. */
  readonly slabs: SharedSlabs;
  /** For decode. */
  readonly fetches: SharedSlabs;
  /** Compiled by the main thread. */
  readonly code: WasmModule;
}

export interface ScanTask {
  readonly kind: "scan";
  readonly slab: number;
  /** The vault's digest. Its key lies in the slab. */
  readonly digest: DigestName;
  /** What lies in `data`, in ascending order; no chunk reaches beyond one. */
  readonly spans: readonly SlabSpan[];
  /** Entries of `expected` that hold for what the parent point held there. */
  readonly expectedCount: number;
  readonly seed: FingerprintSeed;
  /** What granules that are not `present` are: zeros, or as the parent has them. */
  readonly scope: "whole" | "named";
  /** Compress each chunk at once, while it lies in the core's cache; its state is then 2. */
  readonly compresses?: boolean | undefined;
  /** What to read into `data` first; absent, it is there already. */
  readonly source?: ScanSource | undefined;
}

/** Granules of one block, from granule `at` of the slab on. */
export interface SlabSpan {
  readonly at: number;
  readonly granules: number;
}

export interface ScanSource {
  readonly descriptor: number;
  /** In ascending order, in the volume and in `data`. */
  readonly reads: readonly PlannedRead[];
}

/** Bytes of the volume, and where in `data` they belong. */
export interface PlannedRead {
  readonly offset: number;
  readonly length: number;
  readonly at: number;
}

export interface ScanResult {
  /** False: a read failed or ended early, and nothing else counts. */
  readonly isRead: boolean;
  readonly chunkCount: number;
  /** Granules that differ from the parent's, and those of them that are now zero. */
  readonly changedGranules: number;
  readonly zeroedGranules: number;
}

export interface CompressTask {
  readonly kind: "compress";
  readonly slab: number;
  readonly chunkCount: number;
}

export interface DecodeTask {
  readonly kind: "decode";
  readonly slab: number;
  /** As in `ScanTask`. */
  readonly digest: DigestName;
  /**
   * In a copy: the digest of the other vault, whose key lies in the slab, too. What was proved is
   * digested for that vault, to `expected`.
   */
  readonly other?: DigestName | undefined;
  readonly chunkCount: number;
  /**
   * Fill `newPrints` for what was proved, granule by granule of `out`; without a seed only zero
   * granules are told, as all-zero prints.
   */
  readonly seed?: FingerprintSeed | undefined;
  /** In an encrypted vault: the seal of the segment, and where in it `data` begins. */
  readonly sealed?: { readonly seal: Seal; readonly offset: number } | undefined;
}

export interface SealTask {
  readonly kind: "seal";
  /** Payloads follow its header, with room for their seals. */
  readonly frame: SharedArrayBuffer;
  /** Of the payloads, with the length that they have when they are sealed. */
  readonly storedWords: Uint32Array;
  /** Of the frame in its segment. */
  readonly offset: number;
  /** Of the segment's payloads: see `payloadSeal`. */
  readonly seal: Seal;
}

export type WorkerTask = ScanTask | CompressTask | DecodeTask | SealTask;
