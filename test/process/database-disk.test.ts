/**
 * SQLite and PostgreSQL on ext4 on a protected disk, under load while points are taken. Brought
 * back, every point has a sound file system, databases that open, every transaction that was
 * acknowledged before its cut, and none that was begun after it.
 */
import { type ChildProcessWithoutNullStreams, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  chownSync,
  copyFileSync,
  mkdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { expect, onTestFinished, test } from "vitest";
import type { Line } from "../cli/tidemark.ts";
import { binary, isInstalled, postgresUser, type User } from "../programs.ts";
import { Client } from "./client.ts";
import { checkFileSystem, mountExport, whyNotMountable, withMounted } from "./mounted-disk.ts";
import { sample } from "./stamped-disk.ts";

const run = promisify(execFile);
const mebibyte = 1024 * 1024;
const diskBytes: number = 256 * mebibyte;
const appPoints = 2;
const crashPointsChecked = 3;
/** Between two application-consistent points, so that crash-consistent ones come about. */
const loadMs = 2_500;

test("databases on a protected disk come back at every point with exactly what was committed by then", {
  timeout: 180_000,
}, async ({ skip }) => {
  for (const needed of ["sqlite3", "initdb", "pg_ctl", "psql"])
    if (!isInstalled(needed)) skip(`${needed} is not installed here`);
  const reason = whyNotMountable();
  if (reason !== undefined) skip(`no protected disk can be mounted here: ${reason}`);
  const user = postgresUser();
  if (user === undefined) skip("there is no user postgres to run a server as");
  else await proved(user);
});

async function proved(user: User): Promise<void> {
  const client = new Client("dir:vault");
  const { folder } = client.place;
  chmodSync(folder, 0o755); // the database's user goes through it
  const mounted = client.path("mounted");
  const sockets = client.path("sockets");
  mkdirSync(sockets);
  chownSync(sockets, user.uid, user.gid);
  const agent = await startAgent(client, mounted, sockets);
  const unmount = await mountExport(client.path("nbd.sock"), "d", folder, mounted);

  const stop = await startServer(join(mounted, "pg"), sockets, user, "fresh");
  const sqlite = new Load(
    spawn("sqlite3", ["-batch", "-bail", join(mounted, "app.db")]),
    (word) => `SELECT '${word}';`,
  );
  const postgres = new Load(
    spawn("psql", ["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", sockets, "-U", "postgres", "-d", "postgres"]),
    (word) => `\\echo ${word}`,
  );
  await sqlite.say("PRAGMA journal_mode=wal; PRAGMA synchronous=full; CREATE TABLE t(a INTEGER, filling BLOB);");
  await postgres.say("CREATE TABLE t(a int, filling text);");
  const started = Date.now();
  sqlite.begin((number) => `INSERT INTO t VALUES (${number}, randomblob(${number % 5000}));`);
  postgres.begin((number) => `INSERT INTO t VALUES (${number}, repeat(md5('${number}'), ${number % 200}));`);
  for (let point = 0; point < appPoints; point += 1) {
    await delay(loadMs);
    const words = ["agent", "point", "--disk", "d", "--app-consistent", "--socket", "agent.sock"];
    expect(await client.run(...words)).toMatchObject({ code: 0, last: { consistency: "app" } });
  }
  const ended = Date.now();
  await Promise.all([sqlite.end(), postgres.end()]);
  await stop();
  await unmount();
  agent.child.kill("SIGTERM");
  expect(await agent.ended).toMatchObject({ code: 0 });

  const points = (await client.run("points", "list", "--disk", "d")).lines.filter(({ type }) => type === "point");
  const cuts = points.map(cutOf);
  const underLoad = cuts.filter(({ cutMs }) => cutMs > started && cutMs < ended);
  const frozen = underLoad.filter(({ consistency }) => consistency === "app");
  const crashed = underLoad.filter(({ consistency }) => consistency === "crash");
  expect(frozen).toHaveLength(appPoints);
  expect(crashed.length).toBeGreaterThan(0);
  console.log(
    `${sqlite.committed} transactions of SQLite, ${postgres.committed} of PostgreSQL, ` +
      `${frozen.length} points with hooks and ${crashed.length} without under load`,
  );
  for (const cut of [...frozen, ...sample(crashed, crashPointsChecked)]) {
    const back = client.path("back.img");
    rmSync(back, { force: true });
    expect(
      await client.run("materialize", "--disk", "d", "--point", String(cut.sequence), "--to", "back.img"),
    ).toMatchObject({ code: 0 });
    if (cut.consistency === "crash") {
      // The journal is replayed as at any start after a power failure; nothing else may need
      // mending.
      expect(checkFileSystem(back, "-p").code, `point ${cut.sequence}`).toBeLessThanOrEqual(1);
    }
    expect(checkFileSystem(back, "-f", "-n"), `point ${cut.sequence}`).toMatchObject({ code: 0 });
    const rows = await withMounted(
      back,
      client.path("back"),
      async () => await rowsOf(client.path("back"), sockets, user),
    );
    expect(sqlite.faults(rows.sqlite, cut.cutMs), `SQLite in point ${cut.sequence}, ${cut.consistency}`).toEqual([]);
    expect(
      postgres.faults(rows.postgres, cut.cutMs),
      `PostgreSQL in point ${cut.sequence}, ${cut.consistency}`,
    ).toEqual([]);
  }
}

interface Cut {
  readonly sequence: number;
  readonly consistency: "crash" | "app" | "fuzzy";
  /** On the wall clock. */
  readonly cutMs: number;
}

function cutOf(point: Line): Cut {
  return {
    sequence: Number(point["sequence"]),
    consistency: point["consistency"] as Cut["consistency"],
    cutMs: Date.parse(String(point["time"])),
  };
}

async function startAgent(client: Client, mounted: string, sockets: string): Promise<ReturnType<Client["start"]>> {
  writeFileSync(client.path("disk.img"), "");
  truncateSync(client.path("disk.img"), diskBytes);
  const hook = (phase: string): string => {
    const variables = `TIDEMARK_HOOK_STATE=${client.path("hooks")} PGHOST=${sockets} PGUSER=postgres`;
    return `${variables} ${resolve("examples/hooks/postgresql.sh")} ${phase} ${mounted}`;
  };
  const configuration = {
    vaults: { main: { address: client.vault, stateFolder: "state" } },
    policies: { often: { crashConsistentFrequency: "1s" } },
    disks: [
      {
        name: "d",
        image: "disk.img",
        vault: "main",
        policy: "often",
        listen: "unix:nbd.sock",
        hooks: { pre: hook("pre"), post: hook("post") },
      },
    ],
    control: { socket: "agent.sock" },
    logging: { format: "pretty" },
  };
  writeFileSync(client.path("agent.yaml"), JSON.stringify(configuration)); // YAML, too
  const agent = client.place.start(["agent", "--config", "agent.yaml"]);
  await agent.says("d: exported as d");
  return agent;
}

/** Runs a PostgreSQL on `data`, made first when it is to be `fresh`, and gives what ends it. */
async function startServer(
  data: string,
  sockets: string,
  user: User,
  state: "fresh" | "restored",
): Promise<() => Promise<void>> {
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
  let isUp = true;
  const stop = async (): Promise<void> => {
    if (isUp) await command("pg_ctl", "-D", data, "-w", "-s", "-m", "fast", "stop");
    isUp = false;
  };
  onTestFinished(stop);
  return stop;
}

/** The numbers that the databases on a restored disk hold. */
async function rowsOf(
  disk: string,
  sockets: string,
  user: User,
): Promise<Record<"sqlite" | "postgres", readonly number[]>> {
  for (const suffix of ["", "-wal"]) copyFileSync(join(disk, `app.db${suffix}`), join(sockets, `app.db${suffix}`));
  const { stdout: sqlite } = await run("sqlite3", [
    "-batch",
    join(sockets, "app.db"),
    "PRAGMA integrity_check",
    "SELECT a FROM t ORDER BY a",
  ]);
  const [integrity, ...numbers] = sqlite.trim().split("\n");
  expect(integrity).toBe("ok");
  const stop = await startServer(join(disk, "pg"), sockets, user, "restored");
  const { stdout: postgres } = await run("psql", [
    "-XAtq",
    "-h",
    sockets,
    "-U",
    "postgres",
    "-d",
    "postgres",
    "-c",
    "SELECT a FROM t ORDER BY a",
  ]);
  await stop();
  return { sqlite: numbers.map(Number), postgres: postgres.trim().split("\n").filter(Boolean).map(Number) };
}

/**
 * Transactions 1, 2, 3 … of one client of a database, one after the other, each with the times
 * between which it was committed.
 */
class Load {
  readonly #shell: ChildProcessWithoutNullStreams;
  readonly #answers: AsyncIterator<string>;
  readonly #echo: (word: string) => string;
  readonly #times: { readonly begunMs: number; readonly committedMs: number }[] = [];
  #isEnding = false;
  #running: Promise<void> = Promise.resolve();

  /** `echo` gives what makes the shell print a word, once all before it is done. */
  constructor(shell: ChildProcessWithoutNullStreams, echo: (word: string) => string) {
    this.#shell = shell;
    this.#echo = echo;
    this.#answers = createInterface(shell.stdout)[Symbol.asyncIterator]();
    shell.stderr.pipe(process.stderr);
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
      await this.say(statement(this.#times.length + 1));
      this.#times.push({ begunMs, committedMs: Date.now() });
    }
  }
}
