/**
 * Encrypted runs: with the environment variable `TIDEMARK_TEST_ENCRYPTED=1` the tests that work on a
 * model vault work on an encrypted one.
 */
import { generateKeyPairSync } from "node:crypto";
import process from "node:process";
import type { VaultOptions, VaultParameters } from "../engine/vault-options.ts";

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

/** Options of every model vault of this run. */
export const modelEncryption: Pick<VaultOptions & VaultParameters, "keys" | "encryption"> = isEncryptedRun
  ? encryptedFor(testKeyPair())
  : {};
