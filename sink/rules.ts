/**
 * Argument checks that every adapter makes before it sends a request: names, alignment of page
 * ranges, lease durations.
 *
 * Azure enforces some of these rules, Azurite fewer, a file system none. Checked here, they hold
 * for each store with the same messages.
 */

import {
  leaseSecondsMax,
  leaseSecondsMin,
  pageAlignmentBytes,
  pageWriteBytesMax,
  TidemarkError,
} from "../engine/index.ts";

/** Largest object. One request carries it; the engine's objects are far smaller. */
export const objectBytesMax: number = 64 * 1024 * 1024;

/**
 * Longest name, and longest part between slashes: a file name of 255 bytes holds a part and a
 * suffix of the directory sink.
 */
export const nameLengthMax = 512;
export const namePartLengthMax = 240;

/** Largest page object, as in Azure: 8 TiB. */
export const pagesBytesMax: number = 8 * 2 ** 40;

const namePartPattern = /^[a-z0-9._~-]+$/;
const prefixPattern = /^[a-z0-9._~/-]*$/;
const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** True when `part` may stand between two slashes of a name. */
export function isNamePart(part: string): boolean {
  return part.length <= namePartLengthMax && namePartPattern.test(part) && part !== "." && part !== "..";
}

export function checkName(name: string): void {
  if (name.length > nameLengthMax || !name.split("/").every(isNamePart))
    throw invalid(`${JSON.stringify(name)} is not a valid object name`);
}

export function checkPrefix(prefix: string): void {
  if (prefix.length > nameLengthMax || !prefixPattern.test(prefix))
    throw invalid(`${JSON.stringify(prefix)} is not a valid prefix of object names`);
}

export function checkObjectBytes(name: string, bytes: Uint8Array): void {
  if (bytes.length > objectBytesMax) {
    throw invalid(`${name} would have ${String(bytes.length)} bytes; an object has at most ${String(objectBytesMax)}`);
  }
}

export function checkPagesSize(name: string, sizeBytes: number): void {
  if (!isAligned(sizeBytes) || sizeBytes > pagesBytesMax) {
    throw invalid(
      `${name} cannot be ${String(sizeBytes)} bytes: page objects are multiples of ${String(pageAlignmentBytes)}, at most 8 TiB`,
    );
  }
}

/**
 * Checks that a range to write or clear is one or more whole pages. `checkInside` checks the
 * bounds.
 */
export function checkWholePages(name: string, offset: number, length: number): void {
  if (isAligned(offset) && isAligned(length) && length > 0) return;
  throw invalid(
    `${String(length)} bytes at ${String(offset)} of ${name} are not whole pages of ${String(pageAlignmentBytes)} bytes`,
  );
}

/** Checks a write's alignment and size. `checkInside` checks the bounds. */
export function checkPageWrite(name: string, offset: number, bytes: Uint8Array): void {
  checkWholePages(name, offset, bytes.length);
  if (bytes.length > pageWriteBytesMax) {
    throw invalid(
      `a write of ${String(bytes.length)} bytes to ${name} exceeds the ${String(pageWriteBytesMax)} bytes of one page write`,
    );
  }
}

export function checkInside(name: string, offset: number, length: number, sizeBytes: number): void {
  if (offset + length > sizeBytes) {
    throw invalid(
      `${String(length)} bytes at ${String(offset)} pass the end of ${name}, which has ${String(sizeBytes)} bytes`,
    );
  }
}

export function checkReadOffset(name: string, offset: number): void {
  if (!Number.isSafeInteger(offset) || offset < 0) throw invalid(`${String(offset)} is not a valid offset in ${name}`);
}

export function checkSequenceNumber(sequenceNumber: number): void {
  if (!Number.isSafeInteger(sequenceNumber) || sequenceNumber < 0)
    throw invalid(`${String(sequenceNumber)} is not a valid sequence number`);
}

export function checkLeaseId(leaseId: string): void {
  if (!uuidPattern.test(leaseId)) throw invalid(`${JSON.stringify(leaseId)} is not a lease id: it must be a UUID`);
}

export function checkLeaseSeconds(durationSeconds: number): void {
  if (!Number.isInteger(durationSeconds) || durationSeconds < leaseSecondsMin || durationSeconds > leaseSecondsMax) {
    throw invalid(
      `a lease cannot last ${String(durationSeconds)} s: ${String(leaseSecondsMin)} to ${String(leaseSecondsMax)} are allowed`,
    );
  }
}

// ---- Errors that every adapter throws with the same message ----

export function vaultNotFound(description: string): TidemarkError {
  return new TidemarkError("VAULT_NOT_FOUND", `there is no vault at ${description}`, {
    remedy: "check the vault's address, or create it with `tidemark vault init`",
  });
}

export function objectNotFound(name: string): TidemarkError {
  return new TidemarkError("OBJECT_NOT_FOUND", `${name} does not exist in the store`, { detail: { object: name } });
}

export function objectExists(name: string): TidemarkError {
  return new TidemarkError("OBJECT_EXISTS", `${name} exists already`, { detail: { object: name } });
}

export function conditionFailed(name: string, fact: string): TidemarkError {
  return new TidemarkError("CONDITION_FAILED", `${name} was not written: ${fact}`, { detail: { object: name } });
}

/**
 * For a range beyond the object's end: the object was truncated, or the reference to the range is
 * wrong.
 */
export function endsBefore(name: string, endOffset: number, sizeBytes: number): TidemarkError {
  return new TidemarkError(
    "DAMAGED",
    `${name} ends at byte ${String(sizeBytes)}, before byte ${String(endOffset)} of the range to read`,
    {
      remedy: "run `tidemark verify` to list the points concerned",
      detail: { object: name, endOffset, sizeBytes },
    },
  );
}

/** For an object that is larger than its reader allows. */
export function tooLarge(name: string, sizeBytes: number, sizeBytesMax: number): TidemarkError {
  return new TidemarkError(
    "DAMAGED",
    `${name} has ${String(sizeBytes)} bytes; at most ${String(sizeBytesMax)} are expected`,
    {
      remedy: "run `tidemark verify` to list the points concerned",
      detail: { object: name, sizeBytes, sizeBytesMax },
    },
  );
}

/** For a name that holds an object of the other kind. */
export function wrongKind(name: string, wanted: "object" | "page object"): TidemarkError {
  return new TidemarkError("DAMAGED", `${name} is not ${wanted === "object" ? "a plain object" : "a page object"}`, {
    remedy: "run `tidemark verify` to list the points concerned",
    detail: { object: name },
  });
}

/** For a name that is a folder of other names, or that has an object as a folder. */
export function nameBlocked(name: string, cause?: unknown): TidemarkError {
  return new TidemarkError(
    "INVALID_ARGUMENT",
    `${name} cannot be stored: a folder of its path is an object, or it is a folder of other objects`,
    { detail: { object: name }, cause },
  );
}

function isAligned(bytes: number): boolean {
  return Number.isSafeInteger(bytes) && bytes >= 0 && bytes % pageAlignmentBytes === 0;
}

function invalid(message: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", message);
}
