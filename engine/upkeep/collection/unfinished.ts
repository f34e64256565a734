/**
 * Objects of a cycle that is not committed yet, which a garbage collection must not touch.
 *
 * A writer numbers what it makes and commits in that order. So of each series of names, everything
 * with a higher number than all that the disk's committed points lead to may belong to the next
 * point. The segments that the writer appends to are among it.
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
      Array.from(live.heads, ([disk, head]) => [
        encodeDiskName(disk),
        head.writer === null ? head.epoch + 1 : head.epoch,
      ]),
    );
    // Other disks' points may need the writer's segments; that says nothing of its own next point.
    for (const names of [live.objects, live.ownSegments]) {
      for (const name of names) {
        const numbered = numberedName(name);
        if (numbered === undefined || !this.#isCurrent(name, numbered)) continue;
        const key = keyOf(numbered);
        this.#needed.set(key, Math.max(this.#needed.get(key) ?? 0, numbered.number));
      }
    }
  }

  /**
   * Whether it must not be touched. Errors: DAMAGED when its disk has no head: what is needed of it
   * is not known then.
   */
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
    throw damaged(
      name,
      `it belongs to disk ${JSON.stringify(decodeDiskName(encodedDisk) ?? encodedDisk)}, whose head is gone`,
    );
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
