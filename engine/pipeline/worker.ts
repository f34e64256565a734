/**
 * Worker thread of the pipeline: three tasks over a slab that is named by its number, and one over a
 * frame.
 *
 *     scan      prove what is unchanged, find zeros, cut the rest into chunks and digest them; LZ4
 *               over them where few are expected to be known
 *     compress  LZ4 over the chunks that the vault does not hold
 *     decode    open and decompress fetched payloads and prove them by digest
 *     seal      encrypt a frame's payloads where they lie
 *
 * A task is one batch of up to a slab; its results are columns in the slab. Nothing is allocated
 * per block.
 */
import assert from "node:assert/strict";
import os from "node:os";
import { workerData } from "node:worker_threads";
import { copyBytes } from "../copy-bytes.ts";
import { digestBytes, fingerprintBytes, granuleBytes } from "../limits.ts";
import type { DigestName } from "../store/format/documents.ts";
import { frameHeaderBytes, payloadAlignment, storedLength, storedLz4Flag } from "../store/format/frame.ts";
import { type PayloadSeal, payloadSeals, sealInPlace, unseal } from "../store/format/sealed.ts";
import { createDigest, type DigestKernel, fingerprintWords, isZero, sameWords } from "./kernels.ts";
import { packChunk, unpackChunk } from "./lz4.ts";
import { SlabReader } from "./slab-reader.ts";
import type { KernelRoom, SlabViews } from "./slabs.ts";
import { viewSlabs } from "./slabs.ts";
import type { FingerprintSeed } from "./wasm-kernels.ts";
import { expandSeed, openWasmKernels } from "./wasm-kernels.ts";
import type {
  CompressTask,
  DecodeTask,
  ScanResult,
  ScanTask,
  SealTask,
  WorkerSetup,
  WorkerTask,
} from "./worker-tasks.ts";

const setup = workerData as WorkerSetup;
const slabs = viewSlabs(setup.slabs);
const fetches = viewSlabs(setup.fetches);
// The two pools are two memories, and kernels work on one: scans look at `data`, decoding at `out`.
const kernels = {
  data: openWasmKernels(setup.slabs.memory, setup.code),
  out: openWasmKernels(setup.fetches.memory, setup.code),
};
const memoryViews = { data: new DataView(setup.slabs.memory.buffer), out: new DataView(setup.fetches.memory.buffer) };
const zeros = Buffer.alloc(granuleBytes);
const scratch = new Uint8Array(digestBytes);
const scratchWords = new Uint32Array(scratch.buffer);

/** A vault's digest: a kernel of the libraries, or our own BLAKE3 with the key at this address. */
type Digester = DigestKernel | number;

/** The digest of the running task. A thread runs one task at a time. */
let digester: Digester = 0;
/** Kernels of the libraries by digest and key. A copy takes turns with two. */
const opened = new Map<string, DigestKernel>();
const openedMax = 8;

let expanded: { readonly seed: FingerprintSeed; readonly secret: Uint8Array } | undefined;

let hasGivenWay = false;

/**
 * On Linux each thread has its own priority: the front end goes first, and capture takes what is
 * left. A thread that only restores does not give way, because a reader waits for it. A priority
 * that the user made lower stays. A thread that may not change its priority works at the one it has.
 */
function giveWay(): void {
  if (hasGivenWay || process.platform !== "linux") return;
  const lower = os.constants.priority.PRIORITY_BELOW_NORMAL;
  try {
    if (os.getPriority() < lower) os.setPriority(0, lower);
    hasGivenWay = true;
  } catch {
    // Refused, for example in a container. The answer will be the same the next time.
    hasGivenWay = true;
  }
}

/** Lays the expanded seed into the slab, where the kernel finds it. */
function placeSecret(slab: SlabViews, seed: FingerprintSeed): void {
  if (expanded?.seed[0] !== seed[0] || expanded.seed[1] !== seed[1]) expanded = { seed, secret: expandSeed(seed) };
  slab.kernel.secretView.set(expanded.secret);
}

/** What computes a digest of the libraries with a key that lies in a slab. */
async function openLibrary(name: DigestName, keyView: Uint8Array): Promise<DigestKernel> {
  const key = Buffer.from(keyView);
  const id = `${name} ${key.toString("hex")}`;
  const found = opened.get(id);
  if (found !== undefined) return found;
  const kernel = await createDigest(name, key);
  if (opened.size >= openedMax) opened.clear();
  opened.set(id, kernel);
  return kernel;
}

