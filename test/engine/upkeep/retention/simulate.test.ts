/** `retention simulate`: what is left of points made at regular times, and how it is drawn. */
import { Command } from "commander";
import { describe, expect, test } from "vitest";
import { retentionCommand } from "../../../../cli/commands/retention.ts";
import type { Output } from "../../../../cli/output.ts";
import { kept, type RetentionPoint } from "../../../../engine/upkeep/retention/decide.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { simulateRetention } from "../../../../engine/upkeep/retention/simulate.ts";
import { idleContext } from "../../../cli/idle-context.ts";
import { day, hour, minute, noon, pointAt } from "./timelines.ts";

interface Said {
  readonly fields: Readonly<Record<string, unknown>>;
  readonly lines: readonly string[];
}

/** What the command says when it is given these words. */
async function said(...words: readonly string[]): Promise<Said> {
  let result: Said = { fields: {}, lines: [] };
  const silent = (): void => undefined;
  const output: Output = {
    ...{
      columns: 80,
      item: silent,
      progress: silent,
      step: silent,
      notice: silent,
      error: silent,
      help: silent,
      detail: silent,
    },
    ...{ time: (iso: string) => iso, paint: (_colour: unknown, text: string) => text, screen: silent, summary: silent },
    isScreen: false,
    answer: (_command, fields, text) => {
      result = { fields: { ...fields }, lines: text.split("\n") };
    },
    close: () => Promise.resolve(true),
  };
  const program = new Command("tidemark").exitOverride().configureOutput({ writeErr: silent });
  await program
    .addCommand(retentionCommand(idleContext(output)))
    .parseAsync(["retention", "simulate", ...words], { from: "user" });
  return result;
}

describe("a simulation", () => {
  const policies = [
    "none",
    "days:0",
    "days:1",
    "bands:10m=all,3h=20m,1d=3h",
    "keep:last=3,hourly=5,daily=2,tz=Europe/Berlin",
    "keep:within=90m",
  ];

  test.each(policies)("of %s leaves what pruning after each point would have left", async (text) => {
    const policy = parsePolicy(text);
    const everyMs = 4 * minute;
    let points: RetentionPoint[] = [];
    for (let sequence = 1; sequence <= 360; sequence += 1) {
      const timeMs = noon - (360 - sequence) * everyMs;
      points = kept([...points, pointAt(sequence, timeMs)], policy, timeMs);
    }
    const { pointsMade, agesMs } = await simulateRetention({ policy, spanMs: day, everyMs, endMs: noon });
    expect(pointsMade).toBe(360);
    expect(agesMs).toEqual(points.map(({ timeMs }) => noon - timeMs).reverse());
  });

  test("of a month of a point every 5 seconds looks at each point a few times only", async () => {
    const { pointsMade, agesMs } = await simulateRetention({
      policy: parsePolicy("days:15"),
      spanMs: 30 * day,
      everyMs: 5_000,
      endMs: noon,
    });
    expect(pointsMade).toBe(518_400);
    // 1,441 of two hours, 83 of seven days, 48 of fifteen.
    expect(agesMs).toHaveLength(1_441 + 83 + 48);
  });

  test("of no point and of too many is refused", async () => {
    const policy = parsePolicy("days:1");
    const refused = { code: "INVALID_ARGUMENT" };
    await expect(simulateRetention({ policy, spanMs: hour, everyMs: 2 * hour, endMs: noon })).rejects.toMatchObject(
      refused,
    );
    await expect(simulateRetention({ policy, spanMs: 3_650 * day, everyMs: 1_000, endMs: noon })).rejects.toMatchObject(
      refused,
    );
  });

  test("ends when it is told to", async () => {
    const signal = AbortSignal.abort();
    const simulation = simulateRetention({
      policy: parsePolicy("none"),
      spanMs: 30 * day,
      everyMs: 5_000,
      endMs: noon,
      signal,
    });
    await expect(simulation).rejects.toMatchObject({ code: "INTERRUPTED" });
  });
});

describe("the command", () => {
  test("says how many points each band of age holds", async () => {
    const { fields } = await said("--policy", "days:1", "--days", "3", "--every", "5m");
    expect(fields).toEqual({
      policy: "days:1",
      days: 3,
      everyMs: 5 * minute,
      pointsMade: 864,
      points: 47,
      oldestAgeMs: 23 * hour + 10 * minute,
      bands: [
        { fromMs: 0, toMs: minute, points: 1 },
        { fromMs: minute, toMs: 10 * minute, points: 2 },
        { fromMs: 10 * minute, toMs: hour, points: 10 },
        { fromMs: hour, toMs: 2 * hour, points: 12 },
        { fromMs: 2 * hour, toMs: 6 * hour, points: 4 },
        { fromMs: 6 * hour, toMs: 12 * hour, points: 6 },
        { fromMs: 12 * hour, toMs: day, points: 12 },
        { fromMs: day, toMs: 2 * day, points: 0 },
        { fromMs: 2 * day, toMs: 3 * day, points: 0 },
      ],
    });
  });

  test("draws them in 80 columns", async () => {
    const { lines } = await said("--policy", "days:7", "--days", "30", "--every", "1m");
    expect(lines.filter((line) => line.length > 80)).toEqual([]);
    expect(lines).toEqual([
      "days:7 after 30 days with a point every 1m",
      "",
      "now             |1h    |2h       |6h   |12h   |1d   |2d    |4d  |7d    |15d",
      "#######################:     .   .  . .. ......:.::::::::::::::::",
      "# every point   : several   . one",
      "",
      "AGE         POINTS  ONE PER  (logarithmic)",
      "0s to 1m         2       1m  ##########",
      "1m to 10m        9       1m  #####################",
      "10m to 1h       50       1m  ###################################",
      "1h to 2h        60       1m  ####################################",
      "2h to 6h         2       2h  ##########",
      "6h to 12h        3       2h  #############",
      "12h to 1d        6       2h  ##################",
      "1d to 2d        12       2h  #######################",
      "2d to 4d        24       2h  #############################",
      "4d to 7d        36       2h  ################################",
      "7d to 15d        0        -",
      "15d to 30d       0        -",
      "",
      "204 points left of 43,200; the oldest is 6.9d old",
      "bytes: not known, because they depend on what is written to the disk",
    ]);
  });

  test("has a point every 5 seconds when nothing else is said", async () => {
    expect((await said("--policy", "days:0", "--days", "1")).fields).toMatchObject({
      everyMs: 5_000,
      pointsMade: 17_280,
      points: 1,
    });
  });

  test.each([
    ["2 years of a point a week", ["--days", "730", "--every", "7d"]],
    ["a day of two points", ["--days", "1", "--every", "12h"]],
    ["ten years", ["--days", "4000", "--every", "1h"]],
  ])("draws %s in 80 columns", async (_what, words) => {
    const { lines } = await said("--policy", "keep:last=2,monthly=9", ...words);
    expect(lines.filter((line) => line.length > 80)).toEqual([]);
    expect(lines.at(-2)).toMatch(/^\d+ points left of [\d,]+; the oldest is [\d.]+[dh] old$/);
  });
});
