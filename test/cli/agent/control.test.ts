import { once } from "node:events";
import { rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { type AddressInfo, createServer, Socket } from "node:net";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { Agent } from "../../../cli/agent/agent.ts";
import { askAgent } from "../../../cli/agent/control-client.ts";
import type { AgentStatus } from "../../../cli/agent/supervisor.ts";
import { TidemarkError } from "../../../engine/index.ts";
import { ConfigFolder } from "./configuration.ts";
import { KeptLog, ScriptedEngine, settled, VirtualClock } from "./scripted.ts";

const text = `vaults:
  main: {address: "dir:vault"}
policies:
  gold: {}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:a.sock"}
control: {socket: agent.sock}
`;

const { signal } = new AbortController();

class Rig {
  readonly folder: ConfigFolder = new ConfigFolder("web.img", "db.img");
  readonly engine: ScriptedEngine = new ScriptedEngine();
  readonly log: KeptLog = new KeptLog();
  readonly socket: string = this.folder.path("agent.sock");

  async start(configuration: string = text): Promise<Agent> {
    const { engine, log } = this;
    const options = { environment: {}, engine, clock: new VirtualClock(), log };
    const agent = await Agent.start(await this.folder.config(configuration), options);
    onTestFinished(async () => {
      await agent.stop({ drain: false });
      await agent[Symbol.asyncDispose]();
    });
    await settled();
    return agent;
  }

  async ask(method: "GET" | "POST" | "PUT", path: string, fields?: object): Promise<unknown> {
    return await askAgent(this.socket, { method, path, fields, signal });
  }

  /** A request as it is, and what came back. */
  async raw(
    method: string,
    path: string,
    body = "",
  ): Promise<{ readonly status: number; readonly text: string; readonly allow: string | undefined }> {
    const sent = request({ socketPath: this.socket, method, path, agent: false });
    sent.on("error", () => sent.destroy());
    sent.end(body);
    const [response] = (await once(sent, "response")) as [import("node:http").IncomingMessage];
    const parts: Buffer[] = [];
    for await (const part of response as AsyncIterable<Buffer>) parts.push(part);
    return { status: response.statusCode ?? 0, text: Buffer.concat(parts).toString(), allow: response.headers.allow };
  }
}

describe("the control API", () => {
  it("tells the status of all disks and of one", async () => {
    const rig = new Rig();
    await rig.start();
    expect(await rig.ask("GET", "/v1/status")).toMatchObject({
      state: "running",
      health: "Normal",
      disks: [{ disk: "web", vault: "main" }],
    });
    expect(await rig.ask("GET", "/v1/disks/web")).toMatchObject({
      disk: "web",
      listen: `unix:${rig.folder.path("a.sock")}`,
    });
    await expect(rig.ask("GET", "/v1/disks/w%C3%A9b")).rejects.toMatchObject({
      code: "DISK_NOT_FOUND",
      message: "the agent has no disk wéb",
    });
    expect(await rig.ask("GET", "/healthz")).toEqual({ health: "Normal" });
  });

  it("finds a disk by its name, however accents in it are encoded", async () => {
    const rig = new Rig();
    await rig.start(text.replace("name: web", "name: w\u00e9b"));
    for (const path of ["/v1/disks/", "/v1/points/"])
      expect(await rig.ask("GET", path + encodeURIComponent("we\u0301b"))).toMatchObject({ disk: "w\u00e9b" });
  });

  it("answers a point request when the point is committed", async () => {
    const rig = new Rig();
    await rig.start();
    expect(await rig.ask("POST", "/v1/point", { disk: "web" })).toMatchObject({
      points: [{ disk: "web", sequence: 1, consistency: "crash" }],
    });
    const app = await rig.ask("POST", "/v1/point", { disk: "web", applicationConsistent: true });
    expect(app).toMatchObject({ points: [{ sequence: 2, consistency: "app" }] });
  });

  it("gives a point request up when its client goes away", async () => {
    const rig = new Rig();
    await rig.start();
    const protection = rig.engine.protection("web");
    protection.gate = new Promise(() => undefined);
    const client = new AbortController();
    const asked = askAgent(rig.socket, {
      method: "POST",
      path: "/v1/point",
      fields: { disk: "web" },
      signal: client.signal,
    });
    asked.catch(() => undefined);
    while (!protection.calls.includes("point")) await settled();
    client.abort();
    await expect(asked).rejects.toMatchObject({ code: "INTERRUPTED" });
    while (!protection.calls.includes("point given up")) await settled();
  });

  it("pauses, resumes and limits", async () => {
    const rig = new Rig();
    await rig.start();
    expect(await rig.ask("POST", "/v1/pause", {})).toEqual({ disks: ["web"] });
    expect(await rig.ask("POST", "/v1/resume", { disk: "web" })).toEqual({ disks: ["web"] });
    expect(rig.engine.protection("web").calls).toEqual(["pause", "resume"]);
    await rig.ask("PUT", "/v1/limit", { vault: "main", bytesPerSecond: 1_048_576 });
    expect(rig.engine.limits.get("main")).toBe(1_048_576);
    await rig.ask("PUT", "/v1/limit", { vault: "main", bytesPerSecond: "off" });
    expect((await rig.ask("GET", "/v1/status")) as AgentStatus).toMatchObject({
      vaults: [{ limitBytesPerSecond: "off" }],
    });
    await rig.ask("PUT", "/v1/limit", { vault: "main", bytesPerSecond: null });
    expect(rig.engine.limits.get("main")).toBeUndefined();
  });

  it("reloads, and refuses a configuration with faults whole", async () => {
    const rig = new Rig();
    await rig.start();
    const second = '  - {name: db, image: db.img, vault: main, policy: gold, listen: "unix:a.sock"}\ncontrol:';
    rig.folder.write(text.replace("control:", second));
    expect(await rig.ask("POST", "/v1/reload")).toMatchObject({ added: ["db"] });
    rig.folder.write(text.replace("gold: {}", "gold: {crashConsistentFrequency: x}").replace("web.img", "none.img"));
    await expect(rig.ask("POST", "/v1/reload")).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      detail: { faults: 2 },
    });
    expect(await rig.ask("GET", "/v1/status")).toMatchObject({ disks: [{ disk: "web" }, { disk: "db" }] });
    expect(rig.log.lines.filter(({ level }) => level === "error")).toHaveLength(2);
  });

  it("stops and resumes one disk, and goes on", async () => {
    const rig = new Rig();
    await rig.start();
    expect(await rig.ask("POST", "/v1/stop", { disk: "web", drain: false })).toEqual({
      disks: ["web"],
      notDrained: ["web"],
      resting: [],
    });
    expect(rig.engine.protection("web").calls).toEqual(["stop"]);
    expect(await rig.ask("GET", "/v1/disks/web")).toMatchObject({ state: "stopped" });
    const { text: metrics } = await rig.raw("GET", "/metrics");
    expect(metrics).toContain('tidemark_state{disk="web",state="stopped"} 1');
    expect(metrics).toContain('tidemark_lag_seconds{disk="web",state="stopped",stage="committed"} 0.3');
    expect(metrics).toContain('tidemark_backlog_bytes{disk="web",state="stopped"} 512');
    await expect(rig.ask("POST", "/v1/point", { disk: "web" })).rejects.toMatchObject({
      message: "the disk web has been stopped",
    });
    expect(await rig.ask("POST", "/v1/resume", { disk: "web" })).toEqual({ disks: ["web"] });
    await settled();
    expect(await rig.ask("GET", "/v1/disks/web")).toMatchObject({ state: "protecting" });
  });

  it("answers a stop after the last points, and then ends", async () => {
    const rig = new Rig();
    const agent = await rig.start();
    expect(await rig.ask("POST", "/v1/stop", {})).toEqual({ stopped: true });
    expect(rig.engine.protection("web").calls).toEqual(["drain"]);
    await agent.ended;
    await agent[Symbol.asyncDispose]();
    await expect(rig.ask("GET", "/v1/status")).rejects.toMatchObject({ code: "AGENT_UNREACHABLE" });
  });

  it.each([
    ["GET", "/v2", "", 404, "GET /v1/status, GET /v1/disks/NAME, GET /v1/points/NAME"],
    ["DELETE", "/v1/status", "", 405, "use GET"],
    ["POST", "/v1/point", "{", 400, "the request is not JSON"],
    ["POST", "/v1/point", "[]", 400, "the request is not a JSON object"],
    ["POST", "/v1/point", "{}", 400, "neither disk nor group is named"],
    ["POST", "/v1/point", '{"disk":"web","group":"g"}', 400, "both disk and group are named"],
    ["POST", "/v1/point", '{"disk":"web","appConsistent":true}', 400, "appConsistent is not a field of this request"],
    ["POST", "/v1/point", '{"disk":"web","applicationConsistent":"yes"}', 400, "neither true nor false"],
    ["POST", "/v1/pause", `{"disk":"${"x".repeat(20_000)}"}`, 413, "larger than 16384 bytes"],
    ["POST", "/v1/pause", '{"group":"g"}', 404, "the agent has no group g"],
    ["POST", "/v1/stop", '{"disk":"wob"}', 404, "it has web"],
    ["POST", "/v1/stop", '{"disk":"web","group":"g"}', 400, "both disk and group are named"],
    ["POST", "/v1/stop", '{"disk":null}', 400, "disk is no name"],
    ["POST", "/v1/pause", '{"group":null}', 400, "group is no name"],
    ["PUT", "/v1/limit", '{"vault":"main","bytesPerSecond":0}', 400, "bytesPerSecond is not a limit"],
    ["PUT", "/v1/limit", '{"vault":"x","bytesPerSecond":4096}', 404, "its vaults are main"],
    ["GET", "/v1/disks/%FF", "", 400, "not encoded as a URL"],
    ["GET", "/v1/vaults/x", "", 404, "its vaults are main"],
    ["POST", "/v1/failover", '{"vault":"x","verb":"test"}', 404, "its vaults are main"],
  ])("answers %s %s with %s as the command line would", async (method, path, body, status, says) => {
    const rig = new Rig();
    await rig.start();
    const answer = await rig.raw(method, path, body);
    expect(answer.status).toBe(status);
    expect(answer.text).toContain(says);
    expect(JSON.parse(answer.text)).toMatchObject({
      type: "error",
      code: expect.any(String) as string,
      remedy: expect.any(String) as string,
    });
    expect(await rig.ask("GET", "/healthz")).toEqual({ health: "Normal" });
  });

  it("serves metrics that agree with the status, and forgets removed disks", async () => {
    const rig = new Rig();
    await rig.start();
    rig.engine.facts = { storedBytes: 4096, scrubAgeMs: 60_000, collectionAgeMs: null };
    await rig.ask("POST", "/v1/point", { disk: "web" });
    rig.engine.protection("web").emit({ kind: "failure", message: "barrier", code: "CUT_TIMED_OUT" });
    const { text: metrics } = await rig.raw("GET", "/metrics");
    for (const line of [
      'tidemark_lag_seconds{disk="web",stage="captured"} 0.1',
      'tidemark_lag_seconds{disk="web",stage="committed"} 0.3',
      'tidemark_churn_bytes_per_second{disk="web"} 2048',
      'tidemark_backlog_bytes{disk="web"} 512',
      'tidemark_health{disk="web"} 0',
      'tidemark_state{disk="web",state="protecting"} 1',
      'tidemark_points_total{disk="web"} 1',
      'tidemark_stored_bytes_total{disk="web"} 0',
      'tidemark_vault_stored_bytes{vault="main"} 4096',
      'tidemark_vault_scrub_age_seconds{vault="main"} 60',
      'tidemark_build_info{version="',
      'tidemark_failures_total{disk="web",code="CUT_TIMED_OUT"} 1',
      'tidemark_barrier_seconds_count{disk="web"} 1',
      'tidemark_control_requests_total{route="/v1/point",status="200"} 1',
      "process_resident_memory_bytes",
    ]) {
      expect(metrics).toContain(line);
    }
    rig.folder.write(text.replaceAll("web", "db"));
    await rig.ask("POST", "/v1/reload");
    expect((await rig.raw("GET", "/metrics")).text).not.toContain('tidemark_backlog_bytes{disk="web"}');
  });
});

