/**
 * Report of an error to a user and to a script: one line with a remedy, and an exit code. The codes
 * are a contract.
 *
 * Invariant: nothing is printed before signatures, keys and passwords in it have been masked.
 */
import { inspect } from "node:util";
import type { CommanderError } from "commander";
import { type ErrorCode, type ErrorDetail, TidemarkError } from "../engine/index.ts";
import { remedies } from "./error-table.ts";

export const exitCodes = {
  done: 0,
  failed: 1,
  wrongUse: 2,
  damageFound: 3,
  notFound: 10,
  writerActive: 11,
  accessRefused: 12,
  interrupted: 130,
} as const;

/** For help and documents, in ascending order. */
export const exitCodeMeanings: readonly (readonly [code: number, meaning: string])[] = [
  [exitCodes.done, "done"],
  [exitCodes.failed, "failed"],
  [exitCodes.wrongUse, "wrong use"],
  [exitCodes.damageFound, "damage found"],
  [exitCodes.notFound, "no such vault, disk or point"],
  [exitCodes.writerActive, "another writer is active"],
  [exitCodes.accessRefused, "access refused"],
  [exitCodes.interrupted, "interrupted"],
];

/** An error as `--json` prints it. */
export interface ErrorReport {
  readonly code: ErrorCode;
  readonly message: string;
  readonly remedy: string;
  readonly detail?: ErrorDetail;
}

export function exitCodeOf(error: unknown): number {
  if (!(error instanceof TidemarkError)) return exitCodes.failed;
  switch (error.code) {
    case "INVALID_ARGUMENT":
      return exitCodes.wrongUse;
    case "DAMAGED":
      return exitCodes.damageFound;
    case "VAULT_NOT_FOUND":
    case "DISK_NOT_FOUND":
    case "POINT_NOT_FOUND":
      return exitCodes.notFound;
    case "WRITER_ACTIVE":
    case "SEAT_LOST":
    case "COLLECTION_ACTIVE":
      return exitCodes.writerActive;
    case "ACCESS_REFUSED":
    case "KEY_ALTERED":
    case "KEY_EXPIRED":
    case "KEY_FOREIGN":
    case "KEY_USED":
    case "AGENT_REMOVED":
      return exitCodes.accessRefused;
    case "INTERRUPTED":
      return exitCodes.interrupted;
    default:
      return exitCodes.failed;
  }
}

/**
 * The report of `error`. Anything but a TidemarkError is a fault in Tidemark, with the code
 * INTERNAL.
 */
export function errorReport(error: unknown): ErrorReport {
  if (error instanceof TidemarkError) {
    const { code, message, detail } = error;
    return {
      code,
      message: withoutSecrets(message),
      remedy: withoutSecrets(error.remedy ?? remedies[code]),
      ...(Object.keys(detail).length > 0 ? { detail: maskedDetail(detail) } : {}),
    };
  }
  return {
    code: "INTERNAL",
    message: withoutSecrets(`internal error: ${error instanceof Error ? error.message : String(error)}`),
    remedy: remedies.INTERNAL,
  };
}

function maskedDetail(detail: ErrorDetail): ErrorDetail {
  return Object.fromEntries(
    Object.entries(detail).map(([name, value]) => [name, typeof value === "string" ? withoutSecrets(value) : value]),
  );
}

/** The stacks of an error and of what caused it. */
export function errorStacks(error: unknown): string {
  const stacks: string[] = [];
  for (
    let cause: unknown = error;
    cause !== undefined && stacks.length < 10;
    cause = cause instanceof Error ? cause.cause : undefined
  ) {
    stacks.push(cause instanceof Error ? (cause.stack ?? cause.message) : inspect(cause));
  }
  return withoutSecrets(stacks.join("\ncaused by "));
}

/** INVALID_ARGUMENT of flags, a request or an answer. */
export function wrongInput(message: string, remedy: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", message, { remedy });
}

/** Translates what commander says about words that `command` cannot parse. */
export function wrongUse(error: CommanderError, command: string): TidemarkError {
  const [first = "", ...rest] = error.message.replace(/^error: /, "").split("\n");
  const suggestion = /\(Did you mean ([^()]*)\?\)/i.exec(rest.join(" "))?.[1];
  const help = `run \`${command} --help\` to see what it takes`;
  const message =
    error.code === "commander.help" ? `${command} needs a command` : `${command}: ${first.replace(/\.$/, "")}`;
  return new TidemarkError("INVALID_ARGUMENT", message, {
    remedy: suggestion === undefined ? help : `did you mean ${suggestion}? If not, ${help}`,
  });
}

/**
 * Masks signatures, keys and passwords, wherever they came from. Everything that is printed passes
 * through it.
 */
export function withoutSecrets(text: string): string {
  return text
    .replace(/\b(sig=)[^&;\s"']+/gi, "$1…")
    .replace(/\b(AccountKey=|SharedAccessSignature=)[^;\s"']+/gi, "$1…")
    .replace(/(\bauthorization["']?\s*[:=]\s*["']?(?:SharedKey|Bearer)\s+)[^\s"',]+/gi, "$1…")
    .replace(/(:\/\/[^\s/@:]+:)[^\s/@]+@/g, "$1…@")
    .replace(/(PRIVATE KEY-----)[^`]+/g, "$1…");
}
