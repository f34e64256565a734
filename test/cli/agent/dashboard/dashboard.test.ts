import { once } from "node:events";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { type IncomingMessage, type OutgoingHttpHeaders, request } from "node:http";
import { request as secureRequest } from "node:https";
import { connect } from "node:net";
import { text } from "node:stream/consumers";
import { describe, expect, it, onTestFinished } from "vitest";
import { History, sampleEveryMs } from "../../../../cli/agent/dashboard/history.ts";
import type { AgentStatus } from "../../../../cli/agent/supervisor.ts";
import { makeCertificates } from "../../../engine/disk/nbd/tls-certificates.ts";
import { isInstalled } from "../../../programs.ts";
import { noFailovers, settled, VirtualClock } from "../scripted.ts";
import { DashboardRig, listedPoints } from "./rig.ts";

const token = "0123456789abcdefghij";
const port0 = 'listen: "tcp:127.0.0.1:0"';

interface Answer {
  readonly status: number;
  readonly headers: IncomingMessage["headers"];
  readonly text: string;
}

class Client extends DashboardRig {
  readonly clock: VirtualClock = new VirtualClock();

  async open(fields = "", disks = 1): Promise<this> {
    await this.start({ dashboard: `{${port0}${fields}}`, disks, clock: this.clock });
    return this;
  }

  /** With the token `token`, which the file `t` holds. */
  async openWithToken(): Promise<this> {
    writeFileSync(this.folder.path("t"), `${token}\n`, { mode: 0o600 });
    return await this.open(", token: t");
  }

  async send(method: string, path: string, headers: OutgoingHttpHeaders = {}, body = ""): Promise<Answer> {
    const sent = request(new URL(path, this.url), { method, headers, agent: false });
    sent.on("error", () => sent.destroy());
    sent.end(body);
    const [response] = (await once(sent, "response")) as [IncomingMessage];
    return { status: response.statusCode ?? 0, headers: response.headers, text: await text(response) };
  }

  async act(path: string, fields: object, headers: OutgoingHttpHeaders = {}): Promise<Answer> {
    const own = { "Content-Type": "application/json", Authorization: `Bearer ${token}` };
    return await this.send("POST", path, { ...own, ...headers }, JSON.stringify(fields));
  }
}

