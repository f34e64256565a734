import { stripVTControlCharacters } from "node:util";
import { describe, expect, it } from "vitest";
import type { AgentStatus } from "../../../cli/agent/supervisor.ts";
import { WatchScreen } from "../../../cli/agent/watch-screen.ts";
import type { HealthLevel } from "../../../engine/index.ts";

const canvas = { rows: 16, columns: 80, paint: (_: string, text: string) => text };

interface Fields {
  readonly health?: HealthLevel;
  readonly state?: string;
  readonly group?: string;
  readonly lagMs?: number;
  readonly churn?: number;
}

function diskOf(
  disk: string,
  { health = "Normal", state = "protecting", group, lagMs = 100, churn = 0 }: Fields,
): object {
  const findings =
    health === "Normal" ? [] : [{ level: health, code: "NO_SPACE", cause: `${disk} is full`, remedy: "make room" }];
  return {
    disk,
    state,
    health,
    findings,
    group: group ?? null,
    lag: { capturedMs: lagMs, shippedMs: lagMs, committedMs: lagMs },
    churnBytesPerSecond: churn,
    uploadBytesPerSecond: 0,
    backlogBytes: 0,
    points: 1,
    pointsCommitted: 1,
    latest: null,
    lastPrune: null,
    replica: null,
    copies: [],
    image: "/img",
    vault: "main",
    policy: "gold",
    listen: "unix:/s",
  };
}

function screenOf(disks: readonly object[]): WatchScreen {
  const screen = new WatchScreen();
  screen.take({ state: "running", uptimeMs: 5_000, health: "Normal", vaults: [], disks } as unknown as AgentStatus);
  return screen;
}

/** The disk at the cursor, and the disks of the table. */
function shown(screen: WatchScreen): { readonly current: string; readonly disks: readonly string[] } {
  const rows = [...screen.text(canvas).matchAll(/^([> ]) (d\d+) /gm)];
  return { current: rows.find(([, mark]) => mark === ">")?.[2] ?? "", disks: rows.map(([, , name]) => name ?? "") };
}

const many = (count: number, of: (index: number) => Fields = () => ({})): object[] =>
  Array.from({ length: count }, (_, index) => diskOf(`d${index + 1}`, of(index)));

describe("the screen", () => {
  it("says that it is old while the agent does not answer, and no longer when it does", () => {
    const screen = screenOf(many(3));
    screen.lose("no agent is running there");
    const old = screen.text(canvas);
    expect(old).toContain("no agent is running there");
    expect(old).not.toContain("agent running");
    expect(shown(screen).disks).toHaveLength(3);
    screen.take({
      state: "running",
      uptimeMs: 1_000,
      health: "Normal",
      vaults: [],
      disks: many(2),
    } as unknown as AgentStatus);
    expect(screen.text(canvas)).toContain("agent running");
    expect(screen.text(canvas)).not.toContain("no agent");
  });

  it("never has more lines than the terminal, and always the cursor", () => {
    const screen = screenOf(many(40, () => ({ health: "Critical" })));
    for (const key of ["down", "end", "pageup", "k", "home", "pagedown", "up", "?", "x", "end"]) {
      screen.key(key);
      expect(screen.text(canvas).split("\n").length).toBeLessThan(canvas.rows);
      if (key !== "?") expect(shown(screen).current).not.toBe("");
      for (const rows of [1, 4, 6])
        expect(screen.text({ ...canvas, rows }).split("\n").length).toBeLessThanOrEqual(Math.max(rows - 1, 3));
    }
    expect(shown(screen).current).toBe("d40");
    expect(screen.text(canvas)).toContain("d40: Critical: d40 is full (NO_SPACE)\n  make room");
  });

  it("has no line that is wider than the terminal, and breaks what is too long", () => {
    const name = "d".repeat(80);
    const coloured = { ...canvas, paint: (_: string, text: string) => `\u001b[31m${text}\u001b[39m` };
    for (const health of ["Normal", "Critical"] as const) {
      const screen = screenOf([{ ...diskOf(name, { health }), image: `/${"i".repeat(90)}` }]);
      for (const act of [() => undefined, () => screen.key("p"), () => screen.lose(`${name} does not answer`)]) {
        act();
        const lines = screen.text(coloured).split("\n");
        expect(lines.length).toBeLessThan(canvas.rows);
        for (const line of lines) expect(stripVTControlCharacters(line).length).toBeLessThanOrEqual(80);
      }
    }
    const asked = screenOf([diskOf(name, {})]);
    asked.key("p");
    expect(asked.text(canvas).replaceAll("\n", "")).toContain(`${name}? y, or any other key for no`);
  });

  it("keeps its cursor on a disk whatever the order", () => {
    const screen = screenOf(
      many(4, (index) => ({ lagMs: index, churn: index === 1 ? 9 : 0, health: index === 2 ? "Warning" : "Normal" })),
    );
    screen.key("down");
    expect(shown(screen)).toEqual({ current: "d2", disks: ["d1", "d2", "d3", "d4"] });
    screen.key("s");
    expect(shown(screen)).toEqual({ current: "d2", disks: ["d3", "d1", "d2", "d4"] });
    screen.key("s");
    expect(shown(screen)).toEqual({ current: "d2", disks: ["d4", "d3", "d2", "d1"] });
    screen.key("s");
    expect(shown(screen).disks[0]).toBe("d2");
    screen.key("f");
    expect(shown(screen).disks).toEqual(["d3"]);
  });
});

describe("a key", () => {
  it("acts when y has confirmed it, on the disk at the cursor", () => {
    const screen = screenOf(many(3, (index) => ({ group: "db", state: index === 2 ? "paused" : "protecting" })));
    expect(screen.key("p")).toBe("draw");
    expect(screen.text(canvas)).toContain("take a point of d1? y, or any other key for no");
    expect(screen.key("n")).toBe("draw");
    expect(screen.text(canvas)).toContain("nothing was done");
    const confirmed = (key: string): unknown => {
      screen.key(key);
      return screen.key("y");
    };
    expect(confirmed("p")).toMatchObject({ path: "/v1/point", fields: { disk: "d1" } });
    expect(confirmed("a")).toMatchObject({ path: "/v1/point", fields: { disk: "d1", applicationConsistent: true } });
    expect(confirmed("g")).toMatchObject({ path: "/v1/point", fields: { group: "db" } });
    expect(confirmed("space")).toMatchObject({ path: "/v1/pause", fields: { disk: "d1" } });
    screen.key("end");
    expect(confirmed("space")).toMatchObject({ path: "/v1/resume", fields: { disk: "d3" } });
    screen.tell("resume d3: done");
    expect(screen.text(canvas)).toContain("resume d3: done");
    expect(screen.key("y")).toBe("draw");
    expect(screen.key("q")).toBe("quit");
    expect(screen.key("ctrl-c")).toBe("quit");
  });
});
