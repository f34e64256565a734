import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createConnection, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { claimSocket, controlSocketDefault } from "../../../cli/agent/listen.ts";
import { formatListen, parseListen } from "../../../engine/disk/nbd/address.ts";

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), "tidemark-listen-"));
  onTestFinished(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

function server(): Server {
  const made = createServer((socket) => socket.on("error", () => socket.destroy()).end("hello"));
  onTestFinished(() => void made.close());
  return made;
}

async function greeting(path: string): Promise<string> {
  const socket = createConnection(path);
  const parts: Buffer[] = [];
  for await (const part of socket as AsyncIterable<Buffer>) parts.push(part);
  return Buffer.concat(parts).toString();
}

/** A socket that a killed process left behind. */
async function leaveSocket(path: string): Promise<void> {
  const script = `require("net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL"))`;
  await once(spawn(process.execPath, ["-e", script], { stdio: "ignore" }), "exit");
  expect(statSync(path).isSocket()).toBe(true);
}

describe("the control socket when none is named", () => {
  it.each([
    [{ XDG_RUNTIME_DIR: "/run/user/7", TIDEMARK_STATE: "/srv/state" }, "/run/user/7/tidemark/agent.sock"],
    [{ TIDEMARK_STATE: "/srv/state", XDG_STATE_HOME: "/home/a/.state" }, "/srv/state/agent.sock"],
    [{ TIDEMARK_STATE: "", XDG_STATE_HOME: "/home/a/.state" }, "/home/a/.state/tidemark/agent.sock"],
  ])("is, under %o, %s", (environment, path) => {
    expect(controlSocketDefault(environment)).toBe(path);
  });
});

describe("an address", () => {
  it.each([
    ["unix:a.sock", "unix:/srv/a.sock"],
    ["unix:/run/../run/a.sock", "unix:/run/a.sock"],
    ["tcp:127.0.0.1:10809", "tcp:127.0.0.1:10809"],
    ["tcp:Host.Example:1", "tcp:host.example:1"],
    ["tcp:[::1]:0", "tcp:[::1]:0"],
  ])("%s is read and written", (text, expected) => {
    const address = parseListen(text, "/srv");
    if (typeof address === "string") throw new Error(address);
    expect(formatListen(address)).toBe(expected);
  });

  it.each(["unix:", "tcp:1", "tcp:a:70000", "tcp::1:5", "10809", `unix:/${"a".repeat(120)}`])(
    "%s is refused",
    (text) => {
      expect(typeof parseListen(text, "/")).toBe("string");
    },
  );
});

describe("the control socket", () => {
  it("is open to its user only, and gone afterwards", async () => {
    const path = join(folder(), "deep", "agent.sock");
    const claimed = await claimSocket(server(), path);
    expect(statSync(path).mode.toString(8).slice(-3)).toBe("600");
    expect(await greeting(path)).toBe("hello");
    expect(readdirSync(join(path, ".."))).toEqual(["agent.sock", "agent.sock.lock"]);
    await claimed[Symbol.asyncDispose]();
    expect(readdirSync(join(path, ".."))).toEqual(["agent.sock.lock"]);
  });

  it("replaces what a killed agent left", async () => {
    const path = join(folder(), "agent.sock");
    await leaveSocket(path);
    await claimSocket(server(), path);
    expect(await greeting(path)).toBe("hello");
  });

  it("gives way to a living agent", async () => {
    const path = join(folder(), "agent.sock");
    await claimSocket(server(), path);
    await expect(claimSocket(server(), path)).rejects.toMatchObject({ code: "WRITER_ACTIVE" });
    expect(await greeting(path)).toBe("hello");
    expect(readdirSync(join(path, ".."))).toEqual(["agent.sock", "agent.sock.lock"]);
  });

  it("goes to exactly one of many that start over a leftover at once", async () => {
    for (let round = 0; round < 10; round += 1) {
      const path = join(folder(), "agent.sock");
      await leaveSocket(path);
      const outcomes = await Promise.allSettled(
        Array.from({ length: 8 }, async () => await claimSocket(server(), path)),
      );
      expect(outcomes.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      expect(await greeting(path)).toBe("hello");
      expect(readdirSync(join(path, ".."))).toEqual(["agent.sock", "agent.sock.lock"]);
    }
  });

  it("does not replace a file", async () => {
    const path = join(folder(), "agent.sock");
    writeFileSync(path, "mine");
    await expect(claimSocket(server(), path)).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    expect(statSync(path).isFile()).toBe(true);
  });
});
