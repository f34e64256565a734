/**
 * Documents of registration: the vault's registration secret, the record of a registered agent, and
 * the registration key, a file that lets one machine register.
 *
 * All three are signed text. A registration key also bears an Ed25519 signature over all of its
 * other fields, as JSON in the order in which they stand here, with `signature` null.
 */
import { anyText, damaged, type Fields, hex32, hex64, nameText } from "./fields.ts";
import { agentObjectName, isDiskName } from "./names.ts";
import { decode, decodeOfVault, encode } from "./signed-text.ts";

/** Where registration keys come from. */
export interface RegistrationDocument {
  readonly vault: string;
  /** Ed25519: 64 hexadecimal digits. */
  readonly publicKey: string;
  /**
   * The private key, 64 hexadecimal digits. Null in an encrypted vault, where the vault key gives
   * it.
   */
  readonly secret: string | null;
}

const healthLevels = ["Normal", "Warning", "Critical"] as const;

/** What an agent says of itself while it runs. */
export interface Heartbeat {
  readonly timeMs: number;
  readonly version: string;
  /** Names of the disks that it protects. */
  readonly disks: readonly string[];
  /** The worst of its disks'. */
  readonly health: (typeof healthLevels)[number];
}

/** A machine that has registered. */
export interface AgentDocument {
  readonly vault: string;
  /** Friendly name. */
  readonly agent: string;
  /** 32 hexadecimal digits that its state folder holds. */
  readonly machine: string;
  /** For people. */
  readonly host: string;
  /** Id of the registration key that it has used last. */
  readonly key: string;
  /** Patterns of the disks that it may protect. */
  readonly allowedDisks: readonly string[];
  readonly enrolledMs: number;
  /** When its credentials end; null: the store takes none. */
  readonly credentialsUntilMs: number | null;
  /** When it was removed; null: it has not been. */
  readonly removedMs: number | null;
  /** Null: it has not run since it registered. */
  readonly heartbeat: Heartbeat | null;
}

/** A registration key. It is as secret as the credentials in it. */
export interface RegistrationKey {
  readonly vault: string;
  /** 32 hexadecimal digits, random. */
  readonly key: string;
  /** Friendly name of the agent that it is for. */
  readonly agent: string;
  /** The vault's address, without credentials. */
  readonly address: string;
  /** Null: the store takes none. */
  readonly sas: string | null;
  /** When the SAS ends; null: there is none, or it does not say. */
  readonly credentialsUntilMs: number | null;
  readonly allowedDisks: readonly string[];
  readonly issuedMs: number;
  /** No machine can register after this. */
  readonly notAfterMs: number;
  /** Writer key of an encrypted vault, in base64; null: the vault is not encrypted. */
  readonly writerKey: string | null;
  /** Public key that the signature was made for: 64 hexadecimal digits. */
  readonly issuer: string;
  /** 128 hexadecimal digits. */
  readonly signature: string;
}

export const allowedDisksMax = 64;
/** A name of a disk, in which `*` stands for any characters. */
export const diskPattern: RegExp = /^[^\p{Cc}]{1,80}$/u;
const agentDisksMax = 10_000;
const hex128 = /^[0-9a-f]{128}$/;
const addressText = /^[^\p{Cc}]{1,4096}$/u;
const base64Text = /^[A-Za-z0-9+/]{1,1000000}={0,2}$/;

export function encodeRegistration(document: RegistrationDocument): Uint8Array {
  return encode("registration", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeRegistration(bytes: Uint8Array, object: string, vault: string): RegistrationDocument {
  const { fields } = decodeOfVault("registration", bytes, object, vault);
  return { vault, publicKey: fields.text("publicKey", hex64), secret: fields.textOrNull("secret", hex64) };
}

export function encodeAgent(document: AgentDocument): Uint8Array {
  return encode("agent", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeAgent(bytes: Uint8Array, object: string, vault: string): AgentDocument {
  const { fields } = decodeOfVault("agent", bytes, object, vault);
  const document: AgentDocument = {
    vault,
    agent: fields.text("agent", { test: isDiskName }),
    machine: fields.text("machine", hex32),
    host: fields.text("host", anyText),
    key: fields.text("key", hex32),
    allowedDisks: fields.texts("allowedDisks", allowedDisksMax, diskPattern),
    enrolledMs: fields.time("enrolledMs"),
    credentialsUntilMs: fields.timeOrNull("credentialsUntilMs"),
    removedMs: fields.timeOrNull("removedMs"),
    heartbeat: fields.nestedOrNull("heartbeat", readHeartbeat),
  };
  if (object !== agentObjectName(document.agent)) throw damaged(object, "it is the record of another agent");
  return document;
}

function readHeartbeat(fields: Fields): Heartbeat {
  return {
    timeMs: fields.time("timeMs"),
    version: fields.text("version", nameText),
    disks: fields.texts("disks", agentDisksMax, anyText),
    health: fields.oneOf("health", healthLevels),
  };
}

export function encodeRegistrationKey(key: RegistrationKey): Uint8Array {
  return encode("key", key).bytes;
}

/** What the signature of a key covers. */
export function signedText(key: Omit<RegistrationKey, "signature">): Uint8Array {
  return Buffer.from(`tidemark/1 registration key\n${JSON.stringify({ ...key, signature: null })}`);
}

/** The signature is not checked. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeRegistrationKey(bytes: Uint8Array, file: string): RegistrationKey {
  const { fields } = decode("key", bytes, file);
  return {
    vault: fields.text("vault", hex32),
    key: fields.text("key", hex32),
    agent: fields.text("agent", { test: isDiskName }),
    address: fields.text("address", addressText),
    sas: fields.textOrNull("sas", addressText),
    credentialsUntilMs: fields.timeOrNull("credentialsUntilMs"),
    allowedDisks: fields.texts("allowedDisks", allowedDisksMax, diskPattern),
    issuedMs: fields.time("issuedMs"),
    notAfterMs: fields.time("notAfterMs"),
    writerKey: fields.textOrNull("writerKey", base64Text),
    issuer: fields.text("issuer", hex64),
    signature: fields.text("signature", hex128),
  };
}
