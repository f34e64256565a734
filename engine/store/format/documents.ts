/**
 * JSON documents of a store: the vault's identity, a disk's head, a page of its older points, a
 * point's manifest. Decoders are strict, and use memory in proportion to the bytes that they were
 * given.
 */

import { volumeBytesMax } from "../../limits.ts";
import type { Consistency } from "../../volume.ts";
import { anyText, damaged, type Fields, hex32, nameText } from "./fields.ts";
import { isDiskName } from "./names.ts";
import { decodeOfDisk, documentBytesMax, encode, encodeList, type Owner } from "./signed-text.ts";

export { anyText, hex32 } from "./fields.ts";
export { formatVersion } from "./signed-text.ts";
export { type DigestName, decodeVault, digestNames, encodeVault, type VaultDocument } from "./vault-document.ts";
export { documentBytesMax, type Owner };

/** The process that has, or last had, the writer lease of a disk. */
export interface WriterRecord {
  /** Random per session. */
  readonly session: string;
  /** Names a boot of a machine and a process-id space on it; see `points/process-identity.ts`. */
  readonly machine: string;
  readonly pid: number;
  /**
   * Start time of the process in ticks since boot, 0 where it is not known. It tells a recycled pid
   * from the process that had it.
   */
  readonly startTicks: number;
  readonly host: string;
}

/** A group: disks of one machine that were cut at one barrier. Each has a point with this id. */
export interface GroupRecord {
  /** 32 hexadecimal digits, random for each barrier. */
  readonly id: string;
  readonly name: string;
  /** Names of all members, this disk among them. */
  readonly disks: readonly string[];
}

/** What one command of a hook did. */
export interface HookStep {
  readonly phase: "pre" | "post";
  /** At most 8,192 characters. */
  readonly command: string;
  /** Null when a signal ended the command, or when it did not start. */
  readonly exitCode: number | null;
  /** Such as `SIGTERM`. */
  readonly signal: string | null;
  readonly elapsedMs: number;
  /** The end of its output, at most 4,096 characters. */
  readonly output: string;
}

/** How the hooks froze and thawed the application. */
export interface ApplicationRecord {
  readonly outcome: "frozen" | "failed";
  /** Why it failed: at most 32,768 characters. */
  readonly reason: string | null;
  readonly steps: readonly HookStep[];
}

export interface PointRecord {
  readonly sequence: number;
  /** Epoch of the writer; part of the manifest's name. */
  readonly epoch: number;
  readonly id: string;
  /** Time of the cut, ms since 1970; always later than that of the point before. */
  readonly timeMs: number;
  /** The writer's clock at the cut, where it was not later than the point before. */
  readonly clockMs?: number | undefined;
  /** From the cut to the swap of the head. */
  readonly lagMs: number | null;
  readonly consistency: Consistency;
  readonly group: GroupRecord | null;
  readonly volumeBytes: number;
  readonly changedBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
}

/** Committed points: first those of the pages, then those of `points`, each oldest first. */
export interface PointList {
  readonly pages: readonly PageReference[];
  readonly points: readonly PointRecord[];
}

/** A reference to a page of points, with what can be told without reading the page. */
export interface PageReference {
  /** 0: the page holds points. 1: it refers to pages of points. */
  readonly level: PageLevel;
  /** Its object is `history/<epoch>-<ordinal>`. */
  readonly epoch: number;
  readonly ordinal: number;
  readonly bytes: number;
  readonly checksum: string;
  /** Points in it, or below it. */
  readonly count: number;
  readonly firstSequence: number;
  readonly lastSequence: number;
  readonly firstTimeMs: number;
  readonly lastTimeMs: number;
}

export type PageLevel = 0 | 1;

/** The newest points stand in the head itself, at least one if there is any. */
export interface HeadDocument extends PointList, Owner {
  readonly epoch: number;
  /**
   * Null after the writer has left the disk in good order: then no write of its epoch can still
   * arrive.
   */
  readonly writer: WriterRecord | null;
  /**
   * Id of the newest collection that the writer has acted on: no later commit refers to what that
   * one condemned. Null: none.
   */
  readonly collection: string | null;
}

