/**
 * Capacity plan: what a load needs, as a function of the load and of what is asked. It reads nothing
 * and measures nothing.
 *
 * What is stored: the disks' content once, and for each point that is kept what changed since the
 * kept point before it, each granule once. Which points are kept, the engine's own retention decides
 * on simulated points.
 */

import { type RetentionPolicy } from "../../engine/index.ts";
import { describePolicy, simulateRetention } from "../../engine/internal.ts";
import { limitsOf, type PlanLimit, uploadBytesPerSecond } from "./limits.ts";
import type { DiskLoad, Load } from "./load.ts";
import { type Cost, costOf, type Prices } from "./prices.ts";
import { ageAt, Shipping, shareWithin } from "./shipping.ts";

export interface PlanQuestion {
  /** Bytes a second of lines that are looked at. None: those that the first objective needs, and half of the least. */
  readonly bandwidths: readonly number[];
  /** Objectives: how old the newest point may become. Each at least two slots of the load. */
  readonly rposMs: readonly number[];
  readonly retentions: readonly RetentionPolicy[];
  /** 0.3 for 30 % more than was seen, of changes and of content. */
  readonly growth: number;
  readonly prices?: Prices | undefined;
}

/** Of the time, in shares: always, 95 % and 90 %. */
export interface ByShare {
  readonly always: number;
  readonly most: number;
  readonly often: number;
}

export interface PlannedDisk {
  readonly disk: string;
  readonly source: DiskLoad["source"];
  readonly sizeBytes: number;
  /** What the first replication reads, and what it ships. */
  readonly dataBytes: number;
  readonly firstStoredBytes: number;
  /** Bytes stored for a byte that changed. */
  readonly storedShare: number;
  /** Mean of changed bytes a second, each granule once in a slot. */
  readonly changedBytesPerSecond: number;
  /** Mean of written bytes a second, and of bytes a write; null where no profile counts them. */
  readonly writtenBytesPerSecond: number | null;
  readonly writeBytes: number | null;
  /** Share of the disk that was read; null where it was not read. */
  readonly share: number | null;
  /** Share of the time for which the profiler read the disk. */
  readonly readTimeShare: number | null;
}

/** Bytes of granules that changed in a span of time, each once, over all disks. */
export interface ChangeWindow {
  readonly spanMs: number;
  readonly windows: number;
  readonly meanBytes: number;
  readonly highBytes: number;
  readonly maxBytes: number;
}

export interface Objective {
  readonly rpoMs: number;
  /** Time from cut to cut that leaves half of the objective for shipping. */
  readonly cycleMs: number;
  /** Bytes a second with which the objective is met for that share of the time. */
  readonly needed: ByShare;
}

export interface Batch {
  readonly disks: readonly string[];
  readonly ms: number;
}

export interface PlannedLine {
  readonly bytesPerSecond: number;
  /** Age of the newest point, in ms, that is not exceeded for that share of the time. */
  readonly rpoMs: ByShare;
  /** Whether the line ships less than what changes: then it never catches up. */
  readonly fallsBehind: boolean;
  readonly met: readonly { readonly rpoMs: number; readonly share: number }[];
  /** The first replication: null if it would never end. */
  readonly first: { readonly ms: number; readonly batches: readonly Batch[]; readonly inGoal: boolean } | null;
}

export interface PlannedStorage {
  readonly retention: string;
  readonly cycleMs: number;
  /** Points that are kept after 30 days. */
  readonly points: number;
  readonly days: readonly { readonly day: number; readonly storedBytes: number }[];
  readonly storedBytes: number;
  /** In 30 days. */
  readonly writeRequests: number;
  readonly readRequests: number;
  readonly cost: Cost | null;
}

export interface CapacityPlan {
  readonly from: string;
  readonly to: string;
  readonly slotMs: number;
  readonly coveredMs: number;
  readonly gapMs: number;
  readonly growth: number;
  readonly disks: readonly PlannedDisk[];
  readonly windows: readonly ChangeWindow[];
  readonly objectives: readonly Objective[];
  readonly lines: readonly PlannedLine[];
  /** The one that binds first comes first. */
  readonly limits: readonly PlanLimit[];
  readonly storage: readonly PlannedStorage[];
  /** Changed and shipped bytes a second by time, at most 240 values of equal spans. */
  readonly series: { readonly spanMs: number; readonly shippedBytesPerSecond: readonly number[] };
}

