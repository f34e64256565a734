/**
 * Databases under load, for tests of disks that they are on: a PostgreSQL server, and clients whose
 * transactions can be counted again wherever the disk comes back.
 */
import { type ChildProcessWithoutNullStreams, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chownSync, mkdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { onTestFinished } from "vitest";
import { binary, isInstalled, postgresUser, type User } from "../programs.ts";
import { whyNotMountable } from "./mounted-disk.ts";

const run = promisify(execFile);

/** The user that a PostgreSQL runs as on a mounted disk. Skips the test where that cannot be had. */
export function databaseUser(skip: (reason: string) => never, ...programs: readonly string[]): User {
  for (const needed of [...programs, "initdb", "pg_ctl", "psql"])
    if (!isInstalled(needed)) skip(`${needed} is not installed here`);
  const reason = whyNotMountable();
  if (reason !== undefined) skip(`no protected disk can be mounted here: ${reason}`);
  return postgresUser() ?? skip("there is no user postgres to run a server as");
}

/** Ends a server, also one whose disk fails. Idempotent. */
export type StopServer = (disk?: "works" | "fails") => Promise<void>;

/** Runs a PostgreSQL on `data`, made first when it is to be `fresh`, and gives what ends it. */
export async function startServer(
  data: string,
  sockets: string,
  user: User,
  state: "fresh" | "restored",
): Promise<StopServer> {
  const command = async (name: string, ...words: readonly string[]): Promise<void> => {
    await run(binary(name) ?? name, words, { ...user, cwd: "/" });
  };
  if (state === "fresh") {
    mkdirSync(data, { mode: 0o700 });
    chownSync(data, user.uid, user.gid);
    await command("initdb", "-D", data, "-U", "postgres", "-A", "trust", "--wal-segsize=1");
  } else {
    rmSync(join(data, "postmaster.pid"), { force: true }); // of the server that the point has seen
  }
  const settings = `-c listen_addresses= -c unix_socket_directories=${sockets} -c autovacuum=off`;
  const log = join(sockets, "log");
  await command("pg_ctl", "-D", data, "-w", "-s", "-l", log, "-o", settings, "start").catch((error: unknown) => {
    throw new Error(`PostgreSQL does not start: ${readFileSync(log, "utf8")}`, { cause: error });
  });
  const processId = Number(readFileSync(join(data, "postmaster.pid"), "utf8").split("\n")[0]);
  let isUp = true;
  const stop: StopServer = async (disk = "works") => {
    if (!isUp) return;
    isUp = false;
    const stopped = command("pg_ctl", "-D", data, "-w", "-s", "-m", disk === "works" ? "fast" : "immediate", "stop");
    // A server whose disk fails may have ended by itself.
    await (disk === "works" ? stopped : stopped.catch(() => undefined));
    // It removes its file of the process id before it leaves the disk.
    while (isOnDisk(processId)) await delay(10);
  };
  onTestFinished(async () => await stop("fails"));
  return stop;
}

/** Whether a process lives: of one that has ended and was not waited for, the folder is gone too. */
function isOnDisk(processId: number): boolean {
  try {
    readlinkSync(`/proc/${processId}/cwd`);
    return true;
  } catch {
    return false;
  }
}

/** The numbers that the database on `data` holds, in rising order. */
export async function postgresRows(data: string, sockets: string, user: User): Promise<readonly number[]> {
  const stop = await startServer(data, sockets, user, "restored");
  const { stdout } = await run("psql", ["-c", "SELECT a FROM t ORDER BY a", ...psqlWords(sockets)]);
  await stop();
  return stdout.trim().split("\n").filter(Boolean).map(Number);
}

/** Transactions on the server behind `sockets`, the first of them with the number `first`. */
export function postgresLoad(sockets: string, first = 1): Load {
  return new Load(spawn("psql", ["-v", "ON_ERROR_STOP=1", ...psqlWords(sockets)]), (word) => `\\echo ${word}`, first);
}

export const postgresTable = "CREATE TABLE t(a int, filling text);";

export function postgresInsert(number: number): string {
  return `INSERT INTO t VALUES (${number}, repeat(md5('${number}'), ${number % 200}));`;
}

function psqlWords(sockets: string): readonly string[] {
  return ["-XAtq", "-h", sockets, "-U", "postgres", "-d", "postgres"];
}

/**
 * Transactions with rising numbers of one client of a database, one after the other, each with the times
 * between which it was committed.
 */
export class Load {
  readonly #shell: ChildProcessWithoutNullStreams;
  readonly #answers: AsyncIterator<string>;
  readonly #echo: (word: string) => string;
  readonly #first: number;
  readonly #times: { readonly begunMs: number; readonly committedMs: number }[] = [];
  #isEnding = false;
  #running: Promise<void> = Promise.resolve();

  /** `echo` gives what makes the shell print a word, once all before it is done. */
  constructor(shell: ChildProcessWithoutNullStreams, echo: (word: string) => string, first = 1) {
    this.#shell = shell;
    this.#echo = echo;
    this.#first = first;
    this.#answers = createInterface(shell.stdout)[Symbol.asyncIterator]();
    shell.stderr.pipe(process.stderr);
    shell.stdin.on("error", () => undefined); // a shell that has ended says no more
    onTestFinished(async () => {
      if (shell.exitCode !== null || shell.signalCode !== null) return;
      shell.kill("SIGKILL");
      await once(shell, "close");
    });
  }

  get committed(): number {
    return this.#times.length;
  }

  /** Resolves when the statements are done. */
  async say(statements: string): Promise<void> {
    this.#shell.stdin.write(`${statements}\n${this.#echo("done")}\n`);
    for (;;) {
      const answer = await this.#answers.next();
      if (answer.done === true) throw new Error(`the database's shell ended at ${statements}`);
      if (answer.value === "done") return;
    }
  }

  begin(statement: (number: number) => string): void {
    this.#running = this.#run(statement);
    this.#running.catch(() => undefined); // awaited by `end`
  }

  /** Fails when the shell ends under the load, as when its server fails. */
  get running(): Promise<void> {
    return this.#running;
  }

  async end(): Promise<void> {
    this.#isEnding = true;
    await this.#running;
    const closed = once(this.#shell, "close");
    this.#shell.stdin.end();
    await closed;
  }

  /** What is wrong with a database that holds these rows at a point that was cut at `cutMs`. */
  faults(rows: readonly number[], cutMs: number): readonly string[] {
    const faults: string[] = [];
    if (rows.some((number, index) => number !== index + 1))
      faults.push("there are transactions without those before them");
    const missing = this.#times.findIndex(({ committedMs }, index) => index >= rows.length && committedMs < cutMs);
    if (missing !== -1) faults.push(`transaction ${missing + 1}, committed before the cut, is missing`);
    const early = this.#times.findIndex(({ begunMs }, index) => index < rows.length && begunMs > cutMs);
    if (early !== -1) faults.push(`transaction ${early + 1}, begun after the cut, is there`);
    return faults;
  }

  async #run(statement: (number: number) => string): Promise<void> {
    while (!this.#isEnding) {
      const begunMs = Date.now();
      await this.say(statement(this.#first + this.#times.length));
      this.#times.push({ begunMs, committedMs: Date.now() });
    }
  }
}
