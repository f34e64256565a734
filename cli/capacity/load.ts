/**
 * Load: what profiles tell, on a common grid of time, in the form that the model works on.
 *
 * Time is cut into slots of one sampling interval. Slots in which no profile has a sample are gaps
 * and are left out. What a profile does not know is taken from above, so that a plan is not too
 * small: writes whose place is not known count as often as they happen, and content that was not
 * looked at counts as new and incompressible.
 */
import { basename } from "node:path";
import { TidemarkError } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { formatNumberOf } from "../quantities.ts";
import { readProfile } from "./profile-file.ts";
import type { ContentSample, ProfileLine, ProfileSource, SampleLine, StartLine } from "./profile-lines.ts";
import { ChangeHistory } from "./sketch.ts";

/** One disk's part of the load. */
export interface DiskLoad {
  readonly disk: string;
  readonly source: ProfileSource;
  readonly sizeBytes: number;
  /** Bytes that the first replication reads, and those that it ships. */
  readonly first: { readonly dataBytes: number; readonly storedBytes: number };
  /** Bytes that are stored for a byte that changed, with what describes them. */
  readonly storedShare: number;
  /**
   * Bytes of granules that changed in slots [from, end), each counted once. `scan`: an estimate.
   * `agent` and `diskstats`: at most so many.
   */
  readonly changedBytes: (from: number, end: number) => number;
  /** By slot, where it is known. */
  readonly writtenBytes: readonly number[] | undefined;
  readonly writes: readonly number[] | undefined;
  /** Changed bytes a second that one core fingerprints, digests and compresses, where it was measured. */
  readonly coreBytesPerSecond: number | undefined;
  /** `scan`: share of the disk that was read. */
  readonly share: number | undefined;
  /** `scan`: share of the time for which the profiler read the disk. */
  readonly readTimeShare: number | undefined;
}

export interface Load {
  readonly slotMs: number;
  /** Number of slots with a sample. */
  readonly slots: number;
  /** When the first slot begins and the last one ends, ms since 1970. */
  readonly fromMs: number;
  readonly toMs: number;
  /** Slots between these two that no profile has seen. */
  readonly gapSlots: number;
  readonly disks: readonly DiskLoad[];
}

/** What describes a chunk: its entry in the frame's table and in the map, and padding. */
const chunkOverheadBytes = 80;

interface DiskLines {
  readonly disk: string;
  readonly starts: StartLine[];
  readonly samples: SampleLine[];
}

/**
 * The load that these profiles describe together. A disk that two files name is two disks.
 *
 * @throws INVALID_ARGUMENT: a file is no profile, or the profiles hold fewer than two samples. SOURCE_NOT_FOUND,
 * ACCESS_REFUSED.
 */
export async function readLoad(paths: readonly string[]): Promise<Load> {
  const disks: DiskLines[] = [];
  for (const path of paths) {
    const lines: ProfileLine[] = [];
    for await (const line of readProfile(path)) lines.push(line);
    disks.push(...disksOf(lines, paths.length > 1 ? `${basename(path)}:` : ""));
  }
  return loadOf(disks, paths);
}

function disksOf(lines: readonly ProfileLine[], prefix: string): readonly DiskLines[] {
  const disks = new Map<string, DiskLines>();
  for (const line of lines) {
    const known = disks.get(line.disk) ?? { disk: `${prefix}${line.disk}`, starts: [], samples: [] };
    disks.set(line.disk, known);
    if (line.type === "start") known.starts.push(line);
    else known.samples.push(line);
  }
  return [...disks.values()];
}

function loadOf(disks: readonly DiskLines[], paths: readonly string[]): Load {
  const slotMs = Math.max(...disks.flatMap(({ starts }) => starts.map(({ everyMs }) => everyMs)), 1);
  // A sample that covers less than half a slot, such as the last one, would count as a whole slot.
  const whole = disks.map(({ samples }) => samples.filter(({ spanMs }) => spanMs >= slotMs / 2));
  const seen = new Set<number>();
  for (const sample of whole.flat()) for (const slot of slotsOf(sample, slotMs)) seen.add(slot);
  const order = [...seen].sort((a, b) => a - b);
  const [first, last] = [order[0], order.at(-1)];
  if (first === undefined || last === undefined || order.length < 2) {
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `${paths.join(", ")}: ${formatNumberOf(order.length, "whole sample")} cannot make a report`,
      {
        remedy: "run `tidemark capacity profile` for longer, best for a week with its busiest day",
        detail: { samples: order.length },
      },
    );
  }
  const places = new Map(order.map((slot, index) => [slot, index]));
  return {
    slotMs,
    slots: order.length,
    fromMs: (first - 1) * slotMs,
    toMs: last * slotMs,
    gapSlots: last - first + 1 - order.length,
    disks: disks.flatMap((lines, index) => {
      const samples = whole[index] ?? [];
      return samples.length === 0 ? [] : [diskLoad(lines, samples, { slotMs, places })];
    }),
  };
}

