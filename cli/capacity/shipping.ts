/**
 * Simulation of replication over a line: a cycle cuts, ships what changed since the last cut, and
 * commits; the next one cuts when its time has come and the line is free (coalescing queue).
 *
 * The age of the newest committed point rises with time and falls at each commit to the time since
 * that point's cut. A recovery point objective (RPO) is met while the age is no higher. A granule
 * that changes several times in a cycle is shipped once, so a line that is behind catches up by
 * longer cycles, as Tidemark does.
 *
 * Cuts lie on the load's slots: nothing is known about changes inside a slot.
 */
import type { DiskLoad, Load } from "./load.ts";

/** Ages of the newest committed point: rising lines, from a commit to the next one. */
export interface Ages {
  readonly fromMs: readonly number[];
  readonly toMs: readonly number[];
}

/** What a load ships, for a growth of it. Remembers what it has computed. */
export class Shipping {
  readonly load: Load;
  /** 0.3 for 30 % more than was seen. */
  readonly growth: number;
  readonly #known = new Map<number, number>();

  constructor(load: Load, growth: number) {
    this.load = load;
    this.growth = growth;
  }

  /** Bytes that a cycle over slots [from, end) stores. */
  shippedBytes(from: number, end: number): number {
    const key = from * (this.load.slots + 1) + end;
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const bytes = this.load.disks.reduce((sum, disk) => sum + this.shippedBytesOf(disk, from, end), 0);
    this.#known.set(key, bytes);
    return bytes;
  }

  /** The part of one disk. */
  shippedBytesOf(disk: DiskLoad, from: number, end: number): number {
    return disk.changedBytes(from, end) * disk.storedShare * (1 + this.growth);
  }

  /** Ages of the newest point at a line of so many bytes a second, with a cut every `cycleSlots` at the most often. */
  ages(bytesPerSecond: number, cycleSlots: number): Ages {
    const { slotMs, slots } = this.load;
    const fromMs: number[] = [];
    const toMs: number[] = [];
    let cut = 0;
    let doneMs = 0;
    for (;;) {
      const next = Math.max(cut + cycleSlots, Math.ceil(doneMs / slotMs));
      if (next > slots) return { fromMs, toMs };
      const commitMs = next * slotMs + (this.shippedBytes(cut, next) / bytesPerSecond) * 1_000;
      fromMs.push(doneMs - cut * slotMs);
      toMs.push(commitMs - cut * slotMs);
      cut = next;
      doneMs = commitMs;
    }
  }

  /** Mean of what cycles of so many slots ship a second. */
  meanBytesPerSecond(cycleSlots: number): number {
    const { slotMs, slots } = this.load;
    let bytes = 0;
    let cycles = 0;
    for (; (cycles + 1) * cycleSlots <= slots; cycles += 1)
      bytes += this.shippedBytes(cycles * cycleSlots, (cycles + 1) * cycleSlots);
    return cycles === 0
      ? this.shippedBytes(0, slots) / seconds(slots * slotMs)
      : bytes / seconds(cycles * cycleSlots * slotMs);
  }

  /** The highest of what cycles of so many slots ship a second. */
  peakBytesPerSecond(cycleSlots: number): number {
    const { slotMs, slots } = this.load;
    let most = 0;
    for (let from = 0; from + cycleSlots <= slots; from += cycleSlots)
      most = Math.max(most, this.shippedBytes(from, from + cycleSlots));
    return most / seconds(cycleSlots * slotMs);
  }

  /**
   * Bytes a second with which an RPO is met for `share` of the time, with a cut every `cycleSlots`,
   * which is at most half of the RPO: a cycle has the other half to ship in.
   */
  neededBytesPerSecond(rpoMs: number, cycleSlots: number, share: number): number {
    const always = this.peakBytesPerSecond(cycleSlots);
    if (share >= 1 || always === 0) return always;
    // The share that is met rises with the line, but for steps of single cuts: bisection.
    let [low, high] = [Math.log(always / 1e4), Math.log(always)];
    while (high - low > 0.005) {
      const middle = (low + high) / 2;
      if (shareWithin(this.ages(Math.exp(middle), cycleSlots), rpoMs) >= share) high = middle;
      else low = middle;
    }
    return Math.exp(high);
  }
}

/** Share of the time in which the age is at most `ageMs`. */
export function shareWithin({ fromMs, toMs }: Ages, ageMs: number): number {
  let within = 0;
  let whole = 0;
  for (const [index, from] of fromMs.entries()) {
    const to = toMs[index] ?? from;
    whole += to - from;
    within += Math.min(Math.max(ageMs - from, 0), to - from);
  }
  return whole === 0 ? 1 : within / whole;
}

/** The smallest age that is not exceeded for `share` of the time. */
export function ageAt(ages: Ages, share: number): number {
  let [low, high] = [0, Math.max(...ages.toMs, 0)];
  if (share >= 1) return high;
  while (high - low > 1) {
    const middle = (low + high) / 2;
    if (shareWithin(ages, middle) >= share) high = middle;
    else low = middle;
  }
  return high;
}

function seconds(ms: number): number {
  return ms / 1_000;
}
