/** The table of a failover's states, against what must hold on every way through it. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  allowedOperations,
  beginningOf,
  effectOf,
  hasEnded,
  type RunEffect,
  refusedOperations,
  transition,
} from "../../../engine/failover/run-table.ts";
import { type RunState, runKinds, runOperations, runStates } from "../../../engine/store/format/run.ts";
import { runsOf } from "../../depth.ts";

/** States that can follow a state: by an operation, or by the success or failure of its effect. */
function successors(state: RunState): RunState[] {
  const step = effectOf(state);
  const chosen = allowedOperations(state).flatMap((operation) => {
    const outcome = transition(state, operation);
    return "next" in outcome ? [outcome.next] : [];
  });
  return step === undefined ? chosen : [...chosen, step.done, step.failed];
}

function reachableFrom(start: RunState): Set<RunState> {
  const seen = new Set([start]);
  const open = [start];
  for (let state = open.pop(); state !== undefined; state = open.pop()) {
    for (const next of successors(state)) {
      if (seen.has(next)) continue;
      seen.add(next);
      open.push(next);
    }
  }
  return seen;
}

const outcomes = fc.array(fc.tuple(fc.nat(20), fc.boolean(), fc.boolean()), { maxLength: 60 });

describe("the table of states", () => {
  test("reaches every state from a beginning, and lets no test change what replication uses", () => {
    const reached = new Set(runKinds.flatMap((kind) => [...reachableFrom(beginningOf(kind).state)]));
    expect(runStates.filter((state) => !reached.has(state))).toEqual([]);
    const ofTests = [...reachableFrom("TestFailoverInitiated")];
    const effects = new Set(ofTests.map((state) => effectOf(state)?.effect));
    for (const effect of [
      "synchronize",
      "prepare",
      "commit",
      "disable",
      "freeDisks",
    ] as const satisfies readonly RunEffect[])
      expect(effects).not.toContain(effect);
    expect(ofTests.filter((state) => hasEnded(state))).toEqual(["None"]);
  });

  test("leads from every state that is not committed to an end by success alone", () => {
    for (const state of runStates) {
      if (state === "CommitFailoverCompleted") continue;
      const ways = [...reachableFrom(state)].filter((other) => hasEnded(other) || other === "CommitFailoverCompleted");
      expect(ways, state).not.toEqual([]);
    }
  });

  test.each(runStates)("says of each operation in %s that it is allowed, or why not", (state) => {
    const allowed = allowedOperations(state);
    const refused = refusedOperations(state);
    expect([...allowed, ...refused.map(({ operation }) => operation)].sort()).toEqual([...runOperations].sort());
    for (const { operation, reason } of refused) {
      expect(reason.length, `${state} ${operation}`).toBeGreaterThan(10);
      if (!/^(Test|Planned|Unplanned)Failover$/.test(operation)) expect(reason).not.toMatch(/the run has begun/);
    }
    if (effectOf(state) !== undefined) expect(transition(state, "Resume")).toEqual({ next: state });
  });

  test("keeps to the order of the work on every walk", () => {
    fc.assert(
      fc.property(fc.constantFrom(...runKinds), outcomes, (kind, walk) => {
        let state = beginningOf(kind).state;
        const done = new Set<RunEffect>();
        for (const [choice, succeeds, interrupts] of walk) {
          const step = effectOf(state);
          if (step !== undefined && !interrupts) {
            if (step.effect === "makeTargets" && kind !== "test") expect(done).toContain("prepare");
            if (step.effect === "prepare" && kind === "failback") expect(done).toContain("synchronize");
            if (["checkTargets", "commit", "disable"].includes(step.effect)) expect(done).toContain("makeTargets");
            if (step.effect === "reprotect") expect(done).toContain("commit");
            if (step.effect === "lookAgain" || step.effect === "freeDisks") expect(done).toContain("removeTargets");
            if (succeeds) done.add(step.effect);
            state = succeeds ? step.done : step.failed;
            continue;
          }
          const allowed = allowedOperations(state);
          const operation = allowed[choice % Math.max(1, allowed.length)];
          if (operation === undefined) {
            expect(hasEnded(state) || state === "CommitFailoverCompleted").toBe(true);
            return;
          }
          // Once a way out has been taken, no way leads back.
          if (done.has("removeTargets") || done.has("commit")) {
            const forward = [
              "Resume",
              "CancelFailover",
              "TestFailoverCleanup",
              "ReverseReplicate",
              "CompleteMigration",
            ];
            expect(forward).toContain(operation);
          }
          const outcome = transition(state, operation);
          if ("next" in outcome) state = outcome.next;
        }
      }),
      { numRuns: runsOf(1_000) },
    );
  });
});
