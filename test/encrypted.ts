/**
 * Encrypted runs: with the environment variable `TIDEMARK_TEST_ENCRYPTED=1` the tests that work on a
 * model vault work on an encrypted one. So do those of the program: its environment names a key, for
 * which it encrypts each vault that it creates.
 */
import { generateKeyPairSync } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import type { VaultOptions, VaultParameters } from "../engine/vault-options.ts";
import { repositoryRoot } from "./source-tree.ts";

/** Whether model vaults are encrypted. */
export const isEncryptedRun: boolean = process.env["TIDEMARK_TEST_ENCRYPTED"] === "1";

/** A key pair, as an administrator makes one: `openssl ecparam -name prime256v1`. */
export function testKeyPair(): { readonly privateKey: string; readonly publicKey: string } {
  return generateKeyPairSync("ec", {
    namedCurve: "prime256v1",
    privateKeyEncoding: { format: "pem", type: "pkcs8" },
    publicKeyEncoding: { format: "pem", type: "spki" },
  });
}

/** Options that create and open an encrypted vault. */
export function encryptedFor({
  privateKey,
  publicKey,
}: ReturnType<typeof testKeyPair>): Required<Pick<VaultOptions & VaultParameters, "keys" | "encryption">> {
  return { keys: { privateKey }, encryption: { certificates: [{ pem: publicKey, name: "test" }] } };
}

const keyFile = join(repositoryRoot, "test", "golden", "recipient-p256-key.pem");

/** Options of every model vault of this run. One that is created with a key is encrypted for it. */
export const modelEncryption: Pick<VaultOptions, "keys"> = isEncryptedRun
  ? { keys: { privateKey: readFileSync(keyFile, "utf8") } }
  : {};

/** What the environment holds of each program that a test of this run starts. */
export const keyEnvironment: Readonly<Record<string, string>> = isEncryptedRun ? { TIDEMARK_KEY_FILE: keyFile } : {};

/** Flags of `tidemark copy` for a second vault that is encrypted in this run. */
export const toKey: readonly string[] = isEncryptedRun ? ["--to-key", keyFile] : [];

/** For a command on a vault that is plain in every run. */
export const noKey: Readonly<Record<string, string>> = { TIDEMARK_KEY_FILE: "" };
