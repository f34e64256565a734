/**
 * Error translation of Azure Storage: status codes, storage error codes and network codes become
 * TidemarkErrors here and nowhere else.
 *
 * A failed request is first classified; the class decides whether it may be sent again:
 *
 *     refused     the server has given a final answer: throw the error
 *     undone      it was certainly not executed (no connection, 408, 429, 503): send any call again
 *     uncertain   it was executed perhaps, or will be (500, reset, time-out): send only idempotent
 *                 calls again
 *
 * "A definite outcome is only a status of 100 to 499 or 503" is Azure's own rule (Put Page, "Using
 * the Page Blob Sequence Number to Retry Requests").
 *
 * Invariant: no error of the SDK leaves this file, because it carries the signed URL and the
 * request's headers. The cause of a translated error is a plain Error with the beginning of the
 * message, without secrets. What the store or a proxy chose is bounded in length and alphabet
 * before it becomes part of a message.
 */
import { AssertionError } from "node:assert";
import { RestError } from "@azure/storage-blob";
import { type ErrorCode, TidemarkError } from "../engine/index.ts";
import type { SasFacts } from "./sas.ts";

export type Verdict =
  | { readonly kind: "refused"; readonly error: TidemarkError }
  | {
      readonly kind: "undone";
      readonly fact: string;
      readonly lostConnection: boolean;
      readonly retryAfterMs: number | undefined;
      readonly cause: Error;
    }
  | { readonly kind: "uncertain"; readonly fact: string; readonly lostConnection: boolean; readonly cause: Error };

/** What storage error codes mean to one kind of call. */
export type ErrorMeanings = Readonly<Record<string, ErrorCode>>;

/** What a call states about itself for the translation of its errors. */
export interface CallSubject {
  /** The action, as it reads after "could not": `write 4 MiB at 0 of segments/a/1-0-0`. */
  readonly action: string;
  /** The object's name; undefined for calls on the container. */
  readonly name: string | undefined;
  /** The right that a SAS needs for it. */
  readonly right: SasRight;
  /** Storage error codes that mean something particular to this call. */
  readonly codes?: ErrorMeanings | undefined;
  /** Whether the store verifies the body by a checksum; one that does not match was not executed. */
  readonly isChecksummed?: boolean | undefined;
}

/** Facts about the store: its name for messages, and the secrets to keep out of them. */
export interface StoreFacts {
  readonly description: string;
  readonly host: string;
  /** How requests are authenticated. */
  readonly access: "key" | "sas" | "token";
  /** Strings that must never appear in a message: keys, signatures, passwords. */
  readonly secrets: readonly string[];
  /** What the SAS in use says of itself. */
  readonly sas: SasFacts | undefined;
  /** The proxy that requests go through, without its password. */
  readonly proxy: string | undefined;
}

/** A right of a SAS, by what a call does. */
type SasRight = "read" | "create" | "write" | "delete" | "list" | "create-container";

/** The letters of `sp=` that give a right; any of them is enough. */
const rightLetters: Readonly<Record<SasRight, string>> = {
  read: "r",
  create: "cw",
  write: "w",
  delete: "d",
  list: "l",
  "create-container": "cw",
};

// What storage error codes mean to a call …

/** … that creates. */
export const existsCodes: ErrorMeanings = {
  BlobAlreadyExists: "OBJECT_EXISTS",
  ConditionNotMet: "OBJECT_EXISTS",
  UnauthorizedBlobOverwrite: "OBJECT_EXISTS",
};

/** … that replaces an object it has read. An absent object does not match either. */
export const changedCodes: ErrorMeanings = { ConditionNotMet: "CONDITION_FAILED", BlobNotFound: "CONDITION_FAILED" };

/** … that relies on a lease. */
export const leaseCodes: ErrorMeanings = {
  LeaseIdMissing: "LEASE_LOST",
  LeaseIdMismatchWithBlobOperation: "LEASE_LOST",
  LeaseIdMismatchWithLeaseOperation: "LEASE_LOST",
  LeaseIsBreakingAndCannotBeChanged: "LEASE_LOST",
  LeaseIsBrokenAndCannotBeRenewed: "LEASE_LOST",
  LeaseLost: "LEASE_LOST",
  LeaseNotPresentWithBlobOperation: "LEASE_LOST",
  LeaseNotPresentWithLeaseOperation: "LEASE_LOST",
};

