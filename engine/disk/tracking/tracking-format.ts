/**
 * Byte format of a tracking file: a header and pages of region bits, each in two slots that are
 * written in turn, so that a torn write leaves the other slot; behind them, after a clean shutdown,
 * the exact granule bitmap.
 *
 *     0         header, slots 0 and 1                      16 KiB each
 *     32 KiB    page 0, slots 0 and 1; page 1, …            4 KiB each; 31,232 regions a page = 122 GiB of disk
 *     behind    exact bitmap: 132 bytes for each region that holds a mark (index u32, 1,024 bits)
 *
 * A disk of 1 TiB has 104 KiB of headers and pages. They are written whole when the file is made,
 * so marking a region never needs space.
 *
 * A slot consists of sectors of 512 bytes, each with a trailer. Storage writes a sector whole or
 * not at all, so a torn write leaves sound sectors of two generations, and the other slot counts. A
 * sector that is not sound was not left by a crash but by decay or by another program. Then the
 * file is not believed, because the damaged slot may have been the newer one.
 *
 *     0 payload · 488 magic "TMTK" · 492 page u32 (the header: 0xffffffff) · 496 slot u16
 *     498 sector u16 · 500 generation u64 · 508 CRC-32
 */
import assert from "node:assert/strict";
import { crc32 } from "node:zlib";
import { TidemarkError } from "../../errors.ts";
import { damaged, Fields, unsupportedFormat } from "../../store/format/fields.ts";
import type { FileIdentity } from "../source/file-identity.ts";
import { type QuiescenceSignature, restSignatureCharactersMax } from "../source/quiescence.ts";
import { regionBitmapBytes, regionBytes } from "./dirty-bitmap.ts";

export const headerSlotBytes: number = 16 * 1024;
export const pageSlotBytes = 4096;
const headerPage = 0xffffffff;

const sectorBytes = 512;
const sectorPayloadBytes = 488;
const sectorMagic = Buffer.from("TMTK");

/**
 * Bytes of region bits in a page, and the regions they speak of. Region i of a page is bit i % 8 of
 * byte i / 8.
 */
export const pageBitmapBytes: number = (pageSlotBytes / sectorBytes) * sectorPayloadBytes;
export const pageRegions: number = pageBitmapBytes * 8;

/** A region's index and its granules' bits. */
export const exactRecordBytes: number = 4 + regionBitmapBytes;

const headerMagic = Buffer.from("TMTRACK\0");
const headerVersion = 1;
const headerTextAt = 16;
const headerTextBytesMax = (headerSlotBytes / sectorBytes) * sectorPayloadBytes - headerTextAt;
const identityTextBytesMax = 6000;

/** More points than this are not kept as bases: at one a second that is two minutes of settling. */
export const basesMax = 128;
const pointPattern = /^[0-9A-Za-z_.-]{1,64}$/;
const anyText = /^[^]{1,8192}$/;
const decimal = /^-?[0-9]{1,24}$/;
const restSignature = new RegExp(`^[0-9a-z -]{1,${restSignatureCharactersMax}}$`);

assert(
  identityTextBytesMax + basesMax * 67 + restSignatureCharactersMax + 400 <= headerTextBytesMax,
  "identity, bases and clean record fit in a header",
);

/** Which disk of which vault a tracking file is about, and the image that holds it. */
export interface TrackingIdentity {
  readonly vault: string;
  readonly disk: string;
  readonly sizeBytes: number;
  readonly image: FileIdentity;
}

/** What a clean shutdown left: where the exact bitmap lies, and since which point it tells. */
export interface CleanRecord {
  /** Index in `bases` of the point that the exact bitmap is relative to. */
  readonly base: number;
  readonly areaAt: number;
  readonly areaBytes: number;
  readonly areaCrc: number;
  /** Quiescence signature of the image; null if it was unknown. */
  readonly rest: QuiescenceSignature | null;
}

export interface TrackingHeader extends TrackingIdentity {
  /** Points, oldest first, since each of which every change lies inside the marked regions. */
  readonly bases: readonly string[];
  readonly clean: CleanRecord | null;
}

/**
 * What stands in a pair of slots: the newest whole slot. The next write goes to the other slot,
 * with a generation above all seen.
 */
export interface Pair {
  readonly payload: Uint8Array;
  readonly slot: number;
  /** The highest generation that any sector of the two slots bears. */
  readonly generation: number;
}

