/**
 * Any history of commits, prunes, pins, holds and deaths, against a list of numbers: at every step
 * exactly the points are listed that the model has, none that is pinned or held is missing, and the
 * newest is there.
 */

import fc from "fast-check";
import { afterEach, expect, test, vi } from "vitest";
import { putPin, removePins } from "../../../../engine/store/points/pins.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import type { PointHold } from "../../../../engine/store/points/reader-holds.ts";
import { decide } from "../../../../engine/upkeep/retention/decide.ts";
import { parsePolicy, type RetentionPolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { CrashError, FaultySink } from "../../../../sink/faults.ts";
import { runsOf } from "../../../depth.ts";
import { recordOf, recordsOf, recordsVault, writeHistory } from "../../../point-records.ts";
import { PruneRig } from "./prune-rig.ts";

const policies = [
  "keep:last=4",
  "bands:1m=all,30m=30s",
  "bands:30s=all,10m=1m",
  "days:0",
  "none",
  "keep:last=1,hourly=3",
].map(parsePolicy);

type Step =
  | { readonly do: "commit"; readonly count: number }
  | { readonly do: "prune"; readonly policy: number }
  | { readonly do: "die"; readonly policy: number; readonly call: number; readonly effect: "before" | "after" }
  | { readonly do: "pin" | "unpin" | "hold" | "release" | "abandon"; readonly pick: number };

const pick = fc.nat(1000);
const policyIndex = fc.nat(policies.length - 1);
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ do: fc.constant("commit" as const), count: fc.integer({ min: 1, max: 12 }) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("prune" as const), policy: policyIndex }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("die" as const),
      policy: policyIndex,
      call: fc.integer({ min: 1, max: 24 }),
      effect: fc.constantFrom("before" as const, "after" as const),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ do: fc.constantFrom("pin" as const, "unpin", "hold", "release", "abandon"), pick }),
  },
);

afterEach(() => {
  vi.restoreAllMocks();
});

class Model {
  readonly rig: PruneRig;
  readonly #pinned = new Set<number>();
  readonly #holds = new Map<number, PointHold>();
  #listed: number[];

  private constructor(rig: PruneRig, listed: number[]) {
    this.rig = rig;
    this.#listed = listed;
  }

  static async open(points: number): Promise<Model> {
    liveSessions().clear();
    const rig = await PruneRig.open();
    await writeHistory(rig.store, recordsOf(1, points + 1));
    return new Model(rig, await rig.sequences());
  }

  async run(what: Step): Promise<void> {
    const { rig } = this;
    switch (what.do) {
      case "commit": {
        const from = (this.#listed.at(-1) ?? 0) + 1;
        await rig.commit(what.count);
        this.#listed.push(...Array.from({ length: what.count }, (_, index) => from + index));
        break;
      }
      case "prune": {
        const policy = this.#policy(what.policy);
        await rig.prune({ policy });
        this.#listed = this.#after(policy);
        break;
      }
      case "die":
        await this.#die(this.#policy(what.policy), what.call, what.effect);
        break;
      default:
        await this.#keep(what.do, this.#listed[what.pick % this.#listed.length] ?? 0);
    }
    await this.check();
  }

  async check(): Promise<void> {
    const listed = await this.rig.sequences();
    expect(listed).toEqual(this.#listed);
    for (const kept of [...this.#pinned, ...this.#holds.keys()]) expect(listed).toContain(kept);
  }

  async close(): Promise<void> {
    for (const hold of this.#holds.values()) await hold.release();
  }

  /**
   * Dies at a call of a prune, if it has so many. What is listed then tells whether it had
   * happened.
   */
  async #die(policy: RetentionPolicy, call: number, effect: "before" | "after"): Promise<void> {
    const sink = new FaultySink(this.rig.connect(), [{ on: "any", when: call, fault: { kind: "crash", effect } }]);
    const after = this.#after(policy);
    const outcome: unknown = await this.rig.prune({ policy }, sink).catch((error: unknown) => error);
    liveSessions().clear();
    if (!(outcome instanceof CrashError)) {
      this.#listed = after;
      return;
    }
    const listed = await this.rig.sequences();
    expect([this.#listed, after]).toContainEqual(listed);
    this.#listed = listed;
  }

  async #keep(how: "pin" | "unpin" | "hold" | "release" | "abandon", sequence: number): Promise<void> {
    const { store, onNotice } = this.rig;
    const place = { store, vault: recordsVault, disk: "d", point: recordOf(sequence), onNotice };
    const hold = this.#holds.get(sequence) ?? this.#holds.values().next().value;
    const held = this.#holds.has(sequence) ? sequence : this.#holds.keys().next().value;
    switch (how) {
      case "pin":
        await putPin({ ...place, name: null, untilMs: null, nowMs: 1 });
        this.#pinned.add(sequence);
        break;
      case "unpin":
        await removePins(place);
        this.#pinned.delete(sequence);
        break;
      case "hold":
        if (!this.#holds.has(sequence)) this.#holds.set(sequence, await this.rig.hold(sequence));
        break;
      case "release":
        await hold?.release();
        if (held !== undefined) this.#holds.delete(held);
        break;
      case "abandon":
        // All readers die; a minute later their leases are free.
        this.#holds.clear();
        this.rig.nowMs += 61_000;
    }
  }

  #policy(index: number): RetentionPolicy {
    return policies[index] ?? { kind: "everything" };
  }

  #after(policy: RetentionPolicy): number[] {
    const points = this.#listed.map((sequence) => ({
      ...recordOf(sequence),
      group: null,
      pinned: this.#pinned.has(sequence),
    }));
    const decisions = decide(points, policy, 2_000_000_000_000);
    return decisions.flatMap(({ sequence, keep }) => (keep || this.#holds.has(sequence) ? [sequence] : []));
  }
}

test("every history lists what it must", async () => {
  // Time passes in leaps, so that readers do not wait for pruners that have died.
  let nowMs = 0;
  vi.spyOn(performance, "now").mockImplementation(() => (nowMs += 6_000));
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(1, 30, 520, 800),
      fc.array(step, { minLength: 1, maxLength: 25 }),
      async (points, steps) => {
        const model = await Model.open(points);
        try {
          for (const what of steps) await model.run(what);
        } finally {
          await model.close();
        }
      },
    ),
    { numRuns: runsOf(40) },
  );
}, 60_000);
