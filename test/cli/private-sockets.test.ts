/** Unix sockets of the program: no other user can open them, not even for the moment of their making. */
import { statSync } from "node:fs";
import { createServer, Server } from "node:net";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { claimSocket } from "../../cli/agent/listen.ts";
import { NbdServer } from "../../engine/disk/nbd/server.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";

let folder: string;
let umaskBefore: number;
/** The permissions of each socket when `listen` returned. */
const modes: number[] = [];

beforeEach(() => {
  folder = createFolder("sockets");
  umaskBefore = process.umask(0);
  modes.length = 0;
  const listen = Reflect.get(Server.prototype, "listen") as (this: Server, where: unknown) => Server;
  vi.spyOn(Server.prototype, "listen").mockImplementation(function (this: Server, where: unknown) {
    const result = listen.call(this, where);
    const path = this.address();
    if (typeof path === "string") modes.push(statSync(path).mode & 0o777);
    return result;
  });
});

afterEach(async () => {
  vi.restoreAllMocks();
  process.umask(umaskBefore);
  await removeFolder(folder);
});

test("the control socket of an agent is made with mode 0600", async () => {
  const server = createServer();
  await using claimed = await claimSocket(server, join(folder, "agent.sock"));
  expect(modes).toEqual([0o600]);
  expect(statSync(claimed.path).mode & 0o777).toBe(0o600);
  expect(process.umask(0)).toBe(0);
  server.close();
});

test("the socket of an NBD server is made with mode 0600", async () => {
  const path = join(folder, "nbd.sock");
  const server = await NbdServer.listen({ listen: { kind: "unix", path } });
  expect(modes).toEqual([0o600]);
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(process.umask(0)).toBe(0);
  await server.close();
});
