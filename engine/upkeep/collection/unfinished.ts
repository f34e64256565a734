/**
 * What a living writer has made since its newest point: it may be of the point that it is about to commit, which nobody can see yet. A writer numbers what it
 * makes, and commits it in that order; so of each kind it is whatever has a higher number than all that the disk's committed points lead to. The segments that
 * it appends to are among it.
 */
import { damaged } from "../../store/format/fields.ts";
import { decodeDiskName, encodeDiskName, parseDiskObject, parseSegmentName } from "../../store/format/names.ts";
import type { LiveSet } from "./live-set.ts";

/** One of a series of names that a writer gives with ascending numbers. */
interface Numbered {
  readonly encodedDisk: string;
  readonly series: string;
  readonly epoch: number;
  readonly number: number;
}

export class Unfinished {
  /** By disk: the epoch of the writer that may be at work, or come. */
  readonly #epochs: ReadonlyMap<string, number>;
  /** By series of a living writer: the highest number that its disk's points need. */
  readonly #needed = new Map<string, number>();

  constructor(live: LiveSet) {
    this.#epochs = new Map(
      Array.from(live.heads, ([disk, head]) => [encodeDiskName(disk), head.writer === null ? head.epoch + 1 : head.epoch]),
    );
    // What other disks already need of the writer's segments says nothing of what its own next point needs.
    for (const names of [live.objects, live.ownSegments]) {
      for (const name of names) {
        const numbered = numberedName(name);
        if (numbered === undefined || !this.#isCurrent(name, numbered)) continue;
        const key = keyOf(numbered);
        this.#needed.set(key, Math.max(this.#needed.get(key) ?? 0, numbered.number));
      }
    }
  }

  /** Whether it is not to be touched. Errors: DAMAGED when its disk has no head: nobody knows then what is needed of it. */
  has(name: string): boolean {
    const numbered = numberedName(name);
    if (numbered === undefined || !this.#isCurrent(name, numbered)) return false;
    const needed = this.#needed.get(keyOf(numbered)) ?? -1;
    // The last segment of which something is needed may have been appended to since.
    return numbered.series.startsWith("lane") ? numbered.number >= needed : numbered.number > needed;
  }

  #isCurrent(name: string, { encodedDisk, epoch }: Numbered): boolean {
    const current = this.#epochs.get(encodedDisk);
    if (current !== undefined) return epoch >= current;
    throw damaged(name, `it belongs to disk ${JSON.stringify(decodeDiskName(encodedDisk) ?? encodedDisk)}, whose head is not there`);
  }
}

function numberedName(name: string): Numbered | undefined {
  const segment = parseSegmentName(name);
  if (segment !== undefined) {
    const { encodedDisk, epoch, lane, ordinal } = segment;
    return { encodedDisk, series: `lane ${String(lane)}`, epoch, number: ordinal };
  }
  const object = parseDiskObject(name);
  if (object === undefined || object.kind === "head" || object.kind === "other") return undefined;
  return { encodedDisk: object.encodedDisk, series: object.kind, epoch: object.epoch, number: object.number };
}

function keyOf({ encodedDisk, series, epoch }: Numbered): string {
  return `${encodedDisk} ${String(epoch)} ${series}`;
}
