/**
 * Sanitizing hook output: what a point's record keeps of a hook step, bounded in length and safe to
 * print on a terminal.
 */
import { stripVTControlCharacters } from "node:util";

/** Bytes kept of a command's output: its end, where errors stand. */
export const outputBytesMax = 4096;
/** Characters kept of a command: its beginning, which identifies it. */
const commandCharactersMax = 8192;

/**
 * The end of an output as a record and a terminal may hold it: at most 4 KiB, without control
 * characters except tab and line feed.
 */
export function cleaned(bytes: Uint8Array): string {
  let start = Math.max(0, bytes.length - outputBytesMax);
  // Does not begin inside a UTF-8 sequence; its later bytes are 10xxxxxx.
  if (bytes.length >= outputBytesMax) while (((bytes[start] ?? 0) & 0xc0) === 0x80) start++;
  return shown(stripVTControlCharacters(Buffer.from(bytes.subarray(start)).toString("utf8")));
}

/**
 * The beginning of a command as a record may hold it: whole characters, without control characters
 * except tab and line feed.
 */
export function recorded(command: string): string {
  const characters = Array.from(command.slice(0, 2 * commandCharactersMax));
  return shown(characters.slice(0, commandCharactersMax).join(""));
}

export function messageOf(error: unknown): string {
  return cleaned(Buffer.from(error instanceof Error ? error.message : String(error)));
}

/** Replaces control characters, and lone surrogates, which JSON encodes with six letters. */
function shown(text: string): string {
  return text.replaceAll("\r\n", "\n").replaceAll(/[^\P{Cc}\t\n]|\p{Cs}/gu, "\u{fffd}");
}

export function elapsedSince(startedAtMs: number): number {
  return Math.round(performance.now() - startedAtMs);
}