export function regionsOf(sizeBytes: number): number {
  return Math.ceil(sizeBytes / regionBytes);
}

export function pagesOf(sizeBytes: number): number {
  return Math.ceil(regionsOf(sizeBytes) / pageRegions);
}

export function headerOffset(slot: number): number {
  return slot * headerSlotBytes;
}

export function pageOffset(page: number, slot: number): number {
  return 2 * headerSlotBytes + (page * 2 + slot) * pageSlotBytes;
}

/** Asserts that `point` can be kept as a base: a point's id is 32 hexadecimal digits. */
export function assertPoint(point: string): void {
  assert(pointPattern.test(point), `${JSON.stringify(point.slice(0, 80))} cannot be a point's id`);
}

/** Errors: INVALID_ARGUMENT when the image's path is too long to be kept. */
export function checkIdentity(identity: TrackingIdentity): void {
  if (Buffer.byteLength(JSON.stringify(identity)) <= identityTextBytesMax) return;
  throw new TidemarkError(
    "INVALID_ARGUMENT",
    `${identity.image.path} is too long a path to be kept in a tracking file`,
    {
      remedy: "give the image a shorter path",
    },
  );
}

/** The bytes of one slot of a page of region bits. */
export function encodePage(page: number, slot: number, generation: number, bits: Uint8Array): Uint8Array {
  return seal(pageSlotBytes, page, slot, generation, bits);
}

/** What two slots of page `page` hold, one after the other in `bytes`. Errors: DAMAGED. */
export function decodePage(bytes: Uint8Array, page: number, object: string): Pair {
  return choose(bytes, pageSlotBytes, page, object);
}

/** The bytes of one slot of the header. */
export function encodeHeader(slot: number, generation: number, header: TrackingHeader): Uint8Array {
  const { vault, disk, sizeBytes, image, bases, clean } = header;
  const text = Buffer.from(JSON.stringify({ vault, disk, sizeBytes, image, bases, clean }));
  assert(text.length <= headerTextBytesMax, "what the header says fits in its slot");
  const payload = Buffer.alloc(headerTextAt + text.length);
  headerMagic.copy(payload);
  payload.writeUInt32LE(headerVersion, 8);
  payload.writeUInt32LE(text.length, 12);
  text.copy(payload, headerTextAt);
  return seal(headerSlotBytes, headerPage, slot, generation, payload);
}

/**
 * What the two header slots in `bytes` say; undefined when they are all zeros, which is what a file
 * that was never completed, or was given up, begins with. Errors: DAMAGED, FORMAT_UNSUPPORTED.
 */
export function decodeHeader(
  bytes: Uint8Array,
  object: string,
): { readonly header: TrackingHeader; readonly pair: Pair } | undefined {
  if (bytes.every((byte) => byte === 0)) return undefined;
  for (const slot of [0, 1]) {
    const start = Buffer.from(bytes.buffer, bytes.byteOffset + headerOffset(slot), headerTextAt);
    const version = start.readUInt32LE(8);
    if (start.subarray(0, 8).equals(headerMagic) && version !== headerVersion)
      throw unsupportedFormat(object, version, headerVersion);
  }
  const pair = choose(bytes, headerSlotBytes, headerPage, object);
  const payload = Buffer.from(pair.payload.buffer, pair.payload.byteOffset, pair.payload.byteLength);
  const textBytes = payload.readUInt32LE(12);
  if (!payload.subarray(0, 8).equals(headerMagic) || textBytes > headerTextBytesMax)
    throw damaged(object, "its header is none");
  return { header: parseHeader(payload.toString("utf8", headerTextAt, headerTextAt + textBytes), object), pair };
}

function parseHeader(text: string, object: string): TrackingHeader {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw damaged(object, "its header is not JSON", error);
  }
  const fields = new Fields(parsed, object);
  const bases = fields.texts("bases", basesMax, pointPattern);
  return {
    vault: fields.text("vault", anyText),
    disk: fields.text("disk", anyText),
    sizeBytes: fields.integer("sizeBytes"),
    image: fields.nested("image", (image) => ({
      kind: image.oneOf("kind", ["file", "device"]),
      dev: image.text("dev", decimal),
      ino: image.text("ino", decimal),
      rdev: image.text("rdev", decimal),
      path: image.text("path", anyText),
      ...(image.has("serial") ? { serial: image.text("serial", anyText) } : {}),
    })),
    bases,
    clean: fields.nestedOrNull("clean", (clean) => ({
      base: clean.integer("base", 0, bases.length - 1),
      areaAt: clean.integer("areaAt"),
      areaBytes: clean.integer("areaBytes"),
      areaCrc: clean.integer("areaCrc", 0, 2 ** 32 - 1),
      rest: clean.nestedOrNull("rest", (rest) => ({
        sizeBytes: rest.integer("sizeBytes"),
        signature: rest.text("signature", restSignature),
      })),
    })),
  };
}

