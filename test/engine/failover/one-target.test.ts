/** Two operators give one target away in the same second: one of them gets it, and nothing of it is harmed. */
import { EventEmitter, once } from "node:events";
import { closeSync, openSync, readdirSync, readSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, onTestFinished, test } from "vitest";
import { hasCode } from "../../../engine/errors.ts";
import type { Sink, Written } from "../../../engine/sink.ts";
import { SinkDecorator } from "../../../engine/sink-decorator.ts";
import { liveSessions } from "../../../engine/store/points/process-identity.ts";
import type { Vault } from "../../../engine/vault.ts";
import { CrashError } from "../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { attachLoop } from "../../loop-device.ts";
import { closeModelVaults, openModelVault, sampleDisk } from "../../model-disk.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";
import { endOf } from "./crash-rig.ts";

/** A multiple of the sectors of a device. */
const diskBytes = 589_824;
const disks = ["one", "two"] as const;

/** Holds the writes that begin a run or a replica until two are there: both have looked at their targets by then. */
class Meeting extends SinkDecorator {
  /** Called before each put and look instead. */
  before: ((name: string, call: "put" | "look") => Promise<void>) | undefined;
  #goOn: (() => void) | undefined;

  override async putObject(...call: Parameters<Sink["putObject"]>): Promise<Written> {
    const [name, , condition] = call;
    if (this.before !== undefined) await this.before(name, "put");
    else if (/^failover\/(runs|replicas)\//.test(name) && "ifAbsent" in condition) await this.#meet();
    return await super.putObject(...call);
  }

  override async getObject(...call: Parameters<Sink["getObject"]>): ReturnType<Sink["getObject"]> {
    await this.before?.(call[0], "look");
    return await super.getObject(...call);
  }

  async #meet(): Promise<void> {
    if (this.#goOn === undefined) {
      await new Promise<void>((resolve) => {
        this.#goOn = resolve;
      });
      return;
    }
    this.#goOn();
    this.#goOn = undefined;
  }
}

let folder: string;
let state: string;
let vault: Vault;
let start: MemorySnapshot;
let meeting: Meeting;
const memory = new MemoryStore();

beforeAll(async () => {
  state = createFolder("one-target");
  meeting = new Meeting(new MemorySink({ store: memory, attachablePages: true }));
  vault = await openModelVault(meeting, { stateFolder: state });
  for (const [index, disk] of disks.entries())
    await vault.replicate({ disk, volume: sampleDisk(diskBytes, index + 1) });
  start = memory.snapshot();
});

beforeEach(() => {
  memory.restore(start);
  meeting.before = undefined;
  folder = createFolder("one-target");
});

afterEach(async () => {
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
  await removeFolder(state);
});

const path = (name: string): string => join(folder, name);

/** A device under two names. */
function twoNames(): readonly [string, string] | { readonly reason: string } {
  writeFileSync(path("backing"), Buffer.alloc(diskBytes));
  const loop = attachLoop(path("backing"));
  if ("reason" in loop) return loop;
  onTestFinished(() => {
    loop.detach();
  });
  symlinkSync(loop.path, path("by-id"));
  return [loop.path, path("by-id")];
}

/** Whether the target at `place` holds the disk, by name. */
async function holds(place: string, disk: string): Promise<boolean> {
  const wanted = Buffer.from(sampleDisk(diskBytes, disks.indexOf(disk as "one") + 1).bytes);
  const found = Buffer.alloc(diskBytes);
  if (place.startsWith("blob:")) {
    await new MemorySink({ store: memory }).readPages(place.slice("blob:".length), 0, found);
  } else {
    const file = openSync(place, "r");
    readSync(file, found, 0, diskBytes, 0);
    closeSync(file);
  }
  return found.equals(wanted);
}

/** Begins both, of which one is let on. Gives the name of the disk that got the target, and why the other did not. */
async function race(begin: (disk: string, index: number) => Promise<unknown>): Promise<{
  readonly winner: string;
  readonly refusal: unknown;
}> {
  const [first, second] = await Promise.allSettled(disks.map(begin));
  const outcomes = [first?.status, second?.status];
  expect(outcomes.toSorted()).toEqual(["fulfilled", "rejected"]);
  const isFirst = first?.status === "fulfilled";
  const loser = isFirst ? second : first;
  return { winner: disks[isFirst ? 0 : 1], refusal: loser?.status === "rejected" ? loser.reason : undefined };
}

/** Two tests with one target: the loser can be ended, and never gets at what the winner has made. */
async function expectOne(targets: readonly [string, string], place: string): Promise<void> {
  const { winner, refusal } = await race(
    async (disk, index) => await vault.failovers.start({ kind: "test", disks: [disk], to: targets[index] ?? "" }),
  );
  expect(refusal).toMatchObject({
    code: "TARGET_EXISTS",
    remedy: expect.not.stringContaining("jobs resume") as string,
  });
  expect(await holds(place, winner)).toBe(true);
  const lost = (await vault.failovers.list()).find(({ disks: [member] }) => member?.disk !== winner);
  await expect(vault.failovers.resume({ run: lost?.run ?? "" })).rejects.toMatchObject({ code: "TARGET_EXISTS" });
  await vault.failovers.cleanup({ run: lost?.run ?? "" });
  expect(await holds(place, winner)).toBe(true);
  const won = (await vault.failovers.list()).find(({ disks: [member] }) => member?.disk === winner);
  expect((await vault.failovers.cleanup({ run: won?.run ?? "" })).state).toBe("None");
}

