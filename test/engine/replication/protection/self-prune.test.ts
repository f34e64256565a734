/**
 * How a protected disk prunes itself: once a minute, without holding up a cycle, and saying so when
 * it fails for long.
 */
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { ProtectionEvent } from "../../../../engine/replication/protection/protection-state.ts";
import { SelfPrune } from "../../../../engine/replication/protection/self-prune.ts";
import type { Session } from "../../../../engine/replication/session.ts";
import type { Sink } from "../../../../engine/sink.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import type { WriterLease } from "../../../../engine/store/points/writer-lease.ts";
import { Store } from "../../../../engine/store/store.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { FaultySink, Gate } from "../../../../sink/faults.ts";
import { recordOf, recordsOf, recordsVault, writeHistory } from "../../../point-records.ts";
import { PruneRig } from "../../upkeep/prune/prune-rig.ts";

const policy = parsePolicy("keep:last=3");
const cycleMs = 5_000;
const minuteMs = 60_000;

let rig: PruneRig;
let steadyMs: number;
let events: ProtectionEvent[];
let pruning: SelfPrune;
let seats: WriterLease[];
beforeEach(async () => {
  liveSessions().clear();
  rig = await PruneRig.open();
  await writeHistory(rig.store, recordsOf(1, 21));
  steadyMs = minuteMs;
  vi.spyOn(performance, "now").mockImplementation(() => steadyMs);
  events = [];
  seats = [];
  pruning = new SelfPrune(recordsVault, { disk: "d", onEvent: (event) => events.push(event) });
});
afterEach(async () => {
  await pruning.abandon();
  for (const writerLease of seats) await writerLease.release();
  vi.restoreAllMocks();
});

/** What a session lends: its writer lease, on `sink`. */
async function session(
  sink: Sink = rig.connect(),
): Promise<{ readonly writerLease: WriterLease; readonly session: Session }> {
  const writerLease = await rig.takeSeat("d", sink);
  seats.push(writerLease);
  const lent = {
    store: new Store(sink),
    get head() {
      return writerLease.head;
    },
    get newest() {
      return writerLease.newest;
    },
    signal: writerLease.signal,
    prune: async (prune: (lentSeat: WriterLease) => Promise<unknown>) => await prune(writerLease),
  };
  return { writerLease, session: lent as unknown as Session };
}

async function commit(writerLease: WriterLease): Promise<void> {
  await writerLease.mark();
  await writerLease.commit(
    recordOf((writerLease.newest?.sequence ?? 0) + 1),
    false,
    async () => await Promise.resolve(),
  );
}