describe("the address for metrics", () => {
  it("answers to its own names only, so that no page of a browser reads it under another", async () => {
    const rig = new Rig();
    const free = createServer();
    free.listen(0, "127.0.0.1");
    await once(free, "listening");
    const { port } = free.address() as AddressInfo;
    await new Promise((resolve) => free.close(resolve));
    await rig.start(`${text}metrics: {listen: "tcp:LocalHost:${String(port)}"}\n`);
    const statusFor = async (host: string): Promise<number | undefined> => {
      const sent = request({ host: "localhost", port, path: "/metrics", agent: false, headers: { host } });
      sent.end();
      const [response] = (await once(sent, "response")) as [import("node:http").IncomingMessage];
      response.resume();
      return response.statusCode;
    };
    for (const own of ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "192.0.2.1"])
      for (const host of [own, `${own}:${String(port)}`]) expect([host, await statusFor(host)]).toEqual([host, 200]);
    for (const host of ["rebound.example", `rebound.example:${String(port)}`, "localhost.example", "1.2.3.4.example"])
      expect([host, await statusFor(host)]).toEqual([host, 403]);
  });
});

describe("/healthz", () => {
  it("answers 503 while the worst health is Critical", async () => {
    const rig = new Rig();
    await rig.start();
    const finding = { level: "Critical", code: "X", cause: "x", remedy: "y" } as const;
    rig.engine.protection("web").state = { health: "Critical", findings: [finding] };
    expect(await rig.raw("GET", "/healthz")).toMatchObject({ status: 503, text: '{"health":"Critical"}\n' });
    rig.engine.protection("web").state = {};
    expect(await rig.raw("GET", "/healthz")).toMatchObject({ status: 200 });
  });
});

