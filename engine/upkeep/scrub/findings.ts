/**
 * What of a vault is damaged, as far as is known: by disk and point, and what is no point's. A finding stays until its point has been looked at again in full,
 * or its chunk has been healed. At most ten thousand are kept, and one for each further point that is damaged.
 */
import type { Damage } from "./damage.ts";
import type { DamagedChunk } from "./heal.ts";
import type { FoundDamage } from "./point-prover.ts";
import { chunkKey, damagesMax } from "./point-prover.ts";

/** Stand for a point's number: what lists points, and what makes frames readable. */
export const listsKey = 0;
export const framesKey = -1;

interface Finding extends FoundDamage {
  /** The round in which it was seen last. */
  round: number;
}

/** Chunks that are damaged, and a point that needs them. */
export interface DamagedPoint {
  readonly disk: string;
  readonly sequence: number;
  readonly chunks: readonly DamagedChunk[];
}

export class Findings {
  readonly #byDisk = new Map<string, Map<number, readonly Finding[]>>();
  #count = 0;
  #healed: Damage[] = [];
  #onDamage: ((damage: Damage) => void) | undefined;

  /** A pass begins. `onDamage` is told of what is found in it and was not known. */
  begin(onDamage: ((damage: Damage) => void) | undefined): void {
    this.#healed = [];
    this.#onDamage = onDamage;
  }

  /** What has been healed since the pass began. */
  get healed(): readonly Damage[] {
    return this.#healed;
  }

  get damages(): readonly Damage[] {
    return [...this.#byDisk.values()].flatMap((points) => [...points.values()].flat()).map(({ damage }) => damage);
  }

  /** There are so many that of each further point only one is kept. */
  get isFull(): boolean {
    return this.#count >= damagesMax;
  }

  /** Takes note of what was found. Returns what has not been found in this round before, and is not healed. */
  add(disk: string, key: number, found: readonly FoundDamage[], round: number): readonly FoundDamage[] {
    const known = new Map((this.#byDisk.get(disk)?.get(key) ?? []).map((finding) => [identityOf(finding.damage), finding]));
    const fresh: FoundDamage[] = [];
    for (const { damage, chunk } of found) {
      const identity = identityOf(damage);
      const before = known.get(identity);
      if (damage.healed) this.#healed.push(damage);
      if (before === undefined) this.#onDamage?.(damage);
      if (damage.healed) known.delete(identity);
      if (damage.healed || before?.round === round) continue;
      fresh.push({ damage, chunk });
      if (!this.isFull || known.size === 0 || before !== undefined) known.set(identity, { damage, chunk, round });
    }
    this.#set(disk, key, [...known.values()]);
    return fresh;
  }

  /** All of a point has been looked at in this round: what was found in earlier ones only is no more. Returns whether the point is whole. */
  finish(disk: string, key: number, round: number): boolean {
    const left = (this.#byDisk.get(disk)?.get(key) ?? []).filter((finding) => finding.round === round);
    this.#set(disk, key, left);
    return left.length === 0;
  }

  /** What is damaged now of what `isOf` tells; by default all that was noted under the key. */
  replace(disk: string, key: number, damages: readonly Damage[], round: number, isOf: (damage: Damage) => boolean = () => true): void {
    const before = this.#byDisk.get(disk)?.get(key) ?? [];
    const known = new Set(before.map(({ damage }) => damage.message));
    for (const damage of damages) {
      if (damage.healed) this.#healed.push(damage);
      if (!known.has(damage.message)) this.#onDamage?.(damage);
    }
    const left = damages.filter(({ healed }) => !healed).map((damage) => ({ damage, chunk: undefined, round }));
    this.#set(disk, key, [...before.filter(({ damage }) => !isOf(damage)), ...left]);
  }

  /** Segments with frames that could not be put right, and only those of `segments`, others being gone. */
  damagedSegments(segments?: ReadonlySet<string>): ReadonlySet<string> {
    const damaged = new Set<string>();
    for (const [disk, points] of this.#byDisk) {
      const frames = points.get(framesKey) ?? [];
      const left = segments === undefined ? frames : frames.filter(({ damage }) => segments.has(damage.object));
      this.#set(disk, framesKey, left);
      for (const { damage } of left) damaged.add(damage.object);
    }
    return damaged;
  }

  /** Chunks that could not be healed yet, each with the first point that is known to need it. */
  damagedPoints(): readonly DamagedPoint[] {
    const seen = new Set<string>();
    const damaged: DamagedPoint[] = [];
    for (const [disk, points] of this.#byDisk) {
      for (const [sequence, findings] of points) {
        const chunks = findings.flatMap(({ chunk }) => {
          if (chunk === undefined || seen.has(chunkKey(chunk))) return [];
          seen.add(chunkKey(chunk));
          return [chunk];
        });
        if (chunks.length > 0) damaged.push({ disk, sequence, chunks });
      }
    }
    return damaged;
  }

  /** Chunks have been healed. Returns the points that are whole now, as far as is known. */
  heal(chunks: readonly DamagedChunk[]): readonly { readonly disk: string; readonly sequence: number }[] {
    const keys = new Set(chunks.map(chunkKey));
    const whole: { readonly disk: string; readonly sequence: number }[] = [];
    for (const [disk, points] of this.#byDisk) {
      for (const [sequence, findings] of points) {
        const [healed, left] = [findings.filter(isAmong(keys, true)), findings.filter(isAmong(keys, false))];
        if (healed.length === 0) continue;
        for (const { damage } of healed) this.#healed.push({ ...damage, healed: true });
        this.#set(disk, sequence, left);
        if (left.length === 0) whole.push({ disk, sequence });
      }
    }
    return whole;
  }

  /** Forgets disks that are not among these. */
  keepDisks(disks: readonly string[]): void {
    for (const disk of this.#byDisk.keys()) if (!disks.includes(disk)) this.#drop(disk);
  }

  /** Forgets points of the disk that are not among these. */
  keepPoints(disk: string, sequences: ReadonlySet<number>): void {
    for (const key of this.#byDisk.get(disk)?.keys() ?? []) if (key > 0 && !sequences.has(key)) this.#set(disk, key, []);
  }

  #drop(disk: string): void {
    for (const key of this.#byDisk.get(disk)?.keys() ?? []) this.#set(disk, key, []);
    this.#byDisk.delete(disk);
  }

  #set(disk: string, key: number, findings: readonly Finding[]): void {
    const points = this.#byDisk.get(disk) ?? new Map<number, readonly Finding[]>();
    this.#byDisk.set(disk, points);
    this.#count += findings.length - (points.get(key)?.length ?? 0);
    if (findings.length > 0) points.set(key, findings);
    else points.delete(key);
  }
}

function identityOf({ object, extent, message }: Damage): string {
  return `${object} ${extent === null ? message : String(extent.offset)}`;
}

function isAmong(keys: ReadonlySet<string>, wanted: boolean): (finding: Finding) => boolean {
  return ({ chunk }) => (chunk !== undefined && keys.has(chunkKey(chunk))) === wanted;
}
