/** The table of points: everything in a wide window, what matters in a narrow one. */
import { describe, expect, it } from "vitest";
import { pointsTable } from "../../cli/commands/listings.ts";
import type { ListedPoint } from "../../engine/index.ts";

const canvas = (columns: number): { readonly columns: number; readonly time: (iso: string) => string } => ({
  columns,
  time: (iso) => iso,
});

const point: ListedPoint = {
  disk: "web",
  sequence: 17_280,
  point: "0123456789abcdef0123456789abcdef",
  time: "2026-05-01T12:00:00.123Z",
  consistency: "crash",
  group: { id: "f".repeat(32), name: "shop" },
  lagMs: 412,
  volumeBytes: 64 * 1024 ** 3,
  changedBytes: 9_000_000,
  newBytes: 8_000_000,
  storedBytes: 4_000_000,
  label: null,
  pinned: false,
  held: false,
  proved: null,
};
const alone: ListedPoint = {
  ...point,
  sequence: 17_281,
  consistency: "app",
  group: null,
  lagMs: 1_900,
  volumeBytes: 0,
};

describe("the table of points", () => {
  it("shows everything where there is room", () => {
    expect(pointsTable([point, alone], canvas(100)).split("\n")).toEqual([
      "POINT  ID        TIME                      CONS.  GROUP    LAG    SIZE  CHANGED   STORED",
      "17280  01234567  2026-05-01T12:00:00.123Z  crash  shop   0.4 s  64 GiB  8.6 MiB  3.8 MiB",
      "17281  01234567  2026-05-01T12:00:00.123Z  app    -      1.9 s     0 B  8.6 MiB  3.8 MiB",
    ]);
  });

  it("leaves out the disk's size, then what was stored, where lines would be longer than 80 columns", () => {
    const narrow = pointsTable([point, alone], canvas(80));
    expect(narrow.split("\n")[0]).toBe(
      "POINT  ID        TIME                      CONS.  GROUP    LAG  CHANGED   STORED",
    );
    expect(Math.max(...narrow.split("\n").map((line) => line.length))).toBe(80);
    const longNamed = { ...point, group: { id: "f".repeat(32), name: "a-long-name" } };
    expect(pointsTable([longNamed, alone], canvas(80)).split("\n")[0]).not.toMatch(/SIZE|STORED/);
  });

  it("says what keeps a point, where something does", () => {
    const rows = pointsTable(
      [{ ...alone, pinned: true, held: true }, { ...alone, held: true }, alone],
      canvas(100),
    ).split("\n");
    expect(rows.map((row) => row.slice(row.indexOf("app"), row.indexOf("app") + 13))).toEqual([
      expect.anything(),
      "app    pinned",
      "app    read  ",
      "app    -     ",
    ]);
    expect(rows[0]).toContain("CONS.  KEPT");
  });

  it("has no column for groups and lags where no point has any", () => {
    const scanned = { ...alone, lagMs: null };
    expect(pointsTable([scanned], canvas(80)).split("\n")[0]).toBe(
      "POINT  ID        TIME                      CONS.  SIZE  CHANGED   STORED",
    );
  });
});