/** The first replication should end within three days, as Azure Site Recovery's planner has it. */
const firstGoalMs: number = 72 * 3_600_000;
const minuteMs = 60_000;
const dayMs = 86_400_000;
const windowsMs: readonly number[] = [minuteMs / 2, minuteMs, 5 * minuteMs, 15 * minuteMs, 60 * minuteMs];
const storedDays: readonly number[] = [1, 2, 4, 7, 10, 14, 20, 25, 30];
/** Retention is a function of times, so any end will do; the same gives the same plan. */
const endMs: number = Date.UTC(2026, 5, 17, 12, 10);
const seriesMax = 240;
const frameBytes: number = 4 * 1024 * 1024;
/**
 * Requests of a point beyond the frames that it fills, as a cycle makes them: objects, one frame,
 * leases and listings, which are charged as writes; and reads.
 */
const pointWrites = 10;
const pointReads = 10;
/** Time between points unless a policy says otherwise. */
const cycleMsDefault = 5_000;
/** Manifest and part of the history. */
const pointBytes = 2_048;

/** The plan. Errors: INVALID_ARGUMENT, when a retention cannot be simulated; INTERRUPTED. */
export async function planCapacity(load: Load, question: PlanQuestion, signal: AbortSignal): Promise<CapacityPlan> {
  const { growth } = question;
  const shipping = new Shipping(load, growth);
  const { slotMs, slots, fromMs, toMs, gapSlots } = load;
  const objectives = question.rposMs.map((rpoMs) => objectiveOf(shipping, rpoMs));
  const cycleSlots = Math.max(1, Math.round((objectives[0]?.cycleMs ?? slotMs) / slotMs));
  const bandwidths = question.bandwidths.length > 0 ? question.bandwidths : neededLines(objectives);
  const lines = bandwidths.map((bandwidth) => lineOf(shipping, bandwidth, question));
  const storage: PlannedStorage[] = [];
  for (const policy of question.retentions)
    storage.push(await storageOf(shipping, cycleSlots, policy, question, signal));
  const span = Math.ceil(slots / seriesMax);
  const spans = Array.from({ length: Math.floor(slots / span) }, (_, index) => index * span);
  return {
    from: new Date(fromMs).toISOString(),
    to: new Date(toMs).toISOString(),
    slotMs,
    coveredMs: slots * slotMs,
    gapMs: gapSlots * slotMs,
    growth,
    disks: load.disks.map((disk) => plannedDisk(disk, load)),
    windows: windowsMs.flatMap((spanMs) => windowOf(load, spanMs) ?? []),
    objectives,
    lines,
    limits: limitsOf(shipping, cycleSlots, question.bandwidths),
    storage,
    series: {
      spanMs: span * slotMs,
      shippedBytesPerSecond: spans.map((at) => shipping.shippedBytes(at, at + span) / ((span * slotMs) / 1_000)),
    },
  };
}

function plannedDisk(disk: DiskLoad, { slots, slotMs }: Load): PlannedDisk {
  const seconds = (slots * slotMs) / 1_000;
  let changed = 0;
  for (let slot = 0; slot < slots; slot += 1) changed += disk.changedBytes(slot, slot + 1);
  const sum = (values: readonly number[] | undefined): number | undefined =>
    values?.reduce((total, value) => total + value, 0);
  const [written, writes] = [sum(disk.writtenBytes), sum(disk.writes)];
  return {
    disk: disk.disk,
    source: disk.source,
    sizeBytes: disk.sizeBytes,
    dataBytes: Math.round(disk.first.dataBytes),
    firstStoredBytes: Math.round(disk.first.storedBytes),
    storedShare: disk.storedShare,
    changedBytesPerSecond: Math.round(changed / seconds),
    writtenBytesPerSecond: written === undefined ? null : Math.round(written / seconds),
    writeBytes: written === undefined || writes === undefined || writes === 0 ? null : Math.round(written / writes),
    share: disk.share ?? null,
    readTimeShare: disk.readTimeShare ?? null,
  };
}

