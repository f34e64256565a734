/**
 * The three JSON documents of a store: the vault's identity, a disk's head, a point's manifest. Each is one signature line,
 * `tidemark <kind> <version> <checksum>`, and the JSON text that the checksum covers. They are read strictly and in bounded memory;
 * a person can read them with any pager.
 */

import { blockBytesMax, blockBytesMin, volumeBytesMax } from "../limits.ts";
import type { Consistency } from "../volume.ts";
import { checksum, toHex } from "./checksum.ts";
import { damaged, Fields, unsupportedFormat } from "./fields.ts";

export const formatVersion = 1;

/** No document is larger; a head of 50,000 points stays below it. */
export const documentBytesMax: number = 16 * 1024 * 1024;

/**
 * How chunks are identified. `blake3` is keyed with the vault's key. `sha256` is SHA-256 over key and data, for those who must.
 * Both are cut to 128 bits. `xxh3-trusted` is XXH3-128 seeded from the key: several times faster, but whoever can write to a
 * protected disk and learns the seed can make two different chunks look equal. Use it only where every writer is trusted.
 */
export type DigestName = "blake3" | "sha256" | "xxh3-trusted";
export const digestNames: readonly DigestName[] = ["blake3", "sha256", "xxh3-trusted"];

export interface VaultDocument {
  /** 32 hexadecimal digits, random. */
  readonly vault: string;
  readonly createdMs: number;
  readonly blockBytes: number;
  readonly digest: DigestName;
  /** 64 hexadecimal digits. It keeps a guest from choosing data whose digests collide; it opens nothing. */
  readonly digestKey: string;
  readonly codec: "lz4";
  readonly encryption: "none";
  readonly writtenBy: string;
}

/** Who holds, or last held, the writer's seat of a disk. */
export interface WriterRecord {
  /** Random per session. */
  readonly session: string;
  /** Names a machine since its boot and a process-id space on it; see `Seat`. */
  readonly machine: string;
  readonly pid: number;
  /** Start time of the process in ticks since boot, 0 where unknown: a recycled pid is not the same process. */
  readonly startTicks: number;
  readonly host: string;
}

export interface PointRecord {
  readonly sequence: number;
  /** Epoch of the writer; part of the manifest's name. */
  readonly epoch: number;
  readonly id: string;
  readonly timeMs: number;
  readonly consistency: Consistency;
  readonly volumeBytes: number;
  readonly changedBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
}