/**
 * Older points of a disk, written once. It holds either points or references to pages, never both.
 */
export interface PageDocument extends PointList, Owner {
  readonly epoch: number;
  readonly ordinal: number;
}

/** One sorted table of map entries: a leaf, or a root that lists leaves. */
export interface RunReference {
  readonly kind: "leaf" | "root";
  /** Its object is `map/<epoch>-<ordinal>`. */
  readonly epoch: number;
  readonly ordinal: number;
  readonly bytes: number;
  readonly checksum: string;
  readonly entries: number;
  readonly leaves: number;
  /** Bytes of the run in all: its leaves and its root. */
  readonly totalBytes: number;
}

export interface ManifestStatistics {
  readonly scannedBytes: number;
  readonly changedBytes: number;
  readonly zeroBytes: number;
  readonly dedupedBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
}

export interface ManifestDocument extends Owner {
  readonly sequence: number;
  readonly epoch: number;
  readonly parent: string | null;
  readonly timeMs: number;
  readonly consistency: Consistency;
  /** Null when there was no hook to call. */
  readonly application: ApplicationRecord | null;
  readonly group: GroupRecord | null;
  readonly volumeBytes: number;
  readonly statistics: ManifestStatistics;
  /** Newest first: where two runs map one granule, the newer one holds. */
  readonly runs: readonly RunReference[];
  readonly writtenBy: string;
}

const commandText = /^(?:[^\p{Cc}]|[\n\t]){0,8192}$/u;
const outputText = /^(?:[^\p{Cc}]|[\n\t]){0,4096}$/u;
/** Room for a command, spelled as JSON, and the end of its output. */
const reasonText = /^(?:[^\p{Cc}]|[\n\t]){0,32768}$/u;
const signalText = /^SIG[A-Z0-9+]{1,16}$/;
const consistencies: readonly Consistency[] = ["crash", "app", "fuzzy"];

/** Most runs a manifest may name; the merge policy keeps it far below. */
const runsMax = 4096;
const hookStepsMax = 64;

/** Most points that stand in a head. */
export const headPointsMax = 512;
/** Most points that stand in a page. */
export const pagePointsMax = 16_384;
/** Most pages that a head or a page refers to; the policy in `history.ts` keeps it far below. */
const pagesMax = 1024;
/** Most disks of a group. */
export const groupDisksMax = 64;

export function encodeHead(document: HeadDocument): Uint8Array {
  return encodeList("head", document).bytes;
}

export function readWriter(writer: Fields): WriterRecord {
  return {
    session: writer.text("session", hex32),
    machine: writer.text("machine", anyText),
    pid: writer.integer("pid"),
    startTicks: writer.integer("startTicks"),
    host: writer.text("host", anyText),
  };
}

/** Errors: DAMAGED (also when it is another vault's or disk's head), FORMAT_UNSUPPORTED. */
export function decodeHead(bytes: Uint8Array, object: string, expected: Owner): HeadDocument {
  const { fields } = decodeOfDisk("head", bytes, object, expected);
  const document: HeadDocument = {
    vault: expected.vault,
    disk: expected.disk,
    epoch: fields.epoch("epoch"),
    writer: fields.nestedOrNull("writer", readWriter),
    collection: fields.textOrNull("collection", hex32),
    pages: fields.list("pages", pagesMax, decodeReference),
    points: fields.list("points", headPointsMax, decodePoint),
  };
  checkOrder(document, object);
  if (document.pages.length > 0 && document.points.length === 0)
    throw damaged(object, "it has pages of points, but not the newest point");
  return document;
}

/** The document's bytes, and the checksum by which references name them. */
export function encodePage(document: PageDocument): { readonly bytes: Uint8Array; readonly id: string } {
  return encodeList("page", document);
}

