/**
 * SQLite and PostgreSQL on ext4 on a protected disk, under load while points are taken. Brought
 * back, every point has a sound file system, databases that open, every transaction that was
 * acknowledged before its cut, and none that was begun after it.
 */
import { execFile, spawn } from "node:child_process";
import { chmodSync, chownSync, copyFileSync, mkdirSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import type { Line } from "../cli/tidemark.ts";
import type { User } from "../programs.ts";
import { Client } from "./client.ts";
import {
  databaseUser,
  Load,
  postgresInsert,
  postgresLoad,
  postgresRows,
  postgresTable,
  startServer,
} from "./databases.ts";
import { checkFileSystem, createImage, mountExport, startAgent, withMounted } from "./mounted-disk.ts";
import { sample } from "./stamped-disk.ts";

const run = promisify(execFile);
const appPoints = 2;
const crashPointsChecked = 3;
/** Between two application-consistent points, so that crash-consistent ones come about. */
const loadMs = 2_500;

test("databases on a protected disk come back at every point with exactly what was committed by then", {
  timeout: 180_000,
}, async ({ skip }) => {
  await proved(databaseUser(skip, "sqlite3"));
});

async function proved(user: User): Promise<void> {
  const client = new Client("dir:vault");
  const { folder } = client.place;
  chmodSync(folder, 0o755); // the database's user goes through it
  const mounted = client.path("mounted");
  const sockets = client.path("sockets");
  mkdirSync(sockets);
  chownSync(sockets, user.uid, user.gid);
  const hook = (phase: string): string => {
    const variables = `TIDEMARK_HOOK_STATE=${client.path("hooks")} PGHOST=${sockets} PGUSER=postgres`;
    return `${variables} ${resolve("examples/hooks/postgresql.sh")} ${phase} ${mounted}`;
  };
  createImage(client);
  const agent = await startAgent(client, { pre: hook("pre"), post: hook("post") });
  const unmount = await mountExport(client.path("nbd.sock"), "d", mounted, "fresh");

  const stop = await startServer(join(mounted, "pg"), sockets, user, "fresh");
  const sqlite = new Load(
    spawn("sqlite3", ["-batch", "-bail", join(mounted, "app.db")]),
    (word) => `SELECT '${word}';`,
  );
  const postgres = postgresLoad(sockets);
  await sqlite.say("PRAGMA journal_mode=wal; PRAGMA synchronous=full; CREATE TABLE t(a INTEGER, filling BLOB);");
  await postgres.say(postgresTable);
  const started = Date.now();
  sqlite.begin((number) => `INSERT INTO t VALUES (${number}, randomblob(${number % 5000}));`);
  postgres.begin(postgresInsert);
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

/** The numbers that the databases on a restored disk hold. */
async function rowsOf(
  disk: string,
  sockets: string,
  user: User,
): Promise<Record<"sqlite" | "postgres", readonly number[]>> {
  for (const suffix of ["", "-wal"]) copyFileSync(join(disk, `app.db${suffix}`), join(sockets, `app.db${suffix}`));
  const { stdout } = await run("sqlite3", [
    "-batch",
    join(sockets, "app.db"),
    "PRAGMA integrity_check",
    "SELECT a FROM t ORDER BY a",
  ]);
  const [integrity, ...numbers] = stdout.trim().split("\n");
  expect(integrity).toBe("ok");
  return { sqlite: numbers.map(Number), postgres: await postgresRows(join(disk, "pg"), sockets, user) };
}