/** Digests granules [from, end) of `data` or `out` to `into[at …]`. */
function digest(
  slab: SlabViews,
  region: "data" | "out",
  from: number,
  end: number,
  into: Uint8Array,
  at: number,
  by: Digester = digester,
): void {
  const { kernel } = slab;
  if (typeof by !== "number") {
    by(slab[region].subarray(from * granuleBytes, end * granuleBytes), into, at);
    return;
  }
  kernels[region].digestGranules(kernel[region] + from * granuleBytes, end - from, kernel.digest, by, kernel.tree);
  into.set(kernel.digestView, at);
}

/**
 * Clears the holes among granules [from, end) of `data`, which were left as they were because
 * hardly any code looks at them.
 */
function clearHoles(slab: SlabViews, from: number, end: number): void {
  for (let granule = from; granule < end; granule += 1) {
    if (slab.present[granule] === 0) slab.data.fill(0, granule * granuleBytes, (granule + 1) * granuleBytes);
  }
}

/** Fingerprints granules [from, end) of `data` or `out` to `newPrints`. */
function print(slab: SlabViews, region: "data" | "out", from: number, end: number): void {
  const { kernel } = slab;
  const out = kernel.newPrints + from * fingerprintBytes;
  kernels[region].fingerprintGranules(kernel[region] + from * granuleBytes, end - from, out, kernel.secret);
}

/** Fingerprints a block of `data`: holes are zero without being looked at. */
function printBlock(slab: SlabViews, from: number, end: number): void {
  for (let start = from; start < end; ) {
    const present = slab.present[start];
    let stop = start + 1;
    while (stop < end && slab.present[stop] === present) stop += 1;
    if (present === 1) print(slab, "data", start, stop);
    else slab.newPrintWords.fill(0, start * fingerprintWords, stop * fingerprintWords);
    start = stop;
  }
}

function slabOf(task: ScanTask | CompressTask | DecodeTask): SlabViews {
  const slab = (task.kind === "decode" ? fetches : slabs)[task.slab];
  assert(slab !== undefined, "the task names a slab of the pool");
  return slab;
}

/**
 * Finds what changed and cuts it into chunks. Results: `chunks` (count in the result), `newPrints`.
 */
function scan(task: ScanTask): ScanResult {
  const slab = slabOf(task);
  placeSecret(slab, task.seed);
  const result = { isRead: true, chunkCount: 0, changedGranules: 0, zeroedGranules: 0 };
  const reader = task.source === undefined ? undefined : new SlabReader(slab, task.source);
  const cut = (from: number, end: number): void => {
    if (task.scope === "named") leaveUnnamed(slab, from, end);
    cutBlock(slab, from, end, task, result);
  };
  for (const { at: from, granules } of task.spans) {
    const end = from + granules;
    if (reader?.readUntil(end * granuleBytes) === false) return { ...result, isRead: false };
    printBlock(slab, from, end);
    // While it lies in the core's cache.
    if (task.expectedCount === 0) cut(from, end);
  }
  if (task.expectedCount === 0) return result;
  proveExpected(slab, task.expectedCount);
  for (const { at: from, granules } of task.spans) cut(from, from + granules);
  return result;
}

/** Makes what was not read count as unchanged. */
function leaveUnnamed(slab: SlabViews, from: number, end: number): void {
  for (let granule = from; granule < end; granule += 1) {
    if (slab.present[granule] === 1) continue;
    const at = granule * fingerprintWords;
    for (let word = at; word < at + fingerprintWords; word += 1)
      slab.oldPrintWords[word] = slab.newPrintWords[word] ?? 0;
  }
}

/**
 * Where the parent's content is known only by its chunks' digests: what still has the digest is
 * unchanged, anything else has changed.
 */
function proveExpected(slab: SlabViews, count: number): void {
  const { expected } = slab;
  for (let index = 0; index < count; index += 1) {
    const start = expected.start[index] ?? 0;
    const end = start + (expected.granules[index] ?? 0);
    clearHoles(slab, start, end);
    digest(slab, "data", start, end, scratch, 0);
    const same = sameWords(scratchWords, 0, expected.digestWords, index * 4);
    for (let word = start * fingerprintWords; word < end * fingerprintWords; word += 1) {
      const print = slab.newPrintWords[word] ?? 0;
      slab.oldPrintWords[word] = same ? print : ~print;
    }
  }
}