/** Undefined where the load is shorter, or its slots are longer. */
function windowOf({ disks, slots, slotMs }: Load, spanMs: number): ChangeWindow | undefined {
  const width = Math.round(spanMs / slotMs);
  const windows = width === 0 ? 0 : Math.floor(slots / width);
  if (windows === 0) return undefined;
  const bytes = Array.from({ length: windows }, (_, index) =>
    disks.reduce((sum, disk) => sum + disk.changedBytes(index * width, (index + 1) * width), 0),
  ).sort((a, b) => a - b);
  return {
    spanMs: width * slotMs,
    windows,
    meanBytes: Math.round(bytes.reduce((sum, each) => sum + each, 0) / windows),
    highBytes: Math.round(bytes[Math.ceil(0.95 * windows) - 1] ?? 0),
    maxBytes: Math.round(bytes.at(-1) ?? 0),
  };
}

function byShare(of: (share: number) => number): ByShare {
  return { always: Math.ceil(of(1)), most: Math.ceil(of(0.95)), often: Math.ceil(of(0.9)) };
}

function objectiveOf(shipping: Shipping, rpoMs: number): Objective {
  const { slotMs } = shipping.load;
  const cycleSlots = Math.max(1, Math.floor(rpoMs / 2 / slotMs));
  const needed = byShare((share) => shipping.neededBytesPerSecond(rpoMs, cycleSlots, share));
  return { rpoMs, cycleMs: cycleSlots * slotMs, needed };
}

function neededLines([first]: readonly Objective[]): readonly number[] {
  if (first === undefined || first.needed.always === 0) return [];
  const { often, most, always } = first.needed;
  return [...new Set([Math.ceil(often / 2), often, most, always])];
}

function lineOf(shipping: Shipping, bytesPerSecond: number, { rposMs }: PlanQuestion): PlannedLine {
  const { load } = shipping;
  // The line itself makes cycles longer when it is slow.
  const ages = shipping.ages(bytesPerSecond, 1);
  const met = rposMs.map((rpoMs) => {
    const { cycleMs } = objectiveOf(shipping, rpoMs);
    return { rpoMs, share: shareWithin(shipping.ages(bytesPerSecond, Math.round(cycleMs / load.slotMs)), rpoMs) };
  });
  return {
    bytesPerSecond,
    rpoMs: byShare((share) => ageAt(ages, share)),
    fallsBehind: shipping.meanBytesPerSecond(load.slots) > bytesPerSecond,
    met,
    first: firstReplication(shipping, bytesPerSecond),
  };
}

/**
 * Disks in the order of what they hold, as many at a time as end within the goal. What changes on
 * disks that are replicated already, or meanwhile, takes its part of the line first.
 */
function firstReplication(shipping: Shipping, line: number): PlannedLine["first"] {
  const upload = Math.min(line, uploadBytesPerSecond(shipping.load));
  const { slots, slotMs } = shipping.load;
  const disks = shipping.load.disks
    .map((disk) => ({
      disk: disk.disk,
      bytes: disk.first.storedBytes * (1 + shipping.growth),
      delta: shipping.shippedBytesOf(disk, 0, slots) / ((slots * slotMs) / 1_000),
    }))
    .sort((a, b) => a.bytes - b.bytes);
  const batches: { disks: string[]; ms: number; bytes: number }[] = [];
  let delta = 0;
  for (const each of disks) {
    delta += each.delta;
    if (upload <= delta) return null;
    const last = batches.at(-1);
    const joinedMs = (((last?.bytes ?? 0) + each.bytes) / (upload - delta)) * 1_000;
    if (last === undefined || joinedMs > firstGoalMs)
      batches.push({ disks: [each.disk], ms: (each.bytes / (upload - delta)) * 1_000, bytes: each.bytes });
    else {
      last.disks.push(each.disk);
      last.bytes += each.bytes;
      last.ms = joinedMs;
    }
  }
  const ms = batches.reduce((sum, batch) => sum + batch.ms, 0);
  return { ms, inGoal: ms <= firstGoalMs, batches: batches.map((batch) => ({ disks: batch.disks, ms: batch.ms })) };
}

