/**
 * What a command says, for people or for programs.
 *
 * People: results on stdout; notices, errors and the progress line on stderr, the latter on a terminal only. Programs (`--json`): one object a
 * line on stdout, each with a `type`, the last one `summary` or `error`; stderr stays empty (`--debug` puts stacks there).
 *
 * A reader that goes away (`| head`) does not end the work: the rest is said to nobody, and the exit code still tells how it went.
 */
import process from "node:process";
import { styleText } from "node:util";
import type { Notice, Progress } from "../engine/index.ts";
import { errorReport, errorStacks } from "./errors.ts";
import { ProgressLine } from "./progress-line.ts";
import type { Environment, OutputFlags } from "./settings.ts";
import { printable } from "./text.ts";

export interface Output {
  /** Width to wrap help at. */
  readonly columns: number;
  /** One of many results. `text` is for people, who get nothing when it is left out; else `fields` are printed as they are. */
  item(type: string, fields: object, text?: string): void;
  progress(progress: Progress): void;
  /** Progress of another kind: the beginning of a step. */
  step(fields: object, text: string): void;
  notice(notice: Notice): void;
  /** The result, last. */
  summary(command: string, fields: object, text: string): void;
  /** What ended the command, last. */
  error(error: unknown): void;
  help(text: string): void;
  /** Waits until everything has been handed to the system. */
  close(): Promise<void>;
}

const columnsDefault = 80;
const columnsMax = 120;
const jsonProgressEveryMs = 1_000;

export function openOutput(flags: OutputFlags, environment: Environment): Output {
  for (const stream of [process.stdout, process.stderr]) stream.on("error", refuseAllButGone);
  return flags.json ? new JsonOutput(flags.debug) : new HumanOutput(flags.debug, environment);
}

class HumanOutput implements Output {
  readonly columns: number = Math.min(process.stdout.isTTY ? process.stdout.columns : columnsDefault, columnsMax);
  readonly #debug: boolean;
  readonly #colourful: boolean;
  readonly #line: ProgressLine | undefined;

  constructor(debug: boolean, environment: Environment) {
    this.#debug = debug;
    const terminal = process.stderr.isTTY && environment["TERM"] !== "dumb";
    this.#colourful = terminal && (environment["NO_COLOR"] ?? "") === "";
    this.#line = terminal ? new ProgressLine(process.stderr) : undefined;
  }

  item(_type: string, _fields: object, text?: string): void {
    if (text !== undefined) this.#print(process.stdout, text);
  }

  progress(progress: Progress): void {
    this.#line?.draw(progress);
  }

  step(_fields: object, text: string): void {
    this.#line?.show(text);
  }

  notice({ message }: Notice): void {
    this.#print(process.stderr, `${this.#label("yellow", "note:")} ${printable(message)}`);
  }

  summary(_command: string, _fields: object, text: string): void {
    this.#print(process.stdout, text);
  }

  error(error: unknown): void {
    const { message, remedy } = errorReport(error);
    this.#print(process.stderr, `${this.#label("red", "error:")} ${printable(message)}\n  ${printable(remedy)}`);
    if (this.#debug) this.#print(process.stderr, errorStacks(error));
  }

  help(text: string): void {
    this.#print(process.stdout, text.trimEnd());
  }

  async close(): Promise<void> {
    this.#line?.clear();
    await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
  }

  #print(stream: NodeJS.WriteStream, text: string): void {
    this.#line?.clear();
    if (text !== "") stream.write(`${text}\n`);
  }

  #label(colour: "red" | "yellow", text: string): string {
    return this.#colourful ? styleText(colour, text) : text;
  }
}

class JsonOutput implements Output {
  readonly columns: number = columnsDefault;
  readonly #debug: boolean;
  #nextProgressAtMs = 0;

  constructor(debug: boolean) {
    this.#debug = debug;
  }

  item(type: string, fields: object): void {
    this.#line({ type, ...fields });
  }

  progress(progress: Progress): void {
    const atMs = performance.now();
    if (atMs < this.#nextProgressAtMs) return;
    this.#nextProgressAtMs = atMs + jsonProgressEveryMs;
    this.#line({ type: "progress", ...progress });
  }

  step(fields: object): void {
    this.#line({ type: "progress", ...fields });
  }

  notice({ code, message }: Notice): void {
    this.#line({ type: "notice", code, message });
  }

  summary(command: string, fields: object): void {
    this.#line({ type: "summary", command, ...fields });
  }

  error(error: unknown): void {
    if (this.#debug) process.stderr.write(`${errorStacks(error)}\n`);
    this.#line({ type: "error", ...errorReport(error) });
  }

  help(text: string): void {
    process.stdout.write(text);
  }

  async close(): Promise<void> {
    await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
  }

  #line(object: object): void {
    process.stdout.write(`${JSON.stringify(object)}\n`);
  }
}

/** A reader that has gone is no error of ours; everything else that keeps us from speaking is. */
function refuseAllButGone(error: NodeJS.ErrnoException): void {
  if (error.code !== "EPIPE" && error.code !== "ERR_STREAM_DESTROYED") throw error;
}

function flushed(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    // The callback comes with an error too, which `refuseAllButGone` judges.
    stream.write("", () => resolve());
  });
}
