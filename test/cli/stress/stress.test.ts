/**
 * `tidemark stress` finds what is wrong, and nothing else: a real run of it, and the parts that decide
 * what is planned, what is refused, and whether a store keeps its contract.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test, vi } from "vitest";
import type { AgentProcess } from "../../../cli/stress/agent-process.ts";
import { FaultRunner } from "../../../cli/stress/faults.ts";
import { operationOf } from "../../../cli/stress/measures.ts";
import type { StressReport } from "../../../cli/stress/report.ts";
import { faultKinds, scheduleOf } from "../../../cli/stress/schedule.ts";
import { MountedSpace } from "../../../cli/stress/space.ts";
import { isOneInstant, StampClock, type StampedWrite, StampLog, sectorBytes } from "../../../cli/stress/stamps.ts";
import type { StressStore } from "../../../cli/stress/store.ts";
import { checkStore, openScratch } from "../../../cli/stress/store-check.ts";
import { type PutCondition, TidemarkError } from "../../../engine/index.ts";
import { MemorySink, MemoryStore } from "../../../sink/memory.ts";
import type { OpenedSinks } from "../../../sink/testing.ts";
import { deepTest } from "../../deep-test.ts";
import { byDepth } from "../../depth.ts";
import { processesIn, unlessGone } from "../../temporary-folder.ts";
import { Place, parseLines } from "../tidemark.ts";

const runMsMax = 600_000;
const forgottenBytes: number = 64 * 1024;
const small = ["--disks", "1", "--disk-size", "4MiB", "--rate", "2MB/s", "--seed", "7"];

function lastOf(stdout: string): StressReport {
  return parseLines(stdout).at(-1) as unknown as StressReport;
}

describe("a schedule", () => {
  test("is decided by its seed, has every kind equally often, and ends before the run does", () => {
    const schedule = scheduleOf(7, 180, faultKinds);
    expect(scheduleOf(7, 180, faultKinds)).toEqual(schedule);
    expect(scheduleOf(8, 180, faultKinds)).not.toEqual(schedule);
    for (const kind of faultKinds) expect(schedule.filter((fault) => fault.kind === kind)).toHaveLength(3);
    const times = schedule.map(({ atMs }) => atMs);
    expect(times).toEqual(times.toSorted((a, b) => a - b));
    expect(times.at(-1)).toBeLessThan(180_000 * 0.85);
  });

  test("that has no time for its faults is refused", () => {
    expect(() => scheduleOf(7, 3, faultKinds)).toThrow("too short for 10 kinds of faults");
  });
});

test.each([
  ["kill-store,kill-agent", "--vault", "dir:vault", "add `--faults kill-agent`"],
  ["lost-ack", "--vault", "https://a.blob.core.windows.net/ccc", "add `--faults none`"],
  ["disk-full", "--vault", "azurite:store", "add `--faults none`"],
  ["flood", "--seconds", "5", "or none"],
])("a run that cannot have %s is refused before anything begins", async (faults, flag, value, remedy) => {
  const place = new Place();
  const { code, stdout } = await place.run(["stress", "--faults", faults, flag, value, "--json"]);
  expect(code).toBe(2);
  expect(stdout).toContain(remedy);
  expect(readdirSync(place.folder)).toEqual([]);
});

test("a store that goes back in time is a fault from the moment on in which it forgets", async () => {
  const events: string[] = [];
  const regress: StressStore["regress"] = (_afterMs, onLost) => {
    events.push("copied");
    onLost();
    events.push("back");
    return Promise.resolve();
  };
  const faults = new FaultRunner({
    store: { regress } as unknown as StressStore,
    space: undefined,
    agent: {} as unknown as AgentProcess,
    random: () => 0,
    onStrike: (kind) => events.push(kind),
  });
  await faults.run([{ kind: "regress", atMs: 0, slotMs: 10 }], performance.now(), new AbortController().signal);
  expect(events).toEqual(["copied", "regress", "back"]);
});

test.each(["slow", "freeze"] as const)("%s lasts until there was a request", async (kind) => {
  const proxy: { hold?: () => Promise<void> } = {};
  const faults = new FaultRunner({
    store: { proxy } as unknown as StressStore,
    space: undefined,
    agent: {} as unknown as AgentProcess,
    random: () => 0,
    onStrike: () => undefined,
  });
  const slotMs = 20;
  const run = faults.run([{ kind, atMs: 0, slotMs }], performance.now(), new AbortController().signal);
  await delay(10 * slotMs);
  expect(faults.haveFired()).toBe(false);
  const askedAtMs = performance.now();
  await proxy.hold?.();
  expect(performance.now() - askedAtMs).toBeGreaterThan(slotMs / 2);
  await run;
  expect(faults.haveFired()).toBe(true);
});

deepTest("a run that is killed leaves no process", { timeout: runMsMax }, async (context) => {
  if (!existsSync("/proc/self/cwd")) context.skip("this system does not tell about processes");
  const place = new Place();
  const run = place.start(["stress", "--keep", "kept", "--faults", "none", "--seconds", "60", ...small, "--json"]);
  await run.says('"step":"load"');
  const ofRun = (): readonly number[] => processesIn(place.folder);
  expect(ofRun().length).toBeGreaterThan(2); // itself, the agent and the Azurite
  run.child.kill("SIGKILL");
  await run.ended;
  await vi.waitFor(() => expect(ofRun()).toEqual([]), { timeout: 60_000, interval: 100 });
});

test.each([
  [["stress", "--report", "absent/r.html"], "the page absent/r.html cannot be written (ENOENT)"],
  [["stress", "--keep", "file"], "the folder file cannot be made (EEXIST)"],
])("%j is refused before anything begins", async (words, message) => {
  const place = new Place();
  writeFileSync(place.path("file"), "");
  const { code, stderr } = await place.run([...words, "--faults", "none", "--seconds", "1"]);
  expect([code, stderr]).toEqual([1, expect.stringContaining(message)]);
});

test("the small file system of a run that ends at once is unmounted", async (context) => {
  const place = new Place();
  const folder = place.path("space");
  mkdirSync(folder);
  const handlers = process.listeners("exit");
  const mounted = await MountedSpace.mount(folder).catch(() => undefined);
  if (mounted === undefined) context.skip("no file system can be mounted");
  const isMounted = (): boolean => readFileSync("/proc/self/mounts", "utf8").includes(folder);
  expect(isMounted()).toBe(true);
  // A program may still have files open there.
  const file = openSync(join(folder, "open"), "w");
  const atExit = process.listeners("exit").filter((handler) => !handlers.includes(handler));
  for (const handler of atExit) handler.call(process, 0);
  closeSync(file);
  expect(isMounted()).toBe(false);
  for (const handler of atExit) process.off("exit", handler);
});

test("requests are counted under the names of Azure's operations", () => {
  const named = [
    ["GET", "/a/c/b?comp=pagelist", "Get Page Ranges"],
    ["PUT", "/a/c?restype=container", "Create Container"],
    ["GET", "/a/c?restype=container", "Get Container Properties"],
    ["GET", "/a/c?restype=container&comp=list", "List Blobs"],
    ["GET", "/a/c/b", "Get Blob"],
  ] as const;
  for (const [method, url, name] of named) expect(operationOf({ method, url, headers: {} })).toBe(name);
});

test("the options of `stress store` are its own, wherever `stress` has some of that name", async () => {
  const { code, stderr } = await new Place().run(["stress", "store", "--vault", "nowhere", "--seconds", "1"]);
  expect([code, stderr]).toEqual([2, expect.stringContaining("nowhere")]);
});

/** Of a quick run the agent is killed once, over a folder; a deep one has every fault. */
const words = byDepth(
  ["--vault", "dir:vault", "--faults", "kill-agent", "--seconds", "2", ...small],
  ["--seconds", "30", "--disk-size", "8MiB"],
);

