/**
 * The command line as a test runs it: in a folder of its own, with an environment that holds nothing
 * of the tester's.
 *
 * `start` runs the built program as a process. `run` calls it in the test's process, which saves
 * 0.75 s of processor time a command.
 *
 * Invariant: at most one command runs in the test's process, because it takes over the working
 * directory, the environment and the output. A second one at that time is a process.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { onTestFinished, vi } from "vitest";
import { keyEnvironment } from "../encrypted.ts";
import { repositoryRoot } from "../source-tree.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";

/** How much of the last output of a process is shown when its test fails. */
const saidBytes = 2_000;

const program = join(repositoryRoot, "dist", "cli", "main.js");

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** One line of `--json`. */
export type Line = Readonly<Record<string, unknown>> & { readonly type: string };

/** A process of tidemark that may still be running. It is gone when the test is. */
export class Running {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  #stdout = "";
  #stderr = "";
  /** Callers that wait for more output. */
  readonly #waiting = new Set<() => void>();

  /** `under` is a command that runs another one, such as `unshare`. */
  constructor(
    folder: string,
    words: readonly string[],
    environment: Readonly<Record<string, string>> = {},
    under: readonly string[] = [],
  ) {
    const [command = process.execPath, ...rest] = [...under, process.execPath, program, ...words];
    const child = spawn(command, rest, {
      cwd: folder,
      env: environmentIn(folder, environment),
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.child = child;
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      this.#stdout += text;
      this.#heard();
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
      this.#heard();
    });
    this.ended = once(child, "close").then(([code, signal]) => ({
      code: code as number | null,
      signal: signal as NodeJS.Signals | null,
      stdout: this.#stdout,
      stderr: this.#stderr,
    }));
    onTestFinished(async ({ task }) => {
      // Its last output tells what a test that timed out was waiting for.
      if (task.result?.state === "fail" && child.exitCode === null && child.signalCode === null)
        console.log(`${words.join(" ")} is still running: ${(this.#stdout + this.#stderr).slice(-saidBytes)}`);
      child.kill("SIGKILL");
      await this.ended;
    });
  }

  /**
   * Resolves once `text` has appeared on stdout or stderr; fails when the process ends without it.
   */
  async says(text: string): Promise<void> {
    const abort = new AbortController();
    void this.ended.then(() => abort.abort());
    while (!this.#stdout.includes(text) && !this.#stderr.includes(text)) {
      if (abort.signal.aborted) throw new Error(`it ended and never said ${text}: ${this.#stderr}${this.#stdout}`);
      const heard = new Promise<void>((resolve) => this.#waiting.add(resolve));
      await Promise.race([heard, this.ended]);
    }
  }

  #heard(): void {
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  }
}

/** A folder that is removed after the test, with its own local state. */
export class Place {
  readonly folder: string = createFolder("cli");

  constructor() {
    onTestFinished(async () => await removeFolder(this.folder));
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  start(
    words: readonly string[],
    environment: Readonly<Record<string, string>> = {},
    under: readonly string[] = [],
  ): Running {
    return new Running(this.folder, words, environment, under);
  }

  /** Runs a command to its end, in the test's own process unless another command runs there. */
  async run(words: readonly string[], environment: Readonly<Record<string, string>> = {}): Promise<Ended> {
    if (isRunningHere) return await this.start(words, environment).ended;
    isRunningHere = true;
    try {
      return await runHere(this.folder, words, environmentIn(this.folder, environment));
    } finally {
      isRunningHere = false;
    }
  }

  /**
   * Runs with `--json` on the vault `dir:vault`, or on none if an agent is asked, and gives exit code
   * and lines. Fails when anything but JSON was printed.
   */
  async json(
    ...words: readonly string[]
  ): Promise<{ readonly code: number | null; readonly lines: readonly Line[]; readonly last: Line }> {
    const vault: Record<string, string> = words.includes("--agent") ? {} : { TIDEMARK_VAULT: "dir:vault" };
    const ended = await this.run([...words, "--json"], vault);
    const lines = parseLines(ended.stdout);
    const last = lines.at(-1);
    if (ended.stderr !== "" || last === undefined) throw new Error(`stderr: ${ended.stderr}; stdout: ${ended.stdout}`);
    return { code: ended.code, lines, last };
  }
}

/** Whether a command runs in this process: it has the working directory and the output of it. */
let isRunningHere = false;

function environmentIn(folder: string, more: Readonly<Record<string, string>>): Record<string, string> {
  const { PATH = "" } = process.env;
  // The images are small, and to start a second thread costs a command a twentieth of a second.
  return { PATH, HOME: folder, TMPDIR: folder, TIDEMARK_WORKERS: "1", ...keyEnvironment, ...more };
}

/**
 * Runs the program in this process, which has the working directory, the environment and the output
 * of a process of its own meanwhile.
 */
async function runHere(folder: string, words: readonly string[], environment: Record<string, string>): Promise<Ended> {
  const { runCommandLine } = await import("../../cli/program.ts");
  const [cwd, outer, exitCode] = [process.cwd(), { ...process.env }, process.exitCode];
  const stdout = captured(process.stdout);
  const stderr = captured(process.stderr);
  process.chdir(folder);
  setEnvironment(environment);
  try {
    const code = await runCommandLine(words, environment);
    return { code, signal: null, stdout: stdout.text(), stderr: stderr.text() };
  } finally {
    setEnvironment(outer);
    process.chdir(cwd);
    process.exitCode = exitCode;
    stdout.release();
    stderr.release();
  }
}

/** Changes `process.env` in place, so that the system's own calls see it. */
function setEnvironment(environment: NodeJS.ProcessEnv): void {
  for (const name of Object.keys(process.env)) if (!(name in environment)) Reflect.deleteProperty(process.env, name);
  Object.assign(process.env, environment);
}

/** Keeps what is written to `stream` until it is released. */
function captured(stream: NodeJS.WriteStream): { readonly text: () => string; readonly release: () => void } {
  const parts: string[] = [];
  const errorListeners = stream.listeners("error");
  const write = vi.spyOn(stream, "write").mockImplementation((part, ...rest) => {
    parts.push(typeof part === "string" ? part : Buffer.from(part).toString());
    for (const after of rest) if (typeof after === "function") after();
    return true;
  });
  return {
    text: () => parts.join(""),
    release: () => {
      write.mockRestore();
      for (const listener of stream.listeners("error"))
        if (!errorListeners.includes(listener)) stream.removeListener("error", listener as (error: Error) => void);
    },
  };
}

/** The objects of NDJSON, each with a `type`. */
export function parseLines(stdout: string): readonly Line[] {
  return stdout
    .split("\n")
    .slice(0, -1)
    .map((line) => {
      const value = JSON.parse(line) as Line;
      if (typeof value.type !== "string") throw new Error(`a line without a type: ${line}`);
      return value;
    });
}
