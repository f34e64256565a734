/** Runs that an agent serves: from the failover over a restart of the agent to the way back. */

import { readFileSync, writeFileSync } from "node:fs";
import { expect, it, onTestFinished, vi } from "vitest";
import { Agent } from "../../../cli/agent/agent.ts";
import { askAgent } from "../../../cli/agent/control-client.ts";
import { openEngineAdapter } from "../../../cli/agent/engine-adapter.ts";
import type { RunFacts } from "../../../cli/agent/seen-runs.ts";
import type { AgentStatus } from "../../../cli/agent/supervisor.ts";
import { command } from "../../../engine/disk/nbd/protocol.ts";
import type { PlanRunSummary, RunSummary } from "../../../engine/index.ts";
import { keyEnvironment } from "../../encrypted.ts";
import { RawClient } from "../../engine/disk/nbd/server-rig.ts";
import { writeImage } from "../images.ts";
import { Place } from "../tidemark.ts";
import { ConfigFolder, oneDisk } from "./configuration.ts";
import { KeptLog, VirtualClock } from "./scripted.ts";

const { signal } = new AbortController();

class Rig {
  readonly folder = new ConfigFolder("web.img");
  readonly clock = new VirtualClock();
  readonly log = new KeptLog();
  readonly socket: string = this.folder.path("agent.sock");

  constructor() {
    writeImage(this.folder.path("web.img"), 1);
  }

  async start(configuration: string = oneDisk): Promise<Agent> {
    const agent = await Agent.start(await this.folder.config(configuration), {
      environment: { XDG_STATE_HOME: this.folder.path("state"), PATH: process.env["PATH"] },
      engine: openEngineAdapter({ XDG_STATE_HOME: this.folder.path("state"), ...keyEnvironment }),
      clock: this.clock,
      log: this.log,
    });
    onTestFinished(async () => {
      await agent.stop({ drain: false });
      await agent[Symbol.asyncDispose]();
    });
    return agent;
  }

  async ask(path: string, fields?: object): Promise<unknown> {
    return await askAgent(this.socket, { method: fields === undefined ? "GET" : "POST", path, fields, signal });
  }

  async verb(fields: object): Promise<RunSummary> {
    return (await this.ask("/v1/failover", fields)) as RunSummary;
  }

  async facts(run: string): Promise<RunFacts | undefined> {
    const { vaults } = (await this.ask("/v1/status")) as AgentStatus;
    return vaults[0]?.failovers.find((facts) => facts.run === run);
  }
}

/** Writes and flushes over NBD. */
async function write(path: string, offset: number, fill: number): Promise<void> {
  const peer = await RawClient.transmitting({ kind: "unix", path }, { name: "web" });
  for (const request of [
    { type: command.write, cookie: 2n, offset, payload: Buffer.alloc(4096, fill) },
    { type: command.flush, cookie: 3n, offset: 0, length: 0 },
  ])
    expect((await peer.call(request)).error).toBe(0);
  peer.socket.destroy();
}

it("serves an instant target, protects it at its new place, also after a restart, and takes it back", async () => {
  const rig = new Rig();
  const { folder } = rig;
  const first = await rig.start();
  await vi.waitFor(async () => await rig.ask("/v1/point", { disk: "web" }), { timeout: 20_000 });
  const model = readFileSync(folder.path("web.img"));
  const change = async (offset: number, fill: number): Promise<void> => {
    model.fill(fill, offset, offset + 4096);
    await write(folder.path("new.sock"), offset, fill);
  };
  const to = `instant:unix:${folder.path("new.sock")},image=${folder.path("new.img")}`;
  const { run, servedBy } = await rig.verb({ verb: "planned", disks: ["web"], to, socket: rig.socket });
  expect(servedBy).toBe("agent");
  expect(await rig.facts(run)).toMatchObject({
    serving: [{ disk: "web", uri: `nbd+unix:///web?socket=${folder.path("new.sock")}`, protection: null }],
  });
  await change(8192, 1);
  await rig.verb({ verb: "commit", run });
  await change(24_576, 3);
  await rig.verb({ verb: "reprotect", run });
  expect(await rig.facts(run)).toMatchObject({ state: "Protected", serving: [{ disk: "web" }] });
  expect((await rig.facts(run))?.serving?.[0]?.protection).not.toBeNull();
  await change(32_768, 4);
  await first.stop({ drain: true });
  await first[Symbol.asyncDispose]();
  // Nothing but the vault says what the next agent serves.
  await rig.start();
  await vi.waitFor(
    async () => {
      await rig.clock.advance(60_000);
      expect((await rig.facts(run))?.serving).toMatchObject([{ disk: "web" }]);
    },
    { timeout: 20_000 },
  );
  // The image from which the disk has moved is not exported: what a client wrote there would be lost.
  const { disks } = (await rig.ask("/v1/status")) as AgentStatus;
  expect(disks[0]).toMatchObject({ state: "failed", connections: null, findings: [{ code: "WRITER_ACTIVE" }] });
  await change(40_960, 5);
  const back = await rig.verb({ verb: "failback", run, to: [folder.path("web.img")] });
  expect(back).toMatchObject({ state: "PlannedFailoverCompleted", disks: [{ complete: true }] });
  expect(readFileSync(folder.path("web.img")).equals(model)).toBe(true);
  expect((await rig.facts(run))?.serving ?? null).toBeNull();
  // A failback that is given up leaves the disk where it was: it is served there again.
  await rig.verb({ verb: "cancel", run: back.run });
  expect((await rig.facts(run))?.serving).toMatchObject([{ disk: "web" }]);
  await change(49_152, 6);
}, 60_000);

