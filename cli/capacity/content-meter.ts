/**
 * Sampling of content: what would be stored of changed granules, found by cutting, digesting and
 * compressing them with the engine's own kernels.
 *
 * Each run of changed granules that are not zero is a chunk, as a cycle of a tracked disk cuts it.
 * A chunk counts as known when its digest has been seen before. Chunks that were not looked at are
 * not seen, so where only every n-th block is looked at, the deduplication that is found is a lower
 * bound.
 *
 * Cost: about 3 ns a byte, of at most about 1,000 blocks between two calls of `begin`. Memory: 32 MiB
 * of digests.
 */
import { DedupIndex, fingerprintBytes, granuleBytes, type MeasuredKernels } from "../../engine/internal.ts";
import type { ContentSample } from "./profile-lines.ts";
import { bitsOf, blockGranules } from "./sketch.ts";

/** About so many blocks are looked at: 32 MiB, some 0.1 s. */
const blocksWanted = 512;
const indexBytesMax: number = 32 * 1024 * 1024;
const digestBytes = 16;

export class ContentMeter {
  readonly #kernels: MeasuredKernels;
  readonly #seen = new DedupIndex(indexBytesMax);
  readonly #digest = new Uint8Array(digestBytes);
  readonly #digestWords: Uint32Array = new Uint32Array(this.#digest.buffer);
  readonly #place = { segment: 0, offset: 0, storedWord: 0 };
  /** Every so many blocks one is looked at. */
  #stride = 1;
  #offered = 0;
  #sums = noContent();

  constructor(kernels: MeasuredKernels) {
    this.#kernels = kernels;
  }

  /** What was found since `begin`. */
  get taken(): ContentSample {
    return { ...this.#sums };
  }

  /** Starts anew. As many blocks are expected as were offered since the last time. */
  begin(): void {
    this.#stride = Math.max(1, Math.ceil(this.#offered / (2 * blocksWanted)));
    this.#offered = 0;
    this.#sums = noContent();
  }

  /** A block whose granules `mask` have changed, which lies at granule `at` of the kernels' data, fingerprinted. */
  look(at: number, mask: number): void {
    this.#offered += 1;
    // More blocks than were expected: the later ones are thinned out further.
    if (this.#offered % (this.#stride * Math.ceil(this.#offered / (this.#stride * 2 * blocksWanted))) !== 0) return;
    const begun = performance.now();
    const sums = this.#sums;
    sums.plainBytes += bitsOf(mask) * granuleBytes;
    for (let start = 0; start < blockGranules; ) {
      let end = start;
      while (end < blockGranules && (mask & (1 << end)) !== 0 && !this.#isZero(at + end)) end += 1;
      if (end > start) this.#lookAtChunk(at + start, at + end);
      else if ((mask & (1 << start)) !== 0) sums.zeroBytes += granuleBytes;
      start = Math.max(end, start + 1);
    }
    sums.kernelMs += performance.now() - begun;
  }

  #lookAtChunk(from: number, end: number): void {
    const kernels = this.#kernels;
    const plainBytes = (end - from) * granuleBytes;
    kernels.digest(from, end, this.#digest, 0);
    if (this.#seen.find(this.#digestWords, 0, this.#place)) {
      this.#sums.knownBytes += plainBytes;
      return;
    }
    this.#seen.set(this.#digestWords, 0, 0, 0, 0);
    const packed = kernels.compress(from * granuleBytes, plainBytes);
    this.#sums.packedBytes += packed === 0 ? plainBytes : packed;
    this.#sums.chunks += 1;
  }

  #isZero(granule: number): boolean {
    const at = granule * fingerprintBytes;
    for (let byte = at; byte < at + fingerprintBytes; byte += 1) if (this.#kernels.prints[byte] !== 0) return false;
    return true;
  }
}

function noContent(): { -readonly [Name in keyof ContentSample]: number } {
  return { plainBytes: 0, zeroBytes: 0, knownBytes: 0, packedBytes: 0, chunks: 0, kernelMs: 0 };
}
