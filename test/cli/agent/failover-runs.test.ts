/** Failovers through an agent: its control socket, its status and health, and what it ends by itself. */

import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { Agent } from "../../../cli/agent/agent.ts";
import { askAgent } from "../../../cli/agent/control-client.ts";
import { type ControlTarget, createControlServer } from "../../../cli/agent/control-server.ts";
import { openEngineAdapter } from "../../../cli/agent/engine-adapter.ts";
import { FailoverRuns, type FailoverRunsParts } from "../../../cli/agent/failover-runs.ts";
import type { AgentStatus } from "../../../cli/agent/supervisor.ts";
import type { Output } from "../../../cli/output.ts";
import { createProgram } from "../../../cli/program.ts";
import { type JobSummary, type Notice, type RunSummary, TidemarkError } from "../../../engine/index.ts";
import { keyEnvironment } from "../../encrypted.ts";
import { idleContext } from "../idle-context.ts";
import { writeImage } from "../images.ts";
import { ConfigFolder, oneDisk } from "./configuration.ts";
import { KeptLog, noFailovers, noPlans, settled, VirtualClock } from "./scripted.ts";

const { signal } = new AbortController();

it("moves a disk of its own away, shows where it is, and brings it back when that is due", async () => {
  const folder = new ConfigFolder("web.img");
  writeImage(folder.path("web.img"), 1);
  const clock = new VirtualClock();
  const agent = await Agent.start(await folder.config(oneDisk), {
    environment: { XDG_STATE_HOME: folder.path("state"), PATH: process.env["PATH"] },
    engine: openEngineAdapter({ XDG_STATE_HOME: folder.path("state"), ...keyEnvironment }),
    clock,
    log: new KeptLog(),
  });
  onTestFinished(async () => {
    await agent.stop({ drain: false });
    await agent[Symbol.asyncDispose]();
  });
  const socket = folder.path("agent.sock");
  const ask = async (path: string, fields?: object): Promise<unknown> =>
    await askAgent(socket, { method: fields === undefined ? "GET" : "POST", path, fields, signal });
  const status = async (): Promise<AgentStatus> => (await ask("/v1/status")) as AgentStatus;
  await vi.waitFor(async () => await ask("/v1/point", { disk: "web" }), { timeout: 20_000 });

  const drill = { verb: "test", disks: ["web"], to: `file:${folder.path("t.img")}`, ttl: "1s", check: "exit 3" };
  const inside = `file:${folder.path("vault/t.img")}`;
  await expect(ask("/v1/failover", { ...drill, to: inside })).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  await expect(ask("/v1/failover", drill)).rejects.toMatchObject({ code: "HOOK_FAILED" });
  const { runs } = (await ask("/v1/failover")) as { readonly runs: readonly RunSummary[] };
  const test = runs[0]?.run ?? "";
  expect(await ask(`/v1/failover/${test}`)).toMatchObject({ run: test, state: "TestFailoverCompletionFailed" });
  await clock.advance(60_000);
  await vi.waitFor(async () => {
    const { health, disks, vaults } = await status();
    expect(health).toBe("Critical");
    expect(disks[0]?.findings[0]?.code).toMatch(/TEST_OVERDUE|RUN_STOPPED/);
    expect(vaults[0]?.failovers).toMatchObject([{ run: test, kind: "test", direction: "PrimaryToRecovery" }]);
  });
  await ask("/v1/failover", { verb: "cleanup", run: test, note: "it fails" });
  expect(await status()).toMatchObject({ health: "Normal" });

  const move = { verb: "planned", disks: ["web"], to: `file:${folder.path("moved.img")}`, socket };
  const moved = (await ask("/v1/failover", { ...move, commit: "rollback-after:1s" })) as RunSummary;
  expect(moved).toMatchObject({ state: "PlannedFailoverCompleted", disks: [{ complete: true }] });
  expect(readFileSync(folder.path("moved.img")).equals(readFileSync(folder.path("web.img")))).toBe(true);
  expect((await status()).vaults[0]?.failovers[0]).toMatchObject({ run: moved.run, activeLocation: "Primary" });
  // `agent resume` would be of no use.
  const remedy = expect.stringContaining(`tidemark failover show ${moved.run}`) as string;
  expect((await status()).disks[0]?.findings).toMatchObject([{ level: "Warning", code: "FAILED_OVER", remedy }]);
  vi.useFakeTimers({ now: Date.now() + 2_000, toFake: ["Date"] });
  onTestFinished(() => {
    vi.useRealTimers();
  });
  await vi.waitFor(
    async () => {
      await clock.advance(60_000);
      expect(existsSync(folder.path("moved.img"))).toBe(false);
    },
    { timeout: 20_000 },
  );
  await settled();
  const { jobs } = (await ask("/v1/jobs")) as { readonly jobs: readonly { readonly operation: string }[] };
  expect(jobs.map(({ operation }) => operation)).toContain("CancelFailover");
  for (const fields of [{ verb: "no" }, { verb: "commit", run: "00000000" }, { verb: "cancel", run: test, note: "x" }])
    await expect(ask("/v1/failover", fields)).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
}, 60_000);