it("says of a run that it cannot serve why, and serves a disk that reprotect gives an address", async () => {
  const rig = new Rig();
  const { folder } = rig;
  await rig.start();
  await vi.waitFor(async () => await rig.ask("/v1/point", { disk: "web" }), { timeout: 20_000 });
  const moved = await rig.verb({
    verb: "planned",
    disks: ["web"],
    to: `file:${folder.path("new.img")}`,
    socket: rig.socket,
  });
  expect(moved.servedBy).toBeNull();
  await rig.verb({ verb: "commit", run: moved.run });
  const busy = `unix:${folder.path("agent.sock")}`;
  await rig.verb({ verb: "reprotect", run: moved.run, listen: busy });
  expect(await rig.facts(moved.run)).toMatchObject({ serving: null });
  const { disks } = (await rig.ask("/v1/status")) as AgentStatus;
  expect(disks[0]?.findings).toContainEqual(expect.objectContaining({ code: "RUN_NOT_SERVED", level: "Critical" }));
}, 60_000);

it("takes a disk to the replica that it keeps, and keeps it again after a cancel", async () => {
  const rig = new Rig();
  const { folder } = rig;
  folder.folders("copies");
  await rig.start(oneDisk.replace("1h}", '1h, replica: "dir:copies"}'));
  const replica = async (): Promise<unknown> => ((await rig.ask("/v1/status")) as AgentStatus).disks[0]?.replica;
  await vi.waitFor(async () => expect(await replica()).toMatchObject({ state: "current" }), { timeout: 20_000 });
  await write(folder.path("a.sock"), 8192, 1);
  const move = { verb: "planned", disks: ["web"], to: "replica", socket: rig.socket };
  const { run, state } = await rig.verb(move);
  expect(state).toBe("PlannedFailoverCompleted");
  expect(readFileSync(folder.path("copies/web.img")).equals(readFileSync(folder.path("web.img")))).toBe(true);
  await rig.verb({ verb: "cancel", run });
  await vi.waitFor(async () => expect(await replica()).toMatchObject({ state: "current" }), { timeout: 20_000 });
  await write(folder.path("a.sock"), 16_384, 2);
}, 60_000);

