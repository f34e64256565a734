/**
 * Key management of an encrypted vault: recipients, rotation of the vault key, enrollment of writers.
 *
 * Recipients and generations stand in `vault.json`, so to add or remove a recipient rewraps one key,
 * and no data is read or written. A rotation makes a new vault key for what is written from then on;
 * the key before it is sealed under the new one, so the new one opens everything. A recipient that was
 * removed may have kept the vault key: only what is written after a rotation is closed to it.
 *
 * Invariant: `vault.json` is replaced by ETag and before its copy, and each change counts its
 * revision up. The older one of the two is the one that a repair replaces.
 */
import { randomBytes } from "node:crypto";
import { documentCopy, keepWriterKey } from "../../disk/source/local-state.ts";
import { TidemarkError } from "../../errors.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { CallOptions } from "../../sink.ts";
import { fromHex } from "../../store/format/checksum.ts";
import { decodeVault, documentBytesMax, encodeVault } from "../../store/format/documents.ts";
import { vaultCopyName, vaultName } from "../../store/format/names.ts";
import { type EncryptedDocument, isEncrypted, type Recipient } from "../../store/format/vault-document.ts";
import { type NewRecipients, recipientsOf, rewrap, wrapFor } from "../../store/keys/recipients.ts";
import { authenticated } from "../../store/keys/unlock.ts";
import { generationsFrom, newGeneration, type VaultKeys, vaultKeyBytes } from "../../store/keys/vault-keys.ts";
import { encodeWriterKey } from "../../store/keys/writer-key.ts";
import { Store } from "../../store/store.ts";

export type { NewRecipients } from "../../store/keys/recipients.ts";

/** A key or passphrase that opens the vault. */
export interface RecipientSummary {
  /** 32 hexadecimal digits: checksum of the public key. */
  readonly id: string;
  readonly kind: "certificate" | "passphrase";
  readonly name: string;
  /** ISO 8601 in UTC. */
  readonly added: string;
}

/** The keys of a vault. */
export interface KeysSummary {
  readonly vault: string;
  /** 64 hexadecimal digits that name the newest vault key: the public half of its reading key. */
  readonly fingerprint: string;
  /** How many vault keys there have been. */
  readonly generation: number;
  readonly recipients: readonly RecipientSummary[];
}

export interface EnrollSummary {
  readonly vault: string;
  /** The file that was written. It is secret. */
  readonly file: string;
  readonly generation: number;
}

/** What a vault's recipients become. */
interface Change {
  readonly document: EncryptedDocument;
  /** The newest vault key after the change. */
  readonly vaultKey: Uint8Array;
}

/** The keys of an encrypted vault: see `Vault.keys`. */
export class Keyring {
  readonly #context: VaultContext;
  readonly #run: <Result>(start: () => Promise<Result>) => Promise<Result>;

  /** @internal */
  constructor(context: VaultContext, run: <Result>(start: () => Promise<Result>) => Promise<Result>) {
    this.#context = context;
    this.#run = run;
  }

  /** The vault's recipients. Throws `INVALID_ARGUMENT` if it is not encrypted, and the store's errors. */
  async list(options: CallOptions = {}): Promise<KeysSummary> {
    return await this.#run(async () => summaryOf((await this.#read(options)).document));
  }

