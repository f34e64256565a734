/**
 * Running a hook's command: a child process in a process group of its own, with its output bounded
 * and its end enforced.
 *
 * The command waits at a gate, a shell that reads one line, until the guard knows its process group
 * (see `hook-guard.ts`).
 *
 * Invariant: a command that is to stop has ended, or is reported as still running, 2 ×
 * `killAfterMs` after the abort.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { Readable } from "node:stream";
import { finished } from "node:stream/promises";
import { systemCode } from "../../errors.ts";
import type { HookStep } from "../../store/format/documents.ts";
import type { CommandSettings, Guard } from "./hook-guard.ts";
import { cleaned, elapsedSince, messageOf, outputBytesMax, recorded } from "./hook-record.ts";

/**
 * A process that was asked to end (SIGTERM) is killed after this time. The guard's loop counts the
 * same time in tenths of a second.
 */
const killAfterMs = 2_000;
/** Wait for output that is still in the pipe when the command has ended. */
const outputMs = 200;

/**
 * The gate: runs the command when a line arrives. If the pipe closes instead, the command never
 * runs.
 */
const gateScript = 'read -r word || exit 125; exec /bin/sh -c "$1" </dev/null';

/**
 * Runs one command to its end. When `signal` aborts, ends every process in the command's process
 * group. Never rejects for what the command does: the step holds it.
 */
export async function runCommand(
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
  // Awaited below, after the guard has been told; a rejection until then counts as handled.
  ended.catch(() => undefined);
  // The gate's pipe breaks when the command has ended; `ended` reports that.
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
 * Asks a process group to end (SIGTERM). When its leader has ended, or after `killAfterMs`, kills
 * the rest (SIGKILL). Throws when the leader still runs `killAfterMs` later, for example because it
 * waits inside the kernel or belongs to another user.
 */
async function endGroup(group: number, ended: Promise<Ending>): Promise<Ending> {
  signalGroup(group, "SIGTERM");
  await withinMs(killAfterMs, ended);
  signalGroup(group, "SIGKILL");
  const ending = await withinMs(killAfterMs, ended);
  if (ending === undefined) throw new Error("the command still runs after SIGKILL");
  return ending;
}

/** The value of `promise`, or undefined when it takes longer than `limitMs`. */
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
    // ESRCH: the group has ended. EPERM: it belongs to another user; `endGroup` reports that it
    // does not end.
    if (systemCode(error) !== "ESRCH" && systemCode(error) !== "EPERM") throw error;
  }
}

/** The end of what a command prints, on both streams, in a bounded buffer. */
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
    // A stream that fails prints nothing more, as one that ends.
    this.#closed = Promise.allSettled(this.#streams.map((stream) => finished(stream)));
  }

  /**
   * What was printed up to the command's end. Processes that the command left running may hold the
   * pipe open; their output is dropped.
   */
  async text(): Promise<string> {
    await withinMs(outputMs, this.#closed);
    for (const stream of this.#streams) stream.destroy();
    return cleaned(this.#kept);
  }
}