/** The runs of an agent that uses its vaults, `far` and `main`, as told. */
function runsWith(use: (vault: string) => Promise<object>, noted: string[] = []): FailoverRuns {
  const parts = {
    config: {
      vaults: new Map(["far", "main"].map((name) => [name, {}])),
      disks: new Map([
        ["web", { name: "web", vault: "main", group: "shop" }],
        ["old", { name: "old", vault: "far" }],
      ]),
    },
    useVault: async (name: string, _: AbortSignal, work: (vault: object) => Promise<unknown>) =>
      await work(await use(name)),
    runs: { note: (vault: string) => noted.push(vault) },
    served: { serve: async () => await Promise.resolve() },
  };
  const supervisor = parts as unknown as FailoverRunsParts["supervisor"];
  return new FailoverRuns({ supervisor, clock: new VirtualClock(), environment: {}, onEvent: () => undefined });
}

const words = { state: "", health: "Normal", kind: "test", point: "", target: "", operation: "" };
const run = { ...words, run: "0badcafe", plan: null, disks: [], leftovers: [] } as unknown as RunSummary;
const job = { ...words, job: "0badcafe-1", disks: [], tasks: [], startTime: "2026-05-01T12:00:00Z", endTime: null };
const failovers = {
  ...noFailovers,
  list: async () => await Promise.resolve([run]),
  jobs: async () => await Promise.resolve([job as unknown as JobSummary]),
};

it("finds and looks at the runs of one vault while the store of another is silent", async () => {
  const noted: string[] = [];
  const silent = new Promise<never>(() => undefined);
  const use = async (name: string): Promise<object> =>
    name === "far" ? await silent : await Promise.resolve({ failovers, plans: noPlans });
  const runs = runsWith(use, noted);
  expect(await runs.show("0badcafe", signal)).toMatchObject({ run: "0badcafe", vault: "main" });
  void runs.look(signal);
  await settled();
  expect(noted).toEqual(["main"]);
});

it("works in the vault of the disks or the group that a request names", async () => {
  const used: string[] = [];
  const runs = runsWith(async (vault) => {
    used.push(vault);
    return await Promise.resolve({ failovers: noFailovers, plans: noPlans });
  });
  const operate = async (fields: object): Promise<unknown> => await runs.operate({ verb: "no", ...fields }, signal);
  for (const fields of [{ disks: ["web"] }, { group: "shop" }, { vault: "main", disks: ["old"] }]) {
    used.length = 0;
    await expect(operate(fields)).rejects.toThrow('"no" is no verb');
    expect(used[0]).toBe("main");
  }
  for (const fields of [{}, { disks: ["web", "old"] }, { disks: ["other"] }, { disks: 7 }, { plan: "shop.yaml" }])
    await expect(operate(fields)).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      message: expect.stringContaining("several vaults") as string,
    });
  await expect(operate({ run: 7 })).rejects.toThrow("run is no text");
});

describe("with a vault that is away", () => {
  const away = new TidemarkError("STORE_UNREACHABLE", "far is away", { remedy: "look at the cable" });
  const use = async (name: string): Promise<object> =>
    name === "far" ? await Promise.reject(away) : await Promise.resolve({ failovers, plans: noPlans });
  const failures = [{ vault: "far", code: "STORE_UNREACHABLE", message: "far is away", remedy: "look at the cable" }];

  it("lists what the others have, and says which one could not be asked and why", async () => {
    expect(await runsWith(use).list(signal)).toMatchObject({
      runs: [{ run: "0badcafe", vault: "main" }],
      plans: [],
      failures,
    });
    expect(await runsWith(use).jobs(signal)).toMatchObject({ jobs: [{ job: "0badcafe-1", vault: "main" }], failures });
    const none = runsWith(async () => await Promise.reject(away));
    await expect(none.list(signal)).rejects.toBe(away);
    await expect(none.jobs(signal)).rejects.toBe(away);
    const fault = runsWith(async (name) => await (name === "far" ? Promise.reject(new TypeError("fault")) : use(name)));
    await expect(fault.jobs(signal)).rejects.toThrow("fault");
  });

  it.each([
    ["failover", "list", "run"],
    ["jobs", "list", "job"],
    ["jobs", "export", "job"],
  ])("%s %s tells that", async (command, verb, item) => {
    const target = { failovers: runsWith(use), metrics: { onRequest: () => undefined } };
    const server = createControlServer(Promise.resolve(target as unknown as ControlTarget));
    const socket = new ConfigFolder().path("agent.sock");
    server.listen(socket);
    onTestFinished(() => void server.close());
    await once(server, "listening");
    const told: string[] = [];
    const output = {
      notice: ({ message }: Notice) => told.push(message),
      item: (type: string) => told.push(type),
      answer: () => told.push("answer"),
      time: (iso: string) => iso,
      columns: 80,
    } as unknown as Output;
    await createProgram(idleContext(output)).parseAsync([command, verb, "--agent", socket], { from: "user" });
    expect(told).toEqual(["the vault far is left out: far is away; look at the cable", item, "answer"]);
  });
});