function seal(slotBytes: number, page: number, slot: number, generation: number, payload: Uint8Array): Uint8Array {
  const sectors = slotBytes / sectorBytes;
  assert(payload.byteLength <= sectors * sectorPayloadBytes, "the payload fits in its slot");
  const bytes = Buffer.alloc(slotBytes);
  for (let sector = 0; sector < sectors; sector += 1) {
    const start = sector * sectorBytes;
    bytes.set(payload.subarray(sector * sectorPayloadBytes, (sector + 1) * sectorPayloadBytes), start);
    const trailer = start + sectorPayloadBytes;
    sectorMagic.copy(bytes, trailer);
    bytes.writeUInt32LE(page, trailer + 4);
    bytes.writeUInt16LE(slot, trailer + 8);
    bytes.writeUInt16LE(sector, trailer + 10);
    bytes.writeBigUInt64LE(BigInt(generation), trailer + 12);
    bytes.writeUInt32LE(crc32(bytes.subarray(start, trailer + 20)), trailer + 20);
  }
  return bytes;
}

interface Slot {
  readonly payload: Uint8Array;
  /** Equal when the slot is whole; two when it is torn. */
  readonly generationMin: number;
  readonly generationMax: number;
}

/**
 * Slots are written in turn, each only once the other is durable. So at most one is torn, and then
 * it is the one that was being written: some of its sectors are younger than the whole slot.
 * Everything else is damage.
 */
function choose(bytes: Uint8Array, slotBytes: number, page: number, object: string): Pair {
  const slots = [0, 1].map((slot) =>
    unseal(bytes.subarray(slot * slotBytes, (slot + 1) * slotBytes), page, slot, object),
  );
  let newest: { readonly payload: Uint8Array; readonly slot: number; readonly whole: number } | undefined;
  let generation = 0;
  for (const [slot, { payload, generationMin, generationMax }] of slots.entries()) {
    generation = Math.max(generation, generationMax);
    if (generationMin !== generationMax) continue;
    if (newest?.whole === generationMax) throw damaged(object, `${nameOf(page)} has two slots of one generation`);
    if (newest === undefined || generationMax > newest.whole) newest = { payload, slot, whole: generationMax };
  }
  if (newest === undefined) throw damaged(object, `${nameOf(page)} has no whole slot`);
  const other = slots[1 - newest.slot];
  if (other !== undefined && other.generationMin !== other.generationMax && other.generationMax < newest.whole) {
    throw damaged(object, `${nameOf(page)} has a torn slot that is not its newest`);
  }
  return { payload: newest.payload, slot: newest.slot, generation };
}

function unseal(bytes: Uint8Array, page: number, slot: number, object: string): Slot {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const sectors = view.length / sectorBytes;
  const payload = new Uint8Array(sectors * sectorPayloadBytes);
  let generationMin = Number.MAX_SAFE_INTEGER;
  let generationMax = 0;
  for (let sector = 0; sector < sectors; sector += 1) {
    const start = sector * sectorBytes;
    const trailer = start + sectorPayloadBytes;
    const sound =
      view.subarray(trailer, trailer + 4).equals(sectorMagic) &&
      view.readUInt32LE(trailer + 4) === page &&
      view.readUInt16LE(trailer + 8) === slot &&
      view.readUInt16LE(trailer + 10) === sector &&
      view.readUInt32LE(trailer + 20) === crc32(view.subarray(start, trailer + 20));
    const generation = view.readBigUInt64LE(trailer + 12);
    if (!sound || generation >= BigInt(Number.MAX_SAFE_INTEGER))
      throw damaged(object, `${nameOf(page)} has a sector that is not sound`);
    generationMin = Math.min(generationMin, Number(generation));
    generationMax = Math.max(generationMax, Number(generation));
    payload.set(view.subarray(start, trailer), sector * sectorPayloadBytes);
  }
  return { payload, generationMin, generationMax };
}

function nameOf(page: number): string {
  return page === headerPage ? "its header" : `its page ${page}`;
}
