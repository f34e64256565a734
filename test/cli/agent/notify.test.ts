import { once } from "node:events";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { describe, expect, it, onTestFinished } from "vitest";
import type { NotifyConfig } from "../../../cli/agent/config.ts";
import { deliver } from "../../../cli/agent/deliver.ts";
import { type Notification, Notifier } from "../../../cli/agent/notify.ts";
import type { AgentStatus } from "../../../cli/agent/supervisor.ts";
import { type Finding, TidemarkError } from "../../../engine/index.ts";
import { ConfigFolder } from "./configuration.ts";
import { VirtualClock } from "./scripted.ts";

const { signal } = new AbortController();

class Rig {
  readonly clock: VirtualClock = new VirtualClock();
  readonly sent: { readonly url: string; readonly notification: Notification }[] = [];
  readonly logged: string[] = [];
  readonly notifier: Notifier;
  findings: Readonly<Record<string, readonly Finding[]>> = {};
  /** Why nothing is taken. */
  refusal: string | undefined;

  constructor(...places: readonly NotifyConfig[]) {
    this.notifier = new Notifier(places, {
      clock: this.clock,
      status: () => this.#status(),
      log: (level, message) => this.logged.push(`${level} ${message}`),
      send: async (place, notification) => {
        if (this.refusal !== undefined) throw new TidemarkError("UNSUPPORTED", this.refusal, {});
        this.sent.push({ url: place.kind === "webhook" ? place.url : "", notification });
      },
    });
    onTestFinished(async () => await this.notifier.stop());
  }

  /** Looks so many times, and gives what was sent. */
  async looks(count: number): Promise<readonly string[]> {
    const from = this.sent.length;
    for (let look = 0; look < count; look += 1) await this.clock.advance(10_000);
    return this.sent.slice(from).map(({ notification: { raised, cleared } }) => {
      const names = (found: readonly { readonly disk: string; readonly code: string }[]): string =>
        found.map(({ disk, code }) => `${disk}/${code}`).join(" ");
      return `+${names(raised)} -${names(cleared)}`;
    });
  }

  #status(): AgentStatus {
    const disks = Object.entries(this.findings).map(([disk, findings]) => ({ disk, findings }));
    return { config: "/etc/agent.yaml", health: "Critical", disks } as unknown as AgentStatus;
  }
}

const finding = (level: "Warning" | "Critical", code: string, cause = "it is so"): Finding => ({
  level,
  code,
  cause,
  remedy: "do this",
});
const webhook = (on: "warning" | "critical" = "critical"): NotifyConfig => ({
  kind: "webhook",
  url: `http://h/${on}`,
  on,
});

describe("notifications", () => {
  it("tell what has come and what has gone, once, of the levels that a place wants", async () => {
    const rig = new Rig(webhook());
    rig.findings = { web: [finding("Warning", "BACKLOG_SLOW"), finding("Critical", "NO_SPACE")], db: [] };
    expect(await rig.looks(5)).toEqual(["+web/NO_SPACE -"]);
    rig.findings = { web: [finding("Critical", "BACKLOG_SLOW")], db: [finding("Critical", "NO_RECENT_POINT")] };
    expect(await rig.looks(5)).toEqual(["+web/BACKLOG_SLOW -web/NO_SPACE", "+db/NO_RECENT_POINT -"]);
    rig.findings = {};
    expect(await rig.looks(5)).toEqual(["+ -web/BACKLOG_SLOW db/NO_RECENT_POINT"]);
    expect(rig.sent[0]?.notification).toMatchObject({
      agent: "/etc/agent.yaml",
      health: "Critical",
      text: expect.stringMatching(
        /^Tidemark on .+: health Critical\nCritical: web: it is so \(NO_SPACE\)\. do this$/,
      ) as string,
    });
  });

  it("tell a warning that becomes critical again", async () => {
    const rig = new Rig(webhook("warning"));
    rig.findings = { web: [finding("Warning", "BACKLOG_SLOW")] };
    expect(await rig.looks(3)).toEqual(["+web/BACKLOG_SLOW -"]);
    rig.findings = { web: [finding("Critical", "BACKLOG_SLOW")] };
    expect(await rig.looks(3)).toEqual(["+web/BACKLOG_SLOW -"]);
  });

  it("tell what is Critical though the same is a Warning for another reason", async () => {
    const rig = new Rig(webhook());
    const [critical, warning] = [finding("Critical", "COPY_BEHIND"), finding("Warning", "COPY_BEHIND")];
    rig.findings = { web: [critical, warning] };
    expect(await rig.looks(3)).toEqual(["+web/COPY_BEHIND -"]);
    rig.findings = { web: [warning] };
    expect(await rig.looks(3)).toEqual(["+ -web/COPY_BEHIND"]);
  });

  it("do not tell what lasts for a moment", async () => {
    const rig = new Rig(webhook());
    rig.findings = { web: [finding("Critical", "NO_SPACE")] };
    await rig.looks(1);
    rig.findings = {};
    expect(await rig.looks(5)).toEqual([]);
  });

  it("of a place that was away are one message about what is true when it is back", async () => {
    const rig = new Rig(webhook());
    rig.refusal = "status 503";
    rig.findings = { web: [finding("Critical", "NO_SPACE")] };
    await rig.looks(60);
    rig.findings = { db: [finding("Critical", "NO_RECENT_POINT")] };
    rig.refusal = undefined;
    expect(await rig.looks(60)).toEqual(["+db/NO_RECENT_POINT -"]);
    const waits = rig.logged.map((line) => /in (\d+) s$/.exec(line)?.[1]);
    expect(waits).toEqual(["10", "20", "40", "80", "160", "300", undefined]);
    expect(rig.logged.at(-1)).toBe("info the webhook at h takes notifications again");
  });

  it("hold no secret", async () => {
    const rig = new Rig(webhook());
    rig.findings = { web: [finding("Critical", "ACCESS_REFUSED", "https://a/c?sig=abc%2F refused")] };
    await rig.looks(3);
    expect(JSON.stringify(rig.sent)).not.toContain("abc%2F");
    rig.refusal = "status 404";
    rig.findings = {};
    await rig.looks(1);
    expect(rig.logged).toEqual(["warn the webhook at h did not take a notification (status 404): tried again in 10 s"]);
  });

  it("go on from what a place was told when the configuration is read again", async () => {
    const rig = new Rig(webhook());
    rig.findings = { web: [finding("Critical", "NO_SPACE")] };
    await rig.looks(3);
    rig.notifier.set([webhook(), { ...webhook(), url: "http://other/" } as NotifyConfig]);
    await rig.looks(3);
    expect(rig.sent.map(({ url }) => url)).toEqual(["http://h/critical", "http://other/"]);
  });
});

