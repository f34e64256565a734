/**
 * The state machine of a protection against a plain statement of its rules over the whole history,
 * for made-up histories.
 */
import fc from "fast-check";
import { expect, test } from "vitest";
import { type ErrorCode, TidemarkError } from "../../../../engine/errors.ts";
import {
  type Effect,
  type Input,
  initialState,
  type Knowledge,
  type MachineState,
  type PointRequest,
  transition,
} from "../../../../engine/replication/protection/protection-state.ts";
import type { PointRecord } from "../../../../engine/store/format/documents.ts";

const codes: readonly ErrorCode[] = [
  "STORE_UNREACHABLE",
  "CUT_ABANDONED",
  "CUT_TIMED_OUT",
  "STORE_REGRESSED",
  "INTERRUPTED",
];
const move = fc.oneof(
  { weight: 6, arbitrary: fc.constant({ kind: "succeed" as const }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("fail" as const), code: fc.constantFrom(...codes) }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("request" as const), app: fc.boolean() }) },
  {
    weight: 1,
    arbitrary: fc.constantFrom(...(["withdraw", "pause", "resume", "join"] as const)).map((kind) => ({ kind })),
  },
);
type Move = typeof move extends fc.Arbitrary<infer Value> ? Value : never;

/** The machine, its log, and the world that carries out its steps. */
class Run {
  state: MachineState;
  readonly log: { readonly input: Input; readonly before: MachineState; readonly effects: readonly Effect[] }[] = [];
  readonly pending = new Map<PointRequest, { readonly askedAt: number }>();
  #points = 0;
  #nowMs = 0;
  #isOpen = false;

  constructor(known: Knowledge) {
    this.state = initialState("d", { hasHook: true, known, whyUnknown: undefined });
  }

