/**
 * Golden files: the bytes of every format version, kept in `test/golden` for as long as we read
 * that version. A test that finds other bytes has found a change of the format. With
 * UPDATE_GOLDEN=1 in the environment the files are written instead, which is for new versions only.
 */
import { readFileSync, writeFileSync } from "node:fs";

/**
 * The bytes of golden file `name`; `bytes` themselves, after they have been written there, when
 * golden files are being made.
 */
export function golden(name: string, bytes: Uint8Array): Uint8Array {
  const file = new URL(`golden/${name}`, import.meta.url);
  if (process.env["UPDATE_GOLDEN"] === "1") writeFileSync(file, bytes);
  return new Uint8Array(readFileSync(file));
}
