/**
 * The built program as a test runs it: a process of its own, in a folder of its own, with an
 * environment that holds nothing of the tester's.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { repositoryRoot } from "../source-tree.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";

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
  /** Those who wait for more output. */
  readonly #waiting = new Set<() => void>();

  /** `under` is a command that runs another one, such as `unshare`. */
  constructor(
    folder: string,
    words: readonly string[],
    environment: Readonly<Record<string, string>> = {},
    under: readonly string[] = [],
  ) {
    const { PATH = "" } = process.env;
    const [command = process.execPath, ...rest] = [...under, process.execPath, program, ...words];
    const child = spawn(command, rest, {
      cwd: folder,
      env: { PATH, HOME: folder, TMPDIR: folder, ...environment },
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
    onTestFinished(async () => {
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

  async run(words: readonly string[], environment: Readonly<Record<string, string>> = {}): Promise<Ended> {
    return await this.start(words, environment).ended;
  }

  /**
   * Runs with `--json` on the vault `dir:vault` and gives exit code and lines. Fails when anything
   * but JSON was printed.
   */
  async json(
    ...words: readonly string[]
  ): Promise<{ readonly code: number | null; readonly lines: readonly Line[]; readonly last: Line }> {
    const ended = await this.run([...words, "--json"], { TIDEMARK_VAULT: "dir:vault" });
    const lines = parseLines(ended.stdout);
    const last = lines.at(-1);
    if (ended.stderr !== "" || last === undefined) throw new Error(`stderr: ${ended.stderr}; stdout: ${ended.stdout}`);
    return { code: ended.code, lines, last };
  }
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
