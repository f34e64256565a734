/**
 * Watch over a protecting process: at even intervals it notes lag, backlog, upload, requests, memory
 * and processor time by kind of thread in the trace of the case.
 *
 * The threads are those of Linux's /proc. Capture threads are told by their lower priority; the rest
 * beside the main thread read and write files, compile and collect garbage. Without /proc these
 * series are left out.
 */
import { readdir, readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { systemCode } from "../../engine/index.ts";
import type { Trace } from "../trace.ts";
import type { Condition } from "./orders.ts";
import type { ProtectingProcess } from "./protecting-process.ts";

const threadKinds = ["main thread", "capture threads", "other threads"] as const;
type ThreadTimes = Readonly<Record<(typeof threadKinds)[number], number>>;

export class ProcessWatch {
  readonly #over = new AbortController();
  readonly #done: Promise<void>;

  /** Looks every `everyMs` until `end`, or until the process is gone. */
  constructor(process: ProtectingProcess, trace: Trace, everyMs: number) {
    this.#done = this.#watch(process, trace, everyMs);
  }

  async end(): Promise<void> {
    this.#over.abort();
    await this.#done;
  }

  async #watch(process: ProtectingProcess, trace: Trace, everyMs: number): Promise<void> {
    let before: Look | undefined;
    const spentMs = { "main thread": 0, "capture threads": 0, "other threads": 0 };
    while (!this.#over.signal.aborted) {
      const look = await lookAt(process, trace);
      // The process has ended: how is the case's to judge.
      if (look === undefined) return;
      note(trace, look, before);
      for (const kind of threadKinds) spentMs[kind] += spentSince(kind, look, before) / 1e6;
      if (look.threads !== undefined) trace.stages(threadKinds.map((name) => ({ name, cpuMs: spentMs[name] })));
      before = look;
      await delay(everyMs, undefined, { signal: this.#over.signal }).catch(() => undefined);
    }
  }
}

/** What the process had at one moment. */
interface Look {
  readonly atMs: number;
  readonly condition: Condition;
  readonly rssBytes: number | undefined;
  readonly threads: ThreadTimes | undefined;
}

async function lookAt(process: ProtectingProcess, trace: Trace): Promise<Look | undefined> {
  try {
    const condition = await process.ask({ kind: "status" });
    const [rssBytes, threads] = [await residentBytes(process.pid), await threadTimes(process.pid)];
    return { atMs: trace.now(), condition, rssBytes, threads };
  } catch {
    return undefined;
  }
}

function note(trace: Trace, { atMs, condition, rssBytes, threads }: Look, before: Look | undefined): void {
  trace.point("lag of the newest point", "ms", condition.committedLagMs ?? atMs, atMs);
  trace.point("backlog", "bytes", condition.backlogBytes, atMs);
  if (rssBytes !== undefined) trace.point("resident memory", "bytes", rssBytes, atMs);
  trace.latency(condition.store.latency);
  if (before === undefined) return;
  const seconds = (atMs - before.atMs) / 1_000;
  const { store } = before.condition;
  trace.point("sent to the store", "bytes/s", (condition.store.bytes - store.bytes) / seconds, atMs);
  trace.point("requests to the store", "/s", (condition.store.requests - store.requests) / seconds, atMs);
  if (threads === undefined) return;
  for (const kind of threadKinds)
    trace.point(kind, "cores", spentSince(kind, { threads }, before) / 1e9 / seconds, atMs);
}

/** Processor time in ns. Threads end: their time is gone from the sum. */
function spentSince(kind: keyof ThreadTimes, now: Pick<Look, "threads">, before: Look | undefined): number {
  return Math.max(0, (now.threads?.[kind] ?? 0) - (before?.threads?.[kind] ?? 0));
}

/** Resident memory of a process; undefined without /proc. */
async function residentBytes(pid: number): Promise<number | undefined> {
  const status = await readProc(`/proc/${pid}/status`);
  const kibibytes = /^VmRSS:\s+(\d+) kB$/m.exec(status ?? "")?.[1];
  return kibibytes === undefined ? undefined : Number(kibibytes) * 1024;
}

/** Processor time of the threads of a process in ns, by kind; undefined without /proc. */
async function threadTimes(pid: number): Promise<ThreadTimes | undefined> {
  const folder = `/proc/${pid}/task`;
  const ids = await readdir(folder).catch(() => undefined);
  if (ids === undefined) return undefined;
  const times = { "main thread": 0, "capture threads": 0, "other threads": 0 };
  for (const id of ids) {
    const [schedstat, stat] = [await readProc(`${folder}/${id}/schedstat`), await readProc(`${folder}/${id}/stat`)];
    if (schedstat === undefined || stat === undefined) continue;
    // proc(5): the fields after the name in brackets begin with the third; the nineteenth is the nice value.
    const isNice = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[16]) > 0;
    const kind = Number(id) === pid ? "main thread" : isNice ? "capture threads" : "other threads";
    times[kind] += Number(schedstat.split(" ")[0]);
  }
  return times;
}

/** A file of /proc; undefined where there is none, or where its thread has ended. */
async function readProc(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return undefined;
  }
}
