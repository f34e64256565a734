import { describe, expect, it } from "vitest";
import { countWords, Model, rowsOf } from "../../../../cli/agent/dashboard/page/model.ts";
import { inWords, marks, PointColumns } from "../../../../cli/agent/dashboard/page/points.ts";
import type { DiskStatus } from "../../../../cli/agent/disk-runner.ts";
import type { AgentPoint } from "../../../../cli/agent/ports.ts";
import type { AgentStatus } from "../../../../cli/agent/supervisor.ts";
import { pointOf } from "../scripted.ts";

const pointAt = (sequence: number, second: number, more: Partial<AgentPoint> = {}): AgentPoint => ({
  ...pointOf("a", sequence, { time: new Date(second * 1_000).toISOString() }),
  label: null,
  pinned: false,
  held: false,
  proved: null,
  damaged: false,
  dropped: false,
  ...more,
});

describe("points in columns", () => {
  it("fall into the pixels of their times, and those outside into none", () => {
    const points = new PointColumns([pointAt(1, 0), pointAt(2, 10), pointAt(3, 19, { pinned: true }), pointAt(4, 30)]);
    const pixels = points.pixels(10_000, 20_000, 10);
    expect([...pixels]).toEqual([128, 0, 0, 0, 0, 0, 0, 0, 0, 128 + marks.pinned]);
    expect([...points.pixels(30_000, 40_000, 2)]).toEqual([128, 0]);
    expect([...points.pixels(20_000, 30_000, 2)]).toEqual([0, 128]);
  });

  it("are dropped in a pixel only when all of its points are", () => {
    const dropped = { dropped: true };
    const pixelOf = (...points: AgentPoint[]): number => new PointColumns(points).pixels(0, 10_000, 1)[0] ?? 0;
    expect(pixelOf(pointAt(1, 1, dropped), pointAt(2, 2, dropped))).toBe(128 + marks.dropped);
    expect(pixelOf(pointAt(1, 1, dropped), pointAt(2, 2))).toBe(128);
    expect(pixelOf(pointAt(1, 1), pointAt(2, 2, dropped))).toBe(128);
    expect(pixelOf(pointAt(1, 1, dropped), pointAt(2, 2), pointAt(3, 3, dropped))).toBe(128);
  });

  it("take more points than they were made for, and say what they are", () => {
    const points = new PointColumns([]);
    for (let sequence = 1; sequence <= 1_000; sequence += 1)
      points.push(pointAt(sequence, sequence, sequence % 100 === 0 ? { consistency: "app" } : {}));
    expect(points.length).toBe(1_000);
    expect(points.lastSequence).toBe(1_000);
    expect([...points.pixels(1_000, 1_001_000, 1_000)].filter((bits) => bits === 0)).toEqual([]);
    expect(inWords(points)).toBe("1000 points, 10 application-consistent");
  });
});

const disk = (name: string, more: object = {}): DiskStatus =>
  ({
    disk: name,
    group: null,
    vault: "main",
    policy: "gold",
    state: "protecting",
    health: "Normal",
    findings: [],
    lag: { committedMs: 1 },
    churnBytesPerSecond: 1,
    uploadBytesPerSecond: 2,
    backlogBytes: 0,
    latest: null,
    lastPrune: null,
    ...more,
  }) as unknown as DiskStatus;