/** … that writes pages under a fence. */
export const fenceCodes: ErrorMeanings = {
  ConditionNotMet: "CONDITION_FAILED",
  SequenceNumberConditionNotMet: "CONDITION_FAILED",
  LeaseIdMissing: "LEASE_LOST",
};

type Refusal = readonly [to: ErrorCode, fact: string, remedy: string];

const immutable: Refusal = [
  "ACCESS_REFUSED",
  "an immutability policy or a legal hold forbids changes",
  "use a container without one: `tidemark copy` copies the points there",
];

/** A blob that takes no change, because of what another program or a rule of the account has done to it. */
const refusals: ReadonlyMap<string, Refusal> = new Map<string, Refusal>(
  Object.entries({
    SnapshotsPresent: [
      "STORE_REFUSED",
      "it has snapshots, which Tidemark does not make",
      "delete them with `az storage blob delete --delete-snapshots only`, and stop what makes them",
    ],
    BlobImmutableDueToPolicy: immutable,
    BlobImmutableDueToLegalHold: immutable,
    BlobArchived: [
      "STORE_REFUSED",
      "it is in the archive tier",
      "bring it back with `az storage blob set-tier --tier Hot`, and exclude the container from the rule that archives",
    ],
    LeaseIdMissing: [
      "LEASE_HELD",
      "another holder has its lease",
      "end what uses it; if nothing does, run `az storage blob lease break`",
    ],
  }),
);

/** Azure refuses signed requests when the clocks differ by more than this. */
const clockSkewMsMax = 15 * 60_000;

/** The body of a request is not what its checksum says. Azurite has no code of its own for that. */
const mismatchCodes: ReadonlySet<string> = new Set(["Md5Mismatch", "InvalidOperation"]);

/** No connection was made, so nothing was sent. */
const unconnectedCodes: ReadonlySet<string> = new Set(["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN"]);

/** Failures of trust, not of the network: a retry fails too. */
const tlsCodes: ReadonlySet<string> = new Set([
  "CERT_HAS_EXPIRED",
  "CERT_NOT_YET_VALID",
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "ERR_TLS_CERT_ALTNAME_INVALID",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
]);

/** The first answer of the peer is no record of TLS: the port serves another protocol. */
const notTlsCodes: ReadonlySet<string> = new Set([
  "EPROTO",
  "ERR_SSL_PACKET_LENGTH_TOO_LONG",
  "ERR_SSL_WRONG_VERSION_NUMBER",
]);

const credentialErrorNames: ReadonlySet<string> = new Set([
  "AggregateAuthenticationError",
  "AuthenticationError",
  "AuthenticationRequiredError",
  "CredentialUnavailableError",
]);

/**
 * Classifies what a request threw. The caller handles time-outs and aborts, which it set itself.
 */
export function judge(thrown: unknown, subject: CallSubject, store: StoreFacts): Verdict {
  const cause = scrubbedCause(thrown, store);
  if (thrown instanceof TidemarkError) return { kind: "refused", error: thrown };
  if (thrown instanceof Error && credentialErrorNames.has(thrown.name))
    return { kind: "refused", error: credentialMissing(subject, store, cause) };
  if (thrown instanceof TypeError || thrown instanceof RangeError || thrown instanceof AssertionError) throw thrown;
  if (!(thrown instanceof RestError))
    return { kind: "uncertain", fact: "the answer broke off", lostConnection: true, cause };
  const status = thrown.statusCode;
  if (status === undefined || status < 400) return judgeConnection(thrown.code ?? "", subject, store, cause);
  if (store.proxy !== undefined && thrown.response?.headers.get("x-ms-request-id") === undefined)
    return judgeProxy(status, store.proxy, thrown, subject, store, cause);
  const retryAfterMs = retryAfter(thrown);
  const code = storageErrorCode(thrown);
  const isDamagedOnItsWay = status === 400 && subject.isChecksummed === true && mismatchCodes.has(code);
  if (status === 503 || status === 429 || status === 408 || code === "ContainerBeingDeleted" || isDamagedOnItsWay) {
    return {
      kind: "undone",
      fact: `the server answered ${String(status)} ${code}`,
      lostConnection: false,
      retryAfterMs,
      cause,
    };
  }
  if (status >= 500 && status !== 501 && status !== 507) {
    return { kind: "uncertain", fact: `the server answered ${String(status)} ${code}`, lostConnection: false, cause };
  }
  return { kind: "refused", error: refusal(status, code, thrown, subject, store, cause) };
}

