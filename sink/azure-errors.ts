/**
 * Where foreign errors of Azure Storage become Tidemark's: the one place that knows status codes, error codes and network codes.
 *
 * A failed request is first judged, because what may be done next depends on it and not on the text of the error:
 *
 *   refused    the server has answered for good: throw the error
 *   undone     certainly nothing was executed (no connection, 408, 429, 503): anything may be sent again
 *   uncertain  the request may have been executed, or may be executed later (500, reset, time-out): only idempotent calls go again
 *
 * "A definite outcome is only a status of 100 to 499 or 503" is Azure's own rule (Put Page, "Using the Page Blob Sequence Number to
 * Retry Requests"). The SDK's errors carry the signed URL and the headers of the request, so none of them leaves this file: the
 * cause of a translated error is a plain Error with the first line of the message, scrubbed.
 */
import { AssertionError } from "node:assert";
import { RestError } from "@azure/storage-blob";
import { type ErrorCode, TidemarkError } from "../engine/index.ts";

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

/** What a call gives to have its errors translated. */
export interface CallSubject {
  /** What was being done, as it reads after "could not": `write 4 MiB at 0 of segments/a/1-0-0`. */
  readonly action: string;
  /** The object's name; undefined for calls on the container. */
  readonly name: string | undefined;
  /** Storage error codes that mean something particular to this call. */
  readonly codes?: ErrorMeanings | undefined;
}

/** What is known of the store, to name it and to keep its secrets out of messages. */
export interface StoreFacts {
  readonly description: string;
  readonly host: string;
  /** How requests prove that they may. */
  readonly access: "key" | "sas" | "token";
  /** Strings that must never appear in a message: keys, signatures, passwords. */
  readonly secrets: readonly string[];
  /** When the SAS in use expires, if there is one with an expiry. */
  readonly sasExpiresAtMs: number | undefined;
}

// What storage error codes mean to a call …

/** … that creates. */
export const existsCodes: ErrorMeanings = {
  BlobAlreadyExists: "OBJECT_EXISTS",
  ConditionNotMet: "OBJECT_EXISTS",
  UnauthorizedBlobOverwrite: "OBJECT_EXISTS",
};

/** … that replaces what it has read. What is gone does not match any more either. */
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

/** More than this between the server's clock and ours makes Azure refuse signed requests. */
const clockSkewMsMax = 15 * 60_000;

/** No connection came about, so nothing was sent. */
const unconnectedCodes: ReadonlySet<string> = new Set(["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN"]);

/** Not a failure of the network but of trust: trying again changes nothing. */
const tlsCodes: ReadonlySet<string> = new Set([
  "CERT_HAS_EXPIRED",
  "CERT_NOT_YET_VALID",
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "ERR_TLS_CERT_ALTNAME_INVALID",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
]);

const credentialErrorNames: ReadonlySet<string> = new Set([
  "AggregateAuthenticationError",
  "AuthenticationError",
  "AuthenticationRequiredError",
  "CredentialUnavailableError",
]);

/** Judges what a request threw. Time-outs and aborts are known to the caller, who set them, and are not given here. */
export function judge(thrown: unknown, subject: CallSubject, store: StoreFacts): Verdict {
  const cause = scrubbedCause(thrown, store);
  if (thrown instanceof TidemarkError) return { kind: "refused", error: thrown };
  if (thrown instanceof Error && credentialErrorNames.has(thrown.name))
    return { kind: "refused", error: credentialMissing(subject, store, cause) };
  if (thrown instanceof TypeError || thrown instanceof RangeError || thrown instanceof AssertionError) throw thrown;
  if (!(thrown instanceof RestError)) return { kind: "uncertain", fact: "the answer broke off", lostConnection: true, cause };
  const status = thrown.statusCode;
  if (status === undefined || status < 400) return judgeConnection(thrown.code ?? "", subject, store, cause);
  const retryAfterMs = retryAfter(thrown);
  const code = storageErrorCode(thrown);
  if (status === 503 || status === 429 || status === 408 || code === "ContainerBeingDeleted") {
    return { kind: "undone", fact: `the server answered ${String(status)} ${code}`, lostConnection: false, retryAfterMs, cause };
  }
  if (status >= 500 && status !== 501 && status !== 507) {
    return { kind: "uncertain", fact: `the server answered ${String(status)} ${code}`, lostConnection: false, cause };
  }
  return { kind: "refused", error: refusal(status, code, thrown, subject, store, cause) };
}

/** The error for a write that may or may not have been executed. */
export function outcomeUnknown(subject: CallSubject, store: StoreFacts, fact: string, cause: Error | undefined): TidemarkError {
  return new TidemarkError(
    "OUTCOME_UNKNOWN",
    `it is unknown whether the attempt to ${subject.action} in ${store.description} took effect: ${fact}`,
    {
      remedy: "run the command again; it finds out what the store holds",
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
    remedy: `check that ${store.host} is right and reachable from here, then run the command again`,
    detail: { host: store.host, name: subject.name, waitedMs },
    cause,
  });
}