/**
 * Cuts one block's changed granules into chunks: the whole block, if it was read, once more than
 * half has changed; else runs; zeros apart.
 */
function cutBlock(
  slab: SlabViews,
  from: number,
  end: number,
  { scope, compresses }: ScanTask,
  result: { chunkCount: number; changedGranules: number; zeroedGranules: number },
): void {
  let changed = 0;
  let zeroed = 0;
  for (let granule = from; granule < end; granule += 1) {
    if (isUnchanged(slab, granule)) continue;
    changed += 1;
    if (printIsZero(slab, granule)) zeroed += 1;
  }
  if (changed === 0) return;
  result.changedGranules += changed;
  result.zeroedGranules += zeroed;
  const add = (start: number, stop: number, isData: boolean): void => {
    addChunk(slab, result.chunkCount, start, stop, isData);
    if (isData && compresses) compressChunk(slab, result.chunkCount);
    result.chunkCount += 1;
  };
  if (scope === "whole" && changed * 2 > end - from && zeroed < changed) {
    add(from, end, true);
    return;
  }
  for (let start = from; start < end; ) {
    if (isUnchanged(slab, start)) {
      start += 1;
      continue;
    }
    const startsZero = printIsZero(slab, start);
    let runEnd = start + 1;
    while (runEnd < end && !isUnchanged(slab, runEnd) && printIsZero(slab, runEnd) === startsZero) runEnd += 1;
    add(start, runEnd, !startsZero);
    start = runEnd;
  }
}

function isUnchanged(slab: SlabViews, granule: number): boolean {
  return sameWords(slab.oldPrintWords, granule * fingerprintWords, slab.newPrintWords, granule * fingerprintWords);
}

function printIsZero(slab: SlabViews, granule: number): boolean {
  const at = granule * fingerprintWords;
  const words = slab.newPrintWords;
  return words[at] === 0 && words[at + 1] === 0 && words[at + 2] === 0 && words[at + 3] === 0;
}

function addChunk(slab: SlabViews, index: number, start: number, end: number, isData: boolean): void {
  slab.chunks.start[index] = start;
  slab.chunks.granules[index] = end - start;
  slab.chunks.state[index] = isData ? 1 : 0;
  if (!isData) return;
  clearHoles(slab, start, end);
  digest(slab, "data", start, end, slab.chunks.digests, index * digestBytes);
}

/** Compresses the chunks in state 2. Result: see `compressChunk`. */
function compress(task: CompressTask): void {
  const slab = slabOf(task);
  for (let index = 0; index < task.chunkCount; index += 1)
    if (slab.chunks.state[index] === 2) compressChunk(slab, index);
}

/**
 * Compresses a chunk to `out`, at its own place in `data`. Result: its stored word; plain where LZ4
 * does not make it smaller.
 */
function compressChunk({ chunks, kernel }: SlabViews, index: number): void {
  const at = (chunks.start[index] ?? 0) * granuleBytes;
  const plainBytes = (chunks.granules[index] ?? 0) * granuleBytes;
  const packed = packChunk(kernels.data, memoryViews.data, kernel.data + at, plainBytes, kernel.out + at, kernel.tree);
  chunks.storedWords[index] = packed === 0 ? plainBytes : packed + storedLz4Flag;
  chunks.state[index] = 2;
}

/**
 * Decodes payloads at `offsets` of `data` to granule `start` of `out`. Result: `state` of each
 * chunk, and `newPrints` of each granule, or in a copy digests by `other`. A compressed payload is
 * then open where it lies.
 */
function decode(task: DecodeTask, other: Digester | undefined): void {
  const slab = slabOf(task);
  const sealAt = sealsOf(task);
  for (let index = 0; index < task.chunkCount; index += 1) {
    const isProved = decodeChunk(slab, index, sealAt);
    slab.chunks.state[index] = isProved ? 1 : 2;
    if (!isProved || other === undefined) continue;
    const start = slab.chunks.start[index] ?? 0;
    const end = start + (slab.chunks.granules[index] ?? 0);
    digest(slab, "out", start, end, slab.expected.digests, index * digestBytes, other);
  }
  if (other !== undefined) return;
  if (task.seed !== undefined) placeSecret(slab, task.seed);
  for (let index = 0; index < task.chunkCount; index += 1) {
    if (slab.chunks.state[index] !== 1) continue;
    const start = slab.chunks.start[index] ?? 0;
    const end = start + (slab.chunks.granules[index] ?? 0);
    if (task.seed === undefined) markZeros(slab, start, end);
    else print(slab, "out", start, end);
  }
}