/** Errors: DAMAGED (also when it is not what `expected.reference` says), FORMAT_UNSUPPORTED. */
export function decodePage(
  bytes: Uint8Array,
  object: string,
  expected: Owner & { readonly reference: PageReference },
): PageDocument {
  const { reference } = expected;
  const { fields, id } = decodeOfDisk("page", bytes, object, expected);
  if (id !== reference.checksum) throw damaged(object, `it is page ${id}, where ${reference.checksum} must be`);
  const document: PageDocument = {
    vault: expected.vault,
    disk: expected.disk,
    epoch: fields.epoch("epoch"),
    ordinal: fields.integer("ordinal", 0, 0xffff_ffff),
    pages: fields.list("pages", pagesMax, decodeReference),
    points: fields.list("points", pagePointsMax, decodePoint),
  };
  checkOrder(document, object);
  const holdsPages = document.points.length === 0 && document.pages.every(({ level }) => level === 0);
  if (reference.level === 0 ? document.pages.length > 0 : !holdsPages)
    throw damaged(object, "it is a page of another level");
  const found = referTo(document, { bytes, id });
  for (const name of referenceNames) {
    if (found?.[name] !== reference[name])
      throw damaged(object, `its ${name} is not the one that the reference to it says`);
  }
  return document;
}

const referenceNames: readonly (keyof PageReference)[] = [
  "level",
  "epoch",
  "ordinal",
  "bytes",
  "checksum",
  "count",
  "firstSequence",
  "lastSequence",
  "firstTimeMs",
  "lastTimeMs",
];

/** The reference to a page, from what `encodePage` returned for it; undefined for an empty page. */
export function referTo(
  page: PageDocument,
  encoded: { readonly bytes: Uint8Array; readonly id: string },
): PageReference | undefined {
  const [firstPoint, lastPoint] = [page.points[0], page.points.at(-1)];
  const [firstPage, lastPage] = [page.pages[0], page.pages.at(-1)];
  const firstSequence = firstPage?.firstSequence ?? firstPoint?.sequence;
  const lastSequence = lastPoint?.sequence ?? lastPage?.lastSequence;
  const firstTimeMs = firstPage?.firstTimeMs ?? firstPoint?.timeMs;
  const lastTimeMs = lastPoint?.timeMs ?? lastPage?.lastTimeMs;
  if (
    firstSequence === undefined ||
    lastSequence === undefined ||
    firstTimeMs === undefined ||
    lastTimeMs === undefined
  )
    return undefined;
  return {
    level: page.pages.length > 0 ? 1 : 0,
    epoch: page.epoch,
    ordinal: page.ordinal,
    bytes: encoded.bytes.byteLength,
    checksum: encoded.id,
    count: countPoints(page),
    firstSequence,
    lastSequence,
    firstTimeMs,
    lastTimeMs,
  };
}

/** All points of a list, without reading its pages. */
export function countPoints(list: PointList): number {
  return list.pages.reduce((sum, page) => sum + page.count, list.points.length);
}

function decodePoint(point: Fields): PointRecord {
  return {
    sequence: point.sequence("sequence"),
    epoch: point.epoch("epoch"),
    id: point.text("id", hex32),
    timeMs: point.time("timeMs"),
    ...(point.has("clockMs") ? { clockMs: point.time("clockMs") } : {}),
    lagMs: point.integerOrNull("lagMs"),
    consistency: point.oneOf("consistency", consistencies),
    group: point.nestedOrNull("group", decodeGroup),
    volumeBytes: point.integer("volumeBytes", 0, volumeBytesMax),
    changedBytes: point.integer("changedBytes"),
    newBytes: point.integer("newBytes"),
    storedBytes: point.integer("storedBytes"),
  };
}

function decodeReference(page: Fields): PageReference {
  return {
    level: page.integer("level", 0, 1) === 0 ? 0 : 1,
    epoch: page.epoch("epoch"),
    ordinal: page.integer("ordinal", 0, 0xffff_ffff),
    bytes: page.integer("bytes", 1, documentBytesMax),
    checksum: page.text("checksum", hex32),
    count: page.integer("count", 1),
    firstSequence: page.sequence("firstSequence"),
    lastSequence: page.sequence("lastSequence"),
    firstTimeMs: page.time("firstTimeMs"),
    lastTimeMs: page.time("lastTimeMs"),
  };
}