/** The slots that a sample covers; the last one is that of its time. */
function slotsOf({ time, spanMs }: SampleLine, slotMs: number): readonly number[] {
  const last = Math.round(Date.parse(time) / slotMs);
  const count = Math.max(1, Math.round(spanMs / slotMs));
  return Array.from({ length: count }, (_, index) => last - count + 1 + index);
}

interface Grid {
  readonly slotMs: number;
  /** By number of a slot since 1970: its place in the load. */
  readonly places: ReadonlyMap<number, number>;
}

function diskLoad({ disk, starts }: DiskLines, samples: readonly SampleLine[], grid: Grid): DiskLoad {
  const slots = Array.from({ length: grid.places.size }, (): SampleLine[] => []);
  for (const sample of samples) {
    const place = grid.places.get(slotsOf(sample, grid.slotMs).at(-1) ?? 0);
    if (place !== undefined) slots[place]?.push(sample);
  }
  const start = starts.at(-1);
  const sizeBytes = start?.sizeBytes ?? 0;
  const source = start?.source ?? "diskstats";
  const content = contentOf(samples.flatMap((sample) => sample.content ?? []));
  const began = contentOf(starts.flatMap((line) => line.content ?? []));
  const points = samples.flatMap((sample) => sample.points ?? []);
  const dataBytes = samples.at(-1)?.scan?.dataBytes ?? start?.dataBytes ?? sizeBytes;
  const sum = (of: (sample: SampleLine) => number | undefined): number[] | undefined =>
    samples.some((sample) => of(sample) !== undefined)
      ? slots.map((slot) => slot.reduce((total, sample) => total + (of(sample) ?? 0), 0))
      : undefined;
  const [changed, stored, fresh] = (["changedBytes", "storedBytes", "newBytes"] as const).map((name) =>
    points.reduce((total, point) => total + point[name], 0),
  ) as [number, number, number];
  const scans = samples.flatMap(({ scan, spanMs }) => (scan === undefined ? [] : [{ ...scan, spanMs }]));
  const measured = began.kernelMs + content.kernelMs;
  return {
    disk,
    source,
    sizeBytes,
    first: {
      dataBytes,
      // Chunks of a first replication are blocks: what describes them does not count.
      storedBytes: dataBytes * (source === "agent" ? ratio(stored, fresh) : ratio(began.packedBytes, began.plainBytes)),
    },
    storedShare: source === "agent" ? ratio(stored, changed) : storedShareOf(content, began),
    changedBytes: changedBytes(slots, sizeBytes, source),
    writtenBytes: sum(({ writtenBytes }) => writtenBytes),
    writes: sum(({ writes }) => writes),
    coreBytesPerSecond: measured > 0 ? ((began.plainBytes + content.plainBytes) / measured) * 1_000 : undefined,
    share: start?.share,
    readTimeShare: scans.length === 0 ? undefined : ratio(total(scans, "ms"), total(scans, "spanMs")),
  };
}

/** The shares of what changed; of what the disk held when nothing that changed was looked at. */
function storedShareOf(content: ContentSample, began: ContentSample): number {
  const { packedBytes, chunks, plainBytes } = content.plainBytes > 0 ? content : began;
  return plainBytes === 0 ? 1 : (packedBytes + chunks * chunkOverheadBytes) / plainBytes;
}

function changedBytes(
  slots: readonly (readonly SampleLine[])[],
  sizeBytes: number,
  source: ProfileSource,
): DiskLoad["changedBytes"] {
  if (source === "scan") {
    const history = new ChangeHistory(slots.map((slot) => slot.flatMap(({ changed }) => changed ?? [])));
    return (from, end) => Math.min(sizeBytes, history.granules(from, end) * granuleBytes);
  }
  const sums = [0];
  for (const slot of slots) sums.push((sums.at(-1) ?? 0) + slot.reduce((sum, sample) => sum + boundOf(sample), 0));
  return (from, end) => Math.min(sizeBytes, (sums[end] ?? 0) - (sums[from] ?? 0));
}

/** At most so many bytes of granules changed: a small write changes a whole granule. */
function boundOf({ points, writes = 0, writtenBytes = 0 }: SampleLine): number {
  return points?.changedBytes ?? Math.max(writtenBytes, writes * granuleBytes);
}

function contentOf(parts: readonly ContentSample[]): ContentSample {
  return {
    plainBytes: total(parts, "plainBytes"),
    zeroBytes: total(parts, "zeroBytes"),
    knownBytes: total(parts, "knownBytes"),
    packedBytes: total(parts, "packedBytes"),
    chunks: total(parts, "chunks"),
    kernelMs: total(parts, "kernelMs"),
  };
}

function total<Name extends string>(items: readonly Readonly<Record<Name, number>>[], name: Name): number {
  return items.reduce((sum, item) => sum + item[name], 0);
}

/** 1 where nothing is known. */
function ratio(part: number, whole: number): number {
  return whole === 0 ? 1 : part / whole;
}
