/**
 * Points of a disk in columns, and how they fall into the pixels of a timeline.
 *
 * A disk has thousands of points, and a page shows many disks: 9 bytes a point instead of an object.
 */
import type { AgentPoint } from "../../ports.ts";

/** What is to be seen of a point, one bit each. */
export const marks = { app: 1, fuzzy: 2, group: 4, pinned: 8, proved: 16, damaged: 32, dropped: 64 } as const;
export type Mark = keyof typeof marks;

export class PointColumns {
  #times: Float64Array<ArrayBuffer>;
  #marks: Uint8Array<ArrayBuffer>;
  #length: number;
  #lastSequence: number;

  /** Oldest first. */
  constructor(points: readonly Omit<AgentPoint, "damaged" | "dropped">[]) {
    this.#times = new Float64Array(points.length + 64);
    this.#marks = new Uint8Array(points.length + 64);
    this.#length = 0;
    this.#lastSequence = 0;
    for (const point of points) this.push(point);
  }

  get length(): number {
    return this.#length;
  }

  get lastSequence(): number {
    return this.#lastSequence;
  }

  /** Time of the oldest point in ms since 1970; NaN when there is none. */
  get oldestMs(): number {
    return this.#length === 0 ? Number.NaN : (this.#times[0] ?? Number.NaN);
  }

  push(point: Partial<AgentPoint> & Pick<AgentPoint, "sequence" | "time" | "consistency" | "group">): void {
    if (this.#length === this.#times.length) {
      const [times, bits] = [new Float64Array(2 * this.#length), new Uint8Array(2 * this.#length)];
      times.set(this.#times);
      bits.set(this.#marks);
      [this.#times, this.#marks] = [times, bits];
    }
    this.#times[this.#length] = Date.parse(point.time);
    this.#marks[this.#length] = marksOf(point);
    this.#length += 1;
    this.#lastSequence = point.sequence;
  }

  /** How many points have the mark; without one, how many there are. */
  count(mark: Mark): number {
    let count = 0;
    for (let index = 0; index < this.#length; index += 1)
      if (((this.#marks[index] ?? 0) & marks[mark]) !== 0) count += 1;
    return count;
  }

  /**
   * For each of `width` pixels from `fromMs` to `toMs`: 0 where there is no point, else 128 and the marks
   * of all of its points; `dropped` only when all of them are dropped.
   */
  pixels(fromMs: number, toMs: number, width: number): Uint8Array {
    const pixels = new Uint8Array(width);
    const scale = width / (toMs - fromMs);
    for (let index = this.#firstFrom(fromMs); index < this.#length; index += 1) {
      const timeMs = this.#times[index] ?? 0;
      if (timeMs > toMs) break;
      const at = Math.min(Math.floor((timeMs - fromMs) * scale), width - 1);
      const before = pixels[at] ?? 0;
      const own = this.#marks[index] ?? 0;
      const isKept = before !== 0 && (before & marks.dropped) === 0;
      pixels[at] = 128 | before | own;
      if (isKept || (own & marks.dropped) === 0) pixels[at] = (pixels[at] ?? 0) & ~marks.dropped;
    }
    return pixels;
  }

  #firstFrom(fromMs: number): number {
    let [low, high] = [0, this.#length];
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((this.#times[middle] ?? 0) < fromMs) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

function marksOf(point: Partial<AgentPoint>): number {
  const { consistency, group, pinned, proved, damaged, dropped } = point;
  return (
    (consistency === "app" ? marks.app : 0) +
    (consistency === "fuzzy" ? marks.fuzzy : 0) +
    ((group ?? null) === null ? 0 : marks.group) +
    (pinned === true ? marks.pinned : 0) +
    ((proved ?? null) === null ? 0 : marks.proved) +
    (damaged === true ? marks.damaged : 0) +
    (dropped === true ? marks.dropped : 0)
  );
}

export const markWords: readonly (readonly [Mark, string])[] = [
  ["app", "application-consistent"],
  ["group", "of a group"],
  ["pinned", "pinned"],
  ["proved", "proved"],
  ["damaged", "damaged"],
  ["dropped", "dropped next"],
];

/** `1,204 points, 24 app-consistent, 1 pinned, 3 dropped next`: a timeline in words. */
export function inWords(points: PointColumns): string {
  const parts = markWords.flatMap(([mark, word]) => {
    const count = points.count(mark);
    return count === 0 ? [] : [`${count} ${word}`];
  });
  return [`${points.length} ${points.length === 1 ? "point" : "points"}`, ...parts].join(", ");
}
