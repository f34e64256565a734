/** ^C: how long a command may take to end after it. The signal is only emitted; nothing ends this process. */
import process from "node:process";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Interruption } from "../../cli/interruption.ts";
import { TidemarkError } from "../../engine/index.ts";

const ended = vi.spyOn(process, "exit").mockImplementation(() => undefined as never);
const told: TidemarkError[] = [];

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  told.length = 0;
  ended.mockClear();
});
afterEach(() => void vi.useRealTimers());

test.for([
  { restMs: undefined, name: "two seconds, with the end of the process" },
  { restMs: 15_000, name: "as long as it said" },
])("a command has $name, and is then ended with its error", ({ restMs }) => {
  using interruption = Interruption.listen((error) => told.push(error));
  if (restMs !== undefined) interruption.allowRest(restMs);
  process.emit("SIGINT");
  expect(interruption.signal.reason).toBeInstanceOf(TidemarkError);
  vi.advanceTimersByTime((restMs ?? 1_700) - 1);
  expect(ended).not.toHaveBeenCalled();
  vi.advanceTimersByTime(1);
  expect(told).toEqual([interruption.signal.reason]);
  expect(ended).toHaveBeenCalledExactlyOnceWith(130);
});

test("a second ^C ends it at once", () => {
  using interruption = Interruption.listen((error) => told.push(error));
  interruption.allowRest(15_000);
  process.emit("SIGINT");
  process.emit("SIGINT");
  expect(told).toHaveLength(1);
  expect(ended).toHaveBeenCalledExactlyOnceWith(130);
});