test("one file gets one run", async () => {
  await expectOne([`file:${path("t.img")}`, `file:${path("t.img")}`], path("t.img"));
});

test("one page blob gets one run", async () => {
  // Prefixes of a blob name a blob for each disk: the same disk twice.
  const to = "blob:drill";
  const outcomes = await Promise.allSettled(
    disks.map(async () => await vault.failovers.start({ kind: "test", disks: ["one"], to })),
  );
  expect(outcomes.filter(({ status }) => status === "fulfilled").length).toBe(1);
  expect(await holds("blob:drill/one.vhd", "one")).toBe(true);
});

test("one device gets one run, and the next one when that has ended", async ({ skip }) => {
  const names = twoNames();
  if ("reason" in names) return skip(names.reason);
  const [name, other] = names;
  for (let round = 0; round < 2; round += 1) await expectOne([`device:${name}`, `device:${other}`], name);
});

test("one device gets one replica", async ({ skip }) => {
  const names = twoNames();
  if ("reason" in names) return skip(names.reason);
  const { winner, refusal } = await race(
    async (disk, index) => await vault.replicas.run({ disk, to: `device:${names[index] ?? ""}`, once: true }),
  );
  expect(refusal).toMatchObject({ code: "TARGET_EXISTS" });
  expect(await holds(names[0], winner)).toBe(true);
  expect((await vault.replicas.list()).map(({ disk }) => disk)).toEqual([winner]);
});

test("one device gets a run or a replica", async ({ skip }) => {
  const names = twoNames();
  if ("reason" in names) return skip(names.reason);
  const { winner } = await race(async (disk, index) =>
    index === 0
      ? await vault.failovers.start({ kind: "test", disks: [disk], to: `device:${names[0]}` })
      : await vault.replicas.run({ disk, to: `device:${names[1]}`, once: true }),
  );
  expect(await holds(names[0], winner)).toBe(true);
});

test("one file gets a run, a replica, or for lack of a winner neither", async () => {
  const outcomes = await Promise.allSettled([
    vault.failovers.start({ kind: "test", disks: ["one"], to: `file:${path("t.img")}` }),
    vault.replicas.run({ disk: "two", to: `file:${path("t.img")}`, once: true }),
  ]);
  for (const [index, outcome] of outcomes.entries())
    if (outcome.status === "fulfilled") expect(await holds(path("t.img"), disks[index] ?? "")).toBe(true);
    else expect(hasCode(outcome.reason, "TARGET_EXISTS")).toBe(true);
  expect(outcomes.filter(({ status }) => status === "fulfilled").length).toBeLessThan(2);
});

test("a run that died when its mark stood leaves the target to a replica that was faster", async () => {
  const moments = new EventEmitter();
  const to = `file:${path("t.img")}`;
  let following: Promise<unknown> | undefined;
  meeting.before = async (name, call) => {
    if (name.startsWith("failover/runs/") && call === "put" && following === undefined) {
      following = vault.replicas.run({ disk: "two", to, once: true });
      await once(moments, "the replica has looked");
    } else if (name.includes("/pins/") && call === "put") {
      moments.emit("the replica has looked");
      await once(moments, "the run has died");
    } else if (name.startsWith("failover/replicas/") && readdirSync(folder).length > 0) {
      meeting.before = undefined;
      throw new CrashError("the run has died");
    }
  };
  expect(await endOf(vault.failovers.start({ kind: "test", disks: ["one"], to }))).toBeInstanceOf(CrashError);
  liveSessions().clear();
  moments.emit("the run has died");
  await following;
  const [lost] = await vault.failovers.list();
  expect((await vault.failovers.cleanup({ run: lost?.run ?? "" })).state).toBe("None");
  expect(readdirSync(folder)).toEqual(["t.img"]);
  expect(await holds(path("t.img"), "two")).toBe(true);
});

test("a source is not stopped for a target that another run has got", async () => {
  let stops = 0;
  const site = {
    point: async () => await Promise.resolve(),
    stop: async () => {
      stops += 1;
      return await Promise.resolve([]);
    },
    start: async () => await Promise.resolve(),
  };
  const { refusal } = await race(
    async (disk) =>
      await vault.failovers.start({
        kind: "planned",
        disks: [disk],
        to: `file:${path("t.img")}`,
        source: { kind: "agent", path: "/run/agent.sock" },
        openAgent: () => site,
      }),
  );
  expect(refusal).toMatchObject({ code: "TARGET_EXISTS" });
  expect(stops).toBe(1);
});
