/** `copies` of the agent: when points are copied to a second vault, and what is told of it. */

import { describe, expect, it, onTestFinished, test, vi } from "vitest";
import { openEngineAdapter } from "../../../cli/agent/engine-adapter.ts";
import type { DiskEvent } from "../../../cli/agent/ports.ts";
import { Supervisor } from "../../../cli/agent/supervisor.ts";
import { type CopiedDisk, type CopiedPoint, type CopyOptions, TidemarkError, Vault } from "../../../engine/index.ts";
import { DirectorySink } from "../../../sink/index.ts";
import { keyEnvironment, modelEncryption } from "../../encrypted.ts";
import { writeImage } from "../images.ts";
import { ConfigFolder } from "./configuration.ts";
import { ScriptedEngine, settled, VirtualClock } from "./scripted.ts";

const minuteMs = 60_000;
const copied = `vaults:
  main: {address: "dir:vault"}
  far: {address: "dir:far"}
policies:
  gold: {}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:a.sock"}
  - {name: db, image: db.img, vault: main, policy: gold, listen: "unix:a.sock"}
copies:
  - {from: main, to: far, every: 10m, recoveryPointRetention: 7d}
`;
const unreachable = new TidemarkError("STORE_UNREACHABLE", "no answer", { remedy: "wait" });

const ended = (disk: string, more: Partial<CopiedDisk> = {}): CopiedDisk => {
  const time = "2026-05-01T12:00:00.000Z";
  return { disk, points: 1, newest: time, copied: time, lagMs: 0, tooOld: 0, damaged: 0, ...more };
};

/** An agent with copies that do what the test says. */
class Rig {
  readonly folder = new ConfigFolder("web.img", "db.img");
  readonly engine = new ScriptedEngine();
  readonly clock = new VirtualClock();
  readonly events: DiskEvent[] = [];
  readonly passes: CopyOptions[] = [];
  supervisor!: Supervisor;
  /** What a pass does with `web`; `db` is always complete. */
  web: CopiedDisk | TidemarkError = ended("web");

  async start(text: string = copied): Promise<void> {
    this.engine.copy = async (options) => {
      this.passes.push(options);
      options.onPoint?.({
        disk: "db",
        sequence: 7,
        copiedSequence: 3,
        time: "2026-05-01T12:00:00.000Z",
      } as CopiedPoint);
      options.onEnded?.("db", ended("db"));
      options.onEnded?.("web", this.web);
      if (this.web instanceof TidemarkError) throw this.web;
      await Promise.resolve();
    };
    this.supervisor = new Supervisor(await this.folder.config(text), {
      engine: this.engine,
      clock: this.clock,
      onEvent: (event) => this.events.push(event),
    });
    onTestFinished(async () => {
      await this.supervisor.stop({ drain: false });
    });
    await settled();
    await this.clock.advance(2_000);
  }

  codes(disk: string): readonly string[] {
    return this.supervisor.disk(disk).findings.map(({ level, code }) => `${level} ${code}`);
  }
}

describe("the agent's copies", () => {
  test("begin soon after the start, are repeated by schedule, and prune what has grown", async () => {
    const rig = new Rig();
    await rig.start();
    expect(rig.supervisor.disk("web").copies).toEqual([
      { vault: "far", state: "starting", sequence: null, time: null, lagMs: null },
    ]);
    await rig.clock.advance(minuteMs / 2);
    expect(rig.passes).toMatchObject([{ disks: ["web", "db"], points: "latest" }]);
    expect(rig.engine.calls.filter((call) => /copy|prune|far/.test(call))).toEqual([
      "open far",
      "copy main",
      "prune far db",
    ]);
    await rig.clock.advance(10 * minuteMs - 1);
    expect(rig.passes).toHaveLength(1);
    expect(rig.supervisor.disk("db").copies).toEqual([
      { vault: "far", state: "waiting", sequence: 3, time: "2026-05-01T12:00:00.000Z", lagMs: 10 * minuteMs - 1 },
    ]);
    await rig.clock.advance(1);
    expect(rig.passes).toHaveLength(2);
    expect(rig.events).toContainEqual(expect.objectContaining({ kind: "copy", disk: "db" }));
    expect(rig.codes("web")).toEqual([]);
    await rig.supervisor.stop({ drain: true });
    expect(rig.engine.calls).toContain("close far");
  });

  test("of one disk that fail are findings of it, are tried again soon, and lag until they succeed", async () => {
    const rig = new Rig();
    await rig.start();
    rig.web = new TidemarkError("WRITER_ACTIVE", "another process has the disk", { remedy: "end it" });
    await rig.clock.advance(minuteMs / 2);
    expect([rig.codes("web"), rig.codes("db")]).toEqual([["Warning COPY_FAILED"], []]);
    expect(rig.supervisor.status()).toMatchObject({ health: "Warning" });
    await rig.clock.advance(minuteMs);
    await rig.clock.advance(2 * minuteMs);
    expect(rig.passes).toHaveLength(3);
    for (let minute = 0; minute < 30; minute += 1) await rig.clock.advance(minuteMs);
    expect(rig.codes("web")).toEqual(["Warning COPY_FAILED", "Warning COPY_BEHIND"]);
    for (let minute = 0; minute < 30; minute += 1) await rig.clock.advance(minuteMs);
    expect(rig.codes("web")).toEqual(["Warning COPY_FAILED", "Critical COPY_BEHIND"]);
    // Not what it protects, but that nothing has been protected there.
    expect(rig.engine.protection("web").calls).toEqual([]);
    rig.web = ended("web");
    await rig.clock.advance(10 * minuteMs);
    expect(rig.codes("web")).toEqual([]);
  });

  test("of a vault that does not open are findings of all disks, whose points go on", async () => {
    const rig = new Rig();
    rig.engine.fail("open far", unreachable, unreachable);
    await rig.start();
    await rig.clock.advance(minuteMs / 2);
    expect([rig.codes("web"), rig.codes("db")]).toEqual([["Warning COPY_FAILED"], ["Warning COPY_FAILED"]]);
    const options = { applicationConsistent: false, signal: new AbortController().signal };
    expect(await rig.supervisor.point({ disk: "web" }, options)).toMatchObject([{ sequence: 1 }]);
    await rig.clock.advance(minuteMs);
    await rig.clock.advance(2 * minuteMs);
    expect([rig.codes("web"), rig.passes.length]).toEqual([[], 1]);
  });

  test("count a point that could not be copied as lag", async () => {
    const rig = new Rig();
    await rig.start();
    rig.web = ended("web", { lagMs: 5_000, damaged: 1, copied: new Date(Date.now() - 31 * minuteMs).toISOString() });
    await rig.clock.advance(minuteMs / 2);
    expect(rig.codes("web")).toEqual(["Warning COPY_BEHIND"]);
  });

  test("end and begin with a reload", async () => {
    const rig = new Rig();
    await rig.start();
    await rig.clock.advance(minuteMs / 2);
    await rig.supervisor.reload(await rig.folder.config(copied.replace(/copies:[^]*/, "")));
    expect([rig.supervisor.disk("web").copies, rig.engine.calls.at(-1)]).toEqual([[], "close far"]);
    await rig.supervisor.reload(await rig.folder.config(copied.replace("10m", "20m")));
    await rig.clock.advance(minuteMs / 2);
    expect(rig.passes).toHaveLength(2);
    const calls = rig.engine.calls.length;
    await rig.supervisor.reload(await rig.folder.config(copied.replace("10m", "20m")));
    expect(rig.engine.calls.slice(calls)).toEqual([]);
  });
});

