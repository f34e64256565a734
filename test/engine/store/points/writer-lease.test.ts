/**
 * Writer leases: which writer gets the disk, which is refused, and what a writer that comes back
 * too late can do.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { Notice } from "../../../../engine/notice.ts";
import type { ProcessIdentity } from "../../../../engine/store/points/process-identity.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import { WriterLease } from "../../../../engine/store/points/writer-lease.ts";
import { Store } from "../../../../engine/store/store.ts";
import { CrashError, FaultySink, Gate, type SinkMethod } from "../../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import {
  checkNewest,
  closeModelVaults,
  committedPoints,
  Expected,
  type ModelDisk,
  openModelVault,
  replicateNoted,
  sampleDisk,
  scribble,
} from "../../../model-disk.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";

const pretended = vi.hoisted((): { identity: Partial<ProcessIdentity> } => ({ identity: {} }));
vi.mock(import("../../../../engine/store/points/process-identity.ts"), async (importOriginal) => {
  const original = await importOriginal();
  return {
    ...original,
    identifyProcess: async () => ({ ...(await original.identifyProcess()), ...pretended.identity }),
  };
});

const leaseMs = 60_000;
const vaultId = "0".repeat(32);

let store: MemoryStore;
let nowMs: number;
let disk: ModelDisk;
let expected: Expected;
beforeEach(() => {
  liveSessions().clear();
  store = new MemoryStore();
  nowMs = 1_000_000;
  disk = sampleDisk(100_000, 1);
  expected = new Expected("d");
});
afterEach(async () => {
  pretended.identity = {};
  await closeModelVaults();
});

const connect = (): MemorySink => new MemorySink({ store, clock: () => nowMs });

async function takeLease(
  sink: MemorySink | FaultySink,
  onNotice: (notice: Notice) => void = () => undefined,
): Promise<WriterLease> {
  return await WriterLease.take({ store: new Store(sink), vault: vaultId, disk: "d", onNotice });
}

/** Begins a replication that waits before the first call of `method` on `prefix`. */
async function pausedBefore(
  method: SinkMethod,
  prefix: string,
): Promise<{ readonly gate: Gate; readonly outcome: Promise<unknown>; readonly sink: FaultySink }> {
  const gate = new Gate();
  const sink = new FaultySink(connect(), [{ on: method, prefix, when: 1, fault: { kind: "slow", gate } }]);
  const vault = await openModelVault(sink);
  await expected.note(sink, disk.bytes);
  const outcome = vault.replicate({ disk: "d", volume: disk }).then(
    () => "success",
    (error: unknown) => error,
  );
  const ended = await Promise.race([gate.reached, outcome]);
  if (ended !== undefined) throw new Error(`it ended before ${method} ${prefix}`, { cause: ended });
  return { gate, outcome, sink };
}

/** The pid of a process that has ended and been waited for. */
async function deadPid(): Promise<number> {
  const child = spawn(process.execPath, ["--version"], { stdio: "ignore" });
  await once(child, "exit");
  return child.pid ?? 0;
}

