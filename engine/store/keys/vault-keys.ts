/**
 * Keys of an encrypted vault, derived by HKDF-SHA256 (RFC 5869):
 *
 *     vault key, 32 random bytes a generation; wrapped for each recipient in `vault.json`
 *      ├─ writing key ─┬─ digest key (of the first generation, for good)
 *      │               ├─ a key for each object, of its name: AES-256-GCM
 *      │               ├─ a key for each segment's frame tables, of its name: AES-256-GCM
 *      │               └─ key of `vault.json`'s own authentication code: HMAC-SHA256
 *      └─ reading key, X25519 ── HPKE ── a key for each segment's payloads: AES-256-GCM
 *
 * The key of a segment's payloads is made by its writer, from the public half of the reading key and
 * a key pair that the writer then forgets. Its public half stands in the segment's name. So all that
 * refers to a segment holds what a reader needs besides the reading key, and a name that is given
 * twice, after a store went back in time, still has two keys.
 *
 * A writer needs the writing keys and the public halves. They find, prove and deduplicate chunks by
 * digest, read and write maps and points, and read no payload, not even one that they wrote once the
 * segment is closed.
 *
 * Rotation: another process may begin a new generation while this one runs. What is written asks
 * for newer keys first, once a minute. What was sealed with a key that this process does not have
 * makes it ask at once. Keys are only ever added, so an older `vault.json` takes none away.
 *
 * Every derivation is salted with the vault's id, so equal vault keys of two vaults would have
 * nothing in common.
 */
import { createHmac, createPublicKey, hkdfSync, type KeyObject, timingSafeEqual } from "node:crypto";
import { hasCode, isUnreadable, TidemarkError } from "../../errors.ts";
import { keysTiming } from "../../timing.ts";
import { checksum, fromHex, toHex } from "../format/checksum.ts";
import { damaged } from "../format/fields.ts";
import { parseSegmentName, sealedSegmentName, vaultName } from "../format/names.ts";
import { type Seal, seal, unseal } from "../format/sealed.ts";
import { laterKeyRemedy } from "../format/unopened.ts";
import {
  authenticatedText,
  type EncryptedDocument,
  isEncrypted,
  type KeyGeneration,
  type VaultDocument,
} from "../format/vault-document.ts";
import { decapsulate, encapsulate, exportSecret, wireKey, x25519PrivateKey, x25519PublicKey } from "./hpke.ts";

export const vaultKeyBytes = 32;

/** Segments whose payload keys are kept; one costs a key agreement. */
const segmentsKeptMax = 1024;

/** What is known of one generation. */
export interface GenerationKeys {
  readonly writingKey: Uint8Array;
  /** X25519, public. */
  readonly readingKey: Uint8Array;
  /** Absent: this process is a writer, which cannot read payloads. */
  readonly secret?: { readonly vaultKey: Uint8Array; readonly privateKey: KeyObject } | undefined;
}

/**
 * Opens the vault again if its recipients or keys have changed; undefined if they have not. Errors: as
 * `Vault.open`.
 */
export type RenewKeys = () => Promise<VaultKeys | undefined>;

/** Derives 32 bytes. */
export function derive(secret: Uint8Array, vaultId: Uint8Array, purpose: string): Buffer {
  return Buffer.from(hkdfSync("sha256", secret, vaultId, `tidemark/1 ${purpose}`, 32));
}

/** The keys of a generation from its vault key. */
export function generationOf(vaultKey: Uint8Array, vaultId: Uint8Array): GenerationKeys {
  const privateKey = x25519PrivateKey(derive(vaultKey, vaultId, "reading key"));
  const writingKey = derive(vaultKey, vaultId, "writing key");
  return { writingKey, readingKey: wireKey(privateKey), secret: { vaultKey, privateKey } };
}

/** The entry of `vault.json` for a new generation, and for the one before it. */
export function newGeneration(
  vaultId: Uint8Array,
  vaultKey: Uint8Array,
  before: Uint8Array | undefined,
): KeyGeneration {
  const previous = before === undefined ? null : toHex(seal(previousSeal(vaultKey, vaultId), before));
  return { readingKey: toHex(generationOf(vaultKey, vaultId).readingKey), previous };
}