/** The cheap half of a fingerprint: zeros for a granule of zeros, anything else for any other. */
function markZeros({ out, newPrintWords }: SlabViews, from: number, end: number): void {
  for (let granule = from; granule < end; granule += 1) {
    const at = granule * granuleBytes;
    // Most granules show it in one of a few bytes, which costs a tenth of a comparison.
    const isFilled = (out[at] ?? 0) + (out[at + 1365] ?? 0) + (out[at + 2730] ?? 0) + (out[at + 4095] ?? 0) > 0;
    const mark = isFilled || !isZero(out.subarray(at, at + granuleBytes), zeros) ? 1 : 0;
    const word = granule * fingerprintWords;
    for (let index = 0; index < fingerprintWords; index += 1) newPrintWords[word + index] = mark;
  }
}

/** The seals of payloads by their offset in `data`; undefined in a vault that is not encrypted. */
function sealsOf({ sealed }: DecodeTask): ((offset: number) => PayloadSeal) | undefined {
  if (sealed === undefined) return undefined;
  const seals = payloadSeals(sealed.seal);
  return (offset) => seals(sealed.offset + offset);
}

function decodeChunk(slab: SlabViews, index: number, sealAt: ReturnType<typeof sealsOf>): boolean {
  const { chunks } = slab;
  const start = chunks.start[index] ?? 0;
  const granules = chunks.granules[index] ?? 0;
  const at = start * granuleBytes;
  const plainBytes = granules * granuleBytes;
  const storedWord = chunks.storedWords[index] ?? 0;
  const offset = chunks.offsets[index] ?? 0;
  let stored: Uint8Array | undefined = slab.data.subarray(offset, offset + storedLength(storedWord));
  if (sealAt !== undefined) stored = unseal(sealAt(offset), stored);
  if (stored === undefined) return false;
  if (storedWord < storedLz4Flag) {
    if (stored.length !== plainBytes) return false;
    copyBytes(stored, slab.out, at);
  } else {
    if (sealAt !== undefined) copyBytes(stored, slab.data, offset);
    const { kernel } = slab;
    const source = kernel.data + offset;
    if (!unpackChunk(kernels.out, memoryViews.out, source, stored.length, kernel.out + at, plainBytes)) return false;
  }
  digest(slab, "out", start, start + granules, scratch, 0);
  return sameWords(scratchWords, 0, chunks.digestWords, index * 4);
}

function sealFrame({ frame, storedWords, offset, seal }: SealTask): void {
  const bytes = new Uint8Array(frame);
  const sealAt = payloadSeals(seal);
  let at = frameHeaderBytes;
  for (const storedWord of storedWords) {
    const end = at + storedLength(storedWord);
    sealInPlace(sealAt(offset + at), bytes.subarray(at, end));
    at = Math.ceil(end / payloadAlignment) * payloadAlignment;
  }
}

export function run(task: WorkerTask): ScanResult | undefined | Promise<ScanResult | undefined> {
  if (task.kind === "compress") {
    giveWay();
    compress(task);
    return undefined;
  }
  if (task.kind === "seal") {
    giveWay();
    sealFrame(task);
    return undefined;
  }
  const { kernel } = slabOf(task);
  const other = task.kind === "decode" ? task.other : undefined;
  const isOurs = task.digest === "blake3" && (other === undefined || other === "blake3");
  if (isOurs) return perform(task, kernel.key, other && kernel.otherKey);
  return performWithLibraries(task, kernel, other);
}

async function performWithLibraries(
  task: ScanTask | DecodeTask,
  kernel: KernelRoom,
  other: DigestName | undefined,
): Promise<ScanResult | undefined> {
  const open = async (name: DigestName, key: "key" | "otherKey"): Promise<Digester> =>
    name === "blake3" ? kernel[key] : await openLibrary(name, kernel[`${key}View`]);
  return perform(task, await open(task.digest, "key"), other && (await open(other, "otherKey")));
}

function perform(task: ScanTask | DecodeTask, by: Digester, other: Digester | undefined): ScanResult | undefined {
  digester = by;
  if (task.kind === "decode") {
    decode(task, other);
    return undefined;
  }
  giveWay();
  return scan(task);
}
