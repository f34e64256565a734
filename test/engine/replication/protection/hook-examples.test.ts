/** The hooks that we give as examples, run against the real software where it is installed. */
import { execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chownSync, cpSync, mkdirSync, readdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { commandHook, type Hook, withFreeze } from "../../../../engine/replication/protection/hooks.ts";
import { attachLoop } from "../../../loop-device.ts";
import { binary, isInstalled, postgresUser } from "../../../programs.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";

const run = promisify(execFile);
const generous = { timeoutMs: 20_000 };

let folder: string;
let state: string;
beforeEach(() => {
  folder = createFolder("hook-examples");
  state = join(folder, "state");
  // Registered first, so done last: after what a test mounted or started is gone.
  onTestFinished(async () => await removeFolder(folder));
});

function example(name: string, argument: string, env: Record<string, string> = {}): Hook {
  const path = resolve("examples/hooks", name);
  return commandHook({
    pre: `${path} pre ${argument}`,
    post: `${path} post ${argument}`,
    disk: "d",
    env: { TIDEMARK_HOOK_STATE: state, PATH: process.env["PATH"] ?? "", ...env },
  });
}

describe("sqlite.sh", () => {
  const sqlite = async (database: string, ...statements: string[]): Promise<string> => {
    return (await run("sqlite3", ["-batch", database, ...statements])).stdout.trim();
  };

  test.for(["wal", "delete"])(
    "holds writers off a database in %s mode, lets readers read, and what is copied meanwhile is whole",
    async (mode, { skip }) => {
      if (!isInstalled("sqlite3")) skip("sqlite3 is not installed here");
      const database = join(folder, "app.db");
      await sqlite(database, `PRAGMA journal_mode=${mode}`, "CREATE TABLE t(a)", "INSERT INTO t VALUES (1), (2)");
      const { result, frozen, reason } = await withFreeze(example("sqlite.sh", database), generous, async () => {
        const refused = await sqlite(database, "INSERT INTO t VALUES (3)").catch((error: unknown) => String(error));
        // The log is empty, so the database alone is enough.
        cpSync(database, join(folder, "copy.db"));
        return { refused, read: await sqlite(database, "SELECT count(*) FROM t") };
      });
      expect(reason).toBeUndefined();
      expect(frozen).toBe(true);
      expect(result.refused).toContain("database is locked");
      expect(result.read).toBe("2");
      expect(await sqlite(join(folder, "copy.db"), "PRAGMA integrity_check", "SELECT count(*) FROM t")).toBe("ok\n2");
      await sqlite(database, "INSERT INTO t VALUES (3)");
      expect(readdirSync(state)).toEqual([]);
    },
  );

  test("fails, and leaves nothing behind, when there is no database", async ({ skip }) => {
    if (!isInstalled("sqlite3")) skip("sqlite3 is not installed here");
    writeFileSync(join(folder, "text.db"), "this is no database at all, and long enough to be read as one".repeat(100));
    const { frozen, reason } = await withFreeze(
      example("sqlite.sh", join(folder, "text.db")),
      generous,
      async () => undefined,
    );
    expect(frozen).toBe(false);
    expect(reason).toContain("file is not a database");
    expect(readdirSync(state)).toEqual([]);
  });

  test("gives up at the deadline while a writer keeps the lock, and can be used again", async ({ skip }) => {
    if (!isInstalled("sqlite3")) skip("sqlite3 is not installed here");
    const database = join(folder, "app.db");
    await sqlite(database, "PRAGMA journal_mode=wal", "CREATE TABLE t(a)");
    const writer = spawn("sqlite3", ["-batch", database], { stdio: ["pipe", "pipe", "inherit"] });
    writer.stdin.write("BEGIN IMMEDIATE;\nSELECT 'locked';\n");
    await once(writer.stdout, "data");
    const late = await withFreeze(example("sqlite.sh", database), { timeoutMs: 1500 }, async () => undefined);
    expect(late).toMatchObject({ frozen: false, reason: expect.stringContaining("after 1500 ms") as unknown });
    writer.stdin.end();
    await once(writer, "close");
    expect(await withFreeze(example("sqlite.sh", database), generous, async () => "cut")).toMatchObject({
      result: "cut",
      frozen: true,
    });
  });

  test("takes its claim back when the lock is lost meanwhile", async ({ skip }) => {
    if (!isInstalled("sqlite3")) skip("sqlite3 is not installed here");
    const database = join(folder, "app.db");
    await sqlite(database, "CREATE TABLE t(a)");
    const { frozen, reason } = await withFreeze(example("sqlite.sh", database), generous, async () => {
      const [hold = ""] = readdirSync(state);
      rmSync(join(state, hold, "held"));
    });
    expect(frozen).toBe(false);
    expect(reason).toContain("was lost");
  });
});

describe("fsfreeze.sh", () => {
  test("holds writers off a mounted file system, puts everything on the disk, and tells when it did not hold", async ({
    skip,
  }) => {
    const image = join(folder, "image");
    const mount = join(folder, "mount");
    writeFileSync(image, "");
    truncateSync(image, 32 * 1024 * 1024);
    mkdirSync(mount);
    for (const needed of ["fsfreeze", "mkfs.ext4", "debugfs", "mount"])
      if (!isInstalled(needed)) skip(`${needed} is not installed here`);
    const loop = attachLoop(image);
    if ("reason" in loop) skip(loop.reason);
    else {
      onTestFinished(() => loop.detach());
      execFileSync("mkfs.ext4", ["-q", loop.path]);
      try {
        execFileSync("mount", [loop.path, mount], { stdio: "pipe" });
      } catch (error) {
        skip(`no file system can be mounted here: ${String(error)}`);
      }
      onTestFinished(() => void execFileSync("umount", [mount]));
      writeFileSync(join(mount, "before"), "x".repeat(100_000));
      let written = false;
      let writing: Promise<unknown> | undefined;
      const { frozen, reason, result } = await withFreeze(example("fsfreeze.sh", mount), generous, async () => {
        writing = run("sh", ["-c", `echo after >'${join(mount, "after")}'`]).then(() => (written = true));
        // The image alone, read beside the mount, holds the file whole: nothing is left in the page
        // cache or in the journal.
        return execFileSync("debugfs", ["-R", "stat /before", image], {
          encoding: "utf8",
          stdio: ["ignore", "pipe", "ignore"],
        });
      });
      expect(reason).toBeUndefined();
      expect(frozen).toBe(true);
      expect(result).toContain("Size: 100000");
      await writing;
      expect(written).toBe(true);

      const broken = await withFreeze(example("fsfreeze.sh", mount), generous, () =>
        run("fsfreeze", ["--unfreeze", mount]),
      );
      expect(broken).toMatchObject({ frozen: false, reason: expect.stringContaining("unfreeze failed") as unknown });

      // A freeze of another process is neither ours nor thawed by us.
      await run("fsfreeze", ["--freeze", mount]);
      const taken = await withFreeze(example("fsfreeze.sh", mount), generous, async () => undefined);
      await run("fsfreeze", ["--unfreeze", mount]);
      expect(taken).toMatchObject({ frozen: false, reason: expect.stringContaining("freeze failed") as unknown });
    }
  });
});

describe("postgresql.sh", () => {
  test("puts transactions on the disk that were committed without waiting for it", async ({ skip }) => {
    for (const needed of ["initdb", "pg_ctl", "psql"])
      if (binary(needed) === undefined) skip(`${needed} is not installed here`);
    // PostgreSQL refuses to run as root.
    const isRoot = process.getuid?.() === 0;
    const user = isRoot ? postgresUser() : undefined;
    if (isRoot && user === undefined) skip("there is no user postgres to run a server as");
    const giveToUser = (path: string): void => {
      if (user !== undefined) chownSync(path, user.uid, user.gid);
    };
    const data = join(folder, "data");
    const copy = join(folder, "copy");
    execFileSync("chmod", ["755", folder]);
    const socket = (name: string): string => {
      const path = join(folder, name);
      mkdirSync(path);
      giveToUser(path);
      return path;
    };
    const command = (name: string, args: readonly string[]): Promise<unknown> =>
      run(binary(name) ?? name, args, { ...user, cwd: folder });
    const start = async (directory: string, sockets: string): Promise<void> => {
      const settings = `-c listen_addresses= -c unix_socket_directories=${sockets} -c synchronous_commit=off -c wal_writer_delay=10s -c autovacuum=off`;
      await command("pg_ctl", ["-D", directory, "-w", "-s", "-l", join(sockets, "log"), "-o", settings, "start"]);
      onTestFinished(() =>
        command("pg_ctl", ["-D", directory, "-w", "-s", "-m", "immediate", "stop"]).then(() => undefined),
      );
    };
    const ask = async (sockets: string, sql: string): Promise<string> => {
      return (await run("psql", ["-XAtq", "-h", sockets, "-U", "postgres", "-d", "postgres", "-c", sql])).stdout.trim();
    };
    for (const path of [data, copy]) {
      mkdirSync(path, { mode: 0o700 });
      giveToUser(path);
    }
    await command("initdb", ["-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]);
    const first = socket("first");
    await start(data, first);
    await ask(first, "CREATE TABLE t(a int)");
    const hook = example("postgresql.sh", "", { PGHOST: first, PGUSER: "postgres" });
    await ask(first, "INSERT INTO t SELECT generate_series(1, 1000)");
    const { frozen, reason } = await withFreeze(hook, generous, async () => {
      execFileSync("cp", ["-a", `${data}/.`, copy]);
    });
    expect(reason).toBeUndefined();
    expect(frozen).toBe(true);
    rmSync(join(copy, "postmaster.pid"));
    const second = socket("second");
    await start(copy, second);
    expect(await ask(second, "SELECT count(*) FROM t")).toBe("1000");
  });

  test("fails when no server answers", async ({ skip }) => {
    if (!isInstalled("psql")) skip("psql is not installed here");
    const { frozen, reason } = await withFreeze(
      example("postgresql.sh", "", { PGHOST: folder }),
      generous,
      async () => undefined,
    );
    expect(frozen).toBe(false);
    expect(reason).toContain("exit code 1");
  });
});
