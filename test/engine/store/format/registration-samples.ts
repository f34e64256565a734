/** One instance of each document of registration, with fixed ids and times. The key's signature is not one. */
import { toHex } from "../../../../engine/store/format/checksum.ts";
import { agentObjectName, registrationName } from "../../../../engine/store/format/names.ts";
import {
  type AgentDocument,
  decodeAgent,
  decodeRegistration,
  decodeRegistrationKey,
  encodeAgent,
  encodeRegistration,
  encodeRegistrationKey,
  type RegistrationDocument,
  type RegistrationKey,
} from "../../../../engine/store/format/registration.ts";
import { digestOf, vaultId } from "../../../engine-model.ts";

const vault = toHex(vaultId);

const registration: RegistrationDocument = { vault, publicKey: "9a".repeat(32), secret: "5e".repeat(32) };

const agent: AgentDocument = {
  vault,
  agent: "Büro 1",
  machine: toHex(digestOf(5)),
  host: "host-a",
  key: toHex(digestOf(6)),
  allowedDisks: ["web-*", "db"],
  enrolledMs: 1_790_000_000_000,
  credentialsUntilMs: 1_820_000_000_000,
  removedMs: null,
  heartbeat: { timeMs: 1_790_000_060_000, version: "1.0.0", disks: ["web-1", "db"], health: "Warning" },
};

const key: RegistrationKey = {
  vault,
  key: toHex(digestOf(6)),
  agent: "Büro 1",
  address: "https://account.blob.core.windows.net/vault",
  sas: "sv=2025-11-05&sr=c&sp=racwdl&sig=c2lnbmF0dXJl",
  credentialsUntilMs: 1_820_000_000_000,
  allowedDisks: ["web-*", "db"],
  issuedMs: 1_790_000_000_000,
  notAfterMs: 1_790_432_000_000,
  writerKey: null,
  issuer: "9a".repeat(32),
  signature: "3c".repeat(64),
};

/** The documents as the golden files and the fuzzer take them. */
export const registrationRows: readonly {
  readonly kind: string;
  readonly golden: string;
  readonly sample: object;
  readonly bytes: Uint8Array;
  readonly decode: (bytes: Uint8Array) => object;
}[] = [
  {
    kind: "registration",
    golden: "registration-v1.txt",
    sample: registration,
    bytes: encodeRegistration(registration),
    decode: (bytes) => decodeRegistration(bytes, registrationName, vault),
  },
  {
    kind: "registered agent",
    golden: "agent-v1.txt",
    sample: agent,
    bytes: encodeAgent(agent),
    decode: (bytes) => decodeAgent(bytes, agentObjectName(agent.agent), vault),
  },
  {
    kind: "registration key",
    golden: "registration-key-v1.txt",
    sample: key,
    bytes: encodeRegistrationKey(key),
    decode: (bytes) => decodeRegistrationKey(bytes, "web01.key"),
  },
];
