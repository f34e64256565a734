/**
 * Signed text: the envelope of every JSON document. One signature line, `tidemark <kind> <version>
 * <checksum>`, then the JSON text that the checksum covers. People can read a document with any
 * pager.
 */
import { checksum, toHex } from "./checksum.ts";
import { anyText, damaged, Fields, hex32, unsupportedFormat } from "./fields.ts";
import { refuseUnopened } from "./unopened.ts";

export const formatVersion = 1;

/** No document is larger. */
export const documentBytesMax: number = 16 * 1024 * 1024;

export type Kind =
  | "agent"
  | "key"
  | "registration"
  | "vault"
  | "head"
  | "page"
  | "manifest"
  | "hold"
  | "label"
  | "pin"
  | "condemned"
  | "plan"
  | "run"
  | "request"
  | "claim"
  | "collected"
  | "collection"
  | "dead"
  | "proved"
  | "quarantine"
  | "replica"
  | "seen"
  | "writer"
  | "scrubbed";

export interface Encoded {
  readonly bytes: Uint8Array;
  /** Checksum of kind, version and text. */
  readonly id: string;
}

export function encode(kind: Kind, body: object, version: number = formatVersion): Encoded {
  return signed(kind, JSON.stringify(body, undefined, 1), version);
}

/**
 * Encodes a document of long lists with one line a field and one an item: half the bytes, and one
 * line a point for people.
 */
export function encodeList(kind: Kind, body: object): Encoded {
  const fields = Object.entries(body).map(([name, value]: [string, unknown]) => {
    const items = Array.isArray(value) ? value.map((item: unknown) => `\n  ${JSON.stringify(item)}`) : [];
    return ` ${JSON.stringify(name)}: ${items.length > 0 ? `[${items.join(",")}\n ]` : JSON.stringify(value)}`;
  });
  return signed(kind, `{\n${fields.join(",\n")}\n}`);
}

function signed(kind: Kind, json: string, version: number = formatVersion): Encoded {
  const text = Buffer.from(`${json}\n`, "utf8");
  const id = toHex(checksum(Buffer.from(`${kind} ${String(version)}\n`), text));
  return { bytes: Buffer.concat([Buffer.from(`tidemark ${kind} ${String(version)} ${id}\n`), text]), id };
}

/**
 * The checksum that a document claims, not verified; undefined when it does not begin with a
 * signature line.
 */
export function claimedId(bytes: Uint8Array): string | undefined {
  return /^tidemark [a-z]+ \d{1,6} ([0-9a-f]{32})\n/.exec(Buffer.from(bytes.subarray(0, 128)).toString("latin1"))?.[1];
}

/** What the envelope of a document held. */
interface Decoded {
  readonly fields: Fields;
  readonly id: string;
  readonly version: number;
}

/**
 * `versionMax`: the newest version of the kind. Errors: DAMAGED (also when it is a document of another
 * kind), FORMAT_UNSUPPORTED.
 */
export function decode(kind: Kind, bytes: Uint8Array, object: string, versionMax: number = formatVersion): Decoded {
  refuseUnopened(bytes, object);
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const lineEnd = text.subarray(0, 128).indexOf(0x0a);
  const signature = /^tidemark ([a-z]+) (\d{1,6}) ([0-9a-f]{32})$/.exec(
    text.toString("latin1", 0, Math.max(lineEnd, 0)),
  );
  if (signature === null) throw damaged(object, "it does not begin with Tidemark's signature line");
  if (signature[1] !== kind) throw damaged(object, `it holds a ${String(signature[1])}, not a ${kind}`);
  const version = Number(signature[2]);
  if (version < formatVersion || version > versionMax) throw unsupportedFormat(object, version, versionMax);
  const body = text.subarray(lineEnd + 1);
  const id = toHex(checksum(Buffer.from(`${kind} ${String(version)}\n`), body));
  if (id !== signature[3]) throw damaged(object, "its checksum does not match its content");
  let parsed: unknown;
  try {
    parsed = JSON.parse(body.toString("utf8"));
  } catch (error) {
    throw damaged(object, "its content is not JSON", error);
  }
  return { fields: new Fields(parsed, object), id, version };
}

/** As `decode`, of a document that must belong to this vault. */
export function decodeOfVault(kind: Kind, bytes: Uint8Array, object: string, vault: string): Decoded {
  const decoded = decode(kind, bytes, object);
  const found = decoded.fields.text("vault", hex32);
  if (found !== vault) throw damaged(object, `it belongs to vault ${found}, not to ${vault}`);
  return decoded;
}

/** The vault and the disk that a document must belong to. */
export interface Owner {
  readonly vault: string;
  readonly disk: string;
}

/** As `decode`, of a document that must belong to this disk. */
export function decodeOfDisk(kind: Kind, bytes: Uint8Array, object: string, { vault, disk }: Owner): Decoded {
  const decoded = decodeOfVault(kind, bytes, object, vault);
  const found = decoded.fields.text("disk", anyText);
  if (found !== disk) throw damaged(object, `it belongs to disk ${JSON.stringify(found)}`);
  return decoded;
}
