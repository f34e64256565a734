/**
 * Registration of source machines: an operator issues a registration key, one machine registers with
 * it, and its agent reports with heartbeats.
 *
 *     issue:     registration secret (made at the first key) → key, signed
 *     register:  key signed for this vault, in time → record `agents/<name>`, swapped by ETag
 *     heartbeat: record, if it still names this machine, swapped by ETag at most once a minute
 *     remove:    record with `removedMs`, so that no key that was issued before it works
 *
 * The registration secret is an Ed25519 private key. In an encrypted vault it is derived from the
 * newest vault key, so only a recipient can issue keys, and a rotation voids unused ones. In any
 * other vault it lies in the vault, because there every party that reads the store is trusted alike.
 *
 * Invariant: at most one machine is registered under a name. Of two that register at once, the swap
 * decides.
 *
 * Times are those of the store's clock, as far as it is known, because machines' clocks differ.
 */
import { randomBytes } from "node:crypto";
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode, TidemarkError } from "../../errors.ts";
import type { NoticeOptions } from "../../notice.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { CallOptions, Sink } from "../../sink.ts";
import { fromHex, toHex } from "../../store/format/checksum.ts";
import { agentObjectName, agentsPrefix, isDiskName, registrationName } from "../../store/format/names.ts";
import {
  type AgentDocument,
  allowedDisksMax,
  decodeAgent,
  decodeRegistration,
  diskPattern,
  encodeAgent,
  encodeRegistration,
  type Heartbeat,
  type RegistrationDocument,
  type RegistrationKey,
} from "../../store/format/registration.ts";
import { derive } from "../../store/keys/vault-keys.ts";
import { encodeWriterKey } from "../../store/keys/writer-key.ts";
import { readIdentity } from "../../store/points/identity.ts";
import { changeShared, type FoundDocument, readShared, type SharedDocument } from "../../store/shared-document.ts";
import { Store } from "../../store/store.ts";
import { registrationTiming } from "../../timing.ts";
import { tidemarkVersion } from "../../version.ts";
import { issuerOf, signKey } from "./registration-key.ts";

export interface IssueKeyOptions extends CallOptions {
  /** Friendly name of the agent. */
  readonly agent: string;
  /** Names of disks, in which `*` stands for any characters. */
  readonly allowedDisks: readonly string[];
  /** For how many days a machine can register with the key, 1 to 90. Default: 5. */
  readonly days?: number | undefined;
  /** Where the machine finds the vault, without credentials. */
  readonly address: string;
  /** What opens the store for it, and until when (ms since 1970). */
  readonly sas?: string | undefined;
  readonly credentialsUntilMs?: number | undefined;
}

export interface RegisterOptions extends CallOptions {
  /** Id of the machine: 32 hexadecimal digits. */
  readonly machine: string;
  readonly host: string;
  /** The machine is registered already, and has new credentials from now on. */
  readonly isRenewal?: boolean | undefined;
}

/** A registered agent. Times are ISO 8601 in UTC. */
export interface RegisteredAgent {
  /** Friendly name. */
  readonly agent: string;
  readonly host: string;
  /** 32 hexadecimal digits. */
  readonly machine: string;
  /** Version of Tidemark that it runs; null: it has not run yet. */
  readonly version: string | null;
  /** Names of the disks that it protects. */
  readonly disks: readonly string[];
  /** Patterns of the disks that it may protect. */
  readonly allowedDisks: readonly string[];
  readonly registered: string;
  /** Its last heartbeat; null: none yet. */
  readonly lastSeen: string | null;
  readonly lastSeenAgeMs: number | null;
  /** When its credentials end; null: the store takes none, or they do not say. */
  readonly credentialsUntil: string | null;
  readonly health: "Normal" | "Warning" | "Critical";
  /** Why it is not Normal; null where it is, and where the agent's own status tells it. */
  readonly cause: string | null;
}

const dayMs = 86_400_000;
/** For how many days a machine can register with a key. */
const [daysDefault, daysMax] = [5, 90] as const;
const readsAtOnce = 8;

/** Registered agents of a vault: see `Vault.agents`. */
export class Agents {
  readonly #context: VaultContext;
  readonly #run: <Result>(start: () => Promise<Result>) => Promise<Result>;

  /** @internal */
  constructor(context: VaultContext, run: <Result>(start: () => Promise<Result>) => Promise<Result>) {
    this.#context = context;
    this.#run = run;
  }