test(`a run of ${words.join(" ")} loses nothing, recovers from every fault, and leaves nothing`, {
  timeout: runMsMax,
}, async () => {
  const place = new Place();
  const { code, stdout } = await place.start(["stress", ...words, "--report", "page.html", "--json"]).ended;
  const report = { ...lastOf(stdout), samples: [] };
  console.log(JSON.stringify(report));
  expect(report, stdout).toMatchObject({ verdict: "sound", damage: [], failures: [], leftRunning: 0, folder: null });
  expect(code).toBe(0);
  expect(report.faults.every(({ planned, fired }) => planned > 0 && fired === planned)).toBe(true);
  expect(report.recovery.count).toBe(report.recoveries.length);
  expect(report.recovery.count).toBeGreaterThan(0);
  expect(report.writes).toMatchObject({ refused: 0, latency: { count: report.writes.acknowledged } });
  expect(report.points.exact).toBeGreaterThan(0);
  const page = readFileSync(place.path("page.html"), "utf8");
  expect(page).toContain("tidemark stress: sound");
  // A wide table scrolls in itself, also with the keyboard.
  expect(page).toMatch(/<main>[^]*class="wide" tabindex="0"><svg [^]*class="wide" tabindex="0"><table/);
  expect(readdirSync(place.folder).filter((name) => name !== "vault")).toEqual(["page.html"]);
});

deepTest(
  "a store that silently forgets what it acknowledged is damage: exit 3, and the evidence is kept",
  {
    timeout: runMsMax,
  },
  async () => {
    const place = new Place();
    const kept = ["--vault", "dir:vault", "--faults", "none", "--seconds", "1", "--keep", "kept"];
    const running = place.start(["stress", ...kept, ...small, "--json"]);
    // The agent has ended. The proof may be freeing segments meanwhile.
    await running.says('"step":"collecting what nothing needs"');
    for (const path of filesIn(place.path("vault/segments"))) unlessGone(() => forget(path), undefined);
    const { code, stdout } = await running.ended;
    const report = lastOf(stdout);
    expect(report.damage.join(), stdout).toContain("DAMAGED");
    expect(code).toBe(3);
    expect(report).toMatchObject({ verdict: "damaged", failures: [], leftRunning: 0 });
    expect(existsSync(place.path("kept/d1.img"))).toBe(true);
    expect(report.command).toContain("--seed 7");
  },
);

