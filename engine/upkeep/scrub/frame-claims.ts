/**
 * Claims on bytes of a segment: what its frames say lies there.
 *
 * A map's entry may name bytes that belong to another chunk, by a fault or on purpose. The entry
 * cannot be healed then: writing its content there would destroy the other chunk. Frames describe
 * themselves, so they are asked before anything is written. Frames that cannot be read claim nothing.
 *
 * Cost: the headers and tables of the segment, once for each `FrameClaims`.
 */
import { isUnreadableOrGone } from "../../errors.ts";
import { digestBytes } from "../../limits.ts";
import type { MappedChunk } from "../../pipeline/fetch-plan.ts";
import { fromHex, sameBytes } from "../../store/format/checksum.ts";
import { frameHeaderBytes, storedLength } from "../../store/format/frame.ts";
import { deadName } from "../../store/format/reclaim.ts";
import { readDead } from "../../store/segments/dead-pages.ts";
import type { WalkedFrame } from "../../store/segments/frame-walk.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import { readableFrames } from "../../store/segments/readable-frames.ts";
import type { PatchOptions } from "./page-patch.ts";

export class FrameClaims {
  readonly #options: PatchOptions;
  readonly #frames = new Map<string, readonly WalkedFrame[]>();

  constructor(options: PatchOptions) {
    this.#options = options;
  }

  /**
   * Whether a frame says that something else than the chunk lies where the chunk would be written.
   *
   * @throws the errors of the store.
   */
  async areAgainst(chunk: MappedChunk): Promise<boolean> {
    const end = chunk.offset + storedLength(chunk.storedWord);
    for (const { offset, header, table } of await this.#framesOf(chunk.segment)) {
      if (offset + header.frameBytes <= chunk.offset || end <= offset) continue;
      if (chunk.offset < offset + frameHeaderBytes || end > offset + header.tableOffset) return true;
      for (let index = 0; index < table.count; index += 1) {
        const from = offset + (table.offsets[index] ?? 0);
        const storedWord = table.storedWords[index] ?? 0;
        const granules = table.granules[index] ?? 0;
        const isApart = from + storedLength(storedWord) <= chunk.offset || end <= from;
        if (isApart || granules === 0) continue; // of no granules: a gap
        const digest = table.digests.subarray(index * digestBytes, (index + 1) * digestBytes);
        const isIt = from === chunk.offset && storedWord === chunk.storedWord && granules === chunk.granules;
        if (!isIt || !sameBytes(digest, chunk.digest)) return true;
      }
    }
    return false;
  }

  async #framesOf(segment: string): Promise<readonly WalkedFrame[]> {
    let frames = this.#frames.get(segment);
    if (frames === undefined) {
      frames = await this.#readFrames(segment);
      this.#frames.set(segment, frames);
    }
    return frames;
  }

  async #readFrames(segment: string): Promise<readonly WalkedFrame[]> {
    const { store, vault, signal } = this.#options;
    try {
      const { writtenBytes, sizeBytes } = await store.statPages(segment, { signal });
      const record = await readDead(store, vault, deadName(segment), { signal });
      const dead = PageSet.ofRuns(record?.document.dead ?? []);
      const walked = { name: segment, sizeBytes, writtenBytes, dead };
      return (await readableFrames(store, fromHex(vault), walked, { signal })).frames;
    } catch (error) {
      if (isUnreadableOrGone(error)) return [];
      throw error;
    }
  }
}