describe("the rows", () => {
  const names = (disks: readonly DiskStatus[], choice: Partial<Parameters<typeof rowsOf>[1]>): readonly string[] =>
    rowsOf(disks, { text: "", health: "", order: "group", ...choice }).map((row) =>
      row.kind === "disk" ? row.status.disk : `[${row.name} ${String(row.count)}]`,
    );

  it("keep the disks of a group together, and say where none is", () => {
    const disks = [disk("a", { group: "x" }), disk("b"), disk("c", { group: "y" }), disk("d", { group: "x" })];
    expect(names(disks, {})).toEqual(["[x 2]", "a", "d", "[y 1]", "c", "[ 1]", "b"]);
    expect(names([disk("a"), disk("b")], {})).toEqual(["a", "b"]);
  });

  it("are found by every word, and come in the order that is chosen", () => {
    const disks = [
      disk("disk-10", { churnBytesPerSecond: 9 }),
      disk("disk-9", { health: "Warning", findings: [{ code: "BACKLOG_SLOW" }], backlogBytes: 5 }),
      disk("pg", { group: "shop", health: "Critical", lag: { committedMs: null } }),
    ];
    expect(names(disks, { text: " DISK slow", order: "name" })).toEqual(["disk-9"]);
    expect(names(disks, { text: "shop", order: "name" })).toEqual(["pg"]);
    expect(names(disks, { health: "Warning", order: "name" })).toEqual(["disk-9"]);
    expect(names(disks, { order: "name" })).toEqual(["disk-9", "disk-10", "pg"]);
    expect(names(disks, { order: "health" })).toEqual(["pg", "disk-9", "disk-10"]);
    expect(names(disks, { order: "lag" })[0]).toBe("pg");
    expect(names(disks, { order: "churn" })[0]).toBe("disk-10");
    expect(names(disks, { order: "backlog" })[0]).toBe("disk-9");
  });
});

describe("the model", () => {
  const status = (...disks: readonly DiskStatus[]): AgentStatus => ({ disks }) as unknown as AgentStatus;
  const settle = async (): Promise<void> => await new Promise((resolve) => setImmediate(resolve));

  class Rig {
    readonly asked: string[] = [];
    points: AgentPoint[] = [pointAt(1, 1)];
    readonly model: Model = new Model(async <Answer>(path: string): Promise<Answer> => {
      this.asked.push(path);
      const answer = path.startsWith("/v1/points/") ? { points: this.points } : { samples: [], everyMs: 10_000 };
      return await Promise.resolve(answer as Answer);
    });
    #nowMs = 1_000_000;

    /** A status that comes `elapsedMs` after the one before. */
    take(latest: number, elapsedMs = 1_000, more: object = {}): void {
      this.#nowMs += elapsedMs;
      this.model.takeStatus(status(disk("a", { latest: pointOf("a", latest), ...more })), this.#nowMs);
    }
  }

  it("asks for the points of a disk that is shown, once, and goes on from the status", async () => {
    const rig = new Rig();
    rig.take(1);
    rig.model.data("a");
    rig.model.data("a");
    await settle();
    expect(rig.asked).toEqual(["/v1/points/a", "/v1/series/a"]);
    rig.take(2);
    rig.take(3);
    rig.take(3, 10_000);
    expect(rig.model.data("a").points?.length).toBe(3);
    expect(rig.model.data("a").samples).toEqual([[1, 1, 2]]);
    expect(rig.asked).toHaveLength(2);
  });

  it("asks again, and not too often, when it has missed a point or a prune has dropped some", async () => {
    const rig = new Rig();
    rig.take(1);
    rig.model.data("a");
    await settle();
    rig.points = [pointAt(4, 4), pointAt(5, 5)];
    rig.take(5);
    rig.model.data("a");
    expect(rig.asked).toHaveLength(2);
    rig.take(5, 31_000);
    rig.model.data("a");
    await settle();
    expect(rig.asked).toHaveLength(4);
    expect(rig.model.data("a").points?.length).toBe(2);
    rig.take(5, 31_000, { lastPrune: { ageMs: 60_000, removedPoints: 3 } });
    rig.take(5, 1_000, { lastPrune: { ageMs: 10, removedPoints: 3 } });
    rig.model.data("a");
    await settle();
    expect(rig.asked).toHaveLength(6);
  });

  it("does not show an event twice when its stream is opened again", () => {
    const { model } = new Rig();
    const entry = (id: number, time: string): boolean =>
      model.takeEntry({ id, time, kind: "notice", disk: "a", message: "", code: null });
    expect([entry(1, "2026-01-01"), entry(2, "2026-01-02"), entry(1, "2026-01-01"), entry(2, "2026-01-02")]).toEqual([
      true,
      true,
      false,
      false,
    ]);
    // The first event of an agent that was started again.
    expect(entry(1, "2026-01-03")).toBe(true);
  });
});

it("the list says how many disks it shows, and what to do when there are none", () => {
  expect([countWords(3, 3), countWords(1, 3), countWords(0, 0)]).toEqual([
    "",
    "1 of 3 disks",
    "The agent has no disks. Add them to its configuration.",
  ]);
});
