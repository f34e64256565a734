/**
 * Lines of a capacity profile: one JSON object a line, appended and never changed.
 *
 *     start    a profiler has begun to look at a disk: what it looks at, how, and what the disk holds
 *     sample   what happened to the disk in the time before `time`
 *
 * What a profiler does not see leaves no line, so a gap between samples is a gap in what is known.
 */
import { type ChangeSketch, decodeBlocks, encodeBlocks } from "./sketch.ts";

/** How a disk is looked at, from what tells most to what tells least. */
export const profileSources = ["scan", "agent", "diskstats"] as const;
export type ProfileSource = (typeof profileSources)[number];

/** What of the changed content would be stored, found by running the engine's own kernels over a part of it. */
export interface ContentSample {
  /** Bytes of changed granules that were looked at. */
  readonly plainBytes: number;
  /** Of these, bytes that are zero now. */
  readonly zeroBytes: number;
  /** Of these, bytes of chunks that the profiler has seen before. */
  readonly knownBytes: number;
  /** Bytes of the other chunks after compression. */
  readonly packedBytes: number;
  /** The other chunks. */
  readonly chunks: number;
  /** Processor time that fingerprints, digests and compression of these bytes took. */
  readonly kernelMs: number;
}

export interface StartLine {
  readonly type: "start";
  readonly version: 1;
  readonly disk: string;
  readonly source: ProfileSource;
  /** When it began, ISO 8601 in UTC. */
  readonly time: string;
  /** Time from sample to sample. */
  readonly everyMs: number;
  readonly sizeBytes: number;
  /** `scan`: share of the disk's blocks that each scan reads. */
  readonly share?: number | undefined;
  /** `scan`: bytes of granules that are not zero, estimated from that share. */
  readonly dataBytes?: number | undefined;
  /** `scan`: content of the disk as it was found. */
  readonly content?: ContentSample | undefined;
}

export interface SampleLine {
  readonly type: "sample";
  readonly disk: string;
  /** When it was taken, ISO 8601 in UTC. */
  readonly time: string;
  /** The time that it covers, up to `time`. */
  readonly spanMs: number;
  /** Writes to the disk, where the source counts them. */
  readonly writes?: number | undefined;
  /** Bytes of these writes. */
  readonly writtenBytes?: number | undefined;
  /** `scan`: the blocks that changed. */
  readonly changed?: ChangeSketch | undefined;
  readonly content?: ContentSample | undefined;
  /** `scan`: data that the disk holds, as in `StartLine`; what the scan read, and how long it took. */
  readonly scan?: { readonly dataBytes: number; readonly readBytes: number; readonly ms: number } | undefined;
  /** `agent`: sums over the points that were committed. */
  readonly points?: PointSums | undefined;
}

export interface PointSums {
  readonly count: number;
  readonly changedBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
}

export type ProfileLine = StartLine | SampleLine;

/** One line, without its end. */
export function encodeLine(line: ProfileLine): string {
  if (line.type === "start" || line.changed === undefined) return JSON.stringify(line);
  return JSON.stringify({ ...line, changed: { share: line.changed.share, blocks: encodeBlocks(line.changed) } });
}

/** The line, or undefined when the text is none. */
export function decodeLine(text: string): ProfileLine | undefined {
  const fields = parsed(text);
  if (fields === undefined || typeof fields["disk"] !== "string" || Number.isNaN(Date.parse(String(fields["time"]))))
    return undefined;
  if (fields["type"] === "start") {
    const isStart =
      fields["version"] === 1 &&
      (profileSources as readonly unknown[]).includes(fields["source"]) &&
      areCounts(fields, ["everyMs", "sizeBytes"], ["share", "dataBytes"]) &&
      isContent(fields["content"]);
    return isStart ? (fields as unknown as StartLine) : undefined;
  }
  const { points, scan } = fields;
  const isSample =
    fields["type"] === "sample" &&
    areCounts(fields, ["spanMs"], ["writes", "writtenBytes"]) &&
    isContent(fields["content"]) &&
    areCountsOf(points, ["count", "changedBytes", "newBytes", "storedBytes"]) &&
    areCountsOf(scan, ["dataBytes", "readBytes", "ms"]);
  if (!isSample) return undefined;
  if (fields["changed"] === undefined) return fields as unknown as SampleLine;
  const { share, blocks } = fields["changed"] as { readonly share?: unknown; readonly blocks?: unknown };
  if (typeof share !== "number" || !(share > 0 && share <= 1) || typeof blocks !== "string") return undefined;
  const changed = decodeBlocks(share, blocks);
  return changed === undefined ? undefined : ({ ...fields, changed } as unknown as SampleLine);
}

type Fields = Readonly<Record<string, unknown>>;

function parsed(text: string): Fields | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? (value as Fields) : undefined;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

function isContent(value: unknown): boolean {
  return areCountsOf(value, ["plainBytes", "zeroBytes", "knownBytes", "packedBytes", "chunks", "kernelMs"]);
}

/** An absent object is fine; one that is there has all of these numbers. */
function areCountsOf(value: unknown, names: readonly string[]): boolean {
  if (value === undefined) return true;
  return typeof value === "object" && value !== null && areCounts(value as Fields, names, []);
}

function areCounts(fields: Fields, required: readonly string[], optional: readonly string[]): boolean {
  const isCount = (value: unknown): boolean => typeof value === "number" && Number.isFinite(value) && value >= 0;
  return (
    required.every((name) => isCount(fields[name])) &&
    optional.every((name) => fields[name] === undefined || isCount(fields[name]))
  );
}
