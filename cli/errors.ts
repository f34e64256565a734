/**
 * From an error to what a user and a script see of it: one line with a remedy, and an exit code. The codes are a contract.
 */
import { inspect } from "node:util";
import type { CommanderError } from "commander";
import { type ErrorCode, type ErrorDetail, TidemarkError } from "../engine/index.ts";

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
      return exitCodes.accessRefused;
    case "INTERRUPTED":
      return exitCodes.interrupted;
    default:
      return exitCodes.failed;
  }
}

/** What is told of `error`. Anything but a TidemarkError is a fault of ours. */
export function errorReport(error: unknown): ErrorReport {
  if (error instanceof TidemarkError) {
    const { code, message, detail } = error;
    return {
      code,
      message: withoutSecrets(message),
      remedy: withoutSecrets(error.remedy ?? "run the command again with --debug to see where it failed"),
      ...(Object.keys(detail).length > 0 ? { detail: maskedDetail(detail) } : {}),
    };
  }
  return {
    code: "INTERNAL",
    message: withoutSecrets(`internal error: ${error instanceof Error ? error.message : String(error)}`),
    remedy: "this is a fault in Tidemark: run the command again with --debug and report what it prints",
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
  for (let cause: unknown = error; cause !== undefined && stacks.length < 10; cause = cause instanceof Error ? cause.cause : undefined) {
    stacks.push(cause instanceof Error ? (cause.stack ?? cause.message) : inspect(cause));
  }
  return withoutSecrets(stacks.join("\ncaused by "));
}

/** Words that `command` cannot parse, as an error like every other. */
export function wrongUse(error: CommanderError, command: string): TidemarkError {
  const [first = "", ...rest] = error.message.replace(/^error: /, "").split("\n");
  const suggestion = /\(Did you mean (.*)\?\)/i.exec(rest.join(" "))?.[1];
  const help = `\`${command} --help\` shows what it takes`;
  const message = error.code === "commander.help" ? `${command} needs a command` : first.replace(/\.$/, "");
  return new TidemarkError("INVALID_ARGUMENT", message, {
    remedy: suggestion === undefined ? help : `did you mean ${suggestion}? ${help}`,
  });
}

/** The last guard before anything is printed: signatures and keys, wherever they came from, are masked. */
export function withoutSecrets(text: string): string {
  return text
    .replace(/\b(sig=)[^&;\s"']+/gi, "$1…")
    .replace(/\b(AccountKey=|SharedAccessSignature=)[^;\s"']+/gi, "$1…")
    .replace(/(\bauthorization["']?\s*[:=]\s*["']?(?:SharedKey|Bearer)\s+)[^\s"',]+/gi, "$1…")
    .replace(/(:\/\/[^\s/@:]+:)[^\s/@]+@/g, "$1…@");
}