describe("an agent", () => {
  it("ends with the disks that are left without a last point", async () => {
    const rig = new Rig();
    const agent = await rig.start();
    const error = new TidemarkError("STORE_UNREACHABLE", "the store is away");
    rig.engine.protection("web").missed = error;
    expect(await rig.ask("POST", "/v1/stop", {})).toEqual({ stopped: true });
    await agent.stop({ drain: true });
    expect(await agent.ended).toEqual([{ disk: "web", error }]);
  });

  it("gives way to another one before it touches a disk", async () => {
    const rig = new Rig();
    await rig.start();
    const second = new ScriptedEngine();
    const options = { environment: {}, engine: second, clock: new VirtualClock(), log: new KeptLog() };
    await expect(Agent.start(await rig.folder.config(text), options)).rejects.toMatchObject({ code: "WRITER_ACTIVE" });
    await settled();
    expect(second.calls).toEqual([]);
  });

  it("goes on with its old configuration when SIGHUP finds faults, and opens its log again", async () => {
    const rig = new Rig();
    const agent = await rig.start();
    rmSync(rig.folder.file);
    await agent.refresh();
    expect(rig.log.lines.map(({ message }) => message)).toContain("reopened");
    expect(rig.log.lines.at(-1)).toMatchObject({ level: "error", fields: { code: "INVALID_ARGUMENT" } });
    expect(await rig.ask("GET", "/v1/status")).toMatchObject({ disks: [{ disk: "web" }] });
  });

  it("logs what happens to its disks", async () => {
    const rig = new Rig();
    rig.engine.fail("protect web", new TidemarkError("SOURCE_UNREADABLE", "no", { remedy: "look" }));
    await rig.start();
    expect(rig.log.lines).toContainEqual({
      level: "warn",
      message: "no: tried again in 1 s; look",
      fields: { disk: "web", kind: "failure", code: "SOURCE_UNREADABLE" },
    });
  });
});