test("points of a group that are exact each, and not of one instant, are found", () => {
  const clock = new StampClock();
  const logs = [1, 2].map(() => new StampLog(64 * 512 * 64, drawn(), { clock, now: () => 0 }));
  const disks = logs.map((log) => Buffer.alloc(log.sizeBytes));
  const write = (index: number): void => {
    const log = logs[index] as StampLog;
    const { write: sent, bytes }: { readonly write: StampedWrite; readonly bytes: Buffer } = log.send();
    bytes.copy(disks[index] as Buffer, sent.firstSector * sectorBytes);
    log.acknowledge(sent);
  };
  const judged = (contents: readonly Buffer[]): boolean =>
    isOneInstant(logs.map((log, index) => log.judgePoint(contents[index] as Buffer, 0)));
  write(0);
  const early = disks.map((disk) => Buffer.from(disk));
  write(0);
  write(1);
  expect(judged(disks)).toBe(true);
  expect(judged(early)).toBe(true);
  expect(judged([early[0] as Buffer, disks[1] as Buffer])).toBe(false);
});

describe("a store", () => {
  const check = async (sinkOf: (store: MemoryStore) => MemorySink): ReturnType<typeof checkStore> => {
    const open = async () => {
      const store = new MemoryStore();
      const [a, b, absent] = [sinkOf(store), sinkOf(store), new MemorySink()];
      await a.createContainer();
      return { a, b, absent, cleanup: async () => await Promise.resolve() };
    };
    const { signal } = new AbortController();
    return await checkStore({ open, vault: "memory:", seconds: 0.1, onStep: () => undefined, signal });
  };

  test("in memory is opened as any other", async () => {
    const { signal } = new AbortController();
    const { open } = await openScratch("memory:", {}, signal);
    const { a, b, cleanup } = await open();
    await a.putObject("one", new Uint8Array(1), { ifAbsent: true });
    expect(await b.statObject("one")).toMatchObject({ sizeBytes: 1 });
    await cleanup();
  });

  test("that dies ends the check, and is not said to keep nothing", async () => {
    let opened = 0;
    const open = async (): Promise<OpenedSinks> => {
      opened += 1;
      if (opened > 2) throw new TidemarkError("STORE_UNREACHABLE", "the store is gone");
      const store = new MemoryStore();
      const [a, b, absent] = [new MemorySink({ store }), new MemorySink({ store }), new MemorySink()];
      await a.createContainer();
      return { a, b, absent, cleanup: async () => await Promise.resolve() };
    };
    const { signal } = new AbortController();
    const checking = checkStore({ open, vault: "memory:", seconds: 0.1, onStep: () => undefined, signal });
    await expect(checking).rejects.toMatchObject({ code: "STORE_UNREACHABLE" });
    expect(opened).toBe(3);
  });

  test("that ignores a condition is told with the calls that show it, and loses updates under load", async () => {
    const report = await check((store) => new CarelessSink({ store }));
    const broken = report.guarantees.find(({ name }) => name === "ifMatch replaces only the version it names");
    expect(broken).toMatchObject({ group: "objects", holds: false });
    expect(broken?.calls.at(-1)).toMatch(/^a\.putObject\("head", 1 bytes, \{ ifMatch: ".*" \}\) → \{ etag: ".*" \}$/);
    expect(report.sound).toBe(false);
    expect(report.guarantees.filter(({ holds }) => !holds).length).toBeLessThan(10);
    expect(report.faults.join()).toContain("compare-and-swaps succeeded");
  });
});

/** Replaces an object whatever its ETag is. */
class CarelessSink extends MemorySink {
  override async putObject(
    name: string,
    bytes: Uint8Array,
    condition: PutCondition,
  ): Promise<{ readonly etag: string }> {
    if ("ifAbsent" in condition) return await super.putObject(name, bytes, condition);
    return await super.putObject(name, bytes, { ifMatch: (await this.statObject(name)).etag });
  }
}

function filesIn(folder: string): readonly string[] {
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .map((name) => join(folder, name))
    .filter((path) => unlessGone(() => statSync(path).isFile(), false));
}

/** Zeros in place of the first frames, as if those page writes had never been. */
function forget(path: string): void {
  const file = openSync(path, "r+");
  writeSync(file, Buffer.alloc(forgottenBytes), 0, Math.min(forgottenBytes, fstatSync(file).size), 0);
  closeSync(file);
}

/** Numbers in [0, 1), always the same. */
function drawn(): () => number {
  let at = 0;
  return () => {
    at = (at * 0x5851f42d + 0.5772156649) % 1;
    return at;
  };
}
