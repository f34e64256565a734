/**
 * NBD request: one request of a transmission, and whether the server may carry it out.
 *
 * A connection has one such object and fills it again for each request, because there are hundreds
 * of thousands a second.
 */
import type { Agreement } from "./handshake.ts";
import { command, commandFlag, payloadBytesMax, transmissionMagic, wireError } from "./protocol.ts";

/** What a client knows its request by: 64 bits that are only ever handed back. */
export interface Cookie {
  cookieHigh: number;
  cookieLow: number;
}

export interface Request extends Cookie {
  type: number;
  flags: number;
  offset: number;
  length: number;
}

export function emptyRequest(): Request {
  return { cookieHigh: 0, cookieLow: 0, type: 0, flags: 0, offset: 0, length: 0 };
}

/**
 * Offsets from 2^32 up are put together from halves; no bitwise operator comes near them. Above
 * 2^53 they are rounded, and refused.
 */
const highHalf: number = 2 ** 32;

/** Reads the request that begins at `at`. False when no request begins there. */
export function decodeRequest(into: Request, bytes: Buffer, at: number): boolean {
  if (bytes.readUInt32BE(at) !== transmissionMagic.request) return false;
  into.flags = bytes.readUInt16BE(at + 4);
  into.type = bytes.readUInt16BE(at + 6);
  into.cookieHigh = bytes.readUInt32BE(at + 8);
  into.cookieLow = bytes.readUInt32BE(at + 12);
  into.offset = bytes.readUInt32BE(at + 16) * highHalf + bytes.readUInt32BE(at + 20);
  into.length = bytes.readUInt32BE(at + 24);
  return true;
}

/**
 * The error that `request` deserves before anything is done, or 0. What the protocol leaves open is
 * decided as its other servers do.
 */
export function refusalOf(request: Request, { served, structuredReplies, allocation }: Agreement): number {
  const { type, flags, offset, length } = request;
  const sizeBytes = served.device.sizeBytes;
  const isBeyondEnd = offset + length > sizeBytes;
  switch (type) {
    case command.read:
      if (hasOther(flags, structuredReplies ? commandFlag.fua | commandFlag.df : commandFlag.fua))
        return wireError.inval;
      return length > payloadBytesMax || isBeyondEnd ? wireError.inval : 0;
    case command.write:
      if (served.readOnly) return wireError.perm;
      if (hasOther(flags, commandFlag.fua) || length > payloadBytesMax) return wireError.inval;
      return isBeyondEnd ? wireError.noSpc : 0;
    case command.flush:
      return hasOther(flags, commandFlag.fua) || offset !== 0 || length !== 0 ? wireError.inval : 0;
    case command.trim:
      if (served.readOnly) return wireError.perm;
      return hasOther(flags, commandFlag.fua) || isBeyondEnd ? wireError.inval : 0;
    case command.writeZeroes:
      if (served.readOnly) return wireError.perm;
      if (hasOther(flags, commandFlag.fua | commandFlag.noHole | commandFlag.fastZero)) return wireError.inval;
      if (isBeyondEnd) return wireError.noSpc;
      // Old content may have to be saved first, so fast zeroing is not promised.
      return hasFlag(flags, commandFlag.fastZero) ? wireError.notSup : 0;
    case command.blockStatus:
      if (!allocation || hasOther(flags, commandFlag.fua | commandFlag.reqOne)) return wireError.inval;
      return length === 0 || isBeyondEnd ? wireError.inval : 0;
    default:
      return wireError.inval;
  }
}

export function hasFlag(flags: number, flag: number): boolean {
  return (flags & flag) !== 0;
}

function hasOther(flags: number, allowed: number): boolean {
  return (flags & ~allowed) !== 0;
}
