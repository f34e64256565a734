/** Failovers through an agent: its control socket, its status and health, and what it ends by itself. */

import { existsSync, readFileSync } from "node:fs";
import { expect, it, onTestFinished, vi } from "vitest";
import { Agent } from "../../../cli/agent/agent.ts";
import { askAgent } from "../../../cli/agent/control-client.ts";
import { openEngineAdapter } from "../../../cli/agent/engine-adapter.ts";
import { FailoverRuns, type FailoverRunsParts } from "../../../cli/agent/failover-runs.ts";
import type { AgentStatus } from "../../../cli/agent/supervisor.ts";
import type { RunSummary } from "../../../engine/index.ts";
import { keyEnvironment } from "../../encrypted.ts";
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

it("finds and looks at the runs of one vault while the store of another is silent", async () => {
  const noted: string[] = [];
  const silent = new Promise<never>(() => undefined);
  const failovers = { ...noFailovers, list: async () => await Promise.resolve([{ run: "0badcafe" } as RunSummary]) };
  const parts = {
    config: { vaults: new Map(["far", "main"].map((name) => [name, {}])) },
    useVault: async (name: string, _: AbortSignal, use: (vault: object) => Promise<unknown>) =>
      name === "far" ? await silent : await use({ failovers, plans: noPlans }),
    runs: { note: (vault: string) => noted.push(vault) },
    served: { serve: async () => await Promise.resolve() },
  };
  const supervisor = parts as unknown as FailoverRunsParts["supervisor"];
  const runs = new FailoverRuns({ supervisor, clock: new VirtualClock(), environment: {}, onEvent: () => undefined });
  expect(await runs.show("0badcafe", signal)).toMatchObject({ run: "0badcafe", vault: "main" });
  void runs.look(signal);
  await settled();
  expect(noted).toEqual(["main"]);
});
