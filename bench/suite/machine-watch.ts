/**
 * Watch over the machine: whether a measurement had it for itself. A figure of a busy machine is too
 * low, and says nothing about Tidemark.
 *
 *     others   processor time of processes that are not ours            /proc/stat, /proc/PID/stat
 *     steal    time that a hypervisor gave to other machines            /proc/stat
 *     speed    a fixed loop beside its fastest time so far              a throttled or shared core
 *
 * Without /proc only the speed is known.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";

/** How a measurement had the machine. Shares are from 0 to 1; null where the system does not tell. */
export interface Quietness {
  /** Of the processor time of all cores: taken by processes that are not ours. */
  readonly othersShare: number | null;
  /** Of the processor time of all cores: taken by the hypervisor. */
  readonly stealShare: number | null;
  /** Speed of a core, of the fastest seen in this suite. */
  readonly speed: number;
}

const othersShareMax = 0.1;
const stealShareMax = 0.05;
const speedMin = 0.8;

/** Why the figures cannot be trusted; empty when they can. */
export function disturbances({ othersShare, stealShare, speed }: Quietness): string[] {
  const percent = (share: number): string => `${(share * 100).toFixed(0)} %`;
  return [
    ...(othersShare !== null && othersShare > othersShareMax
      ? [`other processes took ${percent(othersShare)} of the processors`]
      : []),
    ...(stealShare !== null && stealShare > stealShareMax
      ? [`the hypervisor took ${percent(stealShare)} of the processors`]
      : []),
    ...(speed < speedMin ? [`a core ran at ${percent(speed)} of its speed`] : []),
  ];
}

/** Clock ticks since the machine started, summed over all cores. */
interface Ticks {
  readonly all: number;
  readonly busy: number;
  readonly steal: number;
  /** Of this process and all below it, with those that have ended. */
  readonly ours: number;
}

/** The shortest time after which clock ticks of 10 ms tell anything. */
const lookMs = 500;
const loopRounds = 5;
const loopSteps = 2_000_000;

export class MachineWatch {
  #fastestLoopMs = Infinity;
  readonly #proc: string;
  readonly #root: number;

  /** `proc`: where the system tells about processes; `root`: the process whose tree is ours. */
  constructor(proc: string = "/proc", root: number = process.pid) {
    this.#proc = proc;
    this.#root = root;
  }

  /** Starts to watch; the function that is returned says how it was. */
  start(): () => Quietness {
    const before = readTicks(this.#proc, this.#root);
    const speedBefore = this.#speed();
    return () => {
      const after = readTicks(this.#proc, this.#root);
      const speed = Math.min(speedBefore, this.#speed());
      if (before === undefined || after === undefined) return { othersShare: null, stealShare: null, speed };
      const all = Math.max(1, after.all - before.all);
      const others = after.busy - before.busy - (after.ours - before.ours);
      return { othersShare: Math.max(0, others / all), stealShare: (after.steal - before.steal) / all, speed };
    };
  }

  /** Waits until the machine is quiet, at most `waitMsMax`, and says how it is then. */
  async quiet(waitMsMax: number, signal: AbortSignal | undefined): Promise<Quietness> {
    const deadline = performance.now() + waitMsMax;
    for (;;) {
      const end = this.start();
      await delay(lookMs, undefined, { signal });
      const quietness = end();
      if (disturbances(quietness).length === 0 || performance.now() > deadline) return quietness;
    }
  }

  /** Speed of a core now, of the fastest seen so far: the fastest of a few rounds, so that a pause does not count. */
  #speed(): number {
    const loopMs = Math.min(...Array.from({ length: loopRounds }, runLoop));
    this.#fastestLoopMs = Math.min(this.#fastestLoopMs, loopMs);
    return this.#fastestLoopMs / loopMs;
  }
}

/** A loop that stays in a core's registers. */
function runLoop(): number {
  const startedAt = performance.now();
  let state = 1;
  for (let step = 0; step < loopSteps; step += 1) state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0;
  // The result is used, so that the loop is not optimized away.
  return performance.now() - startedAt + (state === 0 ? 1e-9 : 0);
}

/** Undefined without /proc. */
function readTicks(proc: string, root: number): Ticks | undefined {
  try {
    const [line = ""] = readFileSync(join(proc, "stat"), "utf8").split("\n", 1);
    // proc(5): user, nice, system, idle, iowait, irq, softirq, steal. The guests' time is in user's.
    const ticks = line.split(/\s+/).slice(1, 9).map(Number);
    const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = ticks;
    const all = ticks.reduce((sum, value) => sum + value, 0);
    return { all, busy: user + nice + system + irq + softirq, steal, ours: ticksOfTree(proc, root) };
  } catch {
    return undefined;
  }
}

/** Ticks of a process, of its living descendants, and of those that have ended. */
function ticksOfTree(proc: string, root: number): number {
  const children = new Map<number, number[]>();
  const own = new Map<number, number>();
  for (const entry of readdirSync(proc)) {
    if (!/^\d+$/.test(entry)) continue;
    const fields = fieldsOf(join(proc, entry, "stat"));
    const [, parent = NaN] = fields;
    const id = Number(entry);
    children.set(parent, [...(children.get(parent) ?? []), id]);
    // utime, stime, cutime, cstime
    own.set(
      id,
      fields.slice(11, 15).reduce((sum, value) => sum + value, 0),
    );
  }
  const below = (id: number): number =>
    (own.get(id) ?? 0) + (children.get(id) ?? []).reduce((sum, child) => sum + below(child), 0);
  return below(root);
}

/** The fields of /proc/PID/stat after the name; none when the process has ended. */
function fieldsOf(path: string): number[] {
  try {
    const text = readFileSync(path, "utf8");
    return text
      .slice(text.lastIndexOf(")") + 2)
      .split(" ")
      .map(Number);
  } catch {
    return [];
  }
}
