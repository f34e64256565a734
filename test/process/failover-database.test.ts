/**
 * PostgreSQL over a failover and back: the agent of its disk is killed under load, the server goes on
 * where an instant target begins as the newest point, and the failback takes its disk to the old
 * image. No transaction that was acknowledged before the cut is missing there, and none of the other
 * place.
 */
import { chmodSync, chownSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { sameFiles } from "../cli/images.ts";
import type { Running } from "../cli/tidemark.ts";
import { byDepth } from "../depth.ts";
import { Client } from "./client.ts";
import { databaseUser, postgresInsert, postgresLoad, postgresRows, postgresTable, startServer } from "./databases.ts";
import { checkFileSystem, createImage, mountExport, startAgent } from "./mounted-disk.ts";

/** Several points of the agent come about meanwhile. */
const loadMs: number = byDepth(3_000, 15_000);
const loadElsewhereMs: number = byDepth(1_000, 10_000);

test("PostgreSQL that fails over to an instant target and back has what was acknowledged before the cut, and all that came after", {
  timeout: 600_000,
}, async ({ skip }) => {
  const user = databaseUser(skip);
  const client = new Client("dir:vault");
  chmodSync(client.place.folder, 0o755); // the database's user goes through it
  const [socket, sockets] = [client.path("nbd.sock"), client.path("sockets")];
  mkdirSync(sockets);
  chownSync(sockets, user.uid, user.gid);

  // At the old place, until its agent is killed under load.
  createImage(client);
  const agent = await startAgent(client);
  const old = client.path("old");
  const unmountOld = await mountExport(socket, "d", old, "fresh");
  const stopOld = await startServer(join(old, "pg"), sockets, user, "fresh");
  const before = postgresLoad(sockets);
  await before.say(postgresTable);
  before.begin(postgresInsert);
  await delay(loadMs);
  agent.child.kill("SIGKILL");
  await expect(before.running).rejects.toThrow("shell ended");
  await stopOld("fails");
  await unmountOld();

  // At the other place.
  const to = `instant:unix:${socket},image=${client.path("moved.img")}`;
  const serving = client.start("failover", "unplanned", "--disk", "d", "--to", to);
  await serving.says('"ready"');
  const run = await newest(client, "unplanned");
  const away = client.path("away");
  const unmountAway = await mountExport(socket, "d", away, "formatted");
  const found = await postgresRows(join(away, "pg"), sockets, user);
  expect(before.faults(found, await cutMs(client))).toEqual([]);
  const stopAway = await startServer(join(away, "pg"), sockets, user, "restored");
  const after = postgresLoad(sockets, found.length + 1);
  after.begin(postgresInsert);
  expect(await client.run("failover", "commit", run)).toMatchObject({ code: 0 });
  await delay(loadElsewhereMs);
  await after.end();
  await stopAway();
  await unmountAway();
  await ended(serving, "SIGINT");
  expect(await client.run("reprotect", run)).toMatchObject({ code: 0, last: { state: "Protected" } });

  // Back in the old image, which was written after the cut; its agent has the marks of that.
  expect(await client.run("failback", run, "--to", "disk.img")).toMatchObject({ code: 0 });
  const back = await newest(client, "failback");
  expect(await client.run("failover", "commit", back)).toMatchObject({ code: 0 });
  expect(await client.run("reprotect", back)).toMatchObject({ code: 0, last: { state: "Protected" } });
  expect(checkFileSystem(client.path("disk.img"), "-f", "-n")).toMatchObject({ code: 0 });
  const again = await startAgent(client);
  const home = client.path("home");
  const unmountHome = await mountExport(socket, "d", home, "formatted");
  const all = Array.from({ length: found.length + after.committed }, (_, index) => index + 1);
  expect(await postgresRows(join(home, "pg"), sockets, user)).toEqual(all);
  await unmountHome();
  await ended(again, "SIGTERM");
  expect(await client.run("materialize", "--disk", "d", "--point", "latest", "--to", "newest.img")).toMatchObject({
    code: 0,
  });
  expect(sameFiles(client.path("newest.img"), client.path("disk.img"))).toBe(true);
  console.log(`${before.committed} transactions, ${found.length} in the point, ${after.committed} at the other place`);
});

async function newest(client: Client, kind: string): Promise<string> {
  const { lines } = await client.run("failover", "list");
  return String(lines.find((line) => line["kind"] === kind)?.["run"]);
}

/** When the newest point was cut, on the wall clock. */
async function cutMs(client: Client): Promise<number> {
  const { lines } = await client.run("points", "list", "--disk", "d");
  return Math.max(...lines.filter(({ type }) => type === "point").map(({ time }) => Date.parse(String(time))));
}

async function ended({ child, ended: end }: Running, signal: NodeJS.Signals): Promise<void> {
  child.kill(signal);
  const { code, stdout, stderr } = await end;
  expect({ code }, stdout + stderr).toEqual({ code: 0 });
}