describe("a client", () => {
  it("waits for an agent that waits for its stores, and not for one that cannot tell its status", async () => {
    const folder = new ConfigFolder();
    const silent = createServer((socket) => void socket.on("error", () => socket.destroy()));
    silent.listen(folder.path("s.sock"));
    onTestFinished(() => void silent.close());
    const limits = vi.spyOn(Socket.prototype, "setTimeout");
    onTestFinished(() => limits.mockRestore());
    const limitsOf = async (path: string): Promise<readonly number[]> => {
      limits.mockClear();
      const client = new AbortController();
      const asked = askAgent(folder.path("s.sock"), { method: "GET", path, signal: client.signal });
      asked.catch(() => undefined);
      await once(silent, "connection");
      client.abort();
      await expect(asked).rejects.toMatchObject({ code: "INTERRUPTED" });
      return limits.mock.calls.map(([ms]) => ms).filter((ms) => ms > 0);
    };
    expect(await limitsOf("/v1/status")).not.toEqual([]);
    for (const path of ["/v1/failover", "/v1/failover/f-1", "/v1/jobs"]) expect(await limitsOf(path)).toEqual([]);
  });

  it("says AGENT_UNREACHABLE where there is no agent", async () => {
    const folder = new ConfigFolder();
    const ask = async (socket: string): Promise<unknown> =>
      await askAgent(socket, { method: "GET", path: "/v1/status", signal });
    writeFileSync(folder.path("file"), "");
    for (const name of ["none.sock", "file", "file/below"]) {
      await expect(ask(folder.path(name))).rejects.toMatchObject({ code: "AGENT_UNREACHABLE" });
    }
    const body = '{"code":"QUOTA","message":"no"}';
    const answers = [
      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
      `HTTP/1.1 400 Bad Request\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    ];
    const stranger = createServer((socket) => {
      socket.on("error", () => socket.destroy());
      socket.once("data", () => socket.end(answers.shift() ?? ""));
    });
    stranger.listen(folder.path("s.sock"));
    onTestFinished(() => void stranger.close());
    await once(stranger, "listening");
    while (answers.length > 0) {
      await expect(ask(folder.path("s.sock"))).rejects.toMatchObject({
        code: "AGENT_UNREACHABLE",
        message: expect.stringContaining("no agent") as string,
      });
    }
  });
});
