/**
 * NBD protocol constants: magic numbers, options, commands, flags, errors, and how fields are
 * written.
 *
 * Source: doc/proto.md of the NetworkBlockDevice project. Names follow that document, without
 * `NBD_`. All integers on the wire are big-endian.
 */

/** Where a server listens and clients find it. */
export type NbdEndpoint =
  | { readonly kind: "unix"; readonly path: string }
  | { readonly kind: "tcp"; readonly host: string; readonly port: number };

/** 64-bit magic numbers of the handshake. */
export const handshakeMagic = {
  /** "NBDMAGIC" */
  init: 0x4e42444d41474943n,
  /** "IHAVEOPT", in the greeting and before each option. */
  option: 0x49484156454f5054n,
  optionReply: 0x0003e889045565a9n,
} as const;

/** 32-bit magic numbers of the transmission. */
export const transmissionMagic = { request: 0x25609513, simpleReply: 0x67446698, structuredReply: 0x668e33ef } as const;

/** Flags of the greeting and of the client's answer to it; the bits are the same. */
export const handshakeFlag = { fixedNewstyle: 1, noZeroes: 2 } as const;

/** What the server says of an export (16 bits). */
export const transmissionFlag = {
  hasFlags: 1,
  readOnly: 2,
  sendFlush: 4,
  sendFua: 8,
  sendTrim: 32,
  sendWriteZeroes: 64,
  sendDf: 128,
  canMultiConn: 256,
  sendFastZero: 2048,
} as const;

export const option = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

/** Types of option replies. The errors have bit 31 set and may carry a message. */
export const optionReply = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errUnsup: 0x80000001,
  errPolicy: 0x80000002,
  errInvalid: 0x80000003,
  errPlatform: 0x80000004,
  errTlsReqd: 0x80000005,
  errUnknown: 0x80000006,
  errShutdown: 0x80000007,
  errBlockSizeReqd: 0x80000008,
  errTooBig: 0x80000009,
} as const;

/** Kinds of information in replies to `info` and `go`. */
export const infoType = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

export const command = { read: 0, write: 1, disconnect: 2, flush: 3, trim: 4, writeZeroes: 6, blockStatus: 7 } as const;

export const commandFlag = { fua: 1, noHole: 2, df: 4, reqOne: 8, fastZero: 16 } as const;

/** Types of structured reply chunks. The errors have bit 15 set. */
export const chunkType = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;

/** Flag of the last chunk of a structured reply. */
export const chunkFlagDone = 1;

/** Error values on the wire; they do not depend on the platform. */
export const wireError = {
  perm: 1,
  io: 5,
  noMem: 12,
  inval: 22,
  noSpc: 28,
  overflow: 75,
  notSup: 95,
  shutdown: 108,
} as const;

/** Flags of a `base:allocation` descriptor. */
export const allocationFlag = { hole: 1, zero: 2 } as const;

/** The one metadata context that the protocol itself defines. */
export const allocationContext = "base:allocation";

export const greetingBytes = 18;
export const optionHeaderBytes = 16;
export const optionReplyHeaderBytes = 20;
export const requestBytes = 28;
export const simpleReplyBytes = 16;
/** Header of a structured reply chunk; the payload follows. */
export const chunkHeaderBytes = 20;

/** Strings (export names, queries, messages) are at most this long. */
export const stringBytesMax = 4096;

/**
 * What a server of ours advertises: any alignment is served, whole granules best, and one request
 * moves at most 32 MiB.
 */
export const blockBytesMin = 1;
export const blockBytesPreferred = 4096;
export const payloadBytesMax: number = 32 * 1024 * 1024;

export function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/**
 * A string as the protocol carries it: its length in bytes, then UTF-8. That it has at most
 * `stringBytesMax` is up to the caller.
 */
export function lengthAndText(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([uint32(bytes.byteLength), bytes]);
}