  /**
   * Makes a registration key for one machine. Its bytes are secret.
   *
   * @throws `INVALID_ARGUMENT`; `ACCESS_REFUSED` in an encrypted vault, on a machine that can only
   * write; the store's errors.
   */
  async issueKey(options: IssueKeyOptions): Promise<{ readonly key: RegistrationKey; readonly bytes: Uint8Array }> {
    checkIssue(options);
    return await this.#run(async () => {
      const { keys } = this.#store();
      const secret = await this.#secret(options);
      const before = await this.#find(options.agent, options);
      // The store's clock ticks in seconds: the key must be younger than a removal that came before it.
      const issuedMs = Math.max(this.#nowMs(), (before.document?.removedMs ?? 0) + 1);
      return signKey(secret, {
        vault: this.#vault,
        key: toHex(randomBytes(16)),
        agent: options.agent.normalize("NFC"),
        address: options.address,
        sas: options.sas ?? null,
        credentialsUntilMs: options.credentialsUntilMs ?? null,
        allowedDisks: options.allowedDisks.map((pattern) => pattern.normalize("NFC")),
        issuedMs,
        notAfterMs: issuedMs + (options.days ?? daysDefault) * dayMs,
        writerKey: keys === undefined ? null : Buffer.from(encodeWriterKey(keys)).toString("base64"),
      });
    });
  }

  /**
   * Registers a machine with a key that `readRegistrationKey` has read. To do so again with the same
   * key changes nothing.
   *
   * @throws `KEY_FOREIGN`, `KEY_EXPIRED`, `KEY_USED`; `AGENT_REMOVED` for a key that is older than the
   * removal of its agent; `INVALID_ARGUMENT` where `isRenewal` does not fit; the store's errors.
   */
  async register(key: RegistrationKey, options: RegisterOptions): Promise<RegisteredAgent> {
    return await this.#run(async () => {
      await this.#checkIssuer(key, options);
      const nowMs = this.#nowMs();
      if (nowMs > key.notAfterMs)
        throw new TidemarkError(
          "KEY_EXPIRED",
          `the registration key for ${key.agent} was valid until ${iso(key.notAfterMs)}`,
        );
      return await this.#change(key.agent, options, ({ document: before }) => {
        refuseKey(key, before, options);
        const isKnown = before?.removedMs === null;
        return {
          vault: this.#vault,
          agent: key.agent,
          machine: options.machine,
          host: options.host.slice(0, 100),
          key: key.key,
          allowedDisks: key.allowedDisks,
          enrolledMs: isKnown ? before.enrolledMs : nowMs,
          credentialsUntilMs: key.credentialsUntilMs,
          removedMs: null,
          heartbeat: isKnown ? before.heartbeat : null,
        };
      });
    });
  }

  /**
   * Tells that the agent of this machine runs, at most once a minute.
   *
   * @throws `AGENT_REMOVED`; the store's errors.
   */
  async heartbeat(
    agent: string,
    machine: string,
    about: Pick<Heartbeat, "disks" | "health">,
    options: CallOptions = {},
  ): Promise<void> {
    await this.#run(async () => {
      await this.#change(agent, options, ({ document: before, damage }) => {
        if (damage !== undefined) throw damage;
        if (before?.removedMs !== null || before.machine !== machine)
          throw new TidemarkError(
            "AGENT_REMOVED",
            `the vault does not list the agent ${agent} of this machine any more`,
            {
              remedy:
                "make a new key with `tidemark vault key`, and run `tidemark agent register --key FILE` on this machine",
            },
          );
        const timeMs = this.#nowMs();
        const sinceMs = timeMs - (before.heartbeat?.timeMs ?? 0);
        // A time in the future was written by a wrong clock.
        if (sinceMs >= 0 && sinceMs < registrationTiming.heartbeatEveryMs) return before;
        return { ...before, heartbeat: { timeMs, version: tidemarkVersion, ...about } };
      });
    });
  }

  /**
   * The registered agents, by name. A record that cannot be read is told of with AGENT_DAMAGED, and
   * left out. Throws the store's errors.
   */
  async list(options: NoticeOptions = {}): Promise<RegisteredAgent[]> {
    return await this.#run(async () => {
      const names: string[] = [];
      for await (const { name } of this.#store().list(agentsPrefix, options)) names.push(name);
      const found: AgentDocument[] = [];
      await forEachAtOnce(names, readsAtOnce, async (name) => {
        const { document, damage } = await readShared(this.#store(), this.#record(name), options);
        if (document?.removedMs === null) found.push(document);
        if (damage === undefined) return;
        const message = `${damage.message}; register the machine again, with a new key`;
        options.onNotice?.({ code: "AGENT_DAMAGED", message });
      });
      const nowMs = this.#nowMs();
      return found.map((document) => summaryOf(document, nowMs)).sort((a, b) => (a.agent < b.agent ? -1 : 1));
    });
  }

  /** One agent. Throws `INVALID_ARGUMENT` if there is none of that name; `DAMAGED`; the store's errors. */
  async show(agent: string, options: CallOptions = {}): Promise<RegisteredAgent> {
    return await this.#run(async () => {
      const { document, damage } = await this.#find(agent, options);
      if (document?.removedMs !== null) throw damage ?? unknownAgent(agent);
      return summaryOf(document, this.#nowMs());
    });
  }

  /**
   * Removes an agent: it replicates no more, and no key that was issued before works. Its
   * credentials go on opening the store until they end.
   *
   * @throws `INVALID_ARGUMENT` if there is none of that name; the store's errors.
   */
  async remove(agent: string, options: CallOptions = {}): Promise<RegisteredAgent> {
    return await this.#run(
      async () =>
        await this.#change(agent, options, ({ document: before, damage }) => {
          if (before?.removedMs !== null) throw damage ?? unknownAgent(agent);
          return { ...before, removedMs: this.#nowMs() };
        }),
    );
  }

  get #vault(): string {
    return this.#context.document.vault;
  }

  #store(): Store {
    return new Store(this.#context.sink);
  }

  #nowMs(): number {
    return Math.round(Date.now() - this.#context.sink.clockAheadMs);
  }

  async #find(agent: string, options: CallOptions): Promise<FoundDocument<AgentDocument>> {
    return await readShared(this.#store(), this.#record(nameOf(agent)), options);
  }

  async #findRegistration(options: CallOptions): Promise<FoundDocument<RegistrationDocument>> {
    const decode = (bytes: Uint8Array): RegistrationDocument =>
      decodeRegistration(bytes, registrationName, this.#vault);
    return await readShared(this.#store(), { name: registrationName, decode }, options);
  }

  #record(name: string): SharedDocument<AgentDocument> {
    return { name, decode: (bytes) => decodeAgent(bytes, name, this.#vault), encode: encodeAgent };
  }

  /** Swaps an agent's record, unless `change` gives back what it was given. */
  async #change(
    agent: string,
    options: CallOptions,
    change: (found: FoundDocument<AgentDocument>) => AgentDocument,
  ): Promise<RegisteredAgent> {
    const document = await changeShared(this.#store(), this.#record(nameOf(agent)), change, options);
    return summaryOf(document, this.#nowMs());
  }

  /** The registration secret, which the vault knows the public half of from then on. */
  async #secret(options: CallOptions): Promise<Uint8Array> {
    const store = this.#store();
    for (let attempt = 0; ; attempt += 1) {
      const found = await this.#findRegistration(options);
      const kept = found.document?.secret;
      const secret =
        store.keys === undefined
          ? kept === null || kept === undefined
            ? randomBytes(32)
            : fromHex(kept)
          : derive(store.keys.vaultKey, store.keys.vaultId, "registration key");
      const publicKey = issuerOf(secret);
      if (found.document?.publicKey === publicKey) return secret;
      const document = { vault: this.#vault, publicKey, secret: store.keys === undefined ? toHex(secret) : null };
      try {
        await store.replace(registrationName, encodeRegistration(document), found.etag, options);
        return secret;
      } catch (error) {
        // Another operator has issued the first key meanwhile.
        if (!hasCode(error, "CONDITION_FAILED") || attempt > 0) throw error;
      }
    }
  }

  async #checkIssuer(key: RegistrationKey, options: CallOptions): Promise<void> {
    refuseVault(key, this.#vault, this.#context.sink.description);
    const { document } = await this.#findRegistration(options);
    if (document?.publicKey !== key.issuer)
      throw new TidemarkError(
        "KEY_FOREIGN",
        "the registration key was not signed with the vault's registration secret",
      );
  }
}

/**
 * Refuses a key for another vault than the one in the store, which need not be opened for that.
 *
 * @throws `KEY_FOREIGN`; `VAULT_NOT_FOUND`; the store's errors.
 */
export async function refuseForeignVault(key: RegistrationKey, sink: Sink, options: CallOptions = {}): Promise<void> {
  const { document } = await readIdentity(new Store(sink), options.signal);
  refuseVault(key, document.vault, sink.description);
}

function refuseVault(key: RegistrationKey, vault: string, description: string): void {
  if (key.vault === vault) return;
  throw new TidemarkError(
    "KEY_FOREIGN",
    `the registration key is for the vault ${key.vault}, and ${description} holds the vault ${vault}`,
  );
}

function refuseKey(
  { agent, key, issuedMs }: RegistrationKey,
  before: AgentDocument | undefined,
  { machine, isRenewal = false }: RegisterOptions,
): void {
  const removedMs = before?.removedMs ?? null;
  if (removedMs !== null && (issuedMs <= removedMs || before?.key === key))
    throw new TidemarkError("AGENT_REMOVED", `the agent ${agent} was removed after this key had been issued`);
  const isRegistered = before?.removedMs === null;
  if (isRegistered && before.machine !== machine)
    throw new TidemarkError(
      "KEY_USED",
      `the machine ${before.machine} (${before.host}) is registered as ${agent}, and this machine is ${machine}`,
    );
  if (isRegistered && before.key !== key && !isRenewal)
    throw new TidemarkError("INVALID_ARGUMENT", `this machine is registered as ${agent} with another key`, {
      remedy: "add `--renew` to give it new credentials",
    });
  if (!isRegistered && isRenewal)
    throw new TidemarkError("INVALID_ARGUMENT", `this machine is not registered as ${agent}`, {
      remedy: "run the command without `--renew`",
    });
}

function checkIssue({ agent, allowedDisks, days = daysDefault }: IssueKeyOptions): void {
  nameOf(agent);
  const wrong = allowedDisks.find((pattern) => !diskPattern.test(pattern));
  if (wrong !== undefined || allowedDisks.length === 0 || allowedDisks.length > allowedDisksMax) {
    const what = wrong === undefined ? `${allowedDisks.length} patterns of disks` : JSON.stringify(wrong);
    throw new TidemarkError("INVALID_ARGUMENT", `a registration key cannot allow ${what}`, {
      remedy: `give 1 to ${String(allowedDisksMax)} names of disks, such as 'web-*', of at most 80 characters`,
    });
  }
  if (!Number.isInteger(days) || days < 1 || days > daysMax)
    throw new TidemarkError("INVALID_ARGUMENT", `a registration key cannot be valid for ${String(days)} days`, {
      remedy: `give 1 to ${String(daysMax)} days`,
    });
}

function nameOf(agent: string): string {
  if (isDiskName(agent.normalize("NFC"))) return agentObjectName(agent);
  throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(agent)} is no name for an agent`, {
    remedy: "use 1 to 80 bytes of UTF-8 without control characters",
  });
}

function unknownAgent(agent: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `the vault has no agent ${JSON.stringify(agent)}`, {
    remedy: "`tidemark agents list` shows the agents",
  });
}

/** The health of an agent: what it said, unless it is silent or its credentials end. */
function summaryOf(document: AgentDocument, nowMs: number): RegisteredAgent {
  const { heartbeat, enrolledMs, credentialsUntilMs } = document;
  const silentMs = nowMs - (heartbeat?.timeMs ?? enrolledMs);
  const leftMs = (credentialsUntilMs ?? Number.POSITIVE_INFINITY) - nowMs;
  let [health, cause]: [RegisteredAgent["health"], string | null] = [heartbeat?.health ?? "Normal", null];
  if (leftMs < registrationTiming.credentialsWarningMs) {
    cause = `its credentials ${leftMs > 0 ? "end" : "ended"} at ${iso(credentialsUntilMs ?? 0)}`;
    if (health === "Normal" || leftMs <= 0) health = leftMs > 0 ? "Warning" : "Critical";
  }
  if (silentMs > registrationTiming.unseenCriticalMs)
    [health, cause] = ["Critical", `not seen for ${String(Math.floor(silentMs / 60_000))} minutes`];
  return {
    agent: document.agent,
    host: document.host,
    machine: document.machine,
    version: heartbeat?.version ?? null,
    disks: heartbeat?.disks ?? [],
    allowedDisks: document.allowedDisks,
    registered: iso(enrolledMs),
    lastSeen: heartbeat === null ? null : iso(heartbeat.timeMs),
    lastSeenAgeMs: heartbeat === null ? null : Math.max(0, nowMs - heartbeat.timeMs),
    credentialsUntil: credentialsUntilMs === null ? null : iso(credentialsUntilMs),
    health,
    cause,
  };
}

function iso(timeMs: number): string {
  return new Date(timeMs).toISOString();
}