/** All vault keys, oldest first, from the newest. Errors: DAMAGED. */
export function vaultKeysFrom(newest: Uint8Array, { vault, encryption }: EncryptedDocument): Uint8Array[] {
  const vaultId = fromHex(vault);
  const keys = [newest];
  for (const { previous } of encryption.generations.slice(1).reverse()) {
    const before = unseal(previousSeal(keys[0] ?? newest, vaultId), fromHex(previous ?? ""));
    if (before?.length !== vaultKeyBytes) throw altered(vaultName);
    keys.unshift(before);
  }
  return keys;
}

/** All generations, oldest first, from the newest vault key. Errors: DAMAGED. */
export function generationsFrom(newest: Uint8Array, document: EncryptedDocument): GenerationKeys[] {
  return vaultKeysFrom(newest, document).map((vaultKey) => generationOf(vaultKey, fromHex(document.vault)));
}

function previousSeal(vaultKey: Uint8Array, vaultId: Uint8Array): Seal {
  return { key: derive(vaultKey, vaultId, "previous vault key"), associated: vaultId };
}

function altered(name: string): TidemarkError {
  return damaged(name, "it was altered by a process without the vault's key");
}

export class VaultKeys {
  readonly vaultId: Uint8Array;
  readonly #renew: RenewKeys;
  /** The first generation is 1. */
  #generations: readonly GenerationKeys[];
  #renewedAtMs = performance.now();
  #renewing: Promise<void> | undefined;
  readonly #payloads = new Map<string, Seal>();

  /** `renew`: see `renewed`. */
  constructor(
    vaultId: Uint8Array,
    generations: readonly GenerationKeys[],
    renew: RenewKeys = () => Promise.resolve(undefined),
  ) {
    this.vaultId = vaultId;
    this.#generations = generations;
    this.#renew = renew;
  }