it("copies the points of a live disk to a vault that it makes, with real stores", async () => {
  const folder = new ConfigFolder("web.img");
  writeImage(folder.path("web.img"), 1);
  const clock = new VirtualClock();
  const text = copied.replace(/ {2}- \{name: db.*\n/, "").replace("gold: {}", "gold: {crashConsistentFrequency: 1h}");
  const supervisor = new Supervisor(await folder.config(text), {
    engine: openEngineAdapter({ XDG_STATE_HOME: folder.path("state"), ...keyEnvironment }),
    clock,
    onEvent: () => undefined,
  });
  onTestFinished(async () => {
    await supervisor.stop({ drain: false });
  });
  const { signal } = new AbortController();
  await vi.waitFor(async () => await supervisor.point({ disk: "web" }, { applicationConsistent: false, signal }), {
    timeout: 20_000,
  });
  await clock.advance(minuteMs / 2);
  await vi.waitFor(
    () => expect(supervisor.disk("web").copies).toMatchObject([{ vault: "far", state: "waiting", sequence: 1 }]),
    { timeout: 20_000 },
  );
  expect(supervisor.disk("web")).toMatchObject({ health: "Normal" });
  // A chunk has one digest in both vaults.
  const parameters = ["vault", "far"].map(async (name) => {
    await using sink = await DirectorySink.open(folder.path(name));
    await using vault = await Vault.open(sink, { workers: 1, ...modelEncryption });
    return vault.parameters;
  });
  const [first, second] = await Promise.all(parameters);
  expect(second).toEqual(first);
}, 60_000);

/** Entries of `copies`, from line 10 on, and their faults. */
const faulty: readonly (readonly [entries: readonly string[], faults: readonly string[]])[] = [
  [
    ["{from: main, to: far, every: 1s}", "{from: main, to: far, evry: 1m, points: [x]}"],
    [
      "agent.yaml:10:34: every is no duration that it may have · write a number and a unit, as in 15m, from 1m to 30d",
      "agent.yaml:11:27: evry is no field here · did you mean every?",
      "agent.yaml:11:45: points is no choice of points · write latest, all, or a policy such as days:7",
    ],
  ],
  [
    [
      "{from: maim, to: main}",
      "{from: main, to: main}",
      "{from: main, to: far, disks: [wep]}",
      "{from: main, to: far}",
      "{from: main, to: far, disks: [db]}",
    ],
    [
      "agent.yaml:10:12: the vault maim is not defined · did you mean main?",
      "agent.yaml:11:22: both vaults of the copy are the same · name another vault",
      "agent.yaml:12:35: no disk wep is protected in the vault main · did you mean web?",
      "agent.yaml:14:5: the disk db is copied to the vault far already · remove it here or there",
    ],
  ],
];

test.each(faulty)("entries with faults are named with their lines: %s", async (entries, faults) => {
  const folder = new ConfigFolder("web.img", "db.img");
  const lines = entries.map((entry) => `  - ${entry}\n`).join("");
  expect(await folder.faults(copied.replace(/ {2}- \{from[^]*/, lines))).toEqual(faults);
});
