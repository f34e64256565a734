/**
 * Errors: the one error class of Tidemark.
 *
 * Callers match on `code`, never on text; README holds the table code → meaning → remedy. Errors of
 * the SDK, the file system and WASM are translated once, where they enter, and kept as `cause`.
 */

/** Every code that can reach a caller. Codes are stable: they are added, never renamed. */
export type ErrorCode =
  // Arguments and names.
  | "INVALID_ARGUMENT"
  | "UNSUPPORTED"
  | "INTERRUPTED"
  | "VAULT_NOT_FOUND"
  | "VAULT_EXISTS"
  | "DISK_NOT_FOUND"
  | "POINT_NOT_FOUND"
  | "POINT_HELD"
  // Exclusion of writers and collectors.
  | "WRITER_ACTIVE"
  | "SEAT_LOST"
  | "COLLECTION_ACTIVE"
  | "ACCESS_REFUSED"
  // Registration of source machines.
  | "KEY_ALTERED"
  | "KEY_EXPIRED"
  | "KEY_FOREIGN"
  | "KEY_USED"
  | "AGENT_REMOVED"
  // The store (the codes that a `Sink` throws).
  | "OBJECT_NOT_FOUND"
  | "OBJECT_EXISTS"
  | "CONDITION_FAILED"
  | "LEASE_HELD"
  | "LEASE_LOST"
  | "OUTCOME_UNKNOWN"
  | "STORE_UNREACHABLE"
  | "STORE_REFUSED"
  | "STORE_REGRESSED"
  // Stored bytes.
  | "DAMAGED"
  | "FORMAT_UNSUPPORTED"
  // Sources, targets and devices of this machine.
  | "SOURCE_NOT_FOUND"
  | "SOURCE_UNREADABLE"
  | "SOURCE_SHRUNK"
  | "TARGET_EXISTS"
  | "TARGET_TOO_SMALL"
  | "TARGET_IS_SOURCE"
  | "TARGET_FAILED"
  | "DEVICE_FAILED"
  | "NO_SPACE"
  // Live disks.
  | "CUT_TIMED_OUT"
  | "CUT_ABANDONED"
  | "HOOK_FAILED"
  | "AGENT_UNREACHABLE"
  | "INTERNAL";

/** Facts about an error for programs: names, offsets in bytes, HTTP status. Never a secret. */
export type ErrorDetail = Readonly<Record<string, string | number | boolean | null | undefined>>;

/** What an error may bear besides code and message. */
export interface ErrorContext {
  /** What the user can do: an imperative, with the command to type. */
  readonly remedy?: string;
  readonly detail?: ErrorDetail;
  readonly cause?: unknown;
}

/**
 * An operating error: its message names the object and the fact, `remedy` says what to do.
 *
 * @example
 * ```ts
 * try {
 *   await vault.replicate({ disk: "web", volume });
 * } catch (error) {
 *   if (!hasCode(error, "WRITER_ACTIVE")) throw error;
 *   console.error(error.message, error.remedy);
 * }
 * ```
 */
export class TidemarkError extends Error {
  override readonly name = "TidemarkError";
  readonly code: ErrorCode;
  readonly remedy: string | undefined;
  readonly detail: ErrorDetail;

  constructor(code: ErrorCode, message: string, context: ErrorContext = {}) {
    super(message, context.cause === undefined ? undefined : { cause: context.cause });
    this.code = code;
    this.remedy = context.remedy;
    this.detail = context.detail ?? {};
  }
}

/** True when `error` is a TidemarkError with one of `codes`. */
export function hasCode(error: unknown, ...codes: readonly ErrorCode[]): error is TidemarkError {
  return error instanceof TidemarkError && codes.includes(error.code);
}

/**
 * True when an object is there and cannot be read: damaged, or in a format that this version does
 * not know.
 */
export function isUnreadable(error: unknown): error is TidemarkError {
  return hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED");
}

/**
 * True when the store does not hold an object: OBJECT_NOT_FOUND, or DAMAGED where another object
 * refers to it.
 */
export function isGone(error: unknown): error is TidemarkError {
  return hasCode(error, "OBJECT_NOT_FOUND") || (hasCode(error, "DAMAGED") && error.detail["isGone"] === true);
}

/** True when an object is unreadable or gone. */
export function isUnreadableOrGone(error: unknown): error is TidemarkError {
  return isUnreadable(error) || hasCode(error, "OBJECT_NOT_FOUND");
}

/** True when a disk's head is unreadable, or the vault holds no such disk. */
export function isDiskUnreadable(error: unknown): error is TidemarkError {
  return isUnreadable(error) || hasCode(error, "DISK_NOT_FOUND");
}

/** The `code` of a Node system error (`ENOENT`, …), or undefined. */
export function systemCode(error: unknown): string | undefined {
  if (!(error instanceof Error) || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}

/** What `work` gives, or undefined where the file (ENOENT) or the object (OBJECT_NOT_FOUND) does not exist. */
export async function unlessAbsent<Result>(work: Promise<Result>): Promise<Result | undefined> {
  try {
    return await work;
  } catch (error) {
    if (systemCode(error) === "ENOENT" || hasCode(error, "OBJECT_NOT_FOUND")) return undefined;
    throw error;
  }
}

/** Throws `interrupted(signal)` when `signal` has aborted. Called at stage boundaries. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw interrupted(signal);
}

/**
 * The error for work that `signal` ended: its reason if that is a TidemarkError, else INTERRUPTED.
 */
export function interrupted(signal: AbortSignal): TidemarkError {
  const reason: unknown = signal.reason;
  if (reason instanceof TidemarkError) return reason;
  return new TidemarkError("INTERRUPTED", "the work was interrupted before it was done", {
    remedy: "run the command again; what was shipped is reused",
    cause: reason,
  });
}