  take(input: Input): void {
    const before = this.state;
    const due = { inMs: 5_000, consistency: "crash" as const, isPoint: true };
    const { state, effects } = transition(before, input, { steadyMs: this.#nowMs, due });
    this.state = state;
    this.log.push({ input, before, effects });
    for (const effect of effects) {
      if (effect.kind !== "answer" && effect.kind !== "refuse") continue;
      const asked = this.pending.get(effect.request);
      expect(asked, "a request is answered or refused once").toBeDefined();
      this.pending.delete(effect.request);
      if (effect.kind === "refuse") continue;
      const cutAt = this.log.findLastIndex((entry) => entry.input.kind === "cut");
      const step = before.step;
      expect(step.kind === "ship" && step.isExact && (!effect.request.applicationConsistent || step.wantsApp)).toBe(
        true,
      );
      expect(cutAt, "the cut was made after the request").toBeGreaterThanOrEqual(asked?.askedAt ?? Infinity);
    }
  }

  request(applicationConsistent: boolean): void {
    const request: PointRequest = { applicationConsistent, resolve: () => undefined, reject: () => undefined };
    this.pending.set(request, { askedAt: this.log.length });
    this.take({ kind: "requested", request });
  }

  move(made: Move): void {
    switch (made.kind) {
      case "succeed": {
        this.succeed();
        return;
      }
      case "fail":
        if (["open", "cut", "ship", "skip"].includes(this.state.step.kind)) {
          this.#isOpen = false;
          this.take({ kind: "failed", error: new TidemarkError(made.code, "it failed"), isFatal: false });
        }
        return;
      case "request": {
        this.request(made.app);
        return;
      }
      case "withdraw":
        for (const request of [...this.pending.keys()].slice(0, 1)) {
          this.take({ kind: "withdrawn", request });
          this.pending.delete(request);
        }
        return;
      case "pause": {
        this.take({ kind: "paused" });
        return;
      }
      case "resume": {
        this.take({ kind: "resumed" });
        return;
      }
      case "join": {
        this.take({ kind: "barrierOpened" });
        return;
      }
    }
  }

  succeed(): void {
    const { step, isPaused, isCycleRequested } = this.state;
    switch (step.kind) {
      case "wait":
        if (step.waitMs === Infinity)
          expect(isPaused || isCycleRequested, "only a paused disk waits without limit").toBe(true);
        if (step.waitMs === Infinity && !isCycleRequested) return;
        expect(step.waitMs === Infinity || step.waitMs <= 15_000).toBe(true);
        this.#nowMs += isCycleRequested ? 0 : step.waitMs;
        {
          this.take({ kind: "waited" });
          return;
        }
      case "open": {
        const isNew = !this.#isOpen;
        this.#isOpen = true;
        const newest = this.#points === 0 ? undefined : pointOf(this.#points);
        const relation = newest === undefined ? "unknown" : "current";
        this.take({ kind: "opened", found: isNew ? { newest, relation, isBased: false } : undefined });
        return;
      }
      case "cut": {
        this.take({ kind: "cut", isEmpty: true, isGroup: false });
        return;
      }
      case "skip": {
        this.take({ kind: "skipped", cutAtMs: this.#nowMs });
        return;
      }
      case "ship":
        if (step.known === "scan") expect(step.requests, "a scan answers no request").toEqual([]);
        this.#points += 1;
        this.take({ kind: "committing", id: pointOf(this.#points).id, cutAtMs: this.#nowMs });
        {
          this.take({ kind: "committed", point: pointOf(this.#points) });
          return;
        }
      case "leave":
        this.#isOpen = false;
        {
          this.take({ kind: "done" });
          return;
        }
      case "rest":
      case "prune": {
        this.take({ kind: "done" });
        return;
      }
      case "end":
        return;
    }
  }
}

function pointOf(sequence: number): PointRecord {
  return {
    ...{
      sequence,
      epoch: 1,
      id: `p${String(sequence)}`,
      timeMs: sequence,
      lagMs: 0,
      consistency: "crash",
      group: null,
    },
    ...{ volumeBytes: 1, changedBytes: 0, newBytes: 0, storedBytes: 0 },
  };
}

/** The rules once more, each by a look back over the whole history. */
function modelOf({ log }: Run): Pick<MachineState, "isExact" | "isPaused" | "failuresInRow" | "pointsCommitted"> {
  const inputs = log.map(({ input }) => input);
  const since = (kinds: readonly Input["kind"][]): Input[] =>
    inputs.slice(inputs.findLastIndex(({ kind }) => kinds.includes(kind)) + 1);
  const failures = (among: readonly Input[]): string[] =>
    among.flatMap((input) =>
      input.kind === "failed" && input.error instanceof TidemarkError ? [input.error.code] : [],
    );
  return {
    isExact: !failures(since(["committed"])).includes("CUT_ABANDONED"),
    isPaused: inputs.findLast(({ kind }) => kind === "paused" || kind === "resumed")?.kind === "paused",
    failuresInRow: failures(since(["committed", "skipped"])).filter((code) => code !== "INTERRUPTED").length,
    pointsCommitted: inputs.filter(({ kind }) => kind === "committed").length,
  };
}

const knowledge = fc.constantFrom<Knowledge>("changed", "compare", "scan");

test("a protection is at each moment what the plain statement of its rules says", () => {
  fc.assert(
    fc.property(knowledge, fc.array(move, { maxLength: 80 }), (known, moves) => {
      const run = new Run(known);
      for (const each of moves) {
        run.move(each);
        expect(run.state).toMatchObject(modelOf(run));
      }
    }),
    { numRuns: 300 },
  );
});

test("a protection answers every request once the store answers, and refuses none before it stops", () => {
  fc.assert(
    fc.property(knowledge, fc.array(move, { maxLength: 80 }), (known, moves) => {
      const run = new Run(known);
      for (const each of moves) run.move(each);
      run.take({ kind: "resumed" });
      for (let step = 0; step < 30 && run.pending.size > 0; step += 1) run.succeed();
      expect(run.pending.size).toBe(0);
      expect(run.log.flatMap(({ effects }) => effects).filter(({ kind }) => kind === "refuse")).toEqual([]);
    }),
    { numRuns: 300 },
  );
});

test("a protection that is stopped ends, and leaves no request without an answer", () => {
  fc.assert(
    fc.property(knowledge, fc.array(move, { maxLength: 80 }), (known, moves) => {
      const run = new Run(known);
      for (const each of moves) run.move(each);
      run.take({ kind: "stopping" });
      for (let step = 0; step < 10 && run.state.step.kind !== "end"; step += 1) run.succeed();
      expect(run.state.step.kind).toBe("end");
      expect(run.pending.size).toBe(0);
    }),
    { numRuns: 300 },
  );
});
