/**
 * Stress: fault injection under load, from beginning to proof, with real processes.
 *
 *     store ─► agent ─► first points ─► load: writers, faults, upkeep, samples ─► last recoveries
 *           ─► [a bit flipped at rest, found and healed] ─► agent stops ─► proof ─► nothing is left running
 *
 * Invariant: the verdict is `sound` only if every acknowledged write is on its disk, every listed
 * point is proved, every planned fault has fired, every disk has recovered from each of them, no
 * write was refused, and no process of the run is left.
 */
import { mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, TidemarkError, throwIfAborted } from "../../engine/index.ts";
import { withoutSecrets } from "../errors.ts";
import type { Environment } from "../settings.ts";
import { AgentProcess, imageIn, nbdSocketIn } from "./agent-process.ts";
import { FaultRunner } from "./faults.ts";
import { Histogram, RequestLog, type StressSample } from "./measures.ts";
import { flipAtRest, type Proof, prove, writtenSegments } from "./proof.ts";
import type { FaultCount, Recovery, StressReport } from "./report.ts";
import { type FaultKind, randomOf, scheduleOf } from "./schedule.ts";
import { MountedSpace } from "./space.ts";
import { StampClock, StampLog } from "./stamps.ts";
import { StressStore } from "./store.ts";
import { Upkeep } from "./upkeep.ts";
import { StampingWriter } from "./writer.ts";

export interface StressOptions {
  /** Undefined: an Azurite in the folder of the run. */
  readonly vault: string | undefined;
  readonly disks: number;
  readonly diskBytes: number;
  readonly seconds: number;
  readonly bytesPerSecond: number;
  readonly faults: readonly FaultKind[];
  readonly seed: number;
  /** Folder of the run: empty, and the caller's. */
  readonly folder: string;
  readonly environment: Environment;
  /** The command that runs the same again. */
  readonly command: string;
  /** Called once a second during the load, with what is happening. */
  readonly onSample: (sample: StressSample, plannedFaults: number, now: string) => void;
  /** Called with what is done before and after the load. */
  readonly onStep: (text: string) => void;
  readonly signal: AbortSignal;
}

const sampleMs = 1_000;
const lookMs = 250;
const servedMsMax = 60_000;
/** Several back-offs of 30 s, and a collection that waits for a writer, on a busy machine. */
const recoveryMsMax = 300_000;
const burstWrites = 8;
/** Findings of one sort that are told. */
const toldMax = 20;

/** A fault that has struck, and the disks that have no point since. */
interface Open {
  readonly kind: FaultKind;
  readonly atMs: number;
  readonly struckAtWallMs: number;
  readonly waiting: Set<string>;
  tookMs: number | null;
}

/**
 * Runs the load and proves its outcome. Damage is no error. Errors: INTERRUPTED, INVALID_ARGUMENT,
 * and those of the store before the load.
 */
export async function runStress(options: StressOptions): Promise<StressReport> {
  const { folder, signal, vault, environment, faults, onStep } = options;
  const schedule = scheduleOf(options.seed, options.seconds, faults);
  const requests = new RequestLog();
  onStep("starting the store");
  const spaceFolder = join(folder, "space");
  await mkdir(spaceFolder, { mode: 0o700 });
  await using space = faults.includes("disk-full") ? await MountedSpace.mount(spaceFolder) : undefined;
  const store = await StressStore.open({ vault, spaceFolder, environment, signal, onRequest: requests.onRequest });
  let agent: AgentProcess | undefined;
  let run: StressRun | undefined;
  try {
    const disks = Array.from({ length: options.disks }, (_, index) => `d${index + 1}`);
    for (const disk of disks) await makeImage(imageIn(folder, disk), options.diskBytes);
    onStep("starting the agent");
    agent = await AgentProcess.start({
      folder,
      stateFolder: join(spaceFolder, "state"),
      disks,
      vault: store.address,
      environment: store.environment,
    });
    run = new StressRun(options, { store, space, agent, disks, requests });
    await run.load(schedule);
    await run.settle();
    const proof = await run.prove();
    if (proof.damage.length === 0) await store.empty();
    return await run.report(proof);
  } finally {
    await run?.end();
    await agent?.[Symbol.asyncDispose]();
    await store[Symbol.asyncDispose]();
  }
}

interface RunParts {
  readonly store: StressStore;
  /** Undefined where it is not to become full. */
  readonly space: MountedSpace | undefined;
  readonly agent: AgentProcess;
  readonly disks: readonly string[];
  readonly requests: RequestLog;
}