describe("the writer lease of a disk", () => {
  test("is refused with WRITER_ACTIVE while another writer of this process replicates", async () => {
    const first = await pausedBefore("writePages", "segments/");
    const vault = await openModelVault(connect());
    const error = await expectCode(vault.replicate({ disk: "d", volume: disk }), "WRITER_ACTIVE");
    expect(error.message).toContain(String(process.pid));
    expect(error.remedy).toBeDefined();
    first.gate.open();
    expect(await first.outcome).toBe("success");
    await expected.check(connect());
  });

  test("is refused with WRITER_ACTIVE to another machine while the lease lasts, and given when it has ended", async () => {
    const dead = new FaultySink(connect(), [{ on: "writePages", when: 1, fault: { kind: "crash", effect: "before" } }]);
    const vault = await openModelVault(dead);
    await expect(vault.replicate({ disk: "d", volume: disk })).rejects.toThrow(CrashError);
    pretended.identity = { machine: "another" };
    const other = await openModelVault(connect());
    nowMs += leaseMs - 1;
    await expectCode(other.replicate({ disk: "d", volume: disk }), "WRITER_ACTIVE");
    nowMs += 1;
    await replicateNoted(other, connect(), expected, disk);
    expect(await expected.check(connect())).toBe(1);
  });

  test("of a dead process of this machine is taken over at once, and told", async () => {
    const sink = connect();
    await sink.createContainer();
    pretended.identity = { pid: await deadPid() };
    await takeLease(new FaultySink(sink, []));
    pretended.identity = {};
    const notices: Notice[] = [];
    await using writerLease = await takeLease(sink, (notice) => notices.push(notice));
    expect(writerLease.epoch).toBe(2);
    expect(notices.map(({ code }) => code)).toEqual(["SEAT_TAKEN_OVER"]);
  });

  test("of a living process of this machine is not taken over", async () => {
    const sink = connect();
    await sink.createContainer();
    const child = spawn(process.execPath, ["-e", "process.stdin.resume()"], { stdio: ["pipe", "ignore", "ignore"] });
    try {
      await once(child, "spawn");
      const stat = await readFile(`/proc/${String(child.pid)}/stat`, "utf8");
      const startTicks = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]);
      pretended.identity = { pid: child.pid ?? 0, startTicks };
      const theirs = await takeLease(sink);
      pretended.identity = {};
      await expectCode(takeLease(sink), "WRITER_ACTIVE");
      await theirs.release();
    } finally {
      child.stdin.end();
      await once(child, "exit");
    }
  });

  test("of a process whose number was given to another one is taken over", async () => {
    const sink = connect();
    await sink.createContainer();
    // Process 1 lives, but it did not start then.
    pretended.identity = { pid: 1, startTicks: 999_999_999 };
    await takeLease(sink);
    pretended.identity = {};
    await using writerLease = await takeLease(sink);
    expect(writerLease.epoch).toBe(2);
  });

  test("that was left in good order is taken without fencing anything", async () => {
    const vault = await openModelVault(connect());
    await replicateNoted(vault, connect(), expected, disk);
    scribble(disk, 1);
    const sink = new FaultySink(connect(), []);
    await replicateNoted(await openModelVault(sink), connect(), expected, disk);
    expect(sink.calls.filter((call) => call.startsWith("raiseSequenceNumber"))).toEqual([]);
    await expected.check(connect());
  });

  test("is free again for another machine after a failure while it was being taken", async () => {
    for (const when of [1, 2, 3]) {
      const refused = new TidemarkError("STORE_UNREACHABLE", "no answer");
      const sink = new FaultySink(connect(), [
        { on: "putObject", prefix: "disks/", when, fault: { kind: "refused", error: refused } },
      ]);
      const vault = await openModelVault(sink);
      await expectCode(vault.replicate({ disk: "d", volume: disk }), "STORE_UNREACHABLE");
      sink.assertAllFired();
      expect(liveSessions().size).toBe(0);
      pretended.identity = { machine: `another ${String(when)}` };
      await replicateNoted(await openModelVault(connect()), connect(), expected, disk);
      pretended.identity = {};
    }
    expect(await expected.check(connect())).toBe(3);
  });

  test("goes to exactly one of two that race for it, fifty times", async () => {
    const sink = connect();
    await sink.createContainer();
    for (let round = 0; round < 50; round += 1) {
      // The loser asks once more until it knows the winner, which stays.
      const results = await Promise.allSettled([takeLease(connect()), takeLease(connect())]);
      const winners = results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
      const losers = results.flatMap((result) =>
        result.status === "rejected" ? [(result.reason as TidemarkError).code] : [],
      );
      expect(winners).toHaveLength(1);
      expect(losers).toEqual(["WRITER_ACTIVE"]);
      await winners[0]?.assertHeld();
      await winners[0]?.release();
    }
    expect(liveSessions().size).toBe(0);
  });
});

describe("a writer that comes back after another took over", () => {
  const pauses: readonly (readonly [SinkMethod, string])[] = [
    ["createPages", "segments/"],
    ["writePages", "segments/"],
    ["putObject", "disks/d/map/"],
    ["putObject", "disks/d/points/"],
    ["statObject", "disks/d/points/"],
  ];

  test.each(pauses)("before %s %s ends with SEAT_LOST and has committed nothing", async (method, prefix) => {
    const paused = await pausedBefore(method, prefix);
    pretended.identity = { machine: "another" };
    nowMs += leaseMs + 1;
    scribble(disk, 5);
    await replicateNoted(await openModelVault(connect()), connect(), expected, disk);
    const points = await committedPoints(connect(), "d");
    const segments = await pagesIn("segments/d/00000002");
    pretended.identity = {};
    paused.gate.open();
    expect(await paused.outcome).toMatchObject({ code: "SEAT_LOST" });
    expect(await committedPoints(connect(), "d")).toEqual(points);
    expect(await pagesIn("segments/d/00000002")).toEqual(segments);
    await checkNewest(connect(), "d", disk.bytes);
    // It left nothing in the way of others.
    scribble(disk, 6);
    pretended.identity = { machine: "another" };
    await replicateNoted(await openModelVault(connect()), connect(), expected, disk);
    expect(await expected.check(connect())).toBe(2);
  });

  test("before a page write fails at that very write, at the server", async () => {
    const paused = await pausedBefore("writePages", "segments/");
    pretended.identity = { machine: "another" };
    nowMs += leaseMs + 1;
    const sink = connect();
    await sink.createContainer();
    await replicateNoted(await openModelVault(sink), sink, expected, disk);
    const before = await namesIn(sink, "");
    paused.gate.open();
    await paused.outcome;
    const late = paused.sink.calls.slice(paused.sink.calls.findIndex((call) => call.startsWith("writePages")) + 1);
    expect(late.map((call) => call.split(" ")[0])).toEqual(["statPages", "releaseLease"]);
    expect(await namesIn(sink, "")).toEqual(before);
    const [segment = ""] = await namesIn(sink, "segments/d/00000001-0-00000000");
    expect((await sink.statPages(segment)).writtenBytes).toBe(0);
  });

  async function pagesIn(prefix: string): Promise<unknown[]> {
    const found: unknown[] = [];
    for await (const { name } of connect().list(prefix)) found.push([name, await connect().statPages(name)]);
    return found;
  }
});
