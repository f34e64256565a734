/**
 * Hooks bring an application to rest for the instant of a cut: freeze, cut, thaw.
 *
 *     freeze ──► cut (milliseconds) ──► thaw          application-consistent when all three succeeded before the deadline
 *     freeze fails ──► thaw ──► cut                   crash-consistent, and the point says why
 *     freeze ──► cut … deadline ──► thaw              crash-consistent; the application never waits longer than agreed
 *
 * The thaw runs after every freeze that was begun, whatever became of it, also when the agent is
 * being stopped. When the agent is killed, nobody in it can thaw any more; so each frozen command
 * pair has a guard, a shell that holds the end of a pipe whose other end only this process has.
 * When the pipe closes without the word that all is thawed, the guard ends what still runs and
 * thaws.
 *
 *     agent ──pipe──► guard (sh)        knows the thaw, and the process group of the command that runs
 *       └──gate──► command (sh -c)      waits at its gate until the guard knows its group
 *
 * So there is no instant at which a command runs that the guard does not know. A thaw may therefore
 * run twice, and without anything being frozen: what it calls must bear that.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { homedir } from "node:os";
import { Readable } from "node:stream";
import { finished } from "node:stream/promises";
import { stripVTControlCharacters } from "node:util";
import { interrupted, systemCode, throwIfAborted } from "../../errors.ts";
import type { HookStep } from "../../store/format/documents.ts";

/**
 * How long hooks may take, together because they add up: an application is held for at most freeze
 * + kill + thaw + kill.
 */
const timing = {
  /** A thaw that takes longer is killed. */
  thawMs: 60_000,
  /**
   * What is asked to end (SIGTERM) is killed after this long. The guard's loop counts the same time
   * in tenths of a second.
   */
  killAfterMs: 2_000,
  /**
   * Output that is still in the pipe when a command ends is waited for this long: something it left
   * running may hold the pipe.
   */
  outputMs: 200,
} as const;

/** How much of a command's output is kept: the end, where errors stand. */
const outputBytesMax = 4096;
/** How much of a command is recorded: the beginning, which tells what it is. */
const commandCharactersMax = 8192;

/**
 * Brings an application to rest and wakes it. Neither call rejects for what the application does:
 * the step tells. It succeeded when, and only when, its `exitCode` is 0. One freeze at a time.
 */
export interface Hook {
  /** Settles soon after `signal` aborts. */
  freeze(signal: AbortSignal): Promise<HookStep>;
  /** Called once after each freeze. Has a time limit of its own. */
  thaw(): Promise<HookStep>;
}

export interface CommandHookOptions {
  /**
   * Runs through `sh -c` and must exit with 0 once the application rests. What it leaves running
   * belongs to it, and `post` must end it.
   */
  readonly pre: string;
  /**
   * Runs after each `pre` that was started, sometimes twice. Exits with 0 when the application was
   * at rest until now and is awake.
   */
  readonly post: string;
  /** Both commands learn it as TIDEMARK_DISK. */
  readonly disk: string;
  /**
   * Further variables; they override ours. Nothing else of this process's environment is passed on.
   */
  readonly env?: Readonly<Record<string, string>> | undefined;
  /** Default: `/`, which no unmount has to wait for. */
  readonly cwd?: string | undefined;
  /** Default: 60 seconds. */
  readonly thawTimeoutMs?: number | undefined;
  /** Wall clock, in ms since 1970. */
  readonly now?: (() => number) | undefined;
}

/**
 * A hook of two commands, each in a process group of its own. Their environment is PATH, HOME,
 * LANG, TIDEMARK_DISK, TIDEMARK_PHASE (`pre` or `post`) and TIDEMARK_POINT_TIME (ISO 8601, when the
 * freeze began; the same for both).
 */