  /**
   * Adds certificates or public keys in PEM, or a passphrase.
   *
   * @throws `INVALID_ARGUMENT`; `ACCESS_REFUSED` on a machine that can only write; the store's errors.
   */
  async add(added: NewRecipients, options: CallOptions = {}): Promise<KeysSummary> {
    const recipients = await recipientsOf(added);
    return await this.#change(options, ({ document, vaultKey }) => {
      const nowMs = Date.now();
      const wrapped = recipients.map((recipient) => wrapFor(recipient, document.vault, vaultKey, nowMs));
      const others = document.encryption.recipients.filter(({ id }) => !wrapped.some((one) => one.id === id));
      return { document: withRecipients(document, [...others, ...wrapped]), vaultKey };
    });
  }

  /**
   * Removes a recipient, by id or name. Rotate the vault key too.
   *
   * @throws `INVALID_ARGUMENT` when there is no such recipient, or no other; as `add`.
   */
  async remove(selector: string, options: CallOptions = {}): Promise<KeysSummary> {
    return await this.#change(options, ({ document, vaultKey }) => {
      const { recipients } = document.encryption;
      const removed = recipients.filter(({ id, name }) => id === selector || name === selector);
      const [recipient] = removed;
      if (recipient === undefined || removed.length > 1)
        throw new TidemarkError(
          "INVALID_ARGUMENT",
          `${JSON.stringify(selector)} names ${removed.length === 0 ? "no recipient" : "several recipients"} of the vault`,
          { remedy: "run `tidemark vault keys list`, and give an id that it shows" },
        );
      const kept = recipients.filter(({ id }) => id !== recipient.id);
      if (kept.length === 0)
        throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(recipient.name)} is the vault's only recipient`, {
          remedy: "add another one first with `tidemark vault keys add`",
        });
      return { document: withRecipients(document, kept), vaultKey };
    });
  }

  /**
   * Begins a new vault key for what is written from then on. Machines that only write have to be
   * enrolled again. Throws as `add`.
   */
  async rotate(options: CallOptions = {}): Promise<KeysSummary> {
    return await this.#change(options, ({ document, vaultKey }) => {
      const next = randomBytes(vaultKeyBytes);
      const { generations, recipients } = document.encryption;
      const rewrapped = recipients.map((recipient) => rewrap(recipient, document.vault, next));
      const encryption = {
        ...document.encryption,
        generations: [...generations, newGeneration(fromHex(document.vault), next, vaultKey)],
      };
      return { document: withRecipients({ ...document, encryption }, rewrapped), vaultKey: next };
    });
  }

  /**
   * Enrolls this machine to write: its state folder then holds what it takes to write and prune,
   * and not to read back.
   *
   * @throws `INVALID_ARGUMENT` without a state folder; as `add`.
   */
  async enroll(): Promise<EnrollSummary> {
    return await this.#run(async () => {
      const keys = this.#keys();
      const { stateFolder, document } = this.#context;
      if (stateFolder === undefined)
        throw new TidemarkError("INVALID_ARGUMENT", "a machine without a state folder cannot be enrolled", {
          remedy: "add `--state DIR`",
        });
      const file = await keepWriterKey(stateFolder, document.vault, encodeWriterKey(keys));
      return { vault: document.vault, file, generation: keys.generation };
    });
  }

  #keys(): VaultKeys {
    const { keys } = new Store(this.#context.sink);
    if (keys !== undefined) return keys;
    throw new TidemarkError("INVALID_ARGUMENT", `the vault ${this.#context.document.vault} is not encrypted`, {
      remedy: "create an encrypted vault with `tidemark vault init --encrypt`, and replicate to it",
    });
  }

  async #read(options: CallOptions): Promise<{ readonly document: EncryptedDocument; readonly etag: string }> {
    const keys = this.#keys();
    const { bytes, etag } = await new Store(this.#context.sink).get(vaultName, documentBytesMax, options);
    const document = decodeVault(bytes, vaultName);
    if (!isEncrypted(document))
      throw new TidemarkError("DAMAGED", "vault.json is not the encrypted vault's any more", {
        remedy: "run `tidemark vault repair`",
      });
    await keys.renewed(document.encryption.generations.length);
    keys.check(document);
    return { document, etag };
  }

  async #change(options: CallOptions, change: (before: Change) => Change): Promise<KeysSummary> {
    return await this.#run(async () => {
      const { sink, stateFolder } = this.#context;
      const store = new Store(sink);
      const { document: before, etag } = await this.#read(options);
      const { document, vaultKey } = change({ document: before, vaultKey: this.#keys().vaultKey });
      const { revision } = before.encryption;
      const changed = { ...document, encryption: { ...document.encryption, revision: revision + 1 } };
      const bytes = encodeVault(authenticated(changed, vaultKey));
      await store.replace(vaultName, bytes, etag, options);
      await store.replace(vaultCopyName, bytes, await store.etagOf(vaultCopyName, options), options);
      await documentCopy(stateFolder, sink.description).keep(bytes);
      this.#keys().adopt({ generations: generationsFrom(vaultKey, document) });
      return summaryOf(changed);
    });
  }
}

function withRecipients(document: EncryptedDocument, recipients: readonly Recipient[]): EncryptedDocument {
  return { ...document, encryption: { ...document.encryption, recipients } };
}

function summaryOf({ vault, encryption }: EncryptedDocument): KeysSummary {
  return {
    vault,
    fingerprint: encryption.generations.at(-1)?.readingKey ?? "",
    generation: encryption.generations.length,
    recipients: encryption.recipients.map(({ id, kind, name, addedMs }) => ({
      id,
      kind,
      name,
      added: new Date(addedMs).toISOString(),
    })),
  };
}