  /**
   * Takes up newer keys of the vault, if they were last looked for a minute ago, or if `wanted` is a
   * generation that this process does not have. To be called before anything is sealed. A
   * `vault.json` that is damaged or gone says nothing of keys: what this process has goes on.
   *
   * @throws ACCESS_REFUSED: what opened the vault does not open it any more. The errors of the store.
   */
  async renewed(wanted = 0): Promise<void> {
    if (wanted <= this.generation && performance.now() - this.#renewedAtMs < keysTiming.renewEveryMs) return;
    this.#renewing ??= this.#takeUp().finally(() => {
      this.#renewing = undefined;
    });
    await this.#renewing;
  }

  async #takeUp(): Promise<void> {
    const startedAtMs = performance.now();
    try {
      const later = await this.#renew();
      if (later !== undefined) this.adopt(later);
    } catch (error) {
      if (!isUnreadable(error) && !hasCode(error, "VAULT_NOT_FOUND")) throw error;
    }
    this.#renewedAtMs = startedAtMs;
  }

  /** Takes up the generations of `later`, if they are more. */
  adopt(later: Pick<VaultKeys, "generations">): void {
    if (later.generations.length > this.generation) this.#generations = later.generations;
  }

  /** The number of the newest generation, under which everything new is sealed. */
  get generation(): number {
    return this.#generations.length;
  }

  get generations(): readonly GenerationKeys[] {
    return this.#generations;
  }

  /** Whether this process can read payloads; a writer cannot. */
  get canRead(): boolean {
    return this.#at(this.generation).secret !== undefined;
  }

  /** The newest vault key. Errors: ACCESS_REFUSED for a writer. */
  get vaultKey(): Uint8Array {
    const { secret } = this.#at(this.generation);
    if (secret === undefined) throw cannotRead();
    return secret.vaultKey;
  }

  /** Refuses a process that cannot read payloads, before it begins work that it cannot end. Errors: ACCESS_REFUSED. */
  assertReads(): void {
    if (!this.canRead) throw cannotRead();
  }

  get digestKey(): Uint8Array {
    return derive(this.#at(1).writingKey, this.vaultId, "digest key");
  }

  /** The authentication code of `vault.json`. */
  mac(document: EncryptedDocument): string {
    const key = derive(this.#at(this.generation).writingKey, this.vaultId, "identity");
    return createHmac("sha256", key).update(authenticatedText(document)).digest("hex");
  }

  /**
   * Refuses a document of other keys, or one that was altered. One of another vault is left to the
   * caller. Errors: DAMAGED, FORMAT_UNSUPPORTED.
   */
  check(document: VaultDocument, name: string = vaultName): void {
    if (document.vault !== toHex(this.vaultId)) return;
    if (!isEncrypted(document)) throw damaged(name, "it is not encrypted, and the vault is");
    const { generations, mac } = document.encryption;
    if (generations.length > this.generation) throw laterKey(name, generations.length, this.generation);
    const isSame =
      generations.length === this.generation &&
      generations.every(({ readingKey }, index) => readingKey === toHex(this.#at(index + 1).readingKey)) &&
      timingSafeEqual(fromHex(mac), fromHex(this.mac(document)));
    if (!isSame) throw altered(name);
  }

  /** The seal of an object's bytes. Undefined: this process has no such generation. */
  object(name: string, generation: number): Seal | undefined {
    const keys = this.#generations[generation - 1];
    if (keys === undefined) return undefined;
    const key = derive(keys.writingKey, this.vaultId, `object ${name}`);
    return { key, associated: Buffer.concat([this.vaultId, Buffer.from(`${String(generation)} ${name}`)]) };
  }

  /** Key of the frame tables of a segment. Errors: DAMAGED when the segment is of no encrypted vault. */
  tables(segment: string): Uint8Array {
    return derive(this.#at(keyOf(segment).generation, segment).writingKey, this.vaultId, `tables ${segment}`);
  }

  /** Whether the segment was begun with a key before the newest. Errors: DAMAGED as for `tables`. */
  isOfOldKey(segment: string): boolean {
    return keyOf(segment).generation < this.generation;
  }

  /** Names a new segment, and makes the key of its payloads. */
  newSegment(base: string): { readonly name: string; readonly payloads: Seal } {
    const receiver = x25519PublicKey(this.#at(this.generation).readingKey);
    const { encapsulated, secrets } = encapsulate(receiver, this.#info(base));
    const name = sealedSegmentName(base, this.generation, encapsulated);
    return { name, payloads: { key: exportSecret(secrets, payloadsLabel), associated: this.#place(name) } };
  }

  /**
   * The seal of the payloads of a segment; see `payloadSeal`.
   *
   * @throws ACCESS_REFUSED when payloads cannot be read; DAMAGED when the name holds no key.
   */
  payloads(segment: string): Seal {
    let found = this.#payloads.get(segment);
    if (found === undefined) {
      const { base, generation, encapsulated } = keyOf(segment);
      const { secret } = this.#at(generation, segment);
      if (secret === undefined) throw cannotRead();
      const secrets = decapsulate(secret.privateKey, this.#info(base), encapsulated);
      if (secrets === undefined) throw damaged(segment, "its name holds no key");
      found = { key: exportSecret(secrets, payloadsLabel), associated: this.#place(segment) };
      if (this.#payloads.size >= segmentsKeptMax) this.#payloads.clear();
      this.#payloads.set(segment, found);
    }
    return found;
  }

  #info(base: string): Buffer {
    return Buffer.concat([Buffer.from("tidemark/1 segment "), this.vaultId, Buffer.from(base)]);
  }

  #place(segment: string): Buffer {
    return Buffer.concat([this.vaultId, checksum(Buffer.from(segment))]);
  }

  #at(generation: number, object = vaultName): GenerationKeys {
    const keys = this.#generations[generation - 1];
    if (keys === undefined) throw laterKey(object, generation, this.generation);
    return keys;
  }
}

const payloadsLabel = Buffer.from("payloads");

/** The error for what is sealed under a generation that this process does not have. */
export function laterKey(object: string, generation: number, known: number): TidemarkError {
  return new TidemarkError(
    "FORMAT_UNSUPPORTED",
    `${object} is sealed under generation ${String(generation)} of the vault's key; this process has ${String(known)}`,
    { remedy: laterKeyRemedy },
  );
}

function keyOf(segment: string): {
  readonly base: string;
  readonly generation: number;
  readonly encapsulated: Uint8Array;
} {
  const key = parseSegmentName(segment)?.key;
  if (key === undefined) throw damaged(segment, "it is not encrypted, and the vault is");
  return key;
}

/** How a user gives a key. */
export const keyRemedy: string =
  "give the private key of a certificate of the vault with `--key FILE` or TIDEMARK_KEY_FILE, or its passphrase with " +
  "TIDEMARK_PASSPHRASE_FILE; `tidemark copy` takes `--to-key` or `--to-passphrase-file` for its second vault";

function cannotRead(): TidemarkError {
  return new TidemarkError(
    "ACCESS_REFUSED",
    "this machine is enrolled to write to the encrypted vault; it can neither read back what disks hold nor change keys",
    { remedy: keyRemedy },
  );
}

/** The public half of a private key. */
export function publicHalf(key: KeyObject): KeyObject {
  return key.type === "private" ? createPublicKey(key) : key;
}