export function commandHook(options: CommandHookOptions): Hook {
  const { pre, post, disk, cwd = "/", thawTimeoutMs = timing.thawMs, now = Date.now } = options;
  let frozen: { readonly guard: Guard | undefined; readonly pointTime: string } | undefined;

  const settings = (phase: HookStep["phase"], pointTime: string): CommandSettings => ({
    phase,
    command: phase === "pre" ? pre : post,
    cwd,
    env: {
      PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      HOME: homedir(),
      LANG: "C.UTF-8",
      ...options.env,
      TIDEMARK_DISK: disk,
      TIDEMARK_PHASE: phase,
      TIDEMARK_POINT_TIME: pointTime,
    },
  });

  return {
    async freeze(signal) {
      assert(frozen === undefined, "a hook that is frozen is thawed before it is frozen again");
      const pointTime = new Date(now()).toISOString();
      frozen = { guard: undefined, pointTime };
      const guard = await startGuard(settings("post", pointTime));
      if (!(guard instanceof Guard))
        return {
          phase: "pre",
          command: recorded(pre),
          exitCode: null,
          signal: null,
          elapsedMs: 0,
          output: guard.failure,
        };
      frozen = { guard, pointTime };
      return runCommand(settings("pre", pointTime), guard, signal);
    },
    async thaw() {
      assert(frozen !== undefined, "only what is frozen is thawed");
      const { guard, pointTime } = frozen;
      const limit = new AbortController();
      const timer = setTimeout(() => {
        limit.abort();
      }, thawTimeoutMs);
      try {
        return await runCommand(settings("post", pointTime), guard, limit.signal);
      } finally {
        clearTimeout(timer);
        await guard?.dismiss();
        frozen = undefined;
      }
    },
  };
}

export interface FunctionHookOptions {
  /** For the record, in place of a command. */
  readonly name: string;
  /**
   * Rejects, or ignores the abort until after the deadline, when the application cannot be brought
   * to rest.
   */
  readonly freeze: (signal: AbortSignal) => Promise<void>;
  readonly thaw: () => Promise<void>;
  /** Default: 60 seconds. */
  readonly thawTimeoutMs?: number | undefined;
}

/**
 * A hook of two functions, for embedders whose application lives in this process. Nothing thaws it
 * when the process is killed: nothing has to.
 */
export function functionHook({ name, freeze, thaw, thawTimeoutMs = timing.thawMs }: FunctionHookOptions): Hook {
  return {
    freeze: (signal) => runFunction("pre", name, () => freeze(signal), signal),
    async thaw() {
      const limit = new AbortController();
      const timer = setTimeout(() => {
        limit.abort();
      }, thawTimeoutMs);
      try {
        return await runFunction("post", name, thaw, limit.signal);
      } finally {
        clearTimeout(timer);
      }
    },
  };
}

export interface FreezeOptions {
  /** From the beginning of the freeze to the beginning of the thaw, at most. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

export interface FreezeOutcome<T> {
  readonly result: T;
  /** In the order in which they ran; for the point's record. */
  readonly steps: readonly HookStep[];
  /**
   * True when the application was at rest from before `whileFrozen` until after it, as far as the
   * hook can tell.
   */
  readonly frozen: boolean;
  /** Why not. */
  readonly reason?: string;
}

/**
 * Runs `whileFrozen`, which should take milliseconds, while the hook holds the application at rest;
 * or, when that fails, all the same, after the thaw. A thaw that fails takes the claim back: it is
 * how a hook tells that the freeze did not hold. What `whileFrozen` throws is thrown, after the
 * thaw. Errors: INTERRUPTED when `signal` aborts before `whileFrozen` has begun; after that its
 * result is waited for.
 */