async function storageOf(
  shipping: Shipping,
  cycleSlots: number,
  policy: RetentionPolicy,
  { prices }: PlanQuestion,
  signal: AbortSignal,
): Promise<PlannedStorage> {
  const { disks, slotMs } = shipping.load;
  // Short trials have shorter cycles than a disk is protected with.
  const everyMs = Math.max(cycleSlots * slotMs, cycleMsDefault);
  const first = disks.reduce((sum, disk) => sum + disk.first.storedBytes, 0) * (1 + shipping.growth);
  const changes = changeCurve(shipping);
  const activity = disks.reduce((sum, disk) => sum + activeShare(disk, shipping.load, cycleSlots), 0);
  const days: { day: number; storedBytes: number }[] = [];
  let points = 0;
  for (const day of storedDays) {
    const { agesMs } = await simulateRetention({ policy, spanMs: day * dayMs, everyMs, endMs, signal });
    // Without a change the first point stays the only one.
    points = activity === 0 ? 1 : agesMs.length;
    let bytes = first + points * disks.length * pointBytes;
    for (const [index, ageMs] of agesMs.entries()) if (index > 0) bytes += changes(ageMs - (agesMs[index - 1] ?? 0));
    days.push({ day, storedBytes: Math.round(bytes) });
  }
  const daysMax = storedDays.at(-1) ?? 0;
  const committed = ((daysMax * dayMs) / everyMs) * activity;
  const shipped = (shipping.meanBytesPerSecond(cycleSlots) * daysMax * dayMs) / 1_000;
  const storedBytes = days.at(-1)?.storedBytes ?? 0;
  const writeRequests = Math.round(committed * pointWrites + (first + shipped) / frameBytes);
  const readRequests = Math.round(committed * pointReads);
  const meanBytes = days.reduce((sum, { storedBytes: each }, index) => {
    const from = index === 0 ? 0 : (storedDays[index - 1] ?? 0);
    return sum + (each * ((storedDays[index] ?? 0) - from)) / daysMax;
  }, 0);
  const cost = prices === undefined ? null : costOf(prices, { storedBytes: meanBytes, writeRequests, readRequests });
  return {
    retention: describePolicy(policy),
    cycleMs: everyMs,
    points,
    days,
    storedBytes,
    writeRequests,
    readRequests,
    cost,
  };
}

/** Share of the cycles in which a disk changed: no others make a point. */
function activeShare(disk: DiskLoad, { slots }: Load, cycleSlots: number): number {
  const cycles = Math.max(1, Math.floor(slots / cycleSlots));
  let active = 0;
  for (let cycle = 0; cycle < cycles; cycle += 1)
    if (disk.changedBytes(cycle * cycleSlots, Math.min((cycle + 1) * cycleSlots, slots)) > 0) active += 1;
  return active / cycles;
}

/**
 * Mean bytes that are stored of what changes in a span of time, each granule once: between spans
 * that were seen it follows a power of the time, and beyond the longest too, up to the whole disks.
 */
function changeCurve(shipping: Shipping): (spanMs: number) => number {
  const { slots, slotMs, disks } = shipping.load;
  const known: { readonly span: number; readonly bytes: number }[] = [];
  for (let width = 1; width <= slots; width *= 2)
    known.push({
      span: Math.log(width * slotMs),
      bytes: (shipping.meanBytesPerSecond(width) * width * slotMs) / 1_000,
    });
  const most = disks.reduce((sum, disk) => sum + disk.sizeBytes * disk.storedShare, 0) * (1 + shipping.growth);
  return (spanMs) => {
    const span = Math.log(spanMs);
    const after = known.findIndex((point) => point.span >= span);
    const high = after === -1 ? known.length - 1 : Math.max(after, 1);
    const [a, b] = [known[high - 1], known[high]];
    if (a === undefined || b === undefined) return Math.min(most, ((known[0]?.bytes ?? 0) * spanMs) / slotMs);
    if (a.bytes === 0 || b.bytes === 0) return Math.min(most, b.bytes);
    const power = Math.log(b.bytes / a.bytes) / (b.span - a.span);
    return Math.min(most, b.bytes * Math.exp((span - b.span) * power));
  };
}
