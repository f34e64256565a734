/**
 * Log of the agent: JSON, one object a line, or one line for people on a terminal.
 *
 * Invariant: signatures and keys are masked in every line. A log file that cannot be written (its
 * disk is full) stops no protection: the failure is reported once on stderr, and later lines go
 * there too.
 */
import process from "node:process";
import { styleText } from "node:util";
import { type DestinationStream, destination, type Logger, pino, stdTimeFunctions } from "pino";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import { withoutSecrets } from "../errors.ts";
import type { Environment } from "../settings.ts";
import { printable } from "../text.ts";
import { newsToStderr } from "../text-stream.ts";
import { formatLocal } from "../times.ts";
import type { LoggingEntry, LogLevel } from "./schema.ts";

/** Facts that go with a message; names as in the agent's JSON. */
export type LogFields = Readonly<Record<string, string | number | boolean | null | undefined>>;

export interface Log {
  write(level: LogLevel, message: string, fields?: LogFields): void;
  setLevel(level: LogLevel): void;
  /** Opens the file again after a program such as logrotate has moved it. */
  reopen(): void;
  /** Everything has been handed to the system. */
  close(): void;
}

/**
 * Opens the log. `write` takes lines where there is no file; by default they go to stderr. `utc`:
 * times for people in UTC.
 */
export function openLog(
  entry: LoggingEntry,
  environment: Environment,
  { utc = false, write = newsToStderr() }: { readonly utc?: boolean; readonly write?: (line: string) => void } = {},
): Log {
  const file = entry.file === undefined ? undefined : new LogFile(entry.file, write);
  const pretty =
    entry.format === "pretty" || (entry.format === "auto" && entry.file === undefined && process.stderr.isTTY);
  const colourful = process.stderr.isTTY && (environment["NO_COLOR"] ?? "") === "" && environment["TERM"] !== "dumb";
  const put = file === undefined ? write : (line: string): void => file.write(line);
  const stream: DestinationStream = {
    write: (line) =>
      put(
        withoutSecrets(
          pretty
            ? prettyLine(line, {
                colourful: colourful && file === undefined,
                utc: utc || file !== undefined || !process.stderr.isTTY,
              })
            : line,
        ),
      ),
  };
  return new PinoLog(pino(loggerOptions(entry.level), stream), file);
}

function loggerOptions(level: LogLevel): Parameters<typeof pino>[0] & object {
  return {
    level,
    base: null,
    timestamp: stdTimeFunctions.isoTime,
    messageKey: "message",
    formatters: { level: (label) => ({ level: label }) },
  };
}

class PinoLog implements Log {
  readonly #logger: Logger<string>;
  readonly #file: LogFile | undefined;

  constructor(logger: Logger<string>, file: LogFile | undefined) {
    this.#logger = logger;
    this.#file = file;
  }

  write(level: LogLevel, message: string, fields: LogFields = {}): void {
    this.#logger[level](fields, message);
  }

  setLevel(level: LogLevel): void {
    this.#logger.level = level;
  }

  reopen(): void {
    this.#file?.reopen();
  }

  close(): void {
    this.#file?.close();
  }
}

/**
 * Lines are written at once: an agent logs a few a second, and a line that waits in memory is the
 * one that explains the crash.
 */
class LogFile {
  readonly #path: string;
  readonly #elsewhere: (line: string) => void;
  readonly #stream: ReturnType<typeof destination>;
  #failed = false;

  constructor(path: string, elsewhere: (line: string) => void) {
    this.#path = path;
    this.#elsewhere = elsewhere;
    try {
      this.#stream = destination({ dest: path, append: true, mkdir: true, sync: true, mode: 0o600 });
    } catch (error) {
      throw unusableLog(path, error);
    }
    this.#stream.on("error", (error: unknown) => this.#onError(error));
  }

  write(line: string): void {
    if (this.#failed) this.#elsewhere(line);
    else this.#attempt(() => this.#stream.write(line));
  }

  reopen(): void {
    this.#failed = false;
    this.#attempt(() => this.#stream.reopen());
  }

  close(): void {
    this.#attempt(() => this.#stream.end());
  }

  #attempt(work: () => unknown): void {
    try {
      work();
    } catch (error) {
      this.#onError(error);
    }
  }

  #onError(error: unknown): void {
    if (this.#failed) return;
    this.#failed = true;
    this.#elsewhere(
      `the log ${this.#path} cannot be written (${error instanceof Error ? error.message : String(error)}); it goes on here\n`,
    );
  }
}

const levelColours = { debug: "gray", info: "green", warn: "yellow", error: "red" } as const;

/** `12:04:05 warn  web: the store cannot be reached (STORE_UNREACHABLE)` */
function prettyLine(line: string, { colourful, utc }: { readonly colourful: boolean; readonly utc: boolean }): string {
  const { time, level, message, disk, code } = JSON.parse(line) as Readonly<Record<string, unknown>>;
  const word = logLevel(level);
  const label = colourful ? styleText(levelColours[word], word.padEnd(5)) : word.padEnd(5);
  const subject = typeof disk === "string" ? `${printable(disk)}: ` : "";
  const suffix = typeof code === "string" ? ` (${printable(code)})` : "";
  const clock = (utc ? String(time) : formatLocal(String(time))).slice(11, 19);
  return `${clock} ${label} ${subject}${printable(String(message))}${suffix}\n`;
}

function logLevel(level: unknown): LogLevel {
  return level === "debug" || level === "warn" || level === "error" ? level : "info";
}

function unusableLog(path: string, cause: unknown): unknown {
  const code = systemCode(cause);
  if (code === undefined) return cause;
  const isRefused = code === "EACCES" || code === "EPERM" || code === "EROFS";
  const message = `the log file ${path} cannot be opened (${code})`;
  return new TidemarkError(isRefused ? "ACCESS_REFUSED" : "INVALID_ARGUMENT", message, {
    remedy: "name a file that this user may write as `file` of `logging` in the configuration",
    detail: { path },
    cause,
  });
}
