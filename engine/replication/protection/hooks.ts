/**
 * Application quiescing: hooks freeze an application for the instant of a cut (freeze, cut, thaw).
 *
 *     freeze ──► cut (milliseconds) ──► thaw          application-consistent when all three succeeded before the deadline
 *     freeze fails ──► thaw ──► cut                   crash-consistent, and the point says why
 *     freeze ──► cut … deadline ──► thaw              crash-consistent; the application is not held beyond the deadline
 *
 * `hook-command.ts` runs a hook's commands, `hook-guard.ts` thaws when this process is killed.
 *
 * Invariant: the thaw runs after every freeze that was begun, also when the freeze failed and when
 * the agent stops. An application is held for at most freeze + kill + thaw + kill.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { homedir } from "node:os";
import { interrupted, systemCode, throwIfAborted } from "../../errors.ts";
import type { HookStep } from "../../store/format/documents.ts";
import { runCommand } from "./hook-command.ts";
import { type CommandSettings, Guard, startGuard } from "./hook-guard.ts";
import { cleaned, elapsedSince, recorded } from "./hook-record.ts";

/** A thaw that takes longer is killed. */
const thawMsDefault = 60_000;

/**
 * Freezes and thaws an application. The step holds the outcome: it succeeded if its `exitCode` is
 * 0. The protection calls `thaw` once after each `freeze`.
 */
export interface Hook {
  /** Brings the application to rest. Must settle soon after `signal` aborts. */
  freeze(signal: AbortSignal): Promise<HookStep>;
  /** Wakes the application. Called after every freeze, also after one that failed. */
  thaw(): Promise<HookStep>;
}

export interface CommandHookOptions {
  /** The freeze command. Runs through `sh -c` and must exit with 0 once the application rests. */
  readonly pre: string;
  /**
   * The thaw command. Runs after each `pre`, sometimes twice. Must exit with 0 if the application
   * was at rest until now.
   */
  readonly post: string;
  /** The disk's name, which both commands get as TIDEMARK_DISK. */
  readonly disk: string;
  /** Further environment variables. No variable of this process is inherited. */
  readonly env?: Readonly<Record<string, string>> | undefined;
  /** Working directory. Default: `/`, so that no unmount waits for the commands. */
  readonly cwd?: string | undefined;
  /** A thaw that takes longer is killed, in ms. Default: 60 000. */
  readonly thawTimeoutMs?: number | undefined;
  /** @internal Wall clock, in ms since 1970. Default: `Date.now`. */
  readonly now?: (() => number) | undefined;
}

/**
 * A hook of two commands. Their environment is PATH, HOME, LANG, TIDEMARK_DISK, TIDEMARK_PHASE
 * (`pre` or `post`) and TIDEMARK_POINT_TIME (ISO 8601, when the freeze began). If this process is
 * killed during a freeze, a guard process runs `post`.
 *
 * @example
 * ```ts
 * const hook = commandHook({
 *   disk: "data",
 *   pre: "fsfreeze --freeze /srv/data",
 *   post: "fsfreeze --unfreeze /srv/data",
 * });
 * await using protection = await vault.protect({ disk: "data", image, stateFolder, hook });
 * ```
 */
export function commandHook(options: CommandHookOptions): Hook {
  const { pre, post, disk, cwd = "/", thawTimeoutMs = thawMsDefault, now = Date.now } = options;
  let frozen: { readonly guard: Guard | undefined; readonly pointTime: string } | undefined;

  const settings = (phase: HookStep["phase"], pointTime: string): CommandSettings => ({
    phase,
    command: phase === "pre" ? pre : post,
    cwd,
    env: {
      PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      HOME: homeFolder(),
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
      try {
        return await within(thawTimeoutMs, (signal) => runCommand(settings("post", pointTime), guard, signal));
      } finally {
        await guard?.dismiss();
        frozen = undefined;
      }
    },
  };
}

export interface FunctionHookOptions {
  /** Stands in the point's record where a command would. */
  readonly name: string;
  /**
   * Brings the application to rest. Rejects if that fails. `signal` aborts at the deadline; the
   * freeze then counts as failed.
   */
  readonly freeze: (signal: AbortSignal) => Promise<void>;
  /** Wakes the application. Rejects if the application was not at rest until now. */
  readonly thaw: () => Promise<void>;
  /** A thaw that takes longer counts as failed, in ms. Default: 60 000. */
  readonly thawTimeoutMs?: number | undefined;
}

/**
 * A hook of two functions, for an application that runs in this process.
 *
 * @example
 * ```ts
 * const hook = functionHook({
 *   name: "my database",
 *   freeze: async () => await database.flushAndHold(),
 *   thaw: async () => await database.release(),
 * });
 * ```
 */
export function functionHook({ name, freeze, thaw, thawTimeoutMs = thawMsDefault }: FunctionHookOptions): Hook {
  return {
    freeze: (signal) => runFunction("pre", name, () => freeze(signal), signal),
    thaw: () => within(thawTimeoutMs, (signal) => runFunction("post", name, thaw, signal)),
  };
}

/** Runs `work` with a signal that aborts after `limitMs`. */
async function within<Result>(limitMs: number, work: (signal: AbortSignal) => Promise<Result>): Promise<Result> {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), limitMs);
  try {
    return await work(limit.signal);
  } finally {
    clearTimeout(timer);
  }
}

export interface FreezeOptions {
  /** Longest time from the beginning of the freeze to the beginning of the thaw. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

export interface FreezeOutcome<T> {
  readonly result: T;
  /** In the order in which they ran; for the point's record. */
  readonly steps: readonly HookStep[];
  /**
   * True if the application was at rest from before `whileFrozen` until after it, as far as the
   * hook reports.
   */
  readonly frozen: boolean;
  /** Given when `frozen` is false. */
  readonly reason?: string;
}

/**
 * Runs `whileFrozen`, which should take milliseconds, while the hook holds the application at rest.
 * If the freeze fails, runs it all the same, after the thaw. A thaw that fails makes `frozen`
 * false: that is how a hook reports that the freeze did not hold. An error of `whileFrozen` is
 * thrown after the thaw.
 *
 * @throws TidemarkError INTERRUPTED when `signal` aborts before `whileFrozen` has begun. After that
 * its result is awaited.
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
    // The work may have begun when a freeze or a thaw throws; it is awaited.
    await Promise.allSettled([work]);
    throw error;
  }
  if (work === undefined && options.signal?.aborted === true) throw interrupted(options.signal);
  const result = await (work ?? whileFrozen());
  return reason === undefined ? { result, steps, frozen: true } : { result, steps, frozen: false, reason };
}

/** The instant at which the application is woken, whether or not the cut has been made. */
class Deadline {
  readonly signal: AbortSignal;
  /** Resolves when `signal` aborts. */
  readonly reached: Promise<void>;
  readonly #controller = new AbortController();
  readonly #options: FreezeOptions;
  readonly #startedAtMs = performance.now();
  readonly #timer: NodeJS.Timeout;
  readonly #stop = (): void => this.#controller.abort();

  constructor(options: FreezeOptions) {
    this.#options = options;
    this.signal = this.#controller.signal;
    this.#timer = setTimeout(this.#stop, options.timeoutMs);
    options.signal?.addEventListener("abort", this.#stop, { once: true });
    this.reached = once(this.signal, "abort").then(() => undefined);
  }

  /**
   * The reason why the application must not be held any longer. Also reads the clock, because
   * timers fire late in a process that was stopped or is busy.
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

function homeFolder(): string {
  try {
    return homedir();
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return "/"; // a user without a home, as a container's
  }
}
