/**
 * Virtual time for a simulation: `Date` stands still until a test lets time pass, waits take no time, and
 * `AbortSignal.timeout` ends when its time has passed. A test file that uses it mocks
 * `node:timers/promises` with `virtualTimers`.
 */
import { afterEach, beforeEach, vi } from "vitest";

interface Alarm {
  readonly atMs: number;
  readonly controller: AbortController;
}

let alarms: Alarm[] = [];

/** Has each test of a file run on virtual time. */
export function useVirtualTime(): void {
  beforeEach(() => {
    alarms = [];
    vi.useFakeTimers({ toFake: ["Date"] });
    vi.spyOn(AbortSignal, "timeout").mockImplementation((ms) => {
      const controller = new AbortController();
      alarms.push({ atMs: Date.now() + ms, controller });
      return controller.signal;
    });
  });
  afterEach(() => {
    vi.restoreAllMocks();
    vi.useRealTimers();
  });
}

/** Lets time pass, with the time-outs that end meanwhile, each at its moment. */
export function pass(ms: number): void {
  const endMs = Date.now() + ms;
  const due = alarms.filter(({ atMs }) => atMs <= endMs).sort((a, b) => a.atMs - b.atMs);
  alarms = alarms.filter((alarm) => !due.includes(alarm));
  for (const { atMs, controller } of due) {
    vi.setSystemTime(Math.max(Date.now(), atMs));
    controller.abort(new DOMException("the time is over", "TimeoutError"));
  }
  vi.setSystemTime(endMs);
}

/** A wait on virtual time: other work of this process goes on first. Rejects when `signal` aborts. */
export async function wait<T>(
  ms = 0,
  value?: T,
  { signal }: { readonly signal?: AbortSignal | undefined } = {},
): Promise<T> {
  await new Promise(setImmediate);
  signal?.throwIfAborted();
  pass(ms);
  return value as T;
}
