import process from "node:process";
import { describe, expect, it } from "vitest";
import { Registry } from "../../../cli/agent/exposition.ts";
import { processMetrics } from "../../../cli/agent/process-metrics.ts";

describe("the text exposition", () => {
  it("gives help, type and every series of a metric, in the order of their making", () => {
    const registry = new Registry();
    const size = registry.gauge("size_bytes", "Size.");
    const points = registry.counter("points_total", "Points.");
    size.set({ disk: "web" }, 1.5);
    size.set({ disk: "db", state: "stopped" }, Number.POSITIVE_INFINITY);
    points.add({});
    points.add({}, 2);
    expect(registry.text()).toBe(
      [
        "# HELP size_bytes Size.",
        "# TYPE size_bytes gauge",
        'size_bytes{disk="web"} 1.5',
        'size_bytes{disk="db",state="stopped"} +Inf',
        "",
        "# HELP points_total Points.",
        "# TYPE points_total counter",
        "points_total 3",
        "",
      ].join("\n"),
    );
  });

  it("escapes labels and help", () => {
    const registry = new Registry();
    registry.gauge("a", 'a "b" \\ \n c').set({ disk: 'x"y\\z\n' }, 1);
    expect(registry.text()).toBe('# HELP a a "b" \\\\ \\n c\n# TYPE a gauge\na{disk="x\\"y\\\\z\\n"} 1\n');
  });

  it("counts a value in every bucket whose bound it does not exceed", () => {
    const registry = new Registry();
    const barrier = registry.histogram("barrier_seconds", "Barrier.", [0.1, 1]);
    for (const value of [0.1, 0.5, 2]) barrier.observe({ disk: "web" }, value);
    expect(registry.text().split("\n").slice(2, -1)).toEqual([
      'barrier_seconds_bucket{disk="web",le="0.1"} 1',
      'barrier_seconds_bucket{disk="web",le="1"} 2',
      'barrier_seconds_bucket{disk="web",le="+Inf"} 3',
      'barrier_seconds_sum{disk="web"} 2.6',
      'barrier_seconds_count{disk="web"} 3',
    ]);
  });

  it("forgets the series of a gauge that is reset", () => {
    const registry = new Registry();
    const gauge = registry.gauge("a", "A.");
    gauge.set({}, 1);
    gauge.reset();
    expect(registry.text()).toBe("# HELP a A.\n# TYPE a gauge\n");
  });
});

describe("the process metrics", () => {
  it("describe this process", async () => {
    const registry = new Registry();
    const update = processMetrics(registry);
    await update();
    await update();
    const text = registry.text();
    const valueOf = (name: string): number => Number(new RegExp(`^${name} (.*)$`, "m").exec(text)?.[1]);
    expect(valueOf("process_resident_memory_bytes")).toBeGreaterThan(1e6);
    expect(valueOf("process_open_fds")).toBeGreaterThan(2);
    expect(valueOf("process_start_time_seconds")).toBeLessThanOrEqual(Date.now() / 1_000);
    const { user, system } = process.cpuUsage();
    expect(valueOf("process_cpu_seconds_total")).toBeGreaterThan(0);
    expect(valueOf("process_cpu_seconds_total")).toBeLessThanOrEqual((user + system) / 1e6);
    expect(text).toContain("# TYPE process_cpu_seconds_total counter");
    expect(text).toMatch(/^nodejs_eventloop_lag_p99_seconds /m);
  });
});