describe("a disk that prunes itself", () => {
  test("does so once a minute, when there is a newer point", async () => {
    const { writerLease, session: lent } = await session();
    expect(await pruning.afterPoint(lent, policy, cycleMs)).toBe(true);
    expect(await rig.sequences()).toEqual([18, 19, 20]);
    expect(events).toEqual([
      {
        kind: "prune",
        disk: "d",
        removedPoints: 17,
        keptPoints: 3,
        heldPoints: 0,
        message: "17 points pruned, 3 left",
      },
    ]);
    await commit(writerLease);
    await pruning.afterPoint(lent, policy, cycleMs);
    expect(await rig.sequences()).toEqual([18, 19, 20, 21]);
    steadyMs += minuteMs;
    await pruning.afterPoint(lent, policy, cycleMs);
    expect(await rig.sequences()).toEqual([19, 20, 21]);
    steadyMs += minuteMs;
    const { requests } = lent.store;
    await pruning.afterPoint(lent, policy, cycleMs);
    expect(lent.store.requests).toBe(requests);
    expect(pruning.last).toEqual({ ageMs: minuteMs, removedPoints: 1, keptPoints: 3, heldPoints: 0 });
    await pruning.afterPoint(lent, undefined, cycleMs);
    await pruning.afterPoint(lent, parsePolicy("none"), cycleMs);
    expect(pruning.last).toBeNull();
    expect(await rig.sequences()).toEqual([19, 20, 21]);
  });

  test("leaves a plan that takes long to itself, and acts on it after a later point", async () => {
    const gate = new Gate();
    const sink = new FaultySink(rig.connect(), [
      { on: "list", prefix: "disks/d/pins/", when: 1, fault: { kind: "slow", gate } },
    ]);
    const { writerLease, session: lent } = await session(sink);
    expect(await pruning.afterPoint(lent, policy, 0)).toBe(true);
    expect(events).toEqual([]);
    await commit(writerLease);
    gate.open();
    await pruning.afterPoint(lent, policy, cycleMs);
    // What was planned is done: point 18 was not too old then.
    expect(await rig.sequences()).toEqual([18, 19, 20, 21]);
  });

  test("gives a plan up with the session that it was made for", async () => {
    const gate = new Gate();
    const sink = new FaultySink(rig.connect(), [
      { on: "list", prefix: "disks/d/pins/", when: 1, fault: { kind: "slow", gate } },
    ]);
    const first = await session(sink);
    await pruning.afterPoint(first.session, policy, 0);
    await first.writerLease.release();
    const second = await session();
    await pruning.afterPoint(second.session, policy, cycleMs);
    expect(await rig.sequences()).toEqual([18, 19, 20]);
    gate.open();
  });

  test("drops nothing by a policy that has been taken back while its plan was made", async () => {
    const gate = new Gate();
    const sink = new FaultySink(rig.connect(), [
      { on: "list", prefix: "disks/d/pins/", when: 1, fault: { kind: "slow", gate } },
    ]);
    const { writerLease, session: lent } = await session(sink);
    await pruning.afterPoint(lent, policy, 0);
    gate.open();
    await pruning.afterPoint(lent, parsePolicy("none"), cycleMs);
    await commit(writerLease);
    steadyMs += minuteMs;
    await pruning.afterPoint(lent, parsePolicy("keep:last=10"), cycleMs);
    expect(await rig.sequences()).toHaveLength(10);
    expect(events).toMatchObject([{ kind: "prune", removedPoints: 11, keptPoints: 10 }]);
  });

  test("says when points are dated so far ahead of the clock that all of them stay", async () => {
    const { session: lent } = await session();
    vi.spyOn(Date, "now").mockReturnValue(recordOf(20).timeMs - 300 * 86_400_000);
    await pruning.afterPoint(lent, parsePolicy("days:1"), cycleMs);
    expect(await rig.sequences()).toHaveLength(20);
    expect(pruning.finding).toMatchObject({
      level: "Warning",
      code: "POINTS_DATED_AHEAD",
      cause: expect.stringContaining("7200 h") as string,
    });
    vi.spyOn(Date, "now").mockReturnValue(recordOf(20).timeMs - minuteMs);
    expect(pruning.finding).toBeUndefined();
  });

  test("tells of a failure once, and of failures that go on by a finding, until it succeeds", async () => {
    const error = new TidemarkError("STORE_REFUSED", "no more lists today", { remedy: "come tomorrow" });
    const sink = new FaultySink(
      rig.connect(),
      [1, 2, 3].map(
        (when) => ({ on: "list", prefix: "disks/d/pins/", when, fault: { kind: "refused", error } }) as const,
      ),
    );
    const { writerLease, session: lent } = await session(sink);
    for (let failure = 1; failure <= 3; failure += 1) {
      expect(pruning.finding).toBeUndefined();
      expect(await pruning.afterPoint(lent, policy, cycleMs)).toBe(true);
      steadyMs += minuteMs;
      await commit(writerLease);
    }
    sink.assertAllFired();
    expect(pruning.finding).toMatchObject({ level: "Warning", code: "PRUNE_FAILED", remedy: "come tomorrow" });
    expect(events).toMatchObject([{ kind: "notice", code: "PRUNE_FAILED" }]);
    await pruning.afterPoint(lent, policy, cycleMs);
    expect(pruning.finding).toBeUndefined();
    expect(await rig.sequences()).toHaveLength(3);
  });

  test("says that the session is over when it fails with the writer lease in hand", async () => {
    const error = new TidemarkError("STORE_REFUSED", "no more writes today");
    const sink = new FaultySink(rig.connect(), [
      { on: "putObject", prefix: "disks/d/condemned", when: 1, fault: { kind: "refused", error } },
    ]);
    const { session: lent } = await session(sink);
    expect(await pruning.afterPoint(lent, policy, cycleMs)).toBe(false);
    expect(await rig.sequences()).toHaveLength(20);
  });
});
