/**
 * Limits: every size that more than one file must agree on, with its unit. The relations between
 * them are asserted when the module is loaded.
 */
import assert from "node:assert/strict";
import { pageAlignmentBytes, pageWriteBytesMax } from "./sink.ts";

/** The unit of change tracking, in bytes. */
export const granuleBytes = 4096;

/** The window that a chunk never crosses; a power of two, fixed per vault. */
export const blockBytesMin: number = 16 * 1024;
export const blockBytesMax: number = 1024 * 1024;
export const blockBytesDefault: number = 64 * 1024;

/** Granule indexes are 32-bit in maps, which bounds a volume: 16 TiB. */
export const volumeBytesMax: number = 2 ** 32 * granuleBytes;

/** Frames are written with one page write. */
export const frameBytesMax: number = pageWriteBytesMax;

/**
 * Size of a segment. Only what is written takes space. Offsets inside a segment are 32-bit in maps,
 * and a chunk location has to fit in 28 bytes of dedup index, so a segment stays well below 4 GiB.
 */
export const segmentBytes: number = 1024 * 1024 * 1024;

/** The last ms of the year 9999: no time that is stored is later, so each has an ISO form. */
export const timeMsMax: number = Date.UTC(10_000, 0) - 1;

/** No point has a higher sequence number. */
export const sequenceMax: number = 10 ** 15;

/**
 * Length of a digest, the identity of a chunk: 128 bits, keyed. FORMAT.md says why 128 bits are
 * enough with a key per vault.
 */
export const digestBytes = 16;

/** Length of a local fingerprint of a granule. */
export const fingerprintBytes = 16;

assert(blockBytesMin % granuleBytes === 0, "a block holds whole granules");
assert(blockBytesMax / granuleBytes <= 256, "granule counts inside a block fit in one byte as count - 1");
assert(
  segmentBytes <= 2 ** 32 && segmentBytes % pageAlignmentBytes === 0,
  "segment offsets are 32-bit and segments hold whole pages",
);
assert(
  frameBytesMax > blockBytesMax + 64 * 1024,
  "a frame holds at least one incompressible block with its header and table",
);