/** The error for a write that may or may not have been executed. */
export function outcomeUnknown(
  subject: CallSubject,
  store: StoreFacts,
  fact: string,
  cause: Error | undefined,
): TidemarkError {
  return new TidemarkError(
    "OUTCOME_UNKNOWN",
    `it is unknown whether the attempt to ${subject.action} in ${store.description} took effect: ${fact}`,
    {
      remedy: "run the command again; it reads what the store holds",
      detail: { host: store.host, name: subject.name },
      cause,
    },
  );
}

/** The error for a store that could not be reached for as long as an outage is tolerated. */
export function unreachable(
  subject: CallSubject,
  store: StoreFacts,
  fact: string,
  waitedMs: number,
  cause: Error | undefined,
): TidemarkError {
  return new TidemarkError("STORE_UNREACHABLE", `could not ${subject.action} in ${store.description}: ${fact}`, {
    remedy: `${checkReachable(store)}, then run the command again`,
    detail: { host: store.host, name: subject.name, waitedMs },
    cause,
  });
}

function checkReachable({ host, proxy }: StoreFacts): string {
  return proxy === undefined
    ? `check that ${host} is right and reachable from here`
    : `check that the proxy ${proxy} is right and reachable from here, and reaches ${host}`;
}

/** An answer that bears no mark of a storage service comes from the proxy. */
function judgeProxy(
  status: number,
  proxy: string,
  thrown: RestError,
  subject: CallSubject,
  store: StoreFacts,
  cause: Error,
): Verdict {
  const fact = `the proxy ${proxy} answered ${String(status)}`;
  if (status === 408 || status === 429 || status >= 500)
    return { kind: "undone", fact, lostConnection: false, retryAfterMs: retryAfter(thrown), cause };
  const error = new TidemarkError("ACCESS_REFUSED", `could not ${subject.action} in ${store.description}: ${fact}`, {
    remedy:
      status === 407
        ? "give the proxy's user name and password in its URL"
        : `let the proxy pass requests to ${store.host}, or name the host in NO_PROXY`,
    detail: { host: store.host, name: subject.name, status },
    cause,
  });
  return { kind: "refused", error };
}

function judgeConnection(code: string, subject: CallSubject, store: StoreFacts, cause: Error): Verdict {
  const peer = store.proxy === undefined ? store.host : `the proxy ${store.proxy}`;
  if (unconnectedCodes.has(code)) {
    const fact =
      code === "ECONNREFUSED" ? `${peer} refuses connections` : `the host name of ${peer} cannot be resolved`;
    return { kind: "undone", fact, lostConnection: true, retryAfterMs: undefined, cause };
  }
  const refuse = (fact: string, remedy: string): Verdict => ({
    kind: "refused",
    error: new TidemarkError("STORE_UNREACHABLE", `could not ${subject.action} in ${store.description}: ${fact}`, {
      remedy,
      detail: { host: store.host, name: subject.name },
      cause,
    }),
  });
  if (tlsCodes.has(code))
    return refuse(
      `the certificate of ${store.host} is not trusted (${code})`,
      "name the authority that signed it in NODE_EXTRA_CA_CERTS",
    );
  if (notTlsCodes.has(code))
    return refuse(
      `${store.host} does not answer with TLS (${code})`,
      "check the port; if it serves plain http, as an Azurite does, write http:// instead of https://",
    );
  const way = store.proxy === undefined ? store.host : `${store.host} through the proxy ${store.proxy}`;
  const shown = namePattern.test(code) ? ` (${code})` : "";
  return { kind: "uncertain", fact: `the connection to ${way} was lost${shown}`, lostConnection: true, cause };
}

