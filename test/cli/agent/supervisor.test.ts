import { describe, expect, it } from "vitest";
import type { AgentConfig } from "../../../cli/agent/config.ts";
import type { DiskEvent } from "../../../cli/agent/ports.ts";
import { Supervisor } from "../../../cli/agent/supervisor.ts";
import { TidemarkError } from "../../../engine/index.ts";
import { ConfigFolder } from "./configuration.ts";
import { ScriptedEngine, settled, VirtualClock } from "./scripted.ts";

const two = `vaults:
  main: {address: "dir:vault", limit: 10MiB/s}
policies:
  gold: {}
  tin: {crashConsistentFrequency: 1m}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:a.sock"}
  - {name: db, image: db.img, vault: main, policy: gold, listen: "unix:a.sock"}
`;
const other = 'disks:\n  - {name: log, image: log.img, vault: main, policy: gold, listen: "unix:b.sock"}';

class Rig {
  readonly folder: ConfigFolder = new ConfigFolder("web.img", "db.img", "log.img");
  readonly engine: ScriptedEngine = new ScriptedEngine();
  readonly clock: VirtualClock = new VirtualClock();
  readonly events: DiskEvent[] = [];
  readonly signal: AbortSignal = new AbortController().signal;

  async start(text: string = two): Promise<Supervisor> {
    const supervisor = new Supervisor(await this.folder.config(text), {
      engine: this.engine,
      clock: this.clock,
      onEvent: (event) => this.events.push(event),
    });
    await settled();
    await this.clock.advance(2_000);
    return supervisor;
  }

  async config(text: string): Promise<AgentConfig> {
    return await this.folder.config(text);
  }

  /** Names exported on an address. */
  exported(socket: string): readonly string[] {
    return [...(this.engine.exports.get(`unix:${this.folder.path(socket)}`) ?? [])].sort();
  }
}

const unreachable = (): TidemarkError => new TidemarkError("STORE_UNREACHABLE", "no answer", { remedy: "wait" });

