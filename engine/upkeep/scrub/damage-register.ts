/**
 * Registry of known damage: what scrub passes have found and not yet seen healed, by disk and
 * point.
 *
 * A finding stays until its point has been looked at again in full, or its chunk has been healed.
 * Findings that concern no single point stand under a key of their own: what lists points, and
 * segments as wholes.
 *
 * Memory: at most ten thousand findings, and one for each further point that is damaged.
 */
import { type Damage, type DamageFinding, damageOf, identityOf } from "./damage.ts";
import type { DamagedChunk } from "./heal.ts";
import { damagesMax } from "./point-prover.ts";
import { chunkKey } from "./proved-places.ts";

/** In place of a point's number: what lists points. */
export const listsKey = 0;
/** In place of a point's number: segments as wholes. */
export const segmentsKey = -1;

interface KnownDamage {
  readonly finding: DamageFinding;
  /** The round in which it was seen last. */
  readonly round: number;
}

/** Chunks that are damaged, and a point that needs them. */
export interface DamagedPoint {
  readonly disk: string;
  readonly sequence: number;
  readonly chunks: readonly DamagedChunk[];
}

export class DamageRegister {
  readonly #byDisk = new Map<string, Map<number, readonly KnownDamage[]>>();
  #count = 0;
  #healed: DamageFinding[] = [];
  #onDamage: ((damage: Damage) => void) | undefined;

  /** A pass begins. `onDamage` is called with what is found in it and was not known. */
  begin(onDamage: ((damage: Damage) => void) | undefined): void {
    this.#healed = [];
    this.#onDamage = onDamage;
  }

  /** What has been healed since the pass began. */
  get healed(): readonly Damage[] {
    return this.#healed.map(damageOf);
  }

  get damages(): readonly Damage[] {
    return [...this.#byDisk.values()]
      .flatMap((points) => [...points.values()].flat())
      .map(({ finding }) => damageOf(finding));
  }

  /** There are so many that of each further point only one is kept. */
  get isFull(): boolean {
    return this.#count >= damagesMax;
  }

  /**
   * Takes note of what was found. Returns what has not been found in this round before, and is not
   * healed.
   */
  add(disk: string, key: number, found: readonly DamageFinding[], round: number): readonly DamageFinding[] {
    const known = new Map(this.#known(disk, key).map((before) => [identityOf(before.finding), before]));
    const fresh: DamageFinding[] = [];
    for (const finding of found) {
      const identity = identityOf(finding);
      const before = known.get(identity);
      if (before === undefined) this.#onDamage?.(damageOf(finding));
      if (finding.healed) {
        this.#healed.push(finding);
        known.delete(identity);
        continue;
      }
      if (before?.round === round) continue;
      fresh.push(finding);
      if (!this.isFull || known.size === 0 || before !== undefined) known.set(identity, { finding, round });
    }
    this.#set(disk, key, [...known.values()]);
    return fresh;
  }

  /**
   * All of a point has been looked at in this round: what was found in earlier rounds only is no
   * more. Returns whether the point is whole.
   */
  finish(disk: string, key: number, round: number): boolean {
    const left = this.#known(disk, key).filter((known) => known.round === round);
    this.#set(disk, key, left);
    return left.length === 0;
  }

  /** What is damaged now of what `isOf` selects; by default all that was noted under the key. */
  replace(
    disk: string,
    key: number,
    found: readonly DamageFinding[],
    round: number,
    isOf: (finding: DamageFinding) => boolean = () => true,
  ): void {
    const before = this.#known(disk, key);
    const known = new Set(before.map(({ finding }) => identityOf(finding)));
    for (const finding of found) {
      if (finding.healed) this.#healed.push(finding);
      if (!known.has(identityOf(finding))) this.#onDamage?.(damageOf(finding));
    }
    const left = found.filter(({ healed }) => !healed).map((finding) => ({ finding, round }));
    this.#set(disk, key, [...before.filter(({ finding }) => !isOf(finding)), ...left]);
  }

  /**
   * Segments that are damaged as wholes; `segments`: those that exist, the others are forgotten.
   */
  damagedSegments(segments?: ReadonlySet<string>): ReadonlySet<string> {
    const damaged = new Set<string>();
    for (const disk of this.#byDisk.keys()) {
      const left = this.#known(disk, segmentsKey).filter(({ finding }) => segments?.has(finding.object) !== false);
      this.#set(disk, segmentsKey, left);
      for (const { finding } of left) damaged.add(finding.object);
    }
    return damaged;
  }

  /** Chunks that could not be healed yet, each with the first point that is known to need it. */
  damagedPoints(): readonly DamagedPoint[] {
    const seen = new Set<string>();
    const damaged: DamagedPoint[] = [];
    for (const [disk, points] of this.#byDisk) {
      for (const [sequence, known] of points) {
        const chunks = known.flatMap(({ finding: { chunk } }) => {
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
    const isHealed = ({ finding: { chunk } }: KnownDamage): boolean => chunk !== undefined && keys.has(chunkKey(chunk));
    const whole: { readonly disk: string; readonly sequence: number }[] = [];
    for (const [disk, points] of this.#byDisk) {
      for (const [sequence, known] of points) {
        const healed = known.filter(isHealed);
        if (healed.length === 0) continue;
        for (const { finding } of healed) this.#healed.push({ ...finding, unhealed: undefined, healed: true });
        const left = known.filter((one) => !isHealed(one));
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
    for (const key of this.#byDisk.get(disk)?.keys() ?? [])
      if (key > 0 && !sequences.has(key)) this.#set(disk, key, []);
  }

  #known(disk: string, key: number): readonly KnownDamage[] {
    return this.#byDisk.get(disk)?.get(key) ?? [];
  }

  #drop(disk: string): void {
    for (const key of this.#byDisk.get(disk)?.keys() ?? []) this.#set(disk, key, []);
    this.#byDisk.delete(disk);
  }

  #set(disk: string, key: number, findings: readonly KnownDamage[]): void {
    const points = this.#byDisk.get(disk) ?? new Map<number, readonly KnownDamage[]>();
    this.#byDisk.set(disk, points);
    this.#count += findings.length - (points.get(key)?.length ?? 0);
    if (findings.length > 0) points.set(key, findings);
    else points.delete(key);
  }
}
