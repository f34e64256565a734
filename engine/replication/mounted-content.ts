/**
 * A point of another vault, mounted, as the content of a point of a vault with smaller blocks: it is
 * read as a volume, split into that vault's blocks, digested and compressed anew.
 *
 * Memory: the cache of the mount, and what a capture needs.
 */
import type { BlockDevice } from "../device.ts";
import { noPrints } from "../disk/source/local-state.ts";
import { namedVolume } from "../disk/source/named-volume.ts";
import { isUnreadableOrGone, TidemarkError, throwIfAborted } from "../errors.ts";
import { granuleBytes } from "../limits.ts";
import { changedBaseline, emptyBaseline } from "../pipeline/baseline.ts";
import type { PointContent } from "../pipeline/packer.ts";
import type { SourceContent } from "../pipeline/transfer.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import { cacheBlocksMin } from "../recovery/mount/block-cache.ts";
import { Mount, type MountOptions } from "../recovery/mount/mount.ts";
import type { ManifestDocument } from "../store/format/documents.ts";
import type { GranuleRange } from "../store/map/point-map.ts";
import type { Extent, Volume } from "../volume.ts";
import { capturedInto, mapBaseline, randomSeed } from "./replicate.ts";
import type { Session } from "./session.ts";

/** Read far ahead: see `read-ahead.ts`. */
const cacheBytes: number = 128 * 1024 * 1024;
const extentsAtOnce = 4096;

export interface MountedContentOptions extends Pick<MountOptions, "disk" | "point" | "onNotice" | "signal"> {
  readonly from: VaultContext;
  readonly to: VaultContext;
  readonly session: Session;
  /** Of the target's newest point; undefined, the new point lists everything. */
  readonly parent: ManifestDocument | undefined;
  /** What differs from the target's newest point; undefined, all is compared. */
  readonly changes: AsyncIterable<GranuleRange> | undefined;
}

export class MountedContent implements SourceContent {
  readonly volumeBytes: number;
  readonly fill: PointContent["fill"];
  readonly refill: PointContent["refill"];
  readonly #mount: Mount;
  readonly #signal: AbortSignal | undefined;
  #damage: TidemarkError | undefined;

  private constructor(mount: Mount, { to, session, parent, changes, signal }: MountedContentOptions) {
    this.#mount = mount;
    this.#signal = signal;
    const { device } = mount;
    const { sizeBytes: volumeBytes } = device;
    this.volumeBytes = volumeBytes;
    const volume = this.#volumeOf(device);
    const seed = randomSeed();
    const isKnown = parent !== undefined && changes !== undefined;
    const compared = parent === undefined ? emptyBaseline : mapBaseline(to, session, parent, seed);
    const { fill, refill } = capturedInto(to, {
      volume: isKnown ? namedVolume(volume, this.#extentsOf(changes), parent.volumeBytes) : volume,
      volumeBytes,
      baseline: isKnown ? changedBaseline : compared,
      scope: isKnown ? "named" : "whole",
      seed,
      prints: noPrints,
    });
    this.fill = fill;
    this.refill = refill;
  }

  /** Errors: those of `Mount.open`. */
  static async open(options: MountedContentOptions): Promise<MountedContent> {
    const { from, disk, point, onNotice, signal } = options;
    const memory = Math.max(cacheBytes, cacheBlocksMin * from.document.blockBytes);
    const mount = await Mount.open(from, { disk, point, cacheBytes: memory, onNotice, signal }, "copy");
    return new MountedContent(mount, options);
  }

  get damage(): TidemarkError | undefined {
    return this.#damage;
  }

  get fetchedBytes(): number {
    return this.#mount.summary().bytesFetched;
  }

  async close(): Promise<void> {
    await this.#mount.close();
  }

  #volumeOf(device: BlockDevice): Volume {
    return {
      description: device.description,
      sizeBytes: () => Promise.resolve(device.sizeBytes),
      read: async (offset, into) => {
        if (!device.tryRead(offset, into)) await this.#noting(async () => await device.read(offset, into));
      },
      allocated: (sizeBytes) => this.#allocated(device, sizeBytes),
    };
  }

  async *#allocated(device: BlockDevice, sizeBytes: number): AsyncGenerator<Extent> {
    for (let at = 0; at < sizeBytes; ) {
      const from = at;
      const extents = await this.#noting(
        async () => (await device.lookUp?.(from, sizeBytes - from, extentsAtOnce)) ?? [],
      );
      for (const { kind, offset, length } of extents) if (kind === "data") yield { offset, length };
      throwIfAborted(this.#signal);
      const last = extents.at(-1);
      if (last === undefined) return;
      at = last.offset + last.length;
    }
  }

  async *#extentsOf(changes: AsyncIterable<GranuleRange>): AsyncGenerator<Extent> {
    const ranges = changes[Symbol.asyncIterator]();
    for (;;) {
      const next = await this.#noting(async () => await ranges.next());
      if (next.done === true) return;
      const offset = next.value.from * granuleBytes;
      yield { offset, length: Math.min(next.value.end * granuleBytes, this.volumeBytes) - offset };
    }
  }

  /** Damage of this point is told apart from that of the target, which a cycle can do without. */
  async #noting<Result>(work: () => Promise<Result>): Promise<Result> {
    try {
      return await work();
    } catch (error) {
      if (!isUnreadableOrGone(error)) throw error;
      this.#damage = error;
      throw new TidemarkError("SOURCE_UNREADABLE", error.message, { cause: error });
    }
  }
}