describe("a start", () => {
  it("opens a vault once for all of its disks, and one server for all exports of an address", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    expect(rig.engine.calls.filter((call) => call === "open main")).toHaveLength(1);
    expect(rig.engine.calls.filter((call) => call.startsWith("listen "))).toHaveLength(1);
    expect(rig.exported("a.sock")).toEqual(["db", "web"]);
    expect(supervisor.status()).toMatchObject({
      health: "Normal",
      state: "running",
      disks: [{ disk: "web" }, { disk: "db" }],
    });
  });

  it("is spread over two seconds, the same way each time", async () => {
    const delays = await Promise.all(
      [new Rig(), new Rig()].map(async (rig) => {
        const parts = { engine: rig.engine, clock: rig.clock, onEvent: () => undefined };
        const supervisor = new Supervisor(await rig.config(two), parts);
        await settled();
        const pending = rig.clock.pendingMs;
        await supervisor.stop({ drain: false });
        return pending;
      }),
    );
    expect(delays[0]).toHaveLength(2);
    expect(delays[0]).toEqual(delays[1]);
    expect(new Set(delays[0]).size).toBe(2);
    expect(Math.max(...(delays[0] ?? []))).toBeLessThan(2_000);
  });

  it("that fails concerns no other disk, is Critical, and is tried again after 1, 2, 4 … 60 s", async () => {
    const rig = new Rig();
    rig.engine.fail("protect db", ...Array.from({ length: 9 }, unreachable));
    const supervisor = await rig.start();
    expect(rig.exported("a.sock")).toEqual(["web"]);
    expect(supervisor.disk("db")).toMatchObject({
      state: "failed",
      health: "Critical",
      findings: [
        { level: "Critical", code: "STORE_UNREACHABLE", cause: "no answer", remedy: "wait; tried again every 1 s" },
      ],
    });
    expect(supervisor.disk("web").health).toBe("Normal");
    expect(supervisor.status().health).toBe("Critical");
    const delays: number[] = [];
    while (rig.clock.pendingMs.length > 0) {
      const [delayMs = 0] = rig.clock.pendingMs;
      delays.push(delayMs);
      await rig.clock.advance(delayMs);
    }
    expect(delays).toEqual([1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
    expect(rig.exported("a.sock")).toEqual(["db", "web"]);
    expect(supervisor.disk("db")).toMatchObject({ state: "protecting", health: "Normal", findings: [] });
    expect(rig.events.filter(({ kind }) => kind === "failure")).toHaveLength(9);
  });

  it("keeps the protection when only the address cannot be had, and its findings", async () => {
    const rig = new Rig();
    rig.engine.fail(`listen unix:${rig.folder.path("a.sock")}`, unreachable(), unreachable());
    const supervisor = await rig.start(two.replace(/ {2}- \{name: db.*\n/, ""));
    rig.engine.protection("web").state = {
      health: "Warning",
      findings: [{ level: "Warning", code: "X", cause: "x", remedy: "y" }],
    };
    expect(supervisor.disk("web")).toMatchObject({ state: "protecting", health: "Critical", connections: null });
    expect(supervisor.disk("web").findings.map(({ code }) => code)).toEqual(["STORE_UNREACHABLE", "X"]);
    await rig.clock.advance(2_000);
    expect(supervisor.disk("web").connections).toBe(0);
    expect(rig.engine.calls.filter((call) => call === "protect web")).toHaveLength(1);
  });
});

describe("points", () => {
  const grouped = two
    .replaceAll("policy: gold,", "policy: gold, group: shop,")
    .replace("image: db.img,", "image: db.img, hooks: {pre: freeze, post: thaw},");

  it("are taken of a disk, and of all disks of a group, where one has the hooks", async () => {
    const rig = new Rig();
    const supervisor = await rig.start(grouped);
    for (const disk of ["web", "db"]) rig.engine.protection(disk).meetings.push("a");
    const options = { applicationConsistent: true, signal: rig.signal };
    expect(await supervisor.point({ group: "shop" }, options)).toMatchObject([
      { disk: "web", consistency: "crash" },
      { disk: "db", consistency: "app" },
    ]);
    expect(await supervisor.point({ disk: "web" }, { ...options, applicationConsistent: false })).toMatchObject([
      { sequence: 2 },
    ]);
    await expect(supervisor.point({ disk: "wob" }, options)).rejects.toMatchObject({
      code: "DISK_NOT_FOUND",
      remedy: "it has web, db",
    });
    await expect(supervisor.point({ group: "x" }, options)).rejects.toMatchObject({
      code: "DISK_NOT_FOUND",
      remedy: "it has shop",
    });
  });

  it("of a group are of one meeting, also when one disk answers a meeting later", async () => {
    const rig = new Rig();
    const supervisor = await rig.start(grouped);
    rig.engine.protection("web").meetings.push("a", "b");
    rig.engine.protection("db").meetings.push("a");
    const points = await supervisor.point({ group: "shop" }, { applicationConsistent: false, signal: rig.signal });
    expect(points.map(({ disk, group }) => [disk, group?.id])).toEqual([
      ["web", "a"],
      ["db", "a"],
    ]);
  });

  it("of a group are not given out where one disk was not there for the hooks", async () => {
    const rig = new Rig();
    const supervisor = await rig.start(grouped);
    rig.engine.protection("web").meetings.push("a");
    rig.engine.protection("db").meetings.push("a", "b");
    const asked = supervisor.point({ group: "shop" }, { applicationConsistent: true, signal: rig.signal });
    // The meeting whose answer came with the hooks is b, and web never has a share of it.
    await expect(asked).rejects.toMatchObject({ code: "CUT_TIMED_OUT", detail: { group: "shop" } });
    expect(rig.engine.protection("web").calls).toEqual(["point", "point", "point"]);
    expect(rig.engine.protection("db").calls).toEqual(["app point"]);
  });

  it("of a disk that could not be started fail with its reason", async () => {
    const rig = new Rig();
    rig.engine.fail("open main", unreachable(), unreachable());
    const supervisor = await rig.start(two.replace(/ {2}- \{name: db.*\n/, ""));
    const asked = supervisor.point({ disk: "web" }, { applicationConsistent: false, signal: rig.signal });
    await expect(asked).rejects.toMatchObject({ code: "STORE_UNREACHABLE" });
  });
});

describe("pause", () => {
  it("concerns one disk or all, and holds for a disk that is still starting", async () => {
    const rig = new Rig();
    rig.engine.fail("protect db", unreachable());
    const supervisor = await rig.start();
    expect(supervisor.pause({})).toEqual(["web", "db"]);
    await rig.clock.advance(1_000);
    expect(rig.engine.protection("web").calls).toEqual(["pause"]);
    expect(rig.engine.protection("db").calls).toEqual(["pause"]);
    expect(await supervisor.resume({ disk: "db" })).toEqual(["db"]);
    expect(rig.engine.protection("db").calls).toEqual(["pause", "resume"]);
  });

  it("refuses a request for a point, alone and in a group, which would wait for the end of the pause", async () => {
    const rig = new Rig();
    const supervisor = await rig.start(two.replaceAll("policy: gold,", "policy: gold, group: shop,"));
    const options = { applicationConsistent: false, signal: rig.signal };
    supervisor.pause({ disk: "web" });
    const remedy = "resume it first: `tidemark agent resume --disk web`";
    for (const target of [{ disk: "web" }, { group: "shop" }])
      await expect(supervisor.point(target, options)).rejects.toMatchObject({ code: "INVALID_ARGUMENT", remedy });
    expect(rig.engine.protection("db").calls).toEqual([]);
    await supervisor.resume({});
    expect(await supervisor.point({ disk: "web" }, options)).toHaveLength(1);
  });
});

describe("a stop of one disk", () => {
  const drained = { drain: true };
  const plain = { applicationConsistent: false };

  it("ends its export after a last point, and leaves the agent and the others alone", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    rig.engine.protection("web").state = { backlogBytes: 0 };
    expect(await supervisor.stopDisks({ disk: "web" }, drained)).toEqual({
      disks: ["web"],
      notDrained: [],
      resting: [],
    });
    expect(rig.engine.protection("web").calls).toEqual(["drain"]);
    expect(rig.engine.protection("db").calls).toEqual([]);
    expect(rig.exported("a.sock")).toEqual(["db"]);
    expect(supervisor.status()).toMatchObject({
      state: "running",
      health: "Warning",
      disks: [
        {
          disk: "web",
          state: "stopped",
          connections: null,
          sizeBytes: 4096,
          lag: { committedMs: 300 },
          findings: [{ code: "STOPPED" }],
        },
        { disk: "db", state: "protecting", health: "Normal" },
      ],
    });
    expect(await supervisor.stopDisks({ disk: "web" }, drained)).toMatchObject({ disks: ["web"] });
    expect(rig.engine.protection("web").calls).toEqual(["drain"]);
    expect(rig.engine.calls).not.toContain("close main");
  });

  it("names a disk that was left with changes, and hurries one that drains when asked again without", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    rig.engine.protection("web").gate = new Promise(() => undefined);
    const slow = supervisor.stopDisks({ disk: "web" }, drained);
    await settled();
    expect(await supervisor.stopDisks({ disk: "web" }, { drain: false })).toEqual({
      disks: ["web"],
      notDrained: ["web"],
      resting: [],
    });
    expect(await slow).toMatchObject({ notDrained: ["web"] });
    expect(rig.engine.protection("web").calls).toEqual(["drain", "cut short"]);
    expect(supervisor.disk("web").findings[0]?.cause).toContain("512 B of it were not in the vault");
  });

  it("names a disk whose last point is missing, though nothing of it is marked", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    const web = rig.engine.protection("web");
    web.state = { backlogBytes: 0 };
    web.missed = unreachable();
    expect(await supervisor.stopDisks({ disk: "web" }, drained)).toMatchObject({ notDrained: ["web"] });
    await supervisor.resume({ disk: "web" });
    await settled();
    rig.engine.protection("web").state = { backlogBytes: 0 };
    supervisor.pause({ disk: "web" });
    expect(await supervisor.stopDisks({ disk: "web" }, drained)).toMatchObject({ notDrained: ["web"] });
  });

  it("names a disk that was never protected", async () => {
    const rig = new Rig();
    rig.engine.fail("protect web", ...Array.from({ length: 9 }, unreachable));
    const supervisor = await rig.start();
    expect(await supervisor.stopDisks({ disk: "web" }, drained)).toEqual({
      disks: ["web"],
      notDrained: ["web"],
      resting: [],
    });
  });

  it("is undone by resume, which waits for its end and protects the disk once", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    const first = rig.engine.protection("web");
    let open = (): void => undefined;
    first.gate = new Promise((resolve) => {
      open = resolve;
    });
    const stopped = supervisor.stopDisks({ disk: "web" }, drained);
    await settled();
    const resumed = Promise.all([supervisor.resume({ disk: "web" }), supervisor.resume({})]);
    await settled();
    expect(rig.engine.protection("web")).toBe(first);
    open();
    expect(await resumed).toEqual([["web"], ["web", "db"]]);
    await stopped;
    await settled();
    expect(rig.engine.calls.filter((call) => call === "protect web")).toHaveLength(2);
    expect(supervisor.disk("web")).toMatchObject({ state: "protecting", health: "Normal", findings: [] });
    expect(rig.exported("a.sock")).toEqual(["db", "web"]);
  });

  it("makes requests for it fail with what to do", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    await supervisor.stopDisks({ disk: "web" }, drained);
    const refusal = {
      code: "INVALID_ARGUMENT",
      message: "the disk web has been stopped",
      remedy: "protect it again: `tidemark agent resume --disk web`",
    };
    await expect(supervisor.point({ disk: "web" }, { ...plain, signal: rig.signal })).rejects.toMatchObject(refusal);
    expect(() => supervisor.pause({ disk: "web" })).toThrow(expect.objectContaining(refusal));
    expect(supervisor.pause({})).toEqual(["db"]);
    await expect(supervisor.stopDisks({ disk: "wob" }, drained)).rejects.toMatchObject({ code: "DISK_NOT_FOUND" });
    await supervisor.stopDisks({}, drained);
    expect(() => supervisor.pause({})).toThrow("all disks have been stopped");
  });

  it("lets its group go on without it", async () => {
    const rig = new Rig();
    const supervisor = await rig.start(two.replaceAll("policy: gold,", "policy: gold, group: shop,"));
    await supervisor.stopDisks({ disk: "web" }, drained);
    const points = await supervisor.point({ group: "shop" }, { ...plain, signal: rig.signal });
    expect(points.map(({ disk }) => disk)).toEqual(["db"]);
    expect(await supervisor.stopDisks({ group: "shop" }, drained)).toMatchObject({ disks: ["web", "db"] });
    expect(rig.engine.protection("db").calls).toEqual(["point", "drain"]);
    expect(() => supervisor.pause({ group: "shop" })).toThrow(
      expect.objectContaining({
        message: "all disks of the group shop have been stopped",
        remedy: "protect them again: `tidemark agent resume --group shop`",
      }),
    );
  });

  it("holds through a reload, whatever it changes, and ends with the disk's place in the configuration", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    await supervisor.stopDisks({ disk: "web" }, drained);
    const changed = two.replace("web.img", "log.img").replace("dir:vault", "dir:other");
    expect(await supervisor.reload(await rig.config(changed))).toMatchObject({
      changed: ["web"],
      restarted: ["db"],
      added: [],
    });
    await rig.clock.advance(2_000);
    expect(supervisor.disk("web")).toMatchObject({ state: "stopped", image: rig.folder.path("log.img") });
    await supervisor.resume({ disk: "web" });
    await settled();
    expect(rig.engine.protection("web").disk.image).toBe(rig.folder.path("log.img"));
    await supervisor.stopDisks({ disk: "web" }, drained);
    expect(await supervisor.reload(await rig.config(changed.replace(/ {2}- \{name: web.*\n/, "")))).toMatchObject({
      removed: ["web"],
    });
    expect(() => supervisor.disk("web")).toThrow("the agent has no disk web");
  });

  it("of one that never came up ends the attempts and what they said", async () => {
    const rig = new Rig();
    rig.engine.fail("protect db", unreachable(), unreachable(), unreachable());
    const supervisor = await rig.start();
    await supervisor.stopDisks({ disk: "db" }, drained);
    expect(rig.clock.pendingMs).toEqual([]);
    expect(supervisor.disk("db")).toMatchObject({ state: "stopped", findings: [{ code: "STOPPED" }] });
  });

  it("is part of the agent's own end, after which nothing is resumed", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    await supervisor.stopDisks({ disk: "web" }, drained);
    const ended = supervisor.stop(drained);
    await expect(supervisor.resume({ disk: "web" })).rejects.toMatchObject({ code: "INTERRUPTED" });
    await expect(supervisor.stopDisks({ disk: "db" }, drained)).rejects.toMatchObject({ code: "INTERRUPTED" });
    await ended;
    expect(rig.engine.protection("web").calls).toEqual(["drain"]);
    expect(rig.engine.calls.filter((call) => call === "close main")).toHaveLength(1);
  });
});

