/**
 * Bases of a tracking file: the points that its marks are relative to, oldest first. The first ones
 * are settled; the rest are expected, which means that their commit was tried and its outcome may
 * be unknown.
 *
 * Invariant: the list may lose a base at any time and never gains a wrong one. Without a base the
 * next start compares more of the disk.
 */
import { basesMax } from "./tracking-format.ts";

export class BaseList {
  #points: readonly string[] = [];
  /** How many of the first points are settled. */
  #settled = 0;

  get points(): readonly string[] {
    return this.#points;
  }

  /** Takes `points`, of which the first `settled` are settled; by default all are. */
  reset(points: readonly string[], settled: number = points.length): void {
    const kept = points.slice(-basesMax);
    this.#points = kept;
    this.#settled = Math.max(0, settled - (points.length - kept.length));
  }

  /** Adds an expected point, as the newest. */
  add(point: string): void {
    const others = this.#points.filter((known) => known !== point);
    if (this.#points.indexOf(point) < this.#settled && others.length < this.#points.length) this.#settled -= 1;
    if (others.length === basesMax) {
      // The oldest expected point was given up long ago, so it goes before a settled one.
      const isExpected = this.#settled < basesMax;
      others.splice(isExpected ? this.#settled : 0, 1);
      if (!isExpected) this.#settled -= 1;
    }
    this.#points = [...others, point];
  }

  /**
   * Forgets the points before the first of `bases`, which are settled now. Points expected since
   * the last of them stay, because they may turn out to be committed. True when the list has
   * changed.
   */
  settle(bases: readonly string[]): boolean {
    const known = this.#points.findLastIndex((point) => bases.includes(point));
    const expected = known < 0 ? [] : this.#points.slice(known + 1);
    const before = this.#points.join();
    this.reset([...bases, ...expected], bases.length);
    return this.#points.join() !== before;
  }
}