export async function withFreeze<T>(
  hook: Hook,
  options: FreezeOptions,
  whileFrozen: () => Promise<T>,
): Promise<FreezeOutcome<T>> {
  throwIfAborted(options.signal);
  const deadline = new Deadline(options);
  const steps: HookStep[] = [];
  let work: Promise<T> | undefined;
  let reason: string | undefined;
  try {
    try {
      const step = await hook.freeze(deadline.signal);
      steps.push(step);
      reason = deadline.passed() ?? failureOf(step);
      if (reason === undefined) {
        work = whileFrozen();
        await Promise.race([work, deadline.reached]);
        reason = deadline.passed();
      }
    } finally {
      deadline.clear();
      const step = await hook.thaw();
      steps.push(step);
      reason ??= failureOf(step);
    }
  } catch (error) {
    // Never left to itself: when a freeze or a thaw throws, the work may have begun.
    await Promise.allSettled([work]);
    throw error;
  }
  if (work === undefined && options.signal?.aborted === true) throw interrupted(options.signal);
  const result = await (work ?? whileFrozen());
  return reason === undefined ? { result, steps, frozen: true } : { result, steps, frozen: false, reason };
}

/** The instant at which an application is woken, whatever has been reached. */
class Deadline {
  readonly signal: AbortSignal;
  /** Resolves when `signal` aborts. */
  readonly reached: Promise<void>;
  readonly #controller = new AbortController();
  readonly #options: FreezeOptions;
  readonly #startedAtMs = performance.now();
  readonly #timer: NodeJS.Timeout;
  readonly #stop = (): void => {
    this.#controller.abort();
  };

  constructor(options: FreezeOptions) {
    this.#options = options;
    this.signal = this.#controller.signal;
    this.#timer = setTimeout(this.#stop, options.timeoutMs);
    options.signal?.addEventListener("abort", this.#stop, { once: true });
    this.reached = once(this.signal, "abort").then(() => undefined);
  }

  /**
   * Why the application must not be held any longer. The clock is asked, too: timers fire late in a
   * process that was stopped or is busy.
   */
  passed(): string | undefined {
    if (this.#options.signal?.aborted === true) return "the freeze was interrupted";
    const late = this.signal.aborted || performance.now() - this.#startedAtMs >= this.#options.timeoutMs;
    return late ? `the freeze had not led to a cut after ${this.#options.timeoutMs} ms` : undefined;
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#options.signal?.removeEventListener("abort", this.#stop);
  }
}

function failureOf({ phase, command, exitCode, signal, output }: HookStep): string | undefined {
  if (exitCode === 0) return undefined;
  const fact =
    exitCode !== null
      ? `ended with exit code ${exitCode}`
      : signal !== null
        ? `was ended by ${signal}`
        : "could not be run";
  const lastLine = output.trimEnd().split("\n").at(-1) ?? "";
  return `the ${phase} command ${JSON.stringify(command)} ${fact}${lastLine === "" ? "" : `: ${lastLine}`}`;
}

// ---- Functions ----

async function runFunction(
  phase: HookStep["phase"],
  name: string,
  run: () => Promise<void>,
  signal: AbortSignal,
): Promise<HookStep> {
  const startedAtMs = performance.now();
  const outcome = await Promise.race([
    run().then(
      () => undefined,
      (error: unknown) => `failed: ${error instanceof Error ? error.message : String(error)}`,
    ),
    aborted(signal).then(() => "did not end in time"),
  ]);
  const output = outcome === undefined ? "" : cleaned(Buffer.from(outcome));
  const exitCode = outcome === undefined ? 0 : null;
  return { phase, command: recorded(name), exitCode, signal: null, elapsedMs: elapsedSince(startedAtMs), output };
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (!signal.aborted) await once(signal, "abort");
}

// ---- Commands ----

interface CommandSettings {
  readonly phase: HookStep["phase"];
  readonly command: string;
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
}

/**
 * Waits for the word, so that nothing runs that the guard does not know; when the pipe closes
 * instead, nothing runs at all.
 */
const gateScript = 'read -r word || exit 125; exec /bin/sh -c "$1" </dev/null';

/**
 * Runs one command to its end; when `signal` aborts, ends it and whatever else is in its process
 * group.
 */
async function runCommand(
  { phase, command, cwd, env }: CommandSettings,
  guard: Guard | undefined,
  signal: AbortSignal,
): Promise<HookStep> {
  const startedAtMs = performance.now();
  const step = (exitCode: number | null, ending: string | null, output: string): HookStep => {
    return {
      phase,
      command: recorded(command),
      exitCode,
      signal: ending,
      elapsedMs: elapsedSince(startedAtMs),
      output,
    };
  };
  // Stopped before it was started: there is nothing to end.
  if (signal.aborted) return step(null, null, "stopped before it was started");
  const child: ChildProcess = spawn("/bin/sh", ["-c", gateScript, "tidemark-hook", command], {
    cwd,
    env,
    detached: true,
    stdio: "pipe",
  });
  const output = new OutputTail(child);
  const ended = new Promise<Ending>((resolve, reject) => {
    child.once("exit", (exitCode, ending) => resolve({ exitCode, signal: ending }));
    child.once("error", reject);
  });
  // Waited for below; marked as handled now, because the guard is told first.
  ended.catch(() => undefined);
  // The gate's pipe breaks when the command is gone, which shows as its end.
  child.stdin?.on("error", () => undefined);
  const group = child.pid;
  if (group !== undefined) await guard?.tell(`running ${group}`);
  child.stdin?.end("go\n");

  const mustStop = (pid: number | undefined): pid is number => signal.aborted && pid !== undefined;
  let stop: () => void = () => undefined;
  const stopped = new Promise<Ending>((resolve, reject) => {
    stop = () => {
      if (mustStop(group)) endGroup(group, ended).then(resolve, reject);
    };
  });
  signal.addEventListener("abort", stop, { once: true });
  stop();
  try {
    let ending = await Promise.race([ended, stopped]);
    if (mustStop(group)) ending = await stopped;
    return step(ending.exitCode, ending.signal, await output.text());
  } catch (error) {
    child.unref();
    await output.text();
    return step(null, null, messageOf(error));
  } finally {
    signal.removeEventListener("abort", stop);
    await guard?.tell("ended");
  }
}

interface Ending {
  readonly exitCode: number | null;
  readonly signal: string | null;
}

/**
 * Asks a process group to end, and kills what is left of it when its leader has ended or has had
 * its time. Throws when even that does not end the leader, as happens to one that waits inside the
 * kernel or belongs to another user: nobody waits for it for ever.
 */
async function endGroup(group: number, ended: Promise<Ending>): Promise<Ending> {
  signalGroup(group, "SIGTERM");
  await withinMs(timing.killAfterMs, ended);
  signalGroup(group, "SIGKILL");
  const ending = await withinMs(timing.killAfterMs, ended);
  if (ending === undefined) throw new Error("it was to be stopped and does not end when it is killed");
  return ending;
}

/** What `promise` resolves to, or undefined when that takes longer. */
async function withinMs<T>(limitMs: number, promise: Promise<T>): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), limitMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