describe("a limit", () => {
  it("holds until it is taken back, also for a vault that is opened again", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    supervisor.setLimit("main", 4096);
    expect(rig.engine.limits.get("main")).toBe(4096);
    rig.engine.limits.clear();
    await supervisor.reload(await rig.config(two.replace("dir:vault", "dir:vault2")));
    await rig.clock.advance(2_000);
    expect(rig.engine.limits.get("main")).toBe(4096);
    expect(supervisor.status().vaults).toMatchObject([{ vault: "main", open: true, limitBytesPerSecond: 4096 }]);
    supervisor.setLimit("main", undefined);
    expect(supervisor.status().vaults[0]?.limitBytesPerSecond).toBeNull();
    expect(() => supervisor.setLimit("man", 4096)).toThrow("the agent has no vault man");
  });
});

describe("a reload", () => {
  it("of the same configuration touches nothing", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    const before = [...rig.engine.calls];
    const summary = await supervisor.reload(await rig.config(two));
    expect(Object.values(summary).flat()).toEqual([]);
    expect(rig.engine.calls).toEqual(before);
  });

  it("adds, removes and changes disks, and leaves the others alone", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    const [web, db] = [rig.engine.protection("web"), rig.engine.protection("db")];
    const text = two.replace(/ {2}- \{name: db.*\n/, "").replace("disks:", other);
    const summary = await supervisor.reload(await rig.config(text));
    await rig.clock.advance(2_000);
    expect(summary).toMatchObject({ added: ["log"], removed: ["db"], restarted: [], changed: [] });
    expect(db.calls).toEqual(["drain"]);
    expect(web.calls).toEqual([]);
    expect([rig.exported("a.sock"), rig.exported("b.sock")]).toEqual([["web"], ["log"]]);
    expect(() => supervisor.disk("db")).toThrow("the agent has no disk db");
  });

  it("changes policies, limits and addresses while disks run", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    const text = two
      .replace("10MiB/s", "20MiB/s")
      .replace("web.img, vault: main, policy: gold", "web.img, vault: main, policy: tin")
      .replace("a.sock", "b.sock");
    const summary = await supervisor.reload(await rig.config(text));
    await settled();
    expect(summary).toMatchObject({ restarted: [], changed: ["web"], limits: ["main"] });
    expect(rig.engine.protection("web")).toMatchObject({ calls: [], policy: { crashConsistentFrequency: 60_000 } });
    expect(rig.engine.calls).toContain(`bandwidth main ${20 * 1024 ** 2}`);
    expect([rig.exported("a.sock"), rig.exported("b.sock")]).toEqual([["db"], ["web"]]);
  });

  it("restarts a disk whose image changed, and every disk of a vault that moved", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    const first = rig.engine.protection("web");
    expect(await supervisor.reload(await rig.config(two.replace("web.img", "log.img")))).toMatchObject({
      restarted: ["web"],
    });
    await rig.clock.advance(2_000);
    expect(first.calls).toEqual(["drain"]);
    expect(rig.engine.protection("web").disk.image).toBe(rig.folder.path("log.img"));
    expect(await supervisor.reload(await rig.config(two.replace("dir:vault", "dir:other")))).toMatchObject({
      restarted: ["web", "db"],
    });
    await rig.clock.advance(2_000);
    expect(rig.engine.calls.filter((call) => /^(open|close)/.test(call))).toEqual([
      "open main",
      "close main",
      "open main",
    ]);
    expect(rig.exported("a.sock")).toEqual(["db", "web"]);
  });

  it("takes up what images have grown by", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    rig.engine.protection("db").grownBytes = 8192;
    expect(await supervisor.reload(await rig.config(two))).toMatchObject({ grown: ["db"], restarted: [], changed: [] });
    expect(supervisor.disk("db").sizeBytes).toBe(8192);
  });

  it("tells what only the next start takes over", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    const summary = await supervisor.reload(
      await rig.config(`${two}control: {socket: c.sock}\nlogging: {level: debug}\n`),
    );
    expect(summary.atNextStart).toEqual(["control.socket"]);
  });
});

