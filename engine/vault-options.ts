/**
 * Options of a vault: what a caller gives, checked and resolved once. All faults are reported in one
 * error.
 */
import { randomBytes } from "node:crypto";
import { TidemarkError } from "./errors.ts";
import { blockBytesDefault, blockBytesMax, blockBytesMin, granuleBytes } from "./limits.ts";
import type { Notice } from "./notice.ts";
import type { VaultContext } from "./pipeline/vault-context.ts";
import { workersDefault } from "./pipeline/worker-pool.ts";
import { toHex } from "./store/format/checksum.ts";
import { type DigestName, digestNames, formatVersion, type VaultDocument } from "./store/format/documents.ts";
import { isEncrypted } from "./store/format/vault-document.ts";
import type { NewRecipients, Secrets } from "./store/keys/recipients.ts";
import { countDisks } from "./store/points/points.ts";
import { Store } from "./store/store.ts";
import { tidemarkVersion } from "./version.ts";

/** How this process works with a vault. None of it is stored in the vault. */
export interface VaultOptions {
  /**
   * Folder for local caches. Absent: nothing is kept, and every cycle compares the disk with the
   * vault.
   */
  readonly stateFolder?: string | undefined;
  /** Worker threads, 1 to 64. Default: one a core, at most 8. Vaults with the same number share them. */
  readonly workers?: number | undefined;
  /** Page writes in flight plus the frame being filled, 2 to 32. Default: 5. */
  readonly lanes?: number | undefined;
  /**
   * Ceiling of the dedup index in bytes, from 1 MiB. Default: 256 MiB, for the chunks of about 450
   * GiB.
   */
  readonly indexBytesMax?: number | undefined;
  /**
   * What opens an encrypted vault. Without it, a machine that was enrolled (`Keyring.enroll`) opens it
   * to write.
   */
  readonly keys?: Secrets | undefined;
  /** @internal What `Keyring.enroll` keeps, where it stands elsewhere: see `RegistrationKey.writerKey`. */
  readonly writerKey?: Uint8Array | undefined;
  /** Ends the opening or creation with INTERRUPTED. */
  readonly signal?: AbortSignal | undefined;
}

/** Identity and parameters of a vault. */
export interface VaultSummary {
  /** 32 hexadecimal digits that name the vault. */
  readonly vault: string;
  /** Where the store is. */
  readonly description: string;
  readonly formatVersion: number;
  readonly blockBytes: number;
  readonly granuleBytes: number;
  readonly digest: DigestName;
  readonly codec: "lz4";
  readonly encryption: "none" | "aes-256-gcm";
  /** ISO 8601 in UTC. */
  readonly created: string;
  /** Number of disks that have points. */
  readonly disks: number;
}

/** Parameters that are fixed when a vault is created. */
export interface VaultParameters {
  /** A power of two from 16 KiB to 1 MiB. Default: 64 KiB. */
  readonly blockBytes?: number | undefined;
  /** Default: `blake3`. */
  readonly digest?: DigestName | undefined;
  /** Key of the digests, 64 hexadecimal digits: see `Vault.parameters`. Default: a random one. */
  readonly digestKey?: string | undefined;
  /** Whose keys and which passphrase open the vault. Absent: those of `keys`; without them it is not encrypted. */
  readonly encryption?: NewRecipients | undefined;
  /** Told VAULT_AT_RISK when the vault is created without the second copy of its identity. */
  readonly onNotice?: ((notice: Notice) => void) | undefined;
}

const mebibyte = 1024 * 1024;

/** The identity document of a new vault. Errors: INVALID_ARGUMENT. */
export function newDocument(parameters: VaultParameters): VaultDocument {
  const blockBytes = parameters.blockBytes ?? blockBytesDefault;
  const { digest = "blake3", digestKey = toHex(randomBytes(32)) } = parameters;
  const faults: string[] = [];
  if (!Number.isInteger(Math.log2(blockBytes)) || blockBytes < blockBytesMin || blockBytes > blockBytesMax) {
    faults.push(
      `a block of ${String(blockBytes)} bytes is not a power of two from ${String(blockBytesMin)} to ${String(blockBytesMax)}`,
    );
  }
  if (!digestNames.includes(digest))
    faults.push(`the digest ${JSON.stringify(digest)} is not one of ${digestNames.join(", ")}`);
  if (!/^[0-9a-f]{64}$/u.test(digestKey)) faults.push("the key of the digests is not 64 hexadecimal digits");
  refuse(faults);
  return {
    vault: toHex(randomBytes(16)),
    createdMs: Date.now(),
    blockBytes,
    digest,
    digestKey,
    codec: "lz4",
    encryption: "none",
    writtenBy: `tidemark ${tidemarkVersion}`,
  };
}

/** See `Vault.parameters`. */
export function parametersOf(document: VaultDocument): VaultParameters {
  const { blockBytes, digest, digestKey } = document;
  // The key of an encrypted vault is a secret, which no other vault may tell.
  return { blockBytes, digest, ...(isEncrypted(document) ? {} : { digestKey }) };
}

/** The options with their defaults. Errors: INVALID_ARGUMENT. */
export function resolveOptions(
  options: VaultOptions,
): Pick<VaultContext, "stateFolder" | "workers" | "lanes" | "indexBytesMax"> {
  const workers = options.workers ?? workersDefault;
  const lanes = options.lanes ?? 5;
  const indexBytesMax = options.indexBytesMax ?? 256 * mebibyte;
  const faults: string[] = [];
  if (!Number.isInteger(workers) || workers < 1 || workers > 64)
    faults.push(`${String(workers)} workers are not 1 to 64`);
  if (!Number.isInteger(lanes) || lanes < 2 || lanes > 32) faults.push(`${String(lanes)} lanes are not 2 to 32`);
  if (!Number.isSafeInteger(indexBytesMax) || indexBytesMax < mebibyte)
    faults.push(`a dedup index of ${String(indexBytesMax)} bytes is below 1 MiB`);
  refuse(faults);
  return { stateFolder: options.stateFolder, workers, lanes, indexBytesMax };
}

function refuse(faults: readonly string[]): void {
  if (faults.length > 0)
    throw new TidemarkError("INVALID_ARGUMENT", faults.join("; "), { remedy: "give values within the limits" });
}

/** What the vault is and how many disks it has. Throws the errors of the store. */
export async function vaultSummary(
  { document, sink }: VaultContext,
  store: Store,
  signal: AbortSignal | undefined,
): Promise<VaultSummary> {
  return {
    vault: document.vault,
    description: sink.description,
    formatVersion,
    blockBytes: document.blockBytes,
    granuleBytes,
    digest: document.digest,
    codec: document.codec,
    encryption: document.encryption === "none" ? "none" : document.encryption.cipher,
    created: new Date(document.createdMs).toISOString(),
    disks: await countDisks(store, document.vault, signal),
  };
}

/** For an operation on a vault that has been closed. */
export function closedVault(): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", "the vault has been closed", { remedy: "open it again" });
}