function signalGroup(group: number, name: NodeJS.Signals): void {
  try {
    process.kill(-group, name);
  } catch (error) {
    // Gone already, or another user's: then its end does not come, which is what `endGroup`
    // reports.
    if (systemCode(error) !== "ESRCH" && systemCode(error) !== "EPERM") throw error;
  }
}

/** The end of what a command prints, on either stream, in a bounded buffer. */
class OutputTail {
  readonly #streams: readonly Readable[];
  readonly #closed: Promise<unknown>;
  #kept: Uint8Array = new Uint8Array(0);

  constructor({ stdout, stderr }: ChildProcess) {
    this.#streams = [stdout, stderr].filter((stream) => stream instanceof Readable);
    for (const stream of this.#streams) {
      stream.on("data", (bytes: Buffer) => {
        this.#kept = Buffer.concat([this.#kept, bytes]).subarray(-outputBytesMax);
      });
    }
    // A stream that fails has nothing more to say, as one that ends.
    this.#closed = Promise.allSettled(this.#streams.map((stream) => finished(stream)));
  }

  /**
   * What was printed until the command's end. What it left running keeps the pipe's other end for
   * itself.
   */
  async text(): Promise<string> {
    await withinMs(timing.outputMs, this.#closed);
    for (const stream of this.#streams) stream.destroy();
    return cleaned(this.#kept);
  }
}

/**
 * The end of a text as it may stand in a record and on a terminal: at most 4 KiB, no control
 * characters but tab and line feed.
 */
function cleaned(bytes: Uint8Array): string {
  let start = Math.max(0, bytes.length - outputBytesMax);
  // Not in the midst of a UTF-8 sequence, whose later bytes are 10xxxxxx.
  if (bytes.length >= outputBytesMax) while (((bytes[start] ?? 0) & 0xc0) === 0x80) start++;
  return shown(stripVTControlCharacters(Buffer.from(bytes.subarray(start)).toString("utf8")));
}

/**
 * A command as it may stand in a record: its beginning, whole characters, no control characters but
 * tab and line feed.
 */
function recorded(command: string): string {
  const characters = Array.from(command.slice(0, 2 * commandCharactersMax));
  return shown(characters.slice(0, commandCharactersMax).join(""));
}

function messageOf(error: unknown): string {
  return cleaned(Buffer.from(error instanceof Error ? error.message : String(error)));
}

/** Also surrogates without their other half, which JSON spells with six letters. */
function shown(text: string): string {
  return text.replaceAll("\r\n", "\n").replaceAll(/[^\P{Cc}\t\n]|\p{Cs}/gu, "\u{fffd}");
}

function elapsedSince(startedAtMs: number): number {
  return Math.round(performance.now() - startedAtMs);
}

// ---- The guard ----

/**
 * What the guard runs. It lives in a process group of its own and ignores the signals that a
 * terminal or a service manager sends to all of the agent's processes; the thaw it starts does not
 * ignore them. It waits for the end of what it kills, so that the thaw comes after it; but not for
 * ever, because a zombie that nobody buries still counts as there.
 */
const guardScript = `
trap '' HUP INT TERM
group=
while read -r word value; do
  case $word in
    running) group=$value ;;
    ended) group= ;;
    thawed) exit 0 ;;
  esac
done
for name in TERM KILL; do
  [ -n "$group" ] && kill -s "$name" -- "-$group" 2>/dev/null || continue
  tenths=0
  while [ "$tenths" -lt 20 ] && kill -s 0 -- "-$group" 2>/dev/null; do
    sleep 0.1
    tenths=$((tenths + 1))
  done
done
trap - HUP INT TERM
exec /bin/sh -c "$1"
`;

class Guard {
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;

  constructor(child: ChildProcess, ended: Promise<void>) {
    this.#child = child;
    this.#ended = ended;
  }

  /**
   * Resolves when the line lies in the pipe, where it outlives this process. A guard that somebody
   * ended cannot be told anything: we still thaw.
   */
  tell(line: string): Promise<void> {
    return new Promise((resolve) => {
      if (this.#child.stdin === null) resolve();
      else this.#child.stdin.write(`${line}\n`, () => resolve());
    });
  }

  /** All is thawed. */
  async dismiss(): Promise<void> {
    await this.tell("thawed");
    this.#child.stdin?.end();
    await this.#ended;
  }
}

async function startGuard({ command, cwd, env }: CommandSettings): Promise<Guard | { readonly failure: string }> {
  const child: ChildProcess = spawn("/bin/sh", ["-c", guardScript, "tidemark-guard", command], {
    cwd,
    env,
    detached: true,
    stdio: ["pipe", "ignore", "ignore"],
  });
  child.stdin?.on("error", () => undefined);
  const ended = new Promise<void>((resolve) => {
    child.once("exit", () => resolve());
  });
  try {
    await once(child, "spawn");
  } catch (error) {
    return { failure: `the guard could not be started: ${messageOf(error)}` };
  }
  return new Guard(child, ended);
}