export interface HeadDocument {
  readonly vault: string;
  readonly disk: string;
  readonly epoch: number;
  /** Null after a writer left its seat in good order: then nothing of its epoch can still arrive. */
  readonly writer: WriterRecord | null;
  /** Committed points, oldest first. */
  readonly points: readonly PointRecord[];
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

export interface ManifestDocument {
  readonly vault: string;
  readonly disk: string;
  readonly sequence: number;
  readonly epoch: number;
  readonly parent: string | null;
  readonly timeMs: number;
  readonly consistency: Consistency;
  readonly volumeBytes: number;
  readonly statistics: ManifestStatistics;
  /** Newest first: where two runs speak of one granule, the earlier one holds. */
  readonly runs: readonly RunReference[];
  readonly writtenBy: string;
}

const hex32 = /^[0-9a-f]{32}$/;
const hex64 = /^[0-9a-f]{64}$/;
const anyText = /^[^\p{Cc}]{0,200}$/u;
const consistencies: readonly Consistency[] = ["crash", "app", "fuzzy"];

/** Most runs a manifest may name; the merge policy keeps it far below. */
const runsMax = 4096;
const pointsMax = 100_000;

type Kind = "vault" | "head" | "manifest";

function encode(kind: Kind, body: object): { readonly bytes: Uint8Array; readonly id: string } {
  const text = Buffer.from(`${JSON.stringify(body, undefined, 1)}\n`, "utf8");
  const id = toHex(checksum(Buffer.from(`${kind} ${String(formatVersion)}\n`), text));
  return { bytes: Buffer.concat([Buffer.from(`tidemark ${kind} ${String(formatVersion)} ${id}\n`), text]), id };
}

function decode(kind: Kind, bytes: Uint8Array, object: string): { readonly fields: Fields; readonly id: string } {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const lineEnd = text.subarray(0, 128).indexOf(0x0a);
  const signature = /^tidemark ([a-z]+) (\d{1,6}) ([0-9a-f]{32})$/.exec(text.toString("latin1", 0, Math.max(lineEnd, 0)));
  if (signature === null) throw damaged(object, "it does not begin with Tidemark's signature line");
  if (signature[1] !== kind) throw damaged(object, `it holds a ${String(signature[1])}, not a ${kind}`);
  const version = Number(signature[2]);
  if (version !== formatVersion) throw unsupportedFormat(object, version, formatVersion);
  const body = text.subarray(lineEnd + 1);
  const id = toHex(checksum(Buffer.from(`${kind} ${String(version)}\n`), body));
  if (id !== signature[3]) throw damaged(object, "its checksum does not match its content");
  let parsed: unknown;
  try {
    parsed = JSON.parse(body.toString("utf8"));
  } catch (error) {
    throw damaged(object, "its content is not JSON", error);
  }
  return { fields: new Fields(parsed, object), id };
}

export function encodeVault(document: VaultDocument): Uint8Array {
  return encode("vault", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeVault(bytes: Uint8Array, object: string): VaultDocument {
  const { fields } = decode("vault", bytes, object);
  const document: VaultDocument = {
    vault: fields.text("vault", hex32),
    createdMs: fields.integer("createdMs"),
    blockBytes: fields.integer("blockBytes", blockBytesMin, blockBytesMax),
    digest: fields.oneOf("digest", digestNames),
    digestKey: fields.text("digestKey", hex64),
    codec: fields.oneOf("codec", ["lz4"]),
    encryption: fields.oneOf("encryption", ["none"]),
    writtenBy: fields.text("writtenBy", anyText),
  };
  if (!Number.isInteger(Math.log2(document.blockBytes))) throw damaged(object, "field blockBytes is not a power of two");
  return document;
}

export function encodeHead(document: HeadDocument): Uint8Array {
  return encode("head", document).bytes;
}

/** Errors: DAMAGED (also when it is another vault's or disk's head), FORMAT_UNSUPPORTED. */
export function decodeHead(bytes: Uint8Array, object: string, expected: { readonly vault: string; readonly disk: string }): HeadDocument {
  const { fields } = decode("head", bytes, object);
  const document: HeadDocument = {
    vault: fields.text("vault", hex32),
    disk: fields.text("disk", anyText),
    epoch: fields.integer("epoch"),
    writer: fields.nestedOrNull("writer", (writer) => ({
      session: writer.text("session", hex32),
      machine: writer.text("machine", anyText),
      pid: writer.integer("pid"),
      startTicks: writer.integer("startTicks"),
      host: writer.text("host", anyText),
    })),
    points: fields.list("points", pointsMax, (point) => ({
      sequence: point.integer("sequence", 1),
      epoch: point.integer("epoch"),
      id: point.text("id", hex32),
      timeMs: point.integer("timeMs"),
      consistency: point.oneOf("consistency", consistencies),
      volumeBytes: point.integer("volumeBytes", 0, volumeBytesMax),
      changedBytes: point.integer("changedBytes"),
      newBytes: point.integer("newBytes"),
      storedBytes: point.integer("storedBytes"),
    })),
  };
  checkOwner(document, object, expected);
  for (const [index, point] of document.points.entries()) {
    const before = document.points[index - 1];
    if (before !== undefined && before.sequence >= point.sequence) throw damaged(object, "its points are not in order");
  }
  return document;
}

/** The document's bytes and the point's id, which is their checksum. */
export function encodeManifest(document: ManifestDocument): { readonly bytes: Uint8Array; readonly id: string } {
  return encode("manifest", document);
}

/** Errors: DAMAGED (also when its id is not `expected.id`), FORMAT_UNSUPPORTED. */
export function decodeManifest(
  bytes: Uint8Array,
  object: string,
  expected: { readonly vault: string; readonly disk: string; readonly id: string },
): ManifestDocument {
  const { fields, id } = decode("manifest", bytes, object);
  if (id !== expected.id) throw damaged(object, `it is point ${id}, where the head names ${expected.id}`);
  const document: ManifestDocument = {
    vault: fields.text("vault", hex32),
    disk: fields.text("disk", anyText),
    sequence: fields.integer("sequence", 1),
    epoch: fields.integer("epoch"),
    parent: fields.textOrNull("parent", hex32),
    timeMs: fields.integer("timeMs"),
    consistency: fields.oneOf("consistency", consistencies),
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
      epoch: run.integer("epoch"),
      ordinal: run.integer("ordinal", 0, 0xffff_ffff),
      bytes: run.integer("bytes", 1, documentBytesMax),
      checksum: run.text("checksum", hex32),
      entries: run.integer("entries", 1),
      leaves: run.integer("leaves", 1),
      totalBytes: run.integer("totalBytes", 1),
    })),
    writtenBy: fields.text("writtenBy", anyText),
  };
  checkOwner(document, object, expected);
  return document;
}

function checkOwner(
  document: { readonly vault: string; readonly disk: string },
  object: string,
  expected: { readonly vault: string; readonly disk: string },
): void {
  if (document.vault !== expected.vault) throw damaged(object, `it belongs to vault ${document.vault}, not to ${expected.vault}`);
  if (document.disk !== expected.disk) throw damaged(object, `it belongs to disk ${JSON.stringify(document.disk)}`);
}
