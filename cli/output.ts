/**
 * Output of a command, for people or for programs.
 *
 * People: results go to stdout; notes, errors and progress go to stderr. Programs (`--json`):
 * stdout holds one object a line, each with a `type`, the last one `summary` or `error`; stderr
 * stays empty, unless `--debug` puts stacks and events there.
 *
 * `--quiet` leaves out progress, notes and the summary of work that went well. Answers (what a
 * listing or a question asks for) and errors stay. `--verbose` adds codes and facts to errors and
 * notes, says what the command works with, and lets tables grow wide.
 *
 * Output that cannot be written does not end the work (`TextStream`). `close` reports it.
 */
import process from "node:process";
import { styleText } from "node:util";
import type { Notice, Progress } from "../engine/index.ts";
import { errorReport, errorStacks, withoutSecrets } from "./errors.ts";
import type { JsonItems, JsonSummaries } from "./json.ts";
import { ProgressLine, ProgressLines } from "./progress-line.ts";
import { type Environment, type OutputFlags, progressFps } from "./settings.ts";
import { printable } from "./text.ts";
import { TextStream } from "./text-stream.ts";
import { formatLocal } from "./times.ts";

export type Colour = "red" | "yellow" | "green" | "gray";

export interface Output {
  /** Width to wrap help and tables at. */
  readonly columns: number;
  /**
   * One of many results. `text` is for people, who get nothing when it is left out; else `fields`
   * are printed as they are.
   */
  item<Type extends keyof JsonItems>(type: Type, fields: JsonItems[Type], text?: string): void;
  progress(progress: Progress): void;
  /** Progress of another kind: the beginning of a step. */
  step(fields: object, text: string): void;
  notice(notice: Notice): void;
  /** What the command works with; printed with `--verbose` only. */
  detail(text: string): void;
  /** What the command did, last. */
  summary<Name extends keyof JsonSummaries>(command: Name, fields: JsonSummaries[Name], text: string): void;
  /** What the command was asked for, last. As `summary`, but `--quiet` prints it too. */
  answer<Name extends keyof JsonSummaries>(command: Name, fields: JsonSummaries[Name], text: string): void;
  /** What ended the command, last. */
  error(error: unknown): void;
  /** Text that is the result itself: help, a script, a page. */
  help(text: string): void;
  /** A time as this output shows it. Takes ISO 8601 in UTC. */
  time(iso: string): string;
  /** `text` in a colour, where stdout shows colours. */
  paint(colour: Colour, text: string): string;
  /**
   * Replaces what the last call showed. Where stdout is no terminal, each text follows the one
   * before.
   */
  screen(text: string): void;
  /** Whether `screen` replaces: stdout is a terminal, and shows text for people. */
  readonly isScreen: boolean;
  /**
   * Waits until everything has been handed to the system. Gives false when a part of stdout could not
   * be written, and says so on stderr.
   */
  close(): Promise<boolean>;
}

const columnsDefault = 80;
const columnsMax = 120;
const jsonProgressEveryMs = 1_000;

/**
 * Second screen of a terminal, on which `screen` draws; leaving it brings back what was there
 * before.
 */
const enterScreen = "\u001b[?1049h\u001b[?25l";
const leaveScreen = "\u001b[?25h\u001b[?1049l";

export function openOutput(flags: OutputFlags, environment: Environment): Output {
  return flags.json ? new JsonOutput(flags, environment) : new HumanOutput(flags, environment);
}

class HumanOutput implements Output {
  readonly columns: number;
  readonly #stdout = new TextStream(process.stdout);
  readonly #stderr = new TextStream(process.stderr);
  readonly #flags: OutputFlags;
  readonly #colours: { readonly stdout: boolean; readonly stderr: boolean };
  readonly #line: ProgressLine | ProgressLines | undefined;
  readonly isScreen: boolean = process.stdout.isTTY;
  #hasScreen = false;

  constructor(flags: OutputFlags, environment: Environment) {
    this.#flags = flags;
    const width = Math.min(process.stdout.isTTY ? process.stdout.columns : columnsDefault, columnsMax);
    this.columns = flags.verbose ? Math.max(width, columnsMax) : width;
    const isPlain = environment["TERM"] === "dumb";
    const wantsColours = !isPlain && (environment["NO_COLOR"] ?? "") === "";
    this.#colours = { stdout: wantsColours && process.stdout.isTTY, stderr: wantsColours && process.stderr.isTTY };
    const fps = progressFps(environment);
    if (flags.quiet) this.#line = undefined;
    else if (process.stderr.isTTY && !isPlain) this.#line = new ProgressLine(this.#stderr, fps);
    else if (fps !== undefined) this.#line = new ProgressLines(this.#stderr, fps);
  }

  item(_type: string, _fields: object, text?: string): void {
    if (text !== undefined) this.#print(this.#stdout, text);
  }

  progress(progress: Progress): void {
    this.#line?.draw(progress);
  }

  step(_fields: object, text: string): void {
    this.#line?.show(text);
  }

  notice({ code, message }: Notice): void {
    if (this.#flags.quiet) return;
    this.#print(
      this.#stderr,
      `${this.#label("yellow", "note:")} ${printable(message)}${this.#flags.verbose ? ` (${code})` : ""}`,
    );
  }