class StressRun {
  readonly #options: StressOptions;
  readonly #parts: RunParts;
  readonly #logs = new Map<string, StampLog>();
  readonly #writers: readonly StampingWriter[];
  readonly #faults: FaultRunner;
  readonly #upkeep: Upkeep;
  /** Aborts when the load is over, or the run ends early. */
  readonly #loadOver = new AbortController();
  readonly #startedAtMs = performance.now();
  readonly #damage: string[] = [];
  readonly #failures: string[] = [];
  readonly #samples: StressSample[] = [];
  readonly #lag = new Histogram();
  readonly #writeLatency = new Histogram();
  readonly #open: Open[] = [];
  /** When the newest committed point of each disk was cut, on the wall clock. */
  readonly #cutAtMs = new Map<string, number>();
  readonly #committed = new Map<string, number>();
  readonly #pids = new Set<number>();
  #loadAtMs = 0;
  #writing: Promise<unknown> = Promise.resolve();

  constructor(options: StressOptions, parts: RunParts) {
    const { folder, seed, diskBytes, bytesPerSecond, signal } = options;
    const { disks, store, space, agent } = parts;
    this.#options = options;
    this.#parts = parts;
    signal.addEventListener("abort", () => this.#loadOver.abort(), { once: true });
    const clock = new StampClock();
    this.#writers = disks.map((disk) => {
      const log = new StampLog(diskBytes, randomOf(`${seed} ${disk}`), { clock });
      this.#logs.set(disk, log);
      return new StampingWriter(
        log,
        this.#writeLatency,
        { socketPath: nbdSocketIn(folder), disk },
        bytesPerSecond / disks.length,
      );
    });
    this.#faults = new FaultRunner({
      store,
      space,
      agent,
      random: randomOf(`faults ${seed}`),
      onStrike: (kind) => this.#strike(kind),
    });
    this.#upkeep = new Upkeep({
      store,
      folder,
      disks,
      logs: this.#logs,
      random: randomOf(`upkeep ${seed}`),
      onDamage: (what) => tell(this.#damage, `${this.#at()}: ${what}`),
      onFailure: (what) => tell(this.#failures, `${this.#at()}: ${what}`),
      hasForgotten: () =>
        this.#open.some(({ kind, tookMs }) => tookMs === null && (kind === "regress" || kind === "kill-store")),
      signal: this.#loadOver.signal,
    });
  }

  /** The load with its faults. Errors: INTERRUPTED, and what keeps a first point from being made. */
  async load(schedule: ReturnType<typeof scheduleOf>): Promise<void> {
    const { onStep, seconds } = this.#options;
    const { signal } = this.#loadOver;
    onStep("waiting until the disks are served");
    await this.#within(servedMsMax, "the agent does not serve its disks", async () => await this.#areServed());
    onStep("first points");
    await this.#within(servedMsMax, "the agent has not committed first points", async () => {
      await this.#look();
      return this.#cutAtMs.size === this.#writers.length;
    });
    this.#loadAtMs = performance.now();
    this.#writing = Promise.all(this.#writers.map(async (writer) => await writer.run(this.#options.signal)));
    const works = [this.#upkeep.run(), this.#watch()];
    await this.#faults.run(schedule, this.#loadAtMs, this.#options.signal);
    const leftMs = seconds * 1_000 - (performance.now() - this.#loadAtMs);
    await delay(Math.max(0, leftMs), undefined, { signal }).catch(() => undefined);
    // Faults that wait for a request of their kind, and points that are still to come, get time.
    await this.#until(
      recoveryMsMax,
      () => this.#faults.haveFired() && this.#open.every(({ waiting }) => waiting.size === 0),
    );
    this.#loadOver.abort();
    await Promise.all(works);
    throwIfAborted(this.#options.signal);
  }

  /** Ends writers and agent, after a bit was flipped at rest if bits are flipped. */
  async settle(): Promise<void> {
    const { onStep, signal, faults, folder } = this.#options;
    const { store, agent, disks } = this.#parts;
    onStep("last points");
    for (const writer of this.#writers) writer.stop();
    await this.#writing;
    const [disk = ""] = disks;
    const mayFlip = faults.includes("flip");
    await using sink = await store.sink("direct", signal);
    if (mayFlip) await this.#point(disk);
    const before = mayFlip ? await writtenSegments(sink, disk) : new Map<string, number>();
    if (mayFlip) await this.#writers[0]?.burst(burstWrites, signal);
    try {
      await agent.stop();
    } catch (error) {
      tell(this.#failures, factOf(error));
    }
    if (!mayFlip) return;
    onStep("flipping a bit at rest");
    this.#faults.struck("flip");
    for (const fault of await flipAtRest({ sink, keys: store.keys, folder, signal }, disk, before))
      tell(this.#damage, fault);
  }

  async prove(): Promise<Proof> {
    const { folder, onStep, signal } = this.#options;
    const { store } = this.#parts;
    await using sink = await store.sink("direct", signal);
    return await prove({ sink, keys: store.keys, folder, logs: this.#logs, onStep, signal });
  }

  /** Ends what is under way, after a failure too. */
  async end(): Promise<void> {
    this.#loadOver.abort();
    for (const writer of this.#writers) writer.stop();
    await this.#parts.agent.kill();
    await this.#writing;
  }

  async report(proof: Proof): Promise<StressReport> {
    const { seed, command, vault, disks } = this.#options;
    const { store, requests } = this.#parts;
    await this.end();
    await store[Symbol.asyncDispose]();
    const damage = [...this.#damage, ...proof.damage].slice(0, toldMax);
    const faults = this.#faults.counts();
    const refused = this.#writers.reduce((sum, writer) => sum + writer.refused, 0);
    const leftRunning = [...this.#pids].filter(isRunning).length;
    const failures = [
      ...this.#failures,
      ...(refused === 0 ? [] : [`${refused} writes were refused`]),
      ...faults.filter(({ planned, fired }) => fired < planned).map(unfiredText),
      ...this.#open.filter(({ tookMs }) => tookMs === null).map(unrecoveredText),
      ...(leftRunning === 0 ? [] : [`${leftRunning} processes of the run are left`]),
    ];
    const recovery = new Histogram();
    for (const { tookMs } of this.#open) if (tookMs !== null) recovery.add(tookMs);
    return {
      verdict: damage.length > 0 ? "damaged" : failures.length > 0 ? "failed" : "sound",
      damage,
      failures,
      seed,
      command,
      vault: vault === undefined ? "an Azurite of the run" : withoutSecrets(vault),
      folder: this.#options.folder,
      disks,
      elapsedMs: Math.round(performance.now() - this.#startedAtMs),
      writes: {
        acknowledged: [...this.#logs.values()].reduce((sum, log) => sum + log.acknowledged, 0),
        bytes: this.#writers.reduce((sum, { writtenBytes }) => sum + writtenBytes, 0),
        refused,
        latency: this.#writeLatency.percentiles(),
      },
      points: { listed: proof.listed, exact: proof.exact, fuzzy: proof.fuzzy, checkedChunks: proof.checkedChunks },
      faults,
      recovery: recovery.percentiles(),
      recoveries: this.#open.map(({ kind, atMs, tookMs }): Recovery => ({ kind, atMs, tookMs })),
      lag: this.#lag.percentiles(),
      requests: requests.stats(),
      upkeep: this.#upkeep.counts(),
      storedBytes: proof.storedBytes,
      leftRunning,
      samples: this.#samples,
    };
  }

  /** A fault strikes now: from here every disk has to come to a new point. */
  #strike(kind: FaultKind): void {
    this.#open.push({
      kind,
      atMs: Math.round(performance.now() - this.#loadAtMs),
      struckAtWallMs: Date.now(),
      waiting: new Set(this.#parts.disks),
      tookMs: null,
    });
  }

  /** Looks at the agent until the load is over, and takes a sample a second. */
  async #watch(): Promise<void> {
    const { signal } = this.#loadOver;
    let nextSampleMs = 0;
    while (!signal.aborted) {
      await this.#look();
      if (this.#parts.agent.hasDied() && !this.#faults.isAgentKilled)
        tell(this.#failures, "the agent has ended by itself");
      if (performance.now() >= nextSampleMs) {
        nextSampleMs = performance.now() + sampleMs;
        await this.#sample();
      }
      await delay(lookMs, undefined, { signal }).catch(() => undefined);
    }
  }

  async #sample(): Promise<void> {
    const { onSample } = this.#options;
    const footprint = await this.#parts.agent.footprint();
    const cuts = this.#parts.disks.map((disk) => this.#cutAtMs.get(disk));
    const oldest = Math.min(...cuts.map((cut) => cut ?? NaN));
    const sample: StressSample = {
      atMs: Math.round(performance.now() - this.#loadAtMs),
      writes: [...this.#logs.values()].reduce((sum, log) => sum + log.acknowledged, 0),
      writtenBytes: this.#writers.reduce((sum, { writtenBytes }) => sum + writtenBytes, 0),
      points: [...this.#committed.values()].reduce((sum, count) => sum + count, 0),
      lagMs: Number.isNaN(oldest) ? null : Date.now() - oldest,
      faults: this.#faults.counts().reduce((sum, { fired }) => sum + fired, 0),
      agentRssBytes: footprint?.rssBytes ?? null,
      agentHandles: footprint?.handles ?? null,
    };
    if (sample.lagMs !== null) this.#lag.add(sample.lagMs);
    this.#samples.push(sample);
    onSample(sample, this.#faults.planned, this.#faults.now);
  }

  /** Asks the agent for its newest points, and closes what they recover from. */
  async #look(): Promise<void> {
    const { agent, store } = this.#parts;
    for (const pid of [agent.pid, store.pid]) if (pid !== undefined) this.#pids.add(pid);
    const status = await agent.status(this.#options.signal).catch((error: unknown) => {
      throwIfAborted(this.#options.signal);
      tell(this.#failures, `the agent does not tell its status: ${factOf(error)}`);
      return undefined;
    });
    for (const { disk, latest } of status?.disks ?? []) {
      if (latest === null) continue;
      const cutAtMs = Date.parse(latest.time);
      if (cutAtMs === this.#cutAtMs.get(disk)) continue;
      this.#cutAtMs.set(disk, cutAtMs);
      this.#committed.set(disk, (this.#committed.get(disk) ?? 0) + 1);
      for (const open of this.#open) {
        if (cutAtMs > open.struckAtWallMs) open.waiting.delete(disk);
        if (open.waiting.size === 0) open.tookMs ??= Date.now() - open.struckAtWallMs;
      }
    }
  }

  /** How long the load has lasted, for findings. */
  #at(): string {
    return `at ${((performance.now() - this.#loadAtMs) / 1_000).toFixed(1)} s`;
  }

  async #areServed(): Promise<boolean> {
    if (this.#parts.agent.hasDied()) await this.#parts.agent.stop(); // throws why
    return (await Promise.all(this.#writers.map(async (writer) => await writer.isServed()))).every(Boolean);
  }

  async #point(disk: string): Promise<void> {
    try {
      await this.#parts.agent.point(disk, this.#options.signal);
    } catch (error) {
      if (hasCode(error, "INTERRUPTED")) throw error;
      tell(this.#failures, `a point that was asked for at the end was refused: ${factOf(error)}`);
    }
  }

  /** Errors: INTERNAL with `what` when `isSo` does not come true in time; INTERRUPTED. */
  async #within(msMax: number, what: string, isSo: () => Promise<boolean>): Promise<void> {
    const is = await this.#until(msMax, isSo);
    throwIfAborted(this.#options.signal);
    if (is) return;
    throw new TidemarkError("INTERNAL", `${what} within ${msMax / 1_000} s`, {
      remedy: "run it again with `--keep DIR`, and read agent.log there",
    });
  }

  /** Waits until `isSo`; false when that does not come true in time, or the run is interrupted. */
  async #until(msMax: number, isSo: () => boolean | Promise<boolean>): Promise<boolean> {
    const deadlineMs = performance.now() + msMax;
    const { signal } = this.#options;
    while (!signal.aborted && performance.now() < deadlineMs) {
      if (await isSo()) return true;
      await delay(lookMs, undefined, { signal }).catch(() => undefined);
    }
    return false;
  }
}

function tell(list: string[], what: string): void {
  if (list.length < toldMax && !list.includes(what)) list.push(what);
}

function factOf(error: unknown): string {
  return error instanceof TidemarkError ? `${error.message} (${error.code})` : String(error);
}

function unfiredText({ kind, planned, fired }: FaultCount): string {
  return `${kind} fired ${fired} of ${planned} times: a fault that does not fire proves nothing`;
}

function unrecoveredText({ kind, atMs, waiting }: Open): string {
  return `${[...waiting].join(", ")} had no point after ${kind} at ${(atMs / 1_000).toFixed(1)} s`;
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false; // it has ended
  }
}

async function makeImage(path: string, sizeBytes: number): Promise<void> {
  const file = await open(path, "wx", 0o600);
  await file.truncate(sizeBytes).finally(async () => await file.close());
}
