/** Held leases: when they are renewed, when they are lost, and how they end. */
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { TidemarkError } from "../../../engine/errors.ts";
import { HeldLease, type Regain } from "../../../engine/store/held-lease.ts";
import { Store } from "../../../engine/store/store.ts";
import { FaultySink, type PlannedFault } from "../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../sink/memory.ts";
import { expectCode } from "../../sink/expectations.ts";

const name = "leased";
const leaseId = "00000000-0000-4000-8000-000000000001";
const anotherId = "00000000-0000-4000-8000-000000000002";
const lost = new TidemarkError("COLLECTION_ACTIVE", "another one has it");
const giveUp: Regain = async () => await Promise.resolve(lost);

let memory: MemoryStore;
beforeEach(async () => {
  vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "Date", "performance"] });
  memory = new MemoryStore();
  const sink = connect();
  await sink.createContainer();
  await sink.putObject(name, new Uint8Array(0), { ifAbsent: true });
});
afterEach(() => {
  vi.useRealTimers();
});

const connect = (...faults: PlannedFault[]): FaultySink =>
  new FaultySink(new MemorySink({ store: memory, clock: () => Date.now() }), faults);

async function take(sink: FaultySink, regain: Regain = giveUp): Promise<HeldLease> {
  return await HeldLease.take(new Store(sink), { name, leaseId }, regain, undefined);
}

/** Lets the calls that are under way end; one to a store in memory takes two turns. */
async function turns(): Promise<void> {
  for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** Lets time pass, tick by tick, with the renewals that it brings. */
async function pass(elapsedMs: number): Promise<void> {
  for (let passedMs = 0; passedMs < elapsedMs; passedMs += 5_000) {
    vi.advanceTimersByTime(5_000);
    await turns();
  }
}

const renewals = ({ calls }: FaultySink): number => calls.filter((call) => call.startsWith("renewLease")).length;

describe("a held lease", () => {
  test("is renewed every 15 s, so that no other client gets it, and is free once it is released", async () => {
    const sink = connect();
    const lease = await take(sink);
    await pass(300_000);
    expect(renewals(sink)).toBe(20);
    await expectCode(connect().acquireLease(name, anotherId, 60), "LEASE_HELD");
    expect(await lease.release()).toBe(true);
    await connect().acquireLease(name, anotherId, 60);
    await pass(60_000);
    expect(renewals(sink)).toBe(20);
    expect(lease.signal.aborted).toBe(false);
  });

  test("is asked about before a step only when its last renewal is older than half its term", async () => {
    const error = new TidemarkError("STORE_UNREACHABLE", "no answer");
    const sink = connect({ on: "renewLease", when: 1, fault: { kind: "refused", error } });
    await using lease = await take(sink);
    await pass(15_000);
    expect(renewals(sink)).toBe(1);
    await lease.assertHeld();
    expect(renewals(sink)).toBe(1);
    vi.setSystemTime(Date.now() + 16_000);
    await lease.assertHeld();
    expect(renewals(sink)).toBe(2);
    vi.setSystemTime(Date.now() - 600_000);
    await lease.assertHeld();
    expect(renewals(sink)).toBe(2);
  });

  test("that the store has forgotten is lost with the error that its holder names, and is renewed no more", async () => {
    const sink = connect();
    await using lease = await take(sink);
    await connect().releaseLease(name, leaseId);
    await expectCode(connect().renewLease(name, leaseId), "LEASE_LOST");
    await pass(15_000);
    expect(lease.signal.reason).toBe(lost);
    await expect(lease.assertHeld()).rejects.toBe(lost);
    await pass(60_000);
    expect(renewals(sink)).toBe(1);
  });

  test("is held on when its holder takes it again", async () => {
    const sink = connect();
    let taken = 0;
    await using lease = await take(sink, async (cause, signal) => {
      expect(cause.code).toBe("LEASE_LOST");
      taken += 1;
      await HeldLease.acquire(new Store(sink), { name, leaseId }, signal);
      return undefined;
    });
    await connect().releaseLease(name, leaseId);
    await pass(30_000);
    expect([taken, lease.signal.aborted]).toEqual([1, false]);
    await expectCode(connect().acquireLease(name, anotherId, 60), "LEASE_HELD");
  });

  test("is not lost while it is not known whether it is", async () => {
    const error = new TidemarkError("STORE_UNREACHABLE", "no answer");
    const sink = connect();
    let asked = 0;
    await using lease = await take(sink, async () => {
      asked += 1;
      return await Promise.reject(error);
    });
    await connect().releaseLease(name, leaseId);
    await pass(30_000);
    expect([asked, lease.signal.aborted]).toEqual([2, false]);
  });

  test("ends a renewal that is under way before it is released", async () => {
    const sink = connect();
    let isEnded = false;
    const lease = await take(sink, async (_cause, signal) => {
      await new Promise((resolve) => {
        signal.addEventListener("abort", resolve);
      });
      isEnded = true;
      return undefined;
    });
    await connect().releaseLease(name, leaseId);
    await pass(15_000);
    await lease.stop();
    expect(isEnded).toBe(true);
    expect(await lease.release()).toBe(true);
  });

  test("that cannot be released ends by itself", async () => {
    const error = new TidemarkError("STORE_UNREACHABLE", "no answer");
    const lease = await take(connect({ on: "releaseLease", when: 1, fault: { kind: "refused", error } }));
    expect(await lease.release()).toBe(false);
    await expectCode(connect().acquireLease(name, anotherId, 60), "LEASE_HELD");
    await pass(60_000);
    await connect().acquireLease(name, anotherId, 60);
  });
});
