/**
 * Distinct counting by a threshold on a hash (theta sketch), sampled by blocks of 64 KiB (cluster
 * sampling): how many granules changed in any span of time, each counted once.
 *
 * A block's rank is a hash of its number. A sketch holds the changed blocks whose rank is below its
 * share of all ranks, each with a mask of its changed granules. The union of sketches is exact for
 * the blocks below the smallest of their shares, and is scaled up by that share. So a union over an
 * hour is found from sketches of 30 s, in any order, long after they were taken.
 *
 * Invariant: whether a block is in a sketch depends on its number and the share only, never on what
 * was written to it. That makes the estimate unbiased.
 *
 * Cost: 6 bytes a block, at most 1,024 blocks a sketch. The standard error of a count is about 3 %
 * when blocks change alike, and about 5 % when a few of them change much more than others.
 */
import { granuleBytes } from "../../engine/internal.ts";

export const blockBytes: number = 64 * 1024;
export const blockGranules: number = blockBytes / granuleBytes;

const ranks: number = 2 ** 32;
const sketchBlocksMax = 1_024;
const entryBytes = 6;

/** Changed blocks of a disk, of a share of all its blocks. */
export interface ChangeSketch {
  /** Of the blocks, those with a rank below this share of all ranks are told. More than 0, at most 1. */
  readonly share: number;
  /** Numbers of the changed blocks, each once. */
  readonly blocks: Uint32Array;
  /** For each of them its changed granules: bit i is granule i. Never 0. */
  readonly masks: Uint16Array;
}

/** Place of a block in an order that has nothing to do with its place on the disk: MurmurHash3's finalizer. */
export function rankOf(block: number): number {
  let mixed = block | 0;
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85eb_ca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2_ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}

/** Whether the block is among this share of all blocks. */
export function isWithin(block: number, share: number): boolean {
  return rankOf(block) < share * ranks;
}

/** A sketch of these blocks, which are all that changed among `share` of the disk's blocks. */
export function sketchOf(share: number, changed: readonly (readonly [block: number, mask: number])[]): ChangeSketch {
  let kept = changed;
  let keptShare = share;
  if (changed.length > sketchBlocksMax) {
    // The first rank that is too high. No two blocks have the same.
    const end = Uint32Array.from(changed, ([block]) => rankOf(block)).sort()[sketchBlocksMax] ?? 0;
    kept = changed.filter(([block]) => rankOf(block) < end);
    keptShare = end / ranks;
  }
  return {
    share: keptShare,
    blocks: Uint32Array.from(kept, ([block]) => block),
    masks: Uint16Array.from(kept, ([, mask]) => mask),
  };
}

/** Base64 of the blocks (4 bytes each) followed by the masks (2 bytes each), little-endian. */
export function encodeBlocks({ blocks, masks }: ChangeSketch): string {
  const bytes = Buffer.alloc(blocks.length * entryBytes);
  for (const [index, block] of blocks.entries()) bytes.writeUInt32LE(block, index * 4);
  for (const [index, mask] of masks.entries()) bytes.writeUInt16LE(mask, blocks.length * 4 + index * 2);
  return bytes.toString("base64");
}

/** What `encodeBlocks` gave; undefined when the text is no such thing. */
export function decodeBlocks(share: number, text: string): ChangeSketch | undefined {
  const bytes = Buffer.from(text, "base64");
  if (bytes.length % entryBytes !== 0 || bytes.toString("base64") !== text) return undefined;
  const count = bytes.length / entryBytes;
  const blocks = Uint32Array.from({ length: count }, (_, index) => bytes.readUInt32LE(index * 4));
  const masks = Uint16Array.from({ length: count }, (_, index) => bytes.readUInt16LE(count * 4 + index * 2));
  if (masks.includes(0) || new Set(blocks).size !== count) return undefined;
  return blocks.every((block) => isWithin(block, share)) ? { share, blocks, masks } : undefined;
}

/** Sketches slot by slot, and the union of any slots in a row. */
export class ChangeHistory {
  /** Entries of slot i are [starts[i], starts[i + 1]). */
  readonly #starts: Uint32Array;
  readonly #ids: Uint32Array;
  readonly #masks: Uint16Array;
  /** The smallest share of a slot's sketches. */
  readonly #shares: Float64Array;
  /** By id: a block has one id wherever it occurs. */
  readonly #ranks: Uint32Array;
  readonly #union: Uint16Array;
  readonly #unionOf: Uint32Array;
  #unions = 0;

  constructor(slots: readonly (readonly ChangeSketch[])[]) {
    const ids = new Map<number, number>();
    const entries = slots.reduce((sum, slot) => slot.reduce((count, { blocks }) => count + blocks.length, sum), 0);
    this.#starts = new Uint32Array(slots.length + 1);
    this.#ids = new Uint32Array(entries);
    this.#masks = new Uint16Array(entries);
    this.#shares = new Float64Array(slots.length).fill(1);
    let at = 0;
    for (const [index, slot] of slots.entries()) {
      for (const { share, blocks, masks } of slot) {
        this.#shares[index] = Math.min(this.#shares[index] ?? 1, share);
        for (const [entry, block] of blocks.entries()) {
          const id = ids.get(block) ?? ids.size;
          ids.set(block, id);
          this.#ids[at] = id;
          this.#masks[at] = masks[entry] ?? 0;
          at += 1;
        }
      }
      this.#starts[index + 1] = at;
    }
    this.#ranks = Uint32Array.from(ids.keys(), rankOf);
    this.#union = new Uint16Array(ids.size);
    this.#unionOf = new Uint32Array(ids.size);
  }

  /** Granules that changed in slots [from, end), each once: an estimate. */
  granules(from: number, end: number): number {
    let share = 1;
    for (let slot = from; slot < end; slot += 1) share = Math.min(share, this.#shares[slot] ?? 1);
    const rankMax = share * ranks;
    this.#unions += 1;
    let granules = 0;
    const last = this.#starts[end] ?? 0;
    for (let entry = this.#starts[from] ?? 0; entry < last; entry += 1) {
      const id = this.#ids[entry] ?? 0;
      if ((this.#ranks[id] ?? 0) >= rankMax) continue;
      const before = this.#unionOf[id] === this.#unions ? (this.#union[id] ?? 0) : 0;
      const after = before | (this.#masks[entry] ?? 0);
      this.#unionOf[id] = this.#unions;
      this.#union[id] = after;
      granules += bitsOf(after & ~before);
    }
    return granules / share;
  }
}

/** How many bits of a mask are set. */
export function bitsOf(mask: number): number {
  let bits = mask - ((mask >>> 1) & 0x5555);
  bits = (bits & 0x3333) + ((bits >>> 2) & 0x3333);
  bits = (bits + (bits >>> 4)) & 0x0f0f;
  return (bits + (bits >>> 8)) & 0x1f;
}
