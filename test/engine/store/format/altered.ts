/** Stored objects that are changed in one respect and are otherwise right. */
import { checksum } from "../../../../engine/store/format/checksum.ts";

/** A document of a version that this one does not read. */
export function futureLine(bytes: Uint8Array): Uint8Array {
  return Buffer.from(
    Buffer.from(bytes)
      .toString("utf8")
      .replace(/ [12] /, " 3 "),
    "utf8",
  );
}

/** A frame, leaf or root of a version that this one does not read. */
export function futureHeader(bytes: Uint8Array): Uint8Array {
  const other = new Uint8Array(bytes);
  Buffer.from(other.buffer).writeUInt16LE(3, 4);
  return other;
}

/** A map table after `change`, with a checksum that is right again. */
export function resigned(table: Uint8Array, change: (bytes: Buffer) => void): Buffer {
  const bytes = Buffer.from(table);
  change(bytes);
  bytes.set(checksum(bytes.subarray(0, 48), bytes.subarray(64)), 48);
  return bytes;
}
