/**
 * Child programs of a benchmark. Each ends with its parent (short of kill -9), and only the process
 * that started it ends it.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, systemCode, TidemarkError, throwIfAborted } from "../../engine/index.ts";

const startMsMax = 10_000;
const pollMs = 20;
/** Of what a program says, as much as an error can tell. */
const spokenCharactersMax = 2_000;

/** A running program. */
export class Program implements AsyncDisposable {
  readonly child: ChildProcess;
  readonly name: string;
  /** Resolves when the program has ended, or could not be started. Never rejects. */
  readonly ended: Promise<void>;
  #failure: Error | undefined;

  constructor(child: ChildProcess, name: string) {
    this.child = child;
    this.name = name;
    const killNow = (): void => void child.kill("SIGKILL");
    process.on("exit", killNow);
    this.ended = new Promise((resolve) => {
      const end = (): void => {
        process.off("exit", killNow);
        resolve();
      };
      child.once("close", end);
      child.on("error", (error) => {
        this.#failure = error;
        if (child.pid === undefined) end();
      });
    });
  }

  /** Why it could not be started, if it could not. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  get isRunning(): boolean {
    return this.child.pid !== undefined && this.child.exitCode === null && this.child.signalCode === null;
  }

  async kill(): Promise<void> {
    if (this.isRunning) this.child.kill("SIGKILL");
    await this.ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/** What a program said, and how it ended. */
export interface Ended {
  readonly exitCode: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Starts a program in `folder`, with `environment` besides that of this process. */
function start(
  name: string,
  words: readonly string[],
  folder: string,
  environment: Readonly<Record<string, string>> = {},
): { program: Program; said: { stdout: string; stderr: string } } {
  // A group of its own: a ^C at the terminal is for us, and we end it.
  const env = { ...process.env, ...environment };
  const child = spawn(name, words, { cwd: folder, env, detached: true, stdio: ["ignore", "pipe", "pipe"] });
  const said = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    said.stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    said.stderr = (said.stderr + text).slice(-spokenCharactersMax);
  });
  return { program: new Program(child, name), said };
}

/**
 * Runs a program to its end. Errors: UNSUPPORTED (it is not installed), INTERRUPTED; how it ended
 * is the caller's to judge.
 */
export async function runProgram(
  name: string,
  words: readonly string[],
  folder: string,
  signal: AbortSignal | undefined,
  environment: Readonly<Record<string, string>> = {},
): Promise<Ended> {
  throwIfAborted(signal);
  const { program, said } = start(name, words, folder, environment);
  const stop = (): void => void program.child.kill("SIGKILL");
  signal?.addEventListener("abort", stop, { once: true });
  try {
    await program.ended;
  } finally {
    signal?.removeEventListener("abort", stop);
  }
  throwIfAborted(signal);
  if (program.failure !== undefined) throw notStarted(program);
  return { exitCode: program.child.exitCode, ...said };
}

/** Whether a program can be started here. */
export async function isInstalled(name: string, folder: string): Promise<boolean> {
  try {
    await runProgram(name, ["--version"], folder, undefined);
    return true;
  } catch (error) {
    if (hasCode(error, "UNSUPPORTED")) return false;
    throw error;
  }
}

/**
 * Starts a server that listens on the Unix socket `path`; resolves when it does. Errors: as of
 * `runProgram`, and INTERNAL.
 */
export async function startServer(
  name: string,
  words: readonly string[],
  path: string,
  folder: string,
  signal: AbortSignal | undefined,
): Promise<Program> {
  const { program, said } = start(name, words, folder);
  const deadline = performance.now() + startMsMax;
  try {
    while (!(await listens(path))) {
      throwIfAborted(signal);
      if (program.failure !== undefined) throw notStarted(program);
      if (!program.isRunning || performance.now() > deadline) {
        throw new TidemarkError("INTERNAL", `${name} does not serve: ${said.stderr.trim()}`, {
          remedy: `try ${name} by hand`,
        });
      }
      await delay(pollMs);
    }
    return program;
  } catch (error) {
    await program.kill();
    throw error;
  }
}

async function listens(path: string): Promise<boolean> {
  const socket = connect(path);
  try {
    await once(socket, "connect");
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT" || systemCode(error) === "ECONNREFUSED") return false;
    throw error;
  } finally {
    socket.destroy();
  }
}

function notStarted({ name, failure }: Program): TidemarkError {
  return new TidemarkError(
    "UNSUPPORTED",
    `${name}, which this case needs, cannot be started (${systemCode(failure) ?? "unknown"})`,
    {
      remedy: "install it: apt-get install fio qemu-utils",
      cause: failure,
    },
  );
}
