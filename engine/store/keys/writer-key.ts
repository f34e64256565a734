/**
 * Writer key: what a machine that is enrolled to write keeps in its state folder. It holds the
 * writing key and the public reading key of each generation, and so opens everything but payloads.
 */
import { fromHex, toHex } from "../format/checksum.ts";
import { hex32, hex64 } from "../format/fields.ts";
import { decode, encode } from "../format/signed-text.ts";
import { VaultKeys } from "./vault-keys.ts";

const generationsMax = 1024;

/** The bytes of a writer key. They are secret. */
export function encodeWriterKey(keys: VaultKeys): Uint8Array {
  const generations = keys.generations.map(({ writingKey, readingKey }) => ({
    writingKey: toHex(writingKey),
    readingKey: toHex(readingKey),
  }));
  return encode("writer", { vault: toHex(keys.vaultId), generations }).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeWriterKey(bytes: Uint8Array, file: string): VaultKeys {
  const { fields } = decode("writer", bytes, file);
  const generations = fields.list("generations", generationsMax, (generation) => ({
    writingKey: fromHex(generation.text("writingKey", hex64)),
    readingKey: fromHex(generation.text("readingKey", hex64)),
  }));
  return new VaultKeys(fromHex(fields.text("vault", hex32)), generations);
}
