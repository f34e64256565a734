/**
 * Diagnostic events: what is published of a vault's life, and that nothing is without subscribers.
 */
import { hasSubscribers, subscribe, unsubscribe } from "node:diagnostics_channel";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type DiagnosticEvent, diagnosticNames, publish, subscribeDiagnostics } from "../../engine/diagnostics.ts";
import { DirtyBitmap } from "../../engine/disk/tracking/dirty-bitmap.ts";
import { ProtectedDisk } from "../../engine/disk/tracking/protected-disk.ts";
import { liveSessions } from "../../engine/store/points/process-identity.ts";
import { WriterLease } from "../../engine/store/points/writer-lease.ts";
import { Store } from "../../engine/store/store.ts";
import { parsePolicy } from "../../engine/upkeep/retention/policy.ts";
import { FaultySink, type PlannedFault } from "../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../sink/memory.ts";
import { closeModelVaults, openModelVault, sampleDisk } from "../model-disk.ts";
import { expectCode } from "../sink/expectations.ts";
import { ModelDevice } from "./disk/tracking/model-device.ts";

const disk = "d";
let store: MemoryStore;
let nowMs: number;
let seen: DiagnosticEvent[];
let endSubscription: () => void;
beforeEach(() => {
  liveSessions().clear();
  store = new MemoryStore();
  nowMs = 1_000_000;
  seen = [];
  endSubscription = subscribeDiagnostics((diagnostic) => seen.push(diagnostic));
});
afterEach(async () => {
  endSubscription();
  await closeModelVaults();
});

const connect = (...faults: PlannedFault[]): FaultySink =>
  new FaultySink(new MemorySink({ store, clock: () => nowMs }), faults);
const names = (): string[] => seen.map(({ name }) => name);

async function takeLease(sink: FaultySink): Promise<WriterLease> {
  await sink.createContainer();
  return await WriterLease.take({ store: new Store(sink), vault: "0".repeat(32), disk, onNotice: () => undefined });
}

describe("the channels", () => {
  test("bear the names that are documented", () => {
    const event = { object: "disks/d/head", message: "gone" };
    let heard: unknown;
    const listener = (message: unknown): void => {
      heard = message;
    };
    subscribe("tidemark:store.regressed", listener);
    publish("store.regressed", event);
    unsubscribe("tidemark:store.regressed", listener);
    expect(heard).toBe(event);
    expect(seen).toEqual([{ name: "store.regressed", event }]);
    expect(new Set(diagnosticNames).size).toBe(8);
  });

  test("are silent after the subscription has ended", () => {
    endSubscription();
    publish("store.regressed", { object: "o", message: "gone" });
    expect(seen).toEqual([]);
    expect(diagnosticNames.filter((name) => hasSubscribers(`tidemark:${name}`))).toEqual([]);
  });
});

describe("a commit", () => {
  test("is published when it is tried and when it is resolved", async () => {
    const vault = await openModelVault(connect());
    const { point } = await vault.replicate({ disk, volume: sampleDisk(100_000, 1) });
    expect(seen).toMatchObject([
      { name: "commit.tried", event: { disk, epoch: 1, sequence: 1, point, attempt: 1 } },
      { name: "commit.resolved", event: { disk, epoch: 1, sequence: 1, point, outcome: "committed", attempts: 1 } },
    ]);
  });

  test("of unknown outcome is tried again, and resolved once", async () => {
    // Of the puts of the head the first creates it, the second names the writer, the third marks
    // it, the fourth commits.
    const sink = connect({ on: "putObject", prefix: "disks/d/head", when: 4, fault: { kind: "late" } });
    const vault = await openModelVault(sink);
    await vault.replicate({ disk, volume: sampleDisk(100_000, 1) });
    sink.assertAllFired();
    expect(names()).toEqual(["commit.tried", "commit.tried", "commit.resolved"]);
    expect(seen.at(-1)).toMatchObject({ event: { outcome: "committed", attempts: 2 } });
  });
});

describe("a writer lease", () => {
  test("that is taken over names the former writer, and the former writer learns that it is fenced", async () => {
    const former = await takeLease(connect());
    nowMs += 61_000;
    liveSessions().clear();
    const successor = await takeLease(connect());
    expect(seen).toMatchObject([
      {
        name: "lease.taken-over",
        event: { disk, epoch: 2, formerEpoch: 1, formerPid: process.pid, fencedSegments: 0 },
      },
    ]);
    await expectCode(former.mark(), "SEAT_LOST");
    expect(seen.at(-1)).toMatchObject({ name: "writer.fenced", event: { disk, epoch: 1 } });
    expect(former.signal.aborted).toBe(true);
    await successor.release();
    await former.release();
  });

  test("of a disk that the store forgot is published as a store that went back", async () => {
    const sink = connect();
    await using lease = await takeLease(sink);
    store.objects?.delete("disks/d/head");
    await expectCode(lease.mark(), "STORE_REGRESSED");
    expect(seen.at(-1)).toMatchObject({ name: "store.regressed", event: { object: "disks/d/head" } });
  });
});

test("a collection is published when it has marked and when it has freed", async () => {
  const vault = await openModelVault(connect());
  const volume = sampleDisk(1_000_000, 1);
  await vault.replicate({ disk, volume });
  await vault.replicate({ disk, volume: sampleDisk(1_000_000, 2) });
  await vault.prune({ disk, policy: parsePolicy("keep:last=1") });
  seen.length = 0;
  const { condemnedChunks, deletedObjects, deletedSegments, storedBytesAfter, storedBytesBefore } = await vault.collect(
    {},
  );
  expect(condemnedChunks).toBeGreaterThan(0);
  expect(seen).toMatchObject([
    { name: "collection.marked", event: { vault: vault.id, condemnedChunks } },
    {
      name: "collection.freed",
      event: { vault: vault.id, freedBytes: storedBytesBefore - storedBytesAfter, deletedObjects, deletedSegments },
    },
  ]);
});

test("a cut is published with what it cut", async () => {
  const backing = new ModelDevice(Buffer.alloc(64 * 4096));
  const protectedDisk = ProtectedDisk.open({
    backing,
    tracking: undefined,
    dirty: new DirtyBitmap(backing.sizeBytes),
    base: "p0",
    spillFolder: undefined,
    settleMs: 0,
  });
  await protectedDisk.write(0, Buffer.alloc(4096, 1));
  const cut = await protectedDisk.cut({ exact: true });
  expect(seen).toMatchObject([
    { name: "cut.made", event: { sizeBytes: 64 * 4096, dirtyBytes: 4096, exact: true, timeMs: cut.timeMs } },
  ]);
  cut.abandon();
  await protectedDisk.close();
});