it("takes the verbs of the command line, which go to it with --agent", async () => {
  const rig = new Rig();
  await rig.start();
  const place = new Place();
  const done = async (...words: readonly string[]): Promise<unknown> =>
    (await place.json(...words, "--agent", rig.socket)).last;
  await vi.waitFor(async () => await rig.ask("/v1/point", { disk: "web" }), { timeout: 20_000 });
  const to = `instant:unix:${rig.folder.path("run.sock")},image=${rig.folder.path("run.img")}`;
  const planned = (await done("failover", "planned", "--disk", "web", "--to", to)) as RunSummary;
  expect(planned).toMatchObject({ command: "failover planned", state: "PlannedFailoverCompleted" });
  const { run } = planned;
  expect(await done("failover", "list")).toMatchObject({ command: "failover list", runs: 1, open: 1 });
  expect(await done("jobs", "list")).toMatchObject({ command: "jobs list", jobs: 1 });
  expect(await done("jobs", "show", `${run}-1`)).toMatchObject({ run, state: "Succeeded" });
  expect(await done("jobs", "cancel", run)).toMatchObject({ code: "INVALID_ARGUMENT" });
  expect(await done("failover", "show", run)).toMatchObject({ run, servedBy: "agent" });
  const alone = await place.run(["failover", "cancel", run, "--vault", `dir:${rig.folder.path("vault")}`]);
  expect(alone.stderr).toContain(`tidemark failover cancel ${run} --agent SOCKET`);
  expect(await done("failover", "change-point", run, "--point", "1")).toMatchObject({
    command: "failover change-point",
  });
  expect(await done("failover", "commit", run)).toMatchObject({ state: "CommitFailoverCompleted" });
  expect(await done("reprotect", run)).toMatchObject({ state: "Protected" });
  expect((await rig.facts(run))?.serving).toMatchObject([{ disk: "web" }]);
  const image = rig.folder.path("old.img");
  writeFileSync(image, readFileSync(rig.folder.path("web.img")));
  const back = (await done("failback", run, "--to", image, "--commit", "after:60m")) as RunSummary;
  expect(back).toMatchObject({ command: "failback", state: "PlannedFailoverCompleted", ending: { action: "commit" } });
  expect(await done("jobs", "resume", "0badcafe")).toMatchObject({ code: "INVALID_ARGUMENT" });
}, 60_000);

it("runs a plan with --agent, and serves its machine while a person is waited for", async () => {
  const rig = new Rig();
  const { folder } = rig;
  folder.folders("dr");
  await rig.start();
  const place = new Place();
  const done = async (...words: readonly string[]): Promise<Record<string, unknown>> =>
    (await place.json(...words, "--agent", rig.socket)).last;
  await vi.waitFor(async () => await rig.ask("/v1/point", { disk: "web" }), { timeout: 20_000 });
  const groups = `[{machines: [m], after: [{run: 'test -n "$TIDEMARK_NBD_1"'}, {manual: "does it run?"}]}]`;
  const plan = folder.path("shop.yaml");
  writeFileSync(
    plan,
    `plan: shop\nmachines: [{name: m, disks: [web]}]\ngroups: ${groups}\ntarget: dir:${folder.path("dr")}\n`,
  );
  const to = ["--to", `instant:unix:${folder.path("dr")}`];
  expect(await done("failover", "test", "--plan", plan, ...to, "--dry-run")).toMatchObject({
    command: "failover test",
    plan: "shop",
    machines: [{ machine: "m" }],
  });
  expect(await done("failover", "test", "--plan", plan, "--to", "blob:")).toMatchObject({ code: "INVALID_ARGUMENT" });

  const alone = await done("failover", "test", "--disk", "web", "--to", `file:${folder.path("t.img")}`);
  expect(alone).toMatchObject({ state: "TestFailoverCompleted" });
  expect(await done("failover", "cleanup", String(alone["run"]))).toMatchObject({ state: "None" });

  const drill = await place.json("failover", "test", "--plan", plan, ...to, "--agent", rig.socket);
  expect(drill.lines.map(({ type }) => type)).toEqual(["preview", "summary"]);
  expect(drill.last).toMatchObject({ plan: "shop", waiting: { step: 3 } });
  const { run, machines, stillNeeded } = drill.last as unknown as PlanRunSummary;
  expect(stillNeeded.join()).toContain(`until \`tidemark failover cleanup ${run}\``);
  const machine = machines[0]?.run ?? "";
  const served = { run: machine, serving: [{ disk: "web" }] };
  expect(await rig.facts(machine)).toMatchObject(served);
  expect(await done("failover", "list")).toMatchObject({ runs: 2, plans: 1 });
  expect(await done("jobs", "resume", run, "--step", "3")).toMatchObject({ state: "TestFailoverCompleted" });
  expect(await rig.facts(machine)).toMatchObject(served);
  expect(await done("failover", "cleanup", run, "--note", "passed")).toMatchObject({ state: "None", successful: true });
  expect(await rig.facts(machine)).toMatchObject({ serving: null });

  const exported = await place.run(["jobs", "export", "--agent", rig.socket]);
  expect(exported.stdout).toMatch(new RegExp(`^${run},${run}-2,TestFailoverCleanup,Succeeded`, "m"));
}, 60_000);
