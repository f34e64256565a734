/** Times as users write them, in a zone that is not UTC. */

import { channel } from "node:diagnostics_channel";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { AllocatedRanges } from "../../cli/allocated-ranges.ts";
import { debugChannels, printDebugEvents } from "../../cli/debug.ts";
import { fittedTable } from "../../cli/text.ts";
import { formatLocal, parseTime, pointSelector } from "../../cli/times.ts";
import { publish } from "../../engine/diagnostics.ts";

const now = Date.parse("2026-05-01T12:00:00.000Z");

describe("a time", () => {
  const before = process.env["TZ"];
  beforeAll(() => {
    process.env["TZ"] = "America/St_Johns";
  });
  afterAll(() => {
    if (before === undefined) delete process.env["TZ"];
    else process.env["TZ"] = before;
  });

  it("with a zone is that instant, however the zone is written", () => {
    const texts = [
      "2026-05-01T12:00:00Z",
      "2026-05-01 12:00z",
      "2026-05-01T14:00:00.000+02:00",
      "2026-05-01T07:00-0500",
    ];
    expect(texts.map((text) => parseTime(text, 0))).toEqual(texts.map(() => now));
  });

  it("may be an age", () => {
    const hours = (count: number): number => now - count * 3_600_000;
    const texts = ["2 hours ago", "2h ago", "1 day 6 hours ago", "90 min ago", "0.5 d ago", "1w ago"];
    expect(texts.map((text) => parseTime(text, now))).toEqual([2, 2, 30, 1.5, 12, 168].map(hours));
    expect(() => parseTime("2 moons ago", now)).toThrow("unknown unit moons");
  });

  it("without a zone is refused with both readings", () => {
    expect(() => parseTime("2026-05-01T12:00", now)).toThrow(
      "the time 2026-05-01T12:00 has no zone: it is 2026-05-01T12:00:00-02:30 as local time, and 2026-05-01T12:00:00Z as UTC",
    );
    expect(() => parseTime("2026-05-01", now)).toThrow("2026-05-01T00:00:00Z as UTC");
    expect(() => parseTime("2026-13-01", now)).toThrow("no calendar has");
  });

  it("is shown in the local zone as it can be pasted back", () => {
    expect(formatLocal(now)).toBe("2026-05-01T09:30:00.000-02:30");
    expect(parseTime(formatLocal(now), 0)).toBe(now);
  });

  it("selects a point, beside numbers, ids and latest", () => {
    const texts = ["latest", "12", "0".repeat(32), "2 hours ago", "2026-05-01T12:00Z"];
    expect(texts.map((text) => pointSelector(text, now))).toEqual([
      "latest",
      "12",
      "0".repeat(32),
      "2026-05-01T10:00:00.000Z",
      "2026-05-01T12:00:00.000Z",
    ]);
    for (const text of ["noon", "", "hours ago", "1999"].slice(0, 3))
      expect(() => pointSelector(text, now)).toThrow("does not name a point");
  });
});

describe("the bytes to read", () => {
  it("are those of the extents below a position", async () => {
    async function* extents(): AsyncGenerator<{ readonly offset: number; readonly length: number }> {
      yield { offset: 100, length: 50 };
      yield { offset: 1_000, length: 10 };
    }
    const ranges = await AllocatedRanges.of({ sizeBytes: () => Promise.resolve(1_000_000), allocated: extents });
    expect(ranges.totalBytes).toBe(60);
    expect([0, 100, 120, 150, 999, 1_000, 1_005, 1_010, 1_000_000].map((at) => ranges.bytesBelow(at))).toEqual([
      0, 0, 20, 50, 50, 50, 55, 60, 60,
    ]);
    const none = await AllocatedRanges.of({ sizeBytes: () => Promise.resolve(70) });
    expect([none.totalBytes, none.bytesBelow(30)]).toEqual([70, 30]);
  });
});

describe("a table that fits", () => {
  it("leaves columns out in their order, then shortens the first column", () => {
    const columns = [
      { heading: "NAME", align: "l", cell: (row: string) => row },
      { heading: "A", align: "l", dropped: 2, cell: () => "aaaa" },
      { heading: "B", align: "r", dropped: 1, cell: () => "bbbb" },
      { heading: "C", align: "l", cell: () => "-" },
    ] as const;
    expect(fittedTable(columns, ["a-long-name"], 80)).toBe("NAME         A        B\na-long-name  aaaa  bbbb");
    expect(fittedTable(columns, ["a-long-name"], 20)).toBe("NAME         A\na-long-name  aaaa");
    expect(fittedTable(columns, ["a-long-name"], 9)).toBe("NAME\na-long-n…");
  });
});

describe("--debug", () => {
  it("prints each event of its channels as a line, until it is disposed of, with secrets masked", () => {
    const lines: string[] = [];
    const printing = printDebugEvents(["tidemark:test"], (line) => lines.push(line));
    channel("tidemark:test").publish({ disk: "web", url: "https://a/b?sig=SECRET" });
    printing[Symbol.dispose]();
    channel("tidemark:test").publish({ disk: "late" });
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(/^\S+Z tidemark:test \{"disk":"web","url":"https:\/\/a\/b\?sig=…"\}\n$/);
  });

  it("prints on the channels that the engine publishes on", () => {
    const lines: string[] = [];
    const printing = printDebugEvents(debugChannels, (line) => lines.push(line));
    publish("store.regressed", { object: "disks/web/head", message: "the head is older" });
    printing[Symbol.dispose]();
    expect(lines).toHaveLength(1);
    expect(lines[0]).toContain(' tidemark:store.regressed {"object":"disks/web/head","message":"the head is older"}');
  });
});