describe("a stop", () => {
  it("ends exports, takes last points, and closes the vault once", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    await supervisor.stop({ drain: true });
    expect(rig.engine.protection("web").calls).toEqual(["drain"]);
    expect(rig.engine.protection("db").calls).toEqual(["drain"]);
    expect(rig.engine.exports.size).toBe(0);
    expect(rig.engine.calls.filter((call) => call === "close main")).toHaveLength(1);
    expect(rig.clock.pendingMs).toEqual([]);
    await supervisor.stop({ drain: true });
    expect(rig.engine.protection("web").calls).toEqual(["drain"]);
    await expect(supervisor.reload(await rig.config(two))).rejects.toMatchObject({ code: "INTERRUPTED" });
  });

  it("cuts last points short after a minute", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    rig.engine.protection("db").gate = new Promise(() => undefined);
    const stopped = supervisor.stop({ drain: true });
    await settled();
    expect(supervisor.status().state).toBe("stopping");
    await rig.clock.advance(60_000);
    await stopped;
    expect(rig.engine.protection("db").calls).toEqual(["drain", "cut short"]);
  });

  it("tells and gives the disks that are left without a last point", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    const error = unreachable();
    rig.engine.protection("db").missed = error;
    expect(await supervisor.stop({ drain: true })).toEqual([{ disk: "db", error }]);
    expect(rig.engine.protection("db").calls).toEqual(["drain"]);
    expect(rig.events.at(-1)).toMatchObject({ kind: "failure", disk: "db", code: "STORE_UNREACHABLE" });
    expect(rig.events.at(-1)?.message).toContain("no last point could be taken");
  });

  it("tells why the tracking of a disk could not be closed", async () => {
    const rig = new Rig();
    const supervisor = await rig.start();
    rig.engine.protection("db").stopFailure = unreachable();
    await supervisor.stop({ drain: true });
    expect(rig.events.at(-1)).toMatchObject({ kind: "failure", disk: "db", code: "STORE_UNREACHABLE" });
    expect(rig.events.at(-1)?.message).toContain("tracking");
  });

  it("does not wait for a disk that is only being retried", async () => {
    const rig = new Rig();
    rig.engine.fail("protect db", unreachable());
    const supervisor = await rig.start();
    await supervisor.stop({ drain: true });
    expect(rig.clock.pendingMs).toEqual([]);
  });
});