  detail(text: string): void {
    if (this.#flags.verbose) this.#print(this.#stderr, this.#label("gray", printable(text)));
  }

  summary(_command: string, _fields: object, text: string): void {
    if (!this.#flags.quiet) this.#print(this.#stdout, text);
  }

  answer(_command: string, _fields: object, text: string): void {
    this.#print(this.#stdout, text);
  }

  error(error: unknown): void {
    const { code, message, remedy, detail = {} } = errorReport(error);
    const facts = this.#flags.verbose
      ? [`code ${code}`, ...Object.entries(detail).map(([name, value]) => `${name} ${String(value)}`)]
      : [];
    const lines = [
      `${this.#label("red", "error:")} ${printable(message)}`,
      ...[remedy, ...facts].map((line) => `  ${printable(line)}`),
    ];
    this.#leaveScreen();
    this.#print(this.#stderr, lines.join("\n"));
    if (this.#flags.debug) this.#print(this.#stderr, errorStacks(error));
  }

  help(text: string): void {
    this.#print(this.#stdout, text.trimEnd());
  }

  time(iso: string): string {
    return process.stdout.isTTY && !this.#flags.utc ? formatLocal(iso) : iso;
  }

  paint(colour: Colour, text: string): string {
    return this.#colours.stdout ? styleText(colour, text) : text;
  }

  screen(text: string): void {
    if (!process.stdout.isTTY) {
      this.#print(this.#stdout, `${text}\n`);
      return;
    }
    const { rows } = process.stdout;
    if (!this.#hasScreen) this.#stdout.write(enterScreen);
    this.#hasScreen = true;
    const lines = text.split("\n").slice(0, rows - 1);
    this.#stdout.write(`\u001b[H${lines.map((line) => `${line}\u001b[K\n`).join("")}\u001b[J`);
  }

  async close(): Promise<boolean> {
    this.#line?.clear();
    this.#leaveScreen();
    return await closed(this.#stdout, this.#stderr);
  }

  #leaveScreen(): void {
    if (this.#hasScreen) this.#stdout.write(leaveScreen);
    this.#hasScreen = false;
  }

  #print(stream: TextStream, text: string): void {
    this.#line?.clear();
    if (text !== "") stream.write(`${text}\n`);
  }

  #label(colour: Colour, text: string): string {
    return this.#colours.stderr ? styleText(colour, text) : text;
  }
}

class JsonOutput implements Output {
  readonly columns: number = columnsDefault;
  readonly isScreen = false;
  readonly #stdout = new TextStream(process.stdout);
  readonly #stderr = new TextStream(process.stderr);
  readonly #flags: OutputFlags;
  readonly #progressEveryMs: number;
  #nextProgressAtMs = 0;

  constructor(flags: OutputFlags, environment: Environment) {
    this.#flags = flags;
    const fps = progressFps(environment);
    this.#progressEveryMs = fps === undefined ? jsonProgressEveryMs : 1_000 / fps;
  }

  item(type: string, fields: object): void {
    if (type === "event") this.#news({ type, ...fields });
    else this.#line({ type, ...fields });
  }

  progress(progress: Progress): void {
    const atMs = performance.now();
    if (this.#flags.quiet || atMs < this.#nextProgressAtMs) return;
    this.#nextProgressAtMs = atMs + this.#progressEveryMs;
    this.#news({ type: "progress", ...progress });
  }

  step(fields: object): void {
    if (!this.#flags.quiet) this.#news({ type: "progress", ...fields });
  }

  notice({ code, message }: Notice): void {
    if (!this.#flags.quiet) this.#line({ type: "notice", code, message });
  }

  detail(text: string): void {
    if (this.#flags.verbose) this.#line({ type: "detail", message: text });
  }

  summary(command: string, fields: object): void {
    this.#line({ type: "summary", command, ...fields });
  }

  answer(command: string, fields: object): void {
    this.summary(command, fields);
  }

  error(error: unknown): void {
    if (this.#flags.debug) this.#stderr.write(`${errorStacks(error)}\n`);
    this.#line({ type: "error", ...errorReport(error) });
  }

  help(text: string): void {
    this.#stdout.write(text);
  }

  time(iso: string): string {
    return iso;
  }

  paint(_colour: Colour, text: string): string {
    return text;
  }

  screen(): void {
    // A program gets the objects that the screen is made of.
  }

  async close(): Promise<boolean> {
    return await closed(this.#stdout, this.#stderr);
  }

  #line(object: object): void {
    this.#stdout.write(`${JSON.stringify(object)}\n`);
  }

  #news(object: object): void {
    this.#stdout.writeNews(`${JSON.stringify(object)}\n`);
  }
}

/** Waits until everything has been handed to the system. Gives whether stdout took all of it. */
async function closed(stdout: TextStream, stderr: TextStream): Promise<boolean> {
  await stdout.flush();
  const cause = stdout.failure;
  if (cause !== undefined) {
    stderr.write(`error: not all output could be written to stdout: ${printable(withoutSecrets(cause.message))}\n`);
    stderr.write("  make room where stdout goes, or send it elsewhere; what the command did is done\n");
  }
  await stderr.flush();
  return cause === undefined;
}
