/**
 * The rules that hold for every store before it is even asked: what a name may be, how page ranges are aligned, how long a lease lasts.
 * Azure enforces some of them, Azurite fewer, a file system none, so each adapter checks them on our side and answers with the same words.
 */

import { leaseSecondsMax, leaseSecondsMin, pageAlignmentBytes, pageWriteBytesMax, TidemarkError } from "../engine/index.ts";

/** Largest whole object. One request carries it, and nothing that the engine keeps in an object comes near. */
export const objectBytesMax: number = 64 * 1024 * 1024;

/** Longest name, and longest part between slashes: a file name of 255 bytes has to hold a part and our own suffixes. */
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
  if (name.length > nameLengthMax || !name.split("/").every(isNamePart)) throw invalid(`${JSON.stringify(name)} is no name of an object`);
}

export function checkPrefix(prefix: string): void {
  if (prefix.length > nameLengthMax || !prefixPattern.test(prefix))
    throw invalid(`${JSON.stringify(prefix)} is no prefix of an object's name`);
}

export function checkObjectBytes(name: string, bytes: Uint8Array): void {
  if (bytes.length > objectBytesMax) {
    throw invalid(`${name} would hold ${String(bytes.length)} bytes; an object holds at most ${String(objectBytesMax)}`);
  }
}

export function checkPagesSize(name: string, sizeBytes: number): void {
  if (!isAligned(sizeBytes) || sizeBytes > pagesBytesMax) {
    throw invalid(
      `${name} cannot be ${String(sizeBytes)} bytes: page objects are multiples of ${String(pageAlignmentBytes)}, at most 8 TiB`,
    );
  }
}

/** Checks that a range to write or clear is whole pages, one at least. Whether it lies inside the object, `checkInside` tells. */
export function checkWholePages(name: string, offset: number, length: number): void {
  if (isAligned(offset) && isAligned(length) && length > 0) return;
  throw invalid(`${String(length)} bytes at ${String(offset)} of ${name} are not whole pages of ${String(pageAlignmentBytes)} bytes`);
}

/** Checks what can be told of a write without the store. Whether it lies inside the object, `checkInside` tells. */
export function checkPageWrite(name: string, offset: number, bytes: Uint8Array): void {
  checkWholePages(name, offset, bytes.length);
  if (bytes.length > pageWriteBytesMax) {
    throw invalid(`a write of ${String(bytes.length)} bytes to ${name} exceeds the ${String(pageWriteBytesMax)} bytes of one page write`);
  }
}

export function checkInside(name: string, offset: number, length: number, sizeBytes: number): void {
  if (offset + length > sizeBytes) {
    throw invalid(`${String(length)} bytes at ${String(offset)} pass the end of ${name}, which has ${String(sizeBytes)} bytes`);
  }
}

export function checkReadOffset(name: string, offset: number): void {
  if (!Number.isSafeInteger(offset) || offset < 0) throw invalid(`${String(offset)} is no offset in ${name}`);
}

export function checkSequenceNumber(sequenceNumber: number): void {
  if (!Number.isSafeInteger(sequenceNumber) || sequenceNumber < 0) throw invalid(`${String(sequenceNumber)} is no sequence number`);
}

export function checkLeaseId(leaseId: string): void {
  if (!uuidPattern.test(leaseId)) throw invalid(`${JSON.stringify(leaseId)} is no lease id: it has to be a UUID`);
}

export function checkLeaseSeconds(durationSeconds: number): void {
  if (!Number.isInteger(durationSeconds) || durationSeconds < leaseSecondsMin || durationSeconds > leaseSecondsMax) {
    throw invalid(`a lease cannot last ${String(durationSeconds)} s: ${String(leaseSecondsMin)} to ${String(leaseSecondsMax)} are allowed`);
  }
}

// ---- The errors that every store words alike ----

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

/** For a range that reaches beyond the object: it was there once, or something that refers to it lies. */
export function endsBefore(name: string, endOffset: number, sizeBytes: number): TidemarkError {
  return new TidemarkError("DAMAGED", `${name} ends at byte ${String(sizeBytes)}, before byte ${String(endOffset)} that should be in it`, {
    remedy: "run `tidemark verify` to see which points are concerned",
    detail: { object: name, endOffset, sizeBytes },
  });
}

/** For an object that is larger than anything its reader could have written. */
export function tooLarge(name: string, sizeBytes: number, sizeBytesMax: number): TidemarkError {
  return new TidemarkError("DAMAGED", `${name} has ${String(sizeBytes)} bytes where at most ${String(sizeBytesMax)} can be right`, {
    remedy: "run `tidemark verify` to see which points are concerned",
    detail: { object: name, sizeBytes, sizeBytesMax },
  });
}

/** For a name under which the other kind of object lies: nothing that we write puts it there. */
export function wrongKind(name: string, wanted: "object" | "page object"): TidemarkError {
  return new TidemarkError("DAMAGED", `${name} is not ${wanted === "object" ? "a plain object" : "a page object"}`, {
    remedy: "run `tidemark verify` to see which points are concerned",
    detail: { object: name },
  });
}

/** For a name that could only lie inside another object, as if that were a folder. */
export function nameBlocked(name: string, cause?: unknown): TidemarkError {
  return new TidemarkError(
    "INVALID_ARGUMENT",
    `${name} cannot be stored: a part of its path is an object, or it is the path of other objects`,
    { detail: { object: name }, cause },
  );
}

function isAligned(bytes: number): boolean {
  return Number.isSafeInteger(bytes) && bytes >= 0 && bytes % pageAlignmentBytes === 0;
}

function invalid(message: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", message);
}
