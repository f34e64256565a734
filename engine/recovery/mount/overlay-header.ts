/**
 * Header of a file that holds changes of a point: which point they belong to.
 *
 *     0 magic · 8 version u32 · 12 length of the text u32 · 16 CRC-32 of the text u32 · 20 JSON · zeros up to 4 KiB
 *
 * The magic tells the kind. An overlay (`TMOVRLAY`) holds record and granules. A record
 * (`TMRECORD`) belongs to an image file, which holds the granules; its JSON names the point's
 * sequence number too. The header is written once, before the file gets its name.
 */
import { crc32 } from "node:zlib";
import type { BlockDevice } from "../../device.ts";
import { TidemarkError } from "../../errors.ts";
import { Fields, unsupportedFormat } from "../../store/format/fields.ts";

/** Which disk the changes lie on. */
export interface OverlayIdentity {
  readonly vault: string;
  readonly disk: string;
  /** Id of the point. */
  readonly point: string;
  readonly sizeBytes: number;
}

/** Which disk an image is the copy of. */
export interface RecordIdentity extends OverlayIdentity {
  /** Sequence number of the point. */
  readonly sequence: number;
}

/** Bytes of a header. */
export const overlayHeaderBytes = 4096;
const version = 2;
const textAt = 20;
const anyText = /^[^]{1,512}$/;

export type OverlayKind = "overlay" | "record";

interface KindWords {
  readonly magic: Buffer;
  readonly called: string;
  /** What to do when the file is none, and when it cannot be used. */
  readonly otherwise: string;
  readonly another: string;
}

const kinds: Readonly<Record<OverlayKind, KindWords>> = {
  overlay: {
    magic: Buffer.from("TMOVRLAY"),
    called: "overlay",
    otherwise: "name another path for the overlay: this file is left alone",
    another: "mount the point with another overlay; the vault is not affected",
  },
  record: {
    magic: Buffer.from("TMRECORD"),
    called: "record of an image",
    otherwise: "name another path for the image: this file is left alone",
    another: "begin another image; the vault is not affected, and what was written to this one is not in it",
  },
};

export function encodeHeader(kind: OverlayKind, identity: OverlayIdentity): Buffer {
  const text = Buffer.from(JSON.stringify(identity));
  const header = Buffer.alloc(overlayHeaderBytes);
  kinds[kind].magic.copy(header);
  header.writeUInt32LE(version, 8);
  header.writeUInt32LE(text.length, 12);
  header.writeUInt32LE(crc32(text), 16);
  text.copy(header, textAt);
  return header;
}

/** Reads the header of an overlay. Errors: INVALID_ARGUMENT (it is none), DAMAGED, FORMAT_UNSUPPORTED. */
export async function readOverlayHeader(file: BlockDevice): Promise<OverlayIdentity> {
  return identityOf(await readFields("overlay", file));
}

/** Reads the header of a record. Errors: as `readOverlayHeader`. */
export async function readRecordHeader(file: BlockDevice): Promise<RecordIdentity> {
  const fields = await readFields("record", file);
  return { ...identityOf(fields), sequence: fields.integer("sequence", 1) };
}

export function overlayDamaged(kind: OverlayKind, path: string, fact: string, cause?: unknown): TidemarkError {
  const { called, another } = kinds[kind];
  return new TidemarkError("DAMAGED", `the ${called} ${path} cannot be used: ${fact}`, {
    remedy: another,
    detail: { path },
    cause,
  });
}

function identityOf(fields: Fields): OverlayIdentity {
  return {
    vault: fields.text("vault", anyText),
    disk: fields.text("disk", anyText),
    point: fields.text("point", anyText),
    sizeBytes: fields.integer("sizeBytes"),
  };
}

async function readFields(kind: OverlayKind, file: BlockDevice): Promise<Fields> {
  const path = file.description;
  const { magic, called, otherwise } = kinds[kind];
  const header = Buffer.alloc(Math.min(overlayHeaderBytes, file.sizeBytes));
  await file.read(0, header);
  if (!header.subarray(0, magic.length).equals(magic)) {
    throw new TidemarkError("INVALID_ARGUMENT", `${path} is no ${called} of Tidemark`, {
      remedy: otherwise,
      detail: { path },
    });
  }
  if (header.length < overlayHeaderBytes) throw overlayDamaged(kind, path, "it ends within its header");
  const found = header.readUInt32LE(8);
  if (found !== version) throw unsupportedFormat(path, found, version);
  const textBytes = header.readUInt32LE(12);
  const text = header.subarray(textAt, textAt + textBytes);
  if (text.length !== textBytes || crc32(text) !== header.readUInt32LE(16))
    throw overlayDamaged(kind, path, "its header is not what was written");
  try {
    return new Fields(JSON.parse(text.toString("utf8")), path);
  } catch (error) {
    if (error instanceof TidemarkError) throw error;
    throw overlayDamaged(kind, path, "its header is not JSON", error);
  }
}