describe("a webhook", () => {
  async function served(status: number, headers = {}): Promise<{ readonly url: string; readonly bodies: string[] }> {
    const bodies: string[] = [];
    const server = createServer((request: IncomingMessage, response) => {
      void text(request).then((body) => {
        bodies.push(body);
        response.writeHead(status, headers).end("x".repeat(100_000));
      });
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    onTestFinished(() => {
      server.close();
      server.closeAllConnections();
    });
    return { url: `http://127.0.0.1:${String((server.address() as AddressInfo).port)}/key`, bodies };
  }

  it("gets JSON, and is asked again unless it says that it has it", async () => {
    const taking = await served(204);
    await deliver({ kind: "webhook", url: taking.url, on: "critical" }, { text: "a" }, signal);
    expect(taking.bodies).toEqual(['{"text":"a"}\n']);
    const refusing = await served(500);
    await expect(deliver({ kind: "webhook", url: refusing.url, on: "critical" }, {}, signal)).rejects.toThrow(
      "status 500",
    );
    const leading = await served(307, { Location: taking.url });
    const led = deliver({ kind: "webhook", url: leading.url, on: "critical" }, {}, signal);
    await expect(led).rejects.toThrow("it could not be reached");
    expect(taking.bodies).toHaveLength(1);
  });

  it("that is not there is named without its path", async () => {
    const error: unknown = await deliver(
      { kind: "webhook", url: "http://127.0.0.1:1/key", on: "critical" },
      {},
      signal,
    ).catch((cause: unknown) => cause);
    expect(String(error)).not.toContain("key");
  });
});

describe("a command", () => {
  it("gets JSON in its folder, and nothing of the agent's environment", async () => {
    const { folder } = new ConfigFolder();
    writeFileSync(`${folder}/tell.sh`, "cat >got; env >>got\n");
    await deliver({ kind: "command", command: "sh tell.sh", cwd: folder, on: "critical" }, { text: "a" }, signal);
    const [json, ...variables] = readFileSync(`${folder}/got`, "utf8").trim().split("\n");
    expect(json).toBe('{"text":"a"}');
    const names = variables.map((line) => line.replace(/=.*/, ""));
    expect(names.filter((name) => !["PATH", "HOME", "LANG", "PWD", "OLDPWD", "SHLVL", "_"].includes(name))).toEqual([]);
  });

  it("that fails is an error, and one that does not end is killed with what it started", async () => {
    const { folder } = new ConfigFolder();
    const place = (command: string): NotifyConfig => ({ kind: "command", command, cwd: folder, on: "critical" });
    await expect(deliver(place("exit 3"), {}, signal)).rejects.toThrow("exit code 3");
    const ending = new AbortController();
    const stuck = deliver(place("touch begun; (sleep 1000 & echo $! >child; wait)"), {}, ending.signal);
    stuck.catch(() => undefined);
    while (!existsSync(`${folder}/child`)) await new Promise((resolve) => setTimeout(resolve, 10));
    ending.abort();
    await expect(stuck).rejects.toThrow("it did not end in time");
    const child = Number(readFileSync(`${folder}/child`, "utf8"));
    const isRunning = (): boolean => {
      const state = existsSync(`/proc/${String(child)}/stat`)
        ? readFileSync(`/proc/${String(child)}/stat`, "utf8")
        : "";
      return state !== "" && !/\) Z /.test(state);
    };
    while (isRunning()) await new Promise((resolve) => setTimeout(resolve, 10));
    const absent = { ...place("true"), cwd: `${folder}/absent` } as NotifyConfig;
    await expect(deliver(absent, {}, signal)).rejects.toMatchObject({ code: "UNSUPPORTED", message: "ENOENT" });
  });
});
