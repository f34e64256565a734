/**
 * Schedule of faults: which kinds a store and a machine can have, and when each strikes.
 *
 * The time of a run is cut into slots of equal length, one for each fault. Each kind has as many
 * slots as every other one, in an order that the seed draws, and strikes in the first half of its
 * slot. The last part of the run has no faults, so that the last recovery is part of it.
 *
 * Invariant: seed, length and kinds decide the schedule.
 */
import { createHash } from "node:crypto";
import { TidemarkError } from "../../engine/index.ts";

export const faultKinds = [
  "kill-store",
  "kill-agent",
  "lost-ack",
  "503",
  "slow",
  "reset",
  "freeze",
  "regress",
  "disk-full",
  "flip",
] as const;
export type FaultKind = (typeof faultKinds)[number];

/** One fault of a run. */
export interface PlannedFault {
  readonly kind: FaultKind;
  /** Since the beginning of the load, in ms. */
  readonly atMs: number;
  /** The slot's length, in ms: a fault that lasts ends within it. */
  readonly slotMs: number;
}

/** A slot of this length has room for a fault and the beginning of its recovery. */
const slotMsWanted = 5_000;
const slotMsMin = 1_000;
/** Part of the run in which faults strike. */
const faultyPart = 0.85;

/** Numbers in [0, 1) that depend on nothing but `seed`. */
export function randomOf(seed: string): () => number {
  let drawn = 0;
  return () => {
    drawn += 1;
    return createHash("sha256").update(`${seed} ${drawn}`).digest().readUInt32LE() / 2 ** 32;
  };
}

/** The schedule of a run of `seconds`. Errors: INVALID_ARGUMENT when the run has no time for all kinds. */
export function scheduleOf(seed: number, seconds: number, kinds: readonly FaultKind[]): readonly PlannedFault[] {
  if (kinds.length === 0) return [];
  const faultyMs = seconds * 1_000 * faultyPart;
  const rounds = Math.max(1, Math.floor(faultyMs / (kinds.length * slotMsWanted)));
  const slotMs = faultyMs / (rounds * kinds.length);
  if (slotMs < slotMsMin) {
    const secondsMin = Math.ceil((kinds.length * slotMsMin) / 1_000 / faultyPart);
    throw new TidemarkError("INVALID_ARGUMENT", `${seconds} s are too short for ${kinds.length} kinds of faults`, {
      remedy: `add \`--seconds ${secondsMin}\`, or name fewer with --faults`,
    });
  }
  const random = randomOf(`schedule ${seed}`);
  return Array.from({ length: rounds }, () => shuffled(kinds, random))
    .flat()
    .map((kind, slot) => ({ kind, atMs: Math.round((slot + random() / 2) * slotMs), slotMs }));
}

/** Fisher and Yates. */
function shuffled<Item>(items: readonly Item[], random: () => number): readonly Item[] {
  const left = [...items];
  return items.map(() => left.splice(Math.floor(random() * left.length), 1)[0] as Item);
}

/** Parses `kill-store,503`, or `none`. Errors: INVALID_ARGUMENT. */
export function parseFaults(text: string): readonly FaultKind[] {
  if (text === "none") return [];
  const words = text.split(",").map((word) => word.trim());
  const unknown = words.filter((word) => !faultKinds.some((kind) => kind === word));
  if (unknown.length > 0) {
    throw new TidemarkError("INVALID_ARGUMENT", `there is no fault ${unknown.join(", ")}`, {
      remedy: `name some of ${faultKinds.join(",")}, or none`,
    });
  }
  return faultKinds.filter((kind) => words.includes(kind));
}