function decodeGroup(group: Fields): GroupRecord {
  return {
    id: group.text("id", hex32),
    name: group.text("name", nameText),
    disks: group.texts("disks", groupDisksMax, { test: isDiskName }),
  };
}

function decodeApplication(application: Fields): ApplicationRecord {
  return {
    outcome: application.oneOf("outcome", ["frozen", "failed"]),
    reason: application.textOrNull("reason", reasonText),
    steps: application.list("steps", hookStepsMax, (step) => ({
      phase: step.oneOf("phase", ["pre", "post"]),
      command: step.text("command", commandText),
      exitCode: step.integerOrNull("exitCode", 0, 0xffff_ffff),
      signal: step.textOrNull("signal", signalText),
      elapsedMs: step.integer("elapsedMs"),
      output: step.text("output", outputText),
    })),
  };
}

/** The document's bytes and the point's id, which is their checksum. */
export function encodeManifest(document: ManifestDocument): { readonly bytes: Uint8Array; readonly id: string } {
  return encode("manifest", document);
}

/** Errors: DAMAGED (also when its id is not `expected.id`), FORMAT_UNSUPPORTED. */
export function decodeManifest(
  bytes: Uint8Array,
  object: string,
  expected: Owner & { readonly id: string },
): ManifestDocument {
  const { fields, id } = decodeOfDisk("manifest", bytes, object, expected);
  if (id !== expected.id) throw damaged(object, `it is point ${id}, where the head names ${expected.id}`);
  return {
    vault: expected.vault,
    disk: expected.disk,
    sequence: fields.sequence("sequence"),
    epoch: fields.epoch("epoch"),
    parent: fields.textOrNull("parent", hex32),
    timeMs: fields.time("timeMs"),
    consistency: fields.oneOf("consistency", consistencies),
    application: fields.nestedOrNull("application", decodeApplication),
    group: fields.nestedOrNull("group", decodeGroup),
    volumeBytes: fields.integer("volumeBytes", 0, volumeBytesMax),
    statistics: fields.nested("statistics", (statistics) => ({
      scannedBytes: statistics.integer("scannedBytes"),
      changedBytes: statistics.integer("changedBytes"),
      zeroBytes: statistics.integer("zeroBytes"),
      dedupedBytes: statistics.integer("dedupedBytes"),
      newBytes: statistics.integer("newBytes"),
      storedBytes: statistics.integer("storedBytes"),
    })),
    runs: fields.list("runs", runsMax, (run) => ({
      kind: run.oneOf("kind", ["leaf", "root"]),
      epoch: run.epoch("epoch"),
      ordinal: run.integer("ordinal", 0, 0xffff_ffff),
      bytes: run.integer("bytes", 1, documentBytesMax),
      checksum: run.text("checksum", hex32),
      entries: run.integer("entries", 1),
      leaves: run.integer("leaves", 1),
      totalBytes: run.integer("totalBytes", 1),
    })),
    writtenBy: fields.text("writtenBy", anyText),
  };
}

/** Checks that sequence numbers and times ascend from page to page and from point to point. */
function checkOrder({ pages, points }: PointList, object: string): void {
  let before = { sequence: 0, timeMs: -1 };
  for (const page of pages) {
    const { firstSequence, lastSequence, firstTimeMs, lastTimeMs, count } = page;
    const rises = firstSequence > before.sequence && firstTimeMs > before.timeMs;
    if (!rises || lastSequence - firstSequence + 1 < count || lastTimeMs - firstTimeMs + 1 < count) {
      throw damaged(object, "its pages are not in order");
    }
    before = { sequence: lastSequence, timeMs: lastTimeMs };
  }
  for (const point of points) {
    if (point.sequence <= before.sequence || point.timeMs <= before.timeMs)
      throw damaged(object, "its points are not in order");
    before = point;
  }
}