describe("the page", () => {
  it("is served under a policy that allows no script or style but its own files", async () => {
    const rig = await new Client().open();
    const page = await rig.send("GET", "/");
    expect(page.headers["content-security-policy"]).toMatch(
      /^default-src 'none'; script-src 'self'; style-src 'self'; .*frame-ancestors 'none'/,
    );
    expect(page.headers).toMatchObject({ "x-content-type-options": "nosniff", "x-frame-options": "DENY" });
    expect(page.text).not.toMatch(/<style|style=| on\w+=|<script(?![^>]* src=)/);
    const files = [...page.text.matchAll(/(?:href|src)="(?!#)([^"]+)"/g)].map(([, name]) => name ?? "");
    expect(files).toEqual(expect.arrayContaining(["page.js", "page.css", "icon.svg"]));
    for (const name of files) {
      const file = await rig.send("GET", `/${name}`);
      expect(file).toMatchObject({ status: 200 });
      expect(file.text.replaceAll("http://www.w3.org/2000/svg", "")).not.toMatch(/https?:\/\//);
    }
    expect((await rig.send("GET", "/../package.json")).status).toBe(404);
  });

  it("says what the control socket says", async () => {
    const rig = await new Client().open();
    rig.engine.points = (disk) => listedPoints(disk, 3);
    const json = async (path: string): Promise<unknown> => JSON.parse((await rig.send("GET", path)).text);
    expect(await json("/v1/status")).toMatchObject({ health: "Normal", disks: [{ disk: "disk-1" }] });
    expect(await json("/v1/points/disk-1")).toEqual({ disk: "disk-1", points: listedPoints("disk-1", 3) });
    expect(await json("/v1/vaults/main")).toEqual(rig.engine.stats);
    expect(await json("/v1/failover")).toEqual({ runs: [], plans: [], failures: [] });
    expect((await rig.send("GET", "/v1/points/none")).status).toBe(404);
    expect((await rig.send("POST", "/v1/stop")).status).toBe(403);
    expect((await rig.send("GET", "/metrics")).status).toBe(404);
  });
});

describe("a request", () => {
  it.each([
    ["names another host", { Host: "evil.example" }, 403],
    ["names localhost", { Host: "localhost:9" }, 200],
    ["comes from another page", { Origin: "http://localhost:3000" }, 403],
    ["comes from a page without an origin", { Origin: "null" }, 403],
    ["is of another site", { "Sec-Fetch-Site": "cross-site" }, 403],
    ["is of another port of this machine", { "Sec-Fetch-Site": "same-site" }, 403],
    ["is of the page itself", { "Sec-Fetch-Site": "same-origin" }, 200],
  ])("that %s is answered as it should be", async (_, headers, status) => {
    const rig = await new Client().open();
    expect((await rig.send("GET", "/v1/status", headers)).status).toBe(status);
  });

  it("that follows a link opens the page, and nothing else", async () => {
    const rig = await new Client().open();
    const link = { "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document" };
    expect((await rig.send("GET", "/", link)).status).toBe(200);
    expect((await rig.send("GET", "/v1/status", link)).status).toBe(403);
    expect((await rig.send("GET", "/", { ...link, "Sec-Fetch-Dest": "iframe" })).status).toBe(403);
  });
});

describe("without a token", () => {
  it("the dashboard may be looked at, and acts on nothing", async () => {
    const rig = await new Client().open();
    expect(JSON.parse((await rig.send("GET", "/v1/access")).text)).toEqual({ access: "look" });
    const refused = await rig.act("/v1/pause", { disk: "disk-1" });
    expect(refused.status).toBe(403);
    expect(JSON.parse(refused.text)).toMatchObject({
      code: "ACCESS_REFUSED",
      message: "the dashboard may only be looked at",
      remedy: "add `token: FILE` to `dashboard` in the configuration, or use `tidemark agent`",
    });
    expect(rig.engine.protection("disk-1").calls).toEqual([]);
  });
});

describe("with a token", () => {
  it("only its bearer sees the disks and acts on them", async () => {
    const rig = await new Client().openWithToken();
    const access = async (headers: OutgoingHttpHeaders): Promise<unknown> =>
      JSON.parse((await rig.send("GET", "/v1/access", headers)).text);
    expect(await access({})).toEqual({ access: "none" });
    expect(await access({ Authorization: `Bearer ${token}` })).toEqual({ access: "act" });
    for (const path of ["/v1/status", "/v1/live", "/v1/points/disk-1", "/v1/series/disk-1", "/v1/jobs"]) {
      expect((await rig.send("GET", path)).status).toBe(403);
      expect((await rig.send("GET", path, { Authorization: `Bearer ${token}x` })).status).toBe(403);
    }
    expect((await rig.act("/v1/pause", { disk: "disk-1" })).status).toBe(200);
    expect((await rig.act("/v1/resume", { disk: "disk-1" })).status).toBe(200);
    expect(JSON.parse((await rig.act("/v1/point", { disk: "disk-1" })).text)).toMatchObject({
      points: [{ sequence: 1 }],
    });
    expect(rig.engine.protection("disk-1").calls.slice(0, 3)).toEqual(["pause", "resume", "point"]);
  });

  it("no form and no page of another site acts", async () => {
    const rig = await new Client().openWithToken();
    const body = { disk: "disk-1" };
    expect((await rig.act("/v1/pause", body, { "Content-Type": "text/plain" })).status).toBe(403);
    expect((await rig.act("/v1/pause", body, { Origin: "http://evil.example" })).status).toBe(403);
    expect((await rig.act("/v1/pause", body, { "Sec-Fetch-Site": "same-site" })).status).toBe(403);
    expect((await rig.act("/v1/pause", body, { Authorization: "" })).status).toBe(403);
    expect(rig.engine.protection("disk-1").calls).toEqual([]);
  });

  it("a test of a failover may begin and be cleaned up, and names no command", async () => {
    const rig = new Client();
    const asked: unknown[] = [];
    const summary = async (options: object): Promise<never> => {
      asked.push(options);
      return { run: "0000000a", state: "TestFailoverCompleted" } as never;
    };
    rig.engine.failovers = { ...noFailovers, start: summary };
    await rig.openWithToken();
    const fields = { verb: "test", vault: "main", disks: ["disk-1"], to: "dir:/drill", point: "latest" };
    expect((await rig.act("/v1/failover", fields)).status).toBe(200);
    expect(asked).toMatchObject([{ kind: "test", disks: ["disk-1"], to: "dir:/drill" }]);
    for (const other of [
      { ...fields, check: "id" },
      { ...fields, shutdown: "id" },
      { verb: "planned" },
      { verb: "commit" },
    ])
      expect((await rig.act("/v1/failover", other)).status).toBe(400);
    expect(asked).toHaveLength(1);
  });

  it("a file that is missing is made for its owner alone", async () => {
    const rig = await new Client().open(", token: made");
    const path = rig.folder.path("made");
    expect(statSync(path).mode.toString(8)).toBe("100600");
    const made = readFileSync(path, "utf8").trim();
    expect(made).toMatch(/^[\w-]{32}$/);
    expect((await rig.send("GET", "/v1/status", { Authorization: `Bearer ${made}` })).status).toBe(200);
  });

  it("a file without a token that could not be guessed is refused", async () => {
    const rig = new Client();
    writeFileSync(rig.folder.path("t"), "short\n", { mode: 0o600 });
    await expect(rig.open(", token: t")).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      message: expect.stringContaining("it holds no token: 16 characters or more") as string,
    });
  });
});