function refusal(
  status: number,
  code: string,
  thrown: RestError,
  subject: CallSubject,
  store: StoreFacts,
  cause: Error,
): TidemarkError {
  const detail = {
    host: store.host,
    name: subject.name,
    status,
    errorCode: code,
    requestId: requestIdOf(thrown),
  };
  const fail = (to: ErrorCode, fact: string, remedy?: string): TidemarkError =>
    new TidemarkError(to, `could not ${subject.action} in ${store.description}: ${fact}`, {
      ...(remedy === undefined ? {} : { remedy }),
      detail,
      cause,
    });

  const particular = subject.codes?.[code];
  if (particular !== undefined) return fail(particular, particularFact(particular, code));
  if (status === 401 || status === 403)
    return fail("ACCESS_REFUSED", `access is refused (${code})`, accessRemedy(code, thrown, subject, store));
  if (code === "ContainerNotFound")
    return fail(
      "VAULT_NOT_FOUND",
      "there is no such container",
      "check the vault's name, or create it with `tidemark vault init`",
    );
  const known = refusals.get(code);
  if (known !== undefined) return fail(...known);
  if (status === 404 && subject.name !== undefined) return fail("OBJECT_NOT_FOUND", "there is no such object");
  if (status === 409 && code === "InvalidBlobType")
    return fail("DAMAGED", "it is another kind of object", "run `tidemark verify` to list the points concerned");
  if (code === "MemoryExtentStoreAtSizeLimit" || status === 507)
    return fail("NO_SPACE", "the store is full", "free some space in the store, then run the command again");
  if (code === "InvalidHeaderValue" || code === "UnsupportedHeader") {
    return fail(
      "STORE_REFUSED",
      `the server does not understand the request (${code})`,
      "update Azurite to 3.35 or later; for an older one, start it with --skipApiVersionCheck",
    );
  }
  return fail(
    "STORE_REFUSED",
    `the server answered ${String(status)} ${code}`,
    "check that the URL names a container of a storage account that allows page blobs",
  );
}

/** The fact that the message states for a code of the call's own. */
function particularFact(to: ErrorCode, code: string): string {
  switch (to) {
    case "OBJECT_EXISTS":
      return "the object exists already";
    case "CONDITION_FAILED":
      return `another writer has changed it (${code})`;
    case "LEASE_HELD":
      return "another holder has its lease";
    case "LEASE_LOST":
      return `its lease is not held (${code})`;
    case "DAMAGED":
      return "it ends before the range does";
    default:
      return `the server answered ${code}`;
  }
}

/**
 * The remedy for a refused access. Compares the SAS's expiry and the clocks; does not read the
 * message's text.
 */
function accessRemedy(code: string, thrown: RestError, subject: CallSubject, store: StoreFacts): string {
  const serverMs = Date.parse(thrown.response?.headers.get("date") ?? "");
  const sasFault = store.sas && sasRemedy(store.sas, subject.right, Number.isNaN(serverMs) ? Date.now() : serverMs);
  if (sasFault !== undefined) return sasFault;
  if (!Number.isNaN(serverMs) && Math.abs(Date.now() - serverMs) > clockSkewMsMax) {
    return `set this machine's clock: it differs from the server's by ${String(Math.round(Math.abs(Date.now() - serverMs) / 60_000))} minutes`;
  }
  switch (code) {
    case "AuthenticationFailed":
    case "InvalidAuthenticationInfo":
      return "the account key, SAS or token is wrong or belongs to another account: check it";
    case "NoAuthenticationInformation":
    case "PublicAccessNotPermitted":
      return "give an account key, a connection string, a SAS in the URL, or sign in";
    case "AuthorizationPermissionMismatch":
    case "InsufficientAccountPermissions":
      if (store.access === "sas") return unspecificRemedies.sas;
      return "the identity lacks a permission: it needs read, write, delete and list (Storage Blob Data Contributor)";
    case "AuthorizationResourceTypeMismatch":
    case "AuthorizationServiceMismatch":
      return "the SAS does not cover blobs: make one for the container, with read, add, create, write, delete and list";
    case "AuthorizationSourceIPMismatch":
      return "the SAS does not allow this machine's address";
    case "AuthorizationProtocolMismatch":
      return "the SAS demands https";
    case "KeyBasedAuthenticationNotPermitted":
      return "the account forbids keys: sign in instead, for example with `az login`";
    case "AccountIsDisabled":
      return "the storage account is disabled";
    default:
      return unspecificRemedies[store.access];
  }
}

