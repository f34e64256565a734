/** The agent's collecting: when it collects, and what it tells of it. */
import { expect, test } from "vitest";
import { Collecting } from "../../../cli/agent/collecting.ts";
import type { DiskEvent } from "../../../cli/agent/ports.ts";
import { type CollectSummary, type Notice, TidemarkError } from "../../../engine/index.ts";
import { VirtualClock } from "./scripted.ts";

const hourMs = 3_600_000;
const dayMs = 24 * hourMs;
const startedAtMs = 1_790_000_000_000;

class Rig {
  readonly clock = new VirtualClock();
  /** When it was collected, in hours since the start. */
  readonly collectedAt: number[] = [];
  readonly events: DiskEvent[] = [];
  lastMs: number | undefined;
  /** What each collection tells. */
  notices: readonly Notice[] = [];
  next: Partial<CollectSummary> | Error = {};
  segmentBytes: number | Error = 7;
  readonly collecting: Collecting;

  constructor(everyMs: number | undefined, lastMs?: number) {
    this.lastMs = lastMs;
    this.collecting = new Collecting(everyMs, {
      clock: this.clock,
      wallMs: () => this.nowMs,
      lastCollectedMs: () => Promise.resolve(this.lastMs),
      segmentBytes: () =>
        this.segmentBytes instanceof Error ? Promise.reject(this.segmentBytes) : Promise.resolve(this.segmentBytes),
      collect: ({ onNotice }) => {
        for (const notice of this.notices) onNotice?.(notice);
        this.collectedAt.push(Math.floor(this.clock.now() / hourMs));
        if (this.next instanceof Error) return Promise.reject(this.next);
        const summary = {
          liveBytes: 1,
          storedBytesBefore: 1,
          storedBytesAfter: 1,
          condemnedChunks: 0,
          deletedSegments: 0,
          deletedObjects: 0,
        };
        const made: CollectSummary = { ...summary, waitingFor: [], elapsedMs: 1, ...this.next };
        if (made.waitingFor.length === 0) this.lastMs = this.nowMs;
        return Promise.resolve(made);
      },
      onEvent: (event) => this.events.push(event),
    });
  }

  get nowMs(): number {
    return startedAtMs + this.clock.now();
  }

  async hours(count: number): Promise<void> {
    for (let hour = 0; hour < count; hour += 1) await this.clock.advance(hourMs);
  }
}

test("a vault that was never collected is collected once a day", async () => {
  const rig = new Rig(dayMs);
  await rig.hours(72);
  expect(rig.collectedAt).toEqual([1, 25, 49]);
  expect(rig.events).toEqual([]);
  await rig.collecting.stop();
});

test("what a collection notices is told as of the vault", async () => {
  const rig = new Rig(dayMs);
  rig.notices = [{ code: "SEGMENT_DAMAGED", message: "a frame cannot be read" }];
  await rig.hours(2);
  expect(rig.events).toEqual([
    { kind: "notice", disk: "", code: "SEGMENT_DAMAGED", message: "a frame cannot be read" },
  ]);
  await rig.collecting.stop();
});

test("what is stored is known from the start, after each point, each hour anew, and after a collection", async () => {
  const rig = new Rig(undefined);
  rig.collecting.noteStored(1); // the measurement that comes counts it
  expect(rig.collecting.storedBytes).toBeNull();
  await rig.clock.advance(0);
  expect(rig.collecting.storedBytes).toBe(7);
  rig.collecting.noteStored(4);
  expect(rig.collecting.storedBytes).toBe(11);
  rig.segmentBytes = new TidemarkError("STORE_UNREACHABLE", "no answer");
  await rig.hours(1);
  expect(rig.collecting.storedBytes).toBe(11);
  rig.segmentBytes = 9;
  await rig.hours(1);
  expect(rig.collecting.storedBytes).toBe(9);
  rig.collecting.set(dayMs);
  rig.next = { storedBytesAfter: 5 };
  await rig.clock.advance(0);
  expect(rig.collecting.storedBytes).toBe(5);
  await rig.collecting.stop();
});

test("one that another agent collects is left to it", async () => {
  const rig = new Rig(dayMs, startedAtMs - dayMs / 2);
  await rig.hours(11);
  rig.lastMs = rig.nowMs;
  await rig.hours(23);
  expect(rig.collectedAt).toEqual([]);
  await rig.hours(2);
  expect(rig.collectedAt).toHaveLength(1);
  await rig.collecting.stop();
});

test("a time of last collection that lies in the future does not put it off for ever", async () => {
  const rig = new Rig(dayMs, startedAtMs + 1000 * dayMs);
  await rig.hours(2);
  expect(rig.collectedAt).toEqual([1]);
  await rig.collecting.stop();
});

test("never is never, until the configuration says otherwise", async () => {
  const rig = new Rig(undefined);
  await rig.hours(72);
  expect(rig.collectedAt).toEqual([]);
  rig.collecting.set(dayMs);
  await rig.clock.advance(0);
  expect(rig.collectedAt).toEqual([72]);
  await rig.collecting.stop();
});

test("a collection reports what it freed, and which writers did not acknowledge, an hour before the next try", async () => {
  const rig = new Rig(dayMs);
  rig.next = { waitingFor: ["web"] };
  await rig.hours(1);
  rig.next = { storedBytesBefore: 3 * 2 ** 30, storedBytesAfter: 2 ** 30 };
  await rig.hours(1);
  expect(rig.events).toEqual([
    {
      kind: "notice",
      disk: "",
      code: "WRITER_ACTIVE",
      message: expect.stringContaining("web did not acknowledge in time") as string,
    },
    { kind: "collect", disk: "", message: "2 GiB of the vault freed: 1 GiB stored" },
  ]);
  await rig.collecting.stop();
});

test("another collection and a store that is away are no news; damage is, and the next hour tries again", async () => {
  const rig = new Rig(dayMs);
  for (const code of ["COLLECTION_ACTIVE", "STORE_UNREACHABLE", "DAMAGED"] as const) {
    rig.next = new TidemarkError(code, "the segment cannot be read", { remedy: "heal it" });
    await rig.hours(1);
  }
  expect(rig.collectedAt).toHaveLength(3);
  expect(rig.events).toMatchObject([
    { kind: "failure", code: "DAMAGED", message: "the vault could not be collected: the segment cannot be read" },
  ]);
  await rig.collecting.stop();
});