function judgeConnection(code: string, subject: CallSubject, store: StoreFacts, cause: Error): Verdict {
  if (unconnectedCodes.has(code)) {
    const fact = code === "ECONNREFUSED" ? `${store.host} refuses connections` : `the host name of ${store.host} cannot be resolved`;
    return { kind: "undone", fact, lostConnection: true, retryAfterMs: undefined, cause };
  }
  if (tlsCodes.has(code)) {
    const error = new TidemarkError(
      "STORE_UNREACHABLE",
      `could not ${subject.action} in ${store.description}: the certificate of ${store.host} is not trusted (${code})`,
      {
        remedy: "name the authority that signed it in NODE_EXTRA_CA_CERTS",
        detail: { host: store.host, name: subject.name },
        cause,
      },
    );
    return { kind: "refused", error };
  }
  return { kind: "uncertain", fact: `the connection to ${store.host} was lost (${code})`, lostConnection: true, cause };
}

function refusal(status: number, code: string, thrown: RestError, subject: CallSubject, store: StoreFacts, cause: Error): TidemarkError {
  const detail = {
    host: store.host,
    name: subject.name,
    status,
    errorCode: code,
    requestId: thrown.response?.headers.get("x-ms-request-id"),
  };
  const fail = (to: ErrorCode, fact: string, remedy?: string): TidemarkError =>
    new TidemarkError(to, `could not ${subject.action} in ${store.description}: ${fact}`, {
      ...(remedy === undefined ? {} : { remedy }),
      detail,
      cause,
    });

  if (status === 401 || status === 403) return fail("ACCESS_REFUSED", `access is refused (${code})`, accessRemedy(code, thrown, store));
  if (status === 407) return fail("ACCESS_REFUSED", "the proxy refuses access", "give the proxy's user name and password in its URL");
  if (code === "ContainerNotFound")
    return fail("VAULT_NOT_FOUND", "there is no such container", "check the vault's name, or create it with `tidemark vault init`");
  const particular = subject.codes?.[code];
  if (particular !== undefined) return fail(particular, particularFact(particular, code));
  if (status === 404 && subject.name !== undefined) return fail("OBJECT_NOT_FOUND", "there is no such object");
  if (status === 409 && code === "InvalidBlobType")
    return fail("DAMAGED", "it is another kind of object", "run `tidemark verify` to see which points are concerned");
  if (code === "MemoryExtentStoreAtSizeLimit" || status === 507)
    return fail("NO_SPACE", "the store is full", "make room in the store, then run the command again");
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

/** What the message says of the codes that calls translate particularly. */
function particularFact(to: ErrorCode, code: string): string {
  switch (to) {
    case "OBJECT_EXISTS":
      return "the object exists already";
    case "CONDITION_FAILED":
      return `it was changed by another (${code})`;
    case "LEASE_HELD":
      return "another holds its lease";
    case "LEASE_LOST":
      return `its lease is not held (${code})`;
    case "DAMAGED":
      return "it ends before the range does";
    default:
      return `the server answered ${code}`;
  }
}

/** Tells apart why access was refused. The SAS's expiry and the server's clock are compared here, not read out of the message's text. */
function accessRemedy(code: string, thrown: RestError, store: StoreFacts): string {
  const serverMs = Date.parse(thrown.response?.headers.get("date") ?? "");
  if (store.sasExpiresAtMs !== undefined && store.sasExpiresAtMs <= (Number.isNaN(serverMs) ? Date.now() : serverMs)) {
    return `the SAS expired at ${new Date(store.sasExpiresAtMs).toISOString()}: make a new one`;
  }
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

/** For AuthorizationFailure and its like, which Azure and Azurite give for several reasons. */
const unspecificRemedies: Readonly<Record<StoreFacts["access"], string>> = {
  key: "check the account key; if it is right, the account's firewall may exclude this machine",
  sas: "check that the SAS is for this container and may read, add, create, write, delete and list; a firewall may also exclude this machine",
  token: "check that the identity has the role Storage Blob Data Contributor; the account's firewall may also exclude this machine",
};

function credentialMissing(subject: CallSubject, store: StoreFacts, cause: Error): TidemarkError {
  return new TidemarkError("ACCESS_REFUSED", `could not ${subject.action} in ${store.description}: no identity to sign in with was found`, {
    remedy: "sign in with `az login`, or give an account key, a connection string or a SAS",
    detail: { host: store.host, name: subject.name },
    cause,
  });
}

/** The storage error code: in the header, since HEAD answers have no body. */
function storageErrorCode(thrown: RestError): string {
  return thrown.response?.headers.get("x-ms-error-code") ?? thrown.code ?? thrown.name;
}

/** `Retry-After` in milliseconds: seconds or a date (RFC 9110, 10.2.3). */
function retryAfter(thrown: RestError): number | undefined {
  const value = thrown.response?.headers.get("retry-after");
  if (value === undefined) return undefined;
  const seconds = Number(value);
  if (Number.isFinite(seconds)) return Math.max(0, seconds * 1000);
  const at = Date.parse(value);
  return Number.isNaN(at) ? undefined : Math.max(0, at - Date.now());
}

/** An Error that says what the foreign one said, without its request, its response or a secret. */
function scrubbedCause(thrown: unknown, store: StoreFacts): Error {
  const text = thrown instanceof Error ? `${thrown.name}: ${thrown.message}` : String(thrown);
  let line = text.split("\n", 1)[0] ?? "";
  for (const secret of store.secrets) {
    if (secret !== "") line = line.replaceAll(secret, "***");
  }
  line = line.replaceAll(/(https?:\/\/[^\s?'"]+)\?[^\s'"]*/g, "$1?***").replaceAll(/\bsig=[^&\s'"]+/g, "sig=***");
  return new Error(line);
}
