/** The source of a failover, as an agent behind its control socket answers for it. */
import { expect, it, onTestFinished, vi } from "vitest";
import { Agent } from "../../../cli/agent/agent.ts";
import { agentSource } from "../../../cli/agent-source.ts";
import { ConfigFolder } from "./configuration.ts";
import { KeptLog, ScriptedEngine, VirtualClock } from "./scripted.ts";

const text = `vaults:
  main: {address: "dir:vault"}
policies:
  gold: {}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:a.sock"}
control: {socket: agent.sock}
`;

it("takes points, stops disks with a last point, starts them again, and says what it cannot", async () => {
  const folder = new ConfigFolder("web.img");
  const engine = new ScriptedEngine();
  const agent = await Agent.start(await folder.config(text), {
    environment: {},
    engine,
    clock: new VirtualClock(),
    log: new KeptLog(),
  });
  onTestFinished(async () => {
    await agent.stop({ drain: false });
    await agent[Symbol.asyncDispose]();
  });
  await vi.waitFor(() => engine.protection("web"));
  const source = agentSource(folder.path("agent.sock"));
  const web = { disks: ["web"], group: null };
  await vi.waitFor(async () => await source.point(web, undefined));
  const first = engine.protection("web");
  // What is not in the vault yet keeps a planned failover from being done.
  first.state = { backlogBytes: 4096 };
  await expect(source.stop(web, undefined)).rejects.toMatchObject({ code: "SOURCE_UNREADABLE" });
  // The disk goes on where it is, and can be stopped again.
  await vi.waitFor(() => expect(engine.protection("web")).not.toBe(first));
  await source.start(web, undefined);
  const second = engine.protection("web");
  second.state = { backlogBytes: 0 };
  second.resting = { path: folder.path("web.img"), point: "0".repeat(32), signature: "4096 modified 1 changed 1" };
  expect(await source.stop(web, undefined)).toEqual([{ disk: "web", ...second.resting }]);
  expect(first.calls).toEqual(expect.arrayContaining(["point", "drain"]));
  expect(second.calls).toEqual(["resume", "drain"]);
  await expect(source.stop({ disks: ["nosuch"], group: null }, undefined)).rejects.toMatchObject({
    code: "DISK_NOT_FOUND",
  });
  const absent = agentSource(folder.path("absent.sock"));
  await expect(absent.stop(web, undefined)).rejects.toMatchObject({ code: "AGENT_UNREACHABLE" });
});