/** The remedy for a fault that the SAS shows itself; undefined when it shows none. */
function sasRemedy(sas: SasFacts, right: SasRight, nowMs: number): string | undefined {
  if (sas.expiresAtMs !== undefined && sas.expiresAtMs <= nowMs)
    return `the SAS expired at ${isoTime(sas.expiresAtMs)}: make a new one`;
  if (sas.startsAtMs !== undefined && sas.startsAtMs > nowMs)
    return `the SAS is valid from ${isoTime(sas.startsAtMs)} (st=): wait until then, or make one without st=`;
  if (right === "create-container" && sas.isService)
    return "a SAS for a container cannot create it: create it with `az storage container create`, or give an account key";
  const letters = rightLetters[right];
  if (sas.rights === undefined || Array.from(letters).some((letter) => sas.rights?.includes(letter) === true))
    return undefined;
  return `the SAS lacks the right to ${right.replace("-", " a ")}: ${Array.from(letters).join(" or ")} is not in its sp=; make one with sp=racwdl`;
}

function isoTime(ms: number): string {
  return new Date(ms).toISOString();
}

/** For AuthorizationFailure and similar codes, which Azure and Azurite give for several reasons. */
const unspecificRemedies: Readonly<Record<StoreFacts["access"], string>> = {
  key: "check the account key; if it is right, the account's firewall may exclude this machine",
  sas: "check that the SAS is for this container and may read, add, create, write, delete and list; a firewall may also exclude this machine",
  token:
    "check that the identity has the role Storage Blob Data Contributor; the account's firewall may also exclude this machine",
};

function credentialMissing(subject: CallSubject, store: StoreFacts, cause: Error): TidemarkError {
  return new TidemarkError(
    "ACCESS_REFUSED",
    `could not ${subject.action} in ${store.description}: no identity to sign in with was found`,
    {
      remedy: "sign in with `az login`, or give an account key, a connection string or a SAS",
      detail: { host: store.host, name: subject.name },
      cause,
    },
  );
}

/** A code that a message may contain: error codes of Azure are words. */
const namePattern = /^\w{1,80}$/;

/** The storage error code: in the header, since HEAD answers have no body. */
function storageErrorCode(thrown: RestError): string {
  const code = thrown.response?.headers.get("x-ms-error-code") ?? thrown.code ?? thrown.name;
  return namePattern.test(code) ? code : "with an unknown code";
}

function requestIdOf(thrown: RestError): string | undefined {
  const id = thrown.response?.headers.get("x-ms-request-id");
  return id !== undefined && /^[\w-]{1,80}$/.test(id) ? id : undefined;
}

/** As much of a foreign message as its first line may need, and a SAS in it. */
const foreignCharactersMax = 4000;

/** `Retry-After` in milliseconds: seconds or a date (RFC 9110, 10.2.3). */
function retryAfter(thrown: RestError): number | undefined {
  const value = thrown.response?.headers.get("retry-after");
  if (value === undefined) return undefined;
  const seconds = Number(value);
  if (Number.isFinite(seconds)) return Math.max(0, seconds * 1000);
  const at = Date.parse(value);
  return Number.isNaN(at) ? undefined : Math.max(0, at - Date.now());
}

/** An Error with the beginning of the foreign message, without request, response and secrets. */
function scrubbedCause(thrown: unknown, store: StoreFacts): Error {
  const text = thrown instanceof Error ? `${thrown.name}: ${thrown.message}` : String(thrown);
  let line = text.slice(0, foreignCharactersMax);
  for (const secret of store.secrets) line = line.replaceAll(secret, "***");
  line = line.replaceAll(/\?[^\s'"?]*/g, "?***").replaceAll(/\bsig=[^&\s'"]+/g, "sig=***");
  // Where the text was cut off, a part of a secret may be left.
  const restMax = Math.max(0, ...store.secrets.map((secret) => secret.length));
  if (text.length > foreignCharactersMax && restMax > 0) line = line.slice(0, -restMax);
  line = line.split("\n", 1)[0] ?? "";
  return new Error(line);
}