it("with certificates only a client that shows one is answered", async (context) => {
  context.skip(!isInstalled("openssl"), "openssl is missing");
  const { server, client, stranger } = makeCertificates();
  const rig = new Client();
  for (const [name, content] of Object.entries(server)) writeFileSync(rig.folder.path(name), String(content));
  await rig.open(", tls: {key: key, cert: cert, ca: ca}");
  const statusFor = async (pair: object): Promise<number | undefined> => {
    const sent = secureRequest(new URL("/v1/access", rig.url), { ...pair, ca: server.ca, agent: false });
    sent.end();
    const [response] = (await once(sent, "response")) as [IncomingMessage];
    expect(JSON.parse(await text(response))).toEqual({ access: "act" });
    return response.statusCode;
  };
  expect(await statusFor({ key: client.key, cert: client.cert })).toBe(200);
  await expect(statusFor({})).rejects.toThrow(/certificate required|reset|hang up/i);
  await expect(statusFor({ key: stranger.key, cert: stranger.cert })).rejects.toThrow(/unknown ca|reset|hang up/i);
});

describe("the stream", () => {
  /** The events of the stream, as they come. */
  async function* events(rig: Client): AsyncGenerator<readonly [event: string, data: unknown]> {
    const sent = request(new URL("/v1/live", rig.url), { agent: false });
    sent.end();
    onTestFinished(() => void sent.destroy());
    const [response] = (await once(sent, "response")) as [IncomingMessage];
    expect(response.headers["content-type"]).toBe("text/event-stream");
    let rest = "";
    for await (const part of response as AsyncIterable<Buffer>) {
      const blocks = (rest + part.toString()).split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const [, event = "", data = ""] = /^event: (.+)\ndata: (.*)$/.exec(block) ?? [];
        yield [event, JSON.parse(data)];
      }
    }
  }

  it("has the status of each second, and what happens", async () => {
    const rig = await new Client().open();
    const protection = rig.engine.protection("disk-1");
    protection.emit({ kind: "notice", message: "before the page", code: "CUT_TIMED_OUT" });
    const stream = events(rig);
    const next = async (): Promise<readonly [string, unknown]> => (await stream.next()).value as [string, unknown];
    const status = JSON.parse((await rig.send("GET", "/v1/status")).text) as AgentStatus;
    expect(await next()).toEqual(["status", status]);
    const before = { disk: "disk-1", kind: "notice", message: "before the page", code: "CUT_TIMED_OUT" };
    expect(await next()).toMatchObject(["log", { id: 1, ...before }]);
    protection.emit({ kind: "failure", message: "at https://h/c?sig=secret", code: "STORE_UNREACHABLE" });
    expect(await next()).toMatchObject(["log", { id: 2, kind: "failure", message: "at https://h/c?sig=…" }]);
    protection.emit({ kind: "point", message: "point 1" });
    protection.state = { churnBytesPerSecond: 77 };
    await rig.clock.advance(1_000);
    expect(await next()).toMatchObject(["status", { disks: [{ churnBytesPerSecond: 77 }] }]);
  });

  it("of a client that takes nothing ends, and what it did not take is let go", async () => {
    const rig = await new Client().open();
    const socket = connect(Number(new URL(rig.url).port), "127.0.0.1");
    onTestFinished(() => void socket.destroy());
    const closed = once(socket, "close");
    socket.on("error", () => socket.destroy());
    socket.write("GET /v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n");
    await once(socket, "readable");
    const message = "x".repeat(1024 * 1024);
    for (let count = 0; count < 30; count += 1) {
      rig.engine.protection("disk-1").emit({ kind: "notice", message });
      await settled();
    }
    socket.resume();
    await closed;
    expect(socket.bytesRead).toBeLessThan(30 * message.length);
  });
});

describe("the recent past", () => {
  it("is an hour of samples of the disks that there are, and 500 entries", () => {
    const history = new History();
    const disk = (name: string, churn: number): object => ({
      disk: name,
      lag: { committedMs: churn === 0 ? null : churn },
      churnBytesPerSecond: churn,
      uploadBytesPerSecond: 1.4,
    });
    for (let count = 0; count < 400; count += 1)
      history.sample({ disks: [disk("a", count), ...(count < 399 ? [disk("b", 1)] : [])] as never });
    const { samples, everyMs } = history.series("a");
    expect(everyMs).toBe(sampleEveryMs);
    expect(samples).toHaveLength(3_600_000 / sampleEveryMs);
    expect(samples.at(-1)).toEqual([399, 399, 1]);
    expect(history.series("b").samples).toEqual([]);
    for (let count = 0; count < 600; count += 1) history.note({ kind: "notice", disk: "a", message: String(count) });
    expect(history.entries).toHaveLength(500);
    expect(history.entries.at(-1)).toMatchObject({ id: 600, message: "599" });
  });
});
