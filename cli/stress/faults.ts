/**
 * Fault runner: carries out the schedule of a run, one fault after the other, and knows which have
 * fired. A fault of the way (lost-ack, 503, reset, flip) fires when requests of its kind come; the
 * runner plans it and goes on.
 */
import type { IncomingMessage } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import { TidemarkError } from "../../engine/index.ts";
import type { AgentProcess } from "./agent-process.ts";
import type { HttpFault, HttpPlan } from "./fault-proxy.ts";
import type { FaultCount } from "./report.ts";
import type { FaultKind, PlannedFault } from "./schedule.ts";
import type { MountedSpace } from "./space.ts";
import type { StressStore } from "./store.ts";

/** Longer than a small request waits for its answer (10 s). */
const freezeMsMax = 12_000;
const downMsMax = 1_500;
/** An Azurite may forget 15 s; its newest save is up to 5 s older than what is copied. */
const regressMsMax = 6_000;
const slowMs = { min: 20, max: 200 } as const;
const retryAfterSeconds = 1;
/** An agent that was just killed, or a client that backs off, may ask for nothing for some seconds. */
const firstRequestMsMax = 60_000;

export interface FaultRunnerParts {
  readonly store: StressStore;
  /** Undefined where it is not to become full. */
  readonly space: MountedSpace | undefined;
  readonly agent: AgentProcess;
  readonly random: () => number;
  /** Called when a fault strikes. */
  readonly onStrike: (kind: FaultKind) => void;
}

interface Tally {
  planned: number;
  fired: number;
  /** Faults that wait for requests. */
  readonly waiting: (readonly HttpPlan[])[];
}

export class FaultRunner {
  /** What is under way; empty for nothing. */
  now = "";
  /** The agent is dead because a fault killed it. */
  isAgentKilled = false;
  planned = 0;
  readonly #parts: FaultRunnerParts;
  readonly #tallies = new Map<FaultKind, Tally>();

  constructor(parts: FaultRunnerParts) {
    this.#parts = parts;
  }

  /** Carries out the schedule of a load that began at `beganAtMs`, on the steady clock. */
  async run(schedule: readonly PlannedFault[], beganAtMs: number, signal: AbortSignal): Promise<void> {
    for (const { kind } of schedule) this.#tallyOf(kind).planned += 1;
    this.planned = schedule.length;
    for (const fault of schedule) {
      const inMs = beganAtMs + fault.atMs - performance.now();
      await delay(Math.max(0, inMs), undefined, { signal }).catch(() => undefined);
      if (signal.aborted) return;
      this.now = fault.kind;
      await this.#carryOut(fault, signal);
      this.now = "";
    }
  }

  /** A fault beyond the schedule was carried out. */
  struck(kind: FaultKind): void {
    const tally = this.#tallyOf(kind);
    tally.planned += 1;
    tally.fired += 1;
  }

  haveFired(): boolean {
    return this.counts().every(({ planned, fired }) => fired === planned);
  }

  counts(): readonly FaultCount[] {
    return [...this.#tallies].map(([kind, { planned, fired, waiting }]) => {
      const done = waiting.filter((plans) => plans.every(({ left }) => left === 0)).length;
      return { kind, planned, fired: fired + done };
    });
  }

  async #carryOut({ kind, slotMs }: PlannedFault, signal: AbortSignal): Promise<void> {
    const { store, space, agent, onStrike } = this.#parts;
    const tally = this.#tallyOf(kind);
    // A store that goes back strikes when it forgets, seconds after its copy was made.
    if (kind !== "regress") onStrike(kind);
    switch (kind) {
      case "kill-store":
        await store.kill(this.#upTo(Math.min(downMsMax, slotMs / 2)));
        break;
      case "regress":
        await store.regress(this.#upTo(Math.min(regressMsMax, slotMs / 2)), () => onStrike(kind));
        break;
      case "disk-full":
        await space?.fill(slotMs / 2);
        break;
      case "kill-agent":
        this.isAgentKilled = true;
        await agent.kill();
        await agent.restart();
        this.isAgentKilled = false;
        break;
      case "slow":
        await this.#hold(tally, slotMs / 2, signal, async () => {
          await delay(slowMs.min + this.#upTo(slowMs.max - slowMs.min));
        });
        return;
      case "freeze": {
        const frozenMs = Math.min(freezeMsMax, slotMs * 0.8);
        let thawed: Promise<void> | undefined;
        await this.#hold(tally, frozenMs, signal, async () => await (thawed ??= delay(frozenMs)));
        return;
      }
      default:
        tally.waiting.push(this.#planOf(kind));
        return;
    }
    tally.fired += 1;
  }

  /** Every request waits for `wait` during `ms`, and longer where there was none: until the first one. */
  async #hold(tally: Tally, ms: number, signal: AbortSignal, wait: () => Promise<void>): Promise<void> {
    const proxy = this.#proxy();
    let held = 0;
    proxy.hold = async () => {
      held += 1;
      await wait();
    };
    const untilMs = performance.now() + firstRequestMsMax;
    do await delay(ms);
    while (held === 0 && !signal.aborted && performance.now() < untilMs);
    proxy.hold = undefined;
    if (held > 0) tally.fired += 1;
  }

  #planOf(kind: "lost-ack" | "503" | "reset" | "flip"): readonly HttpPlan[] {
    const proxy = this.#proxy();
    const passing = (): number => Math.floor(this.#upTo(12));
    const some = (fault: HttpFault): HttpPlan[] =>
      Array.from({ length: 3 }, () => proxy.plan(isWrite, fault, 1, passing()));
    switch (kind) {
      case "lost-ack":
        return some("lose-answer");
      case "reset":
        return some("reset-request");
      case "503": {
        const busy = { status: 503, retryAfterSeconds };
        return [proxy.plan(isWrite, busy, 4, passing()), proxy.plan(isRead, busy, 2)];
      }
      case "flip":
        return [proxy.plan(isRead, "flip-answer", 1, passing()), proxy.plan(isChecked, "flip-request", 1, passing())];
    }
  }

  #upTo(max: number): number {
    return this.#parts.random() * max;
  }

  #proxy(): NonNullable<StressStore["proxy"]> {
    const { proxy } = this.#parts.store;
    if (proxy === undefined) throw new TidemarkError("INTERNAL", "no fault proxy stands before this store");
    return proxy;
  }

  #tallyOf(kind: FaultKind): Tally {
    let tally = this.#tallies.get(kind);
    if (tally === undefined) {
      tally = { planned: 0, fired: 0, waiting: [] };
      this.#tallies.set(kind, tally);
    }
    return tally;
  }
}

function isWrite({ method }: IncomingMessage): boolean {
  return method === "PUT";
}

/** Reads of an object's content: listings have no checksum. */
function isRead({ method, url = "" }: IncomingMessage): boolean {
  return method === "GET" && !url.includes("comp=");
}

/** Writes whose body has a checksum that the store verifies. */
function isChecked({ method, headers }: IncomingMessage): boolean {
  return method === "PUT" && headers["content-md5"] !== undefined && headers["content-length"] !== "0";
}
