/** `tidemark capacity` as a person types it: answers as tables and JSON, and wrong words. */
import { closeSync, ftruncateSync, openSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { expect, test } from "vitest";
import { encodeLine } from "../../../cli/capacity/profile-lines.ts";
import { sketchOf } from "../../../cli/capacity/sketch.ts";
import { Place } from "../tidemark.ts";

const everyMs = 30_000;
const beganMs = Date.UTC(2026, 0, 1);

/** A profile of so many samples, each of the same number of changed blocks. */
function profileOf(samples: number, blocks: number): string {
  const time = (sample: number): string => new Date(beganMs + sample * everyMs).toISOString();
  const start = { type: "start", version: 1, disk: "web\u001b[31m<b>", source: "scan", everyMs } as const;
  const content = { plainBytes: 4096, zeroBytes: 0, knownBytes: 0, packedBytes: 2048, chunks: 1, kernelMs: 0.1 };
  const lines = [encodeLine({ ...start, time: time(0), sizeBytes: 1 << 30, share: 1, dataBytes: 1 << 28, content })];
  for (let sample = 1; sample <= samples; sample += 1) {
    const changed = sketchOf(1, Array.from({ length: blocks }, (_, block) => [block * sample, 1] as const).slice(1));
    lines.push(encodeLine({ type: "sample", disk: start.disk, time: time(sample), spanMs: everyMs, changed, content }));
  }
  return `${lines.join("\n")}\n`;
}

test("a report is tables, JSON and a page; what a profile says of itself cannot garble any of them", async () => {
  const place = new Place();
  writeFileSync(place.path("a.profile"), profileOf(60, 20));
  writeFileSync(place.path("prices.yaml"), "{currency: EUR, storedGiBMonth: 1, writes10k: 0, reads10k: 0}");
  const words = ["capacity", "report", "a.profile", "--rpo", "5m,10m", "--bandwidth", "1Mbit/s,1MiB/s"];
  const asked = [...words, "--growth", "50%", "--retention", "days:1 keep:last=2", "--prices", "prices.yaml"];
  const shown = await place.run([...asked, "--page", "plan.html"]);
  expect([shown.code, shown.stderr]).toEqual([0, ""]);
  expect(shown.stdout).toContain("1 disk, 30 min seen until 2026-01-01T00:30:00.000Z, with 50 % growth");
  expect(shown.stdout).toMatch(/\nRPO +A POINT EVERY[^]*\n5 min +2 min 30 s [^]*\nkeep:last=2 +2 [^]* EUR\n/);
  expect(shown.stdout).not.toContain("\u001b[31m");
  expect(shown.stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
  const page = readFileSync(place.path("plan.html"), "utf8");
  expect(page).not.toMatch(/<b>|<script|https?:|src=/);
  expect(page.match(/<svg /g)).toHaveLength(3);
  const { code, last } = await place.json(...asked);
  expect(code).toBe(0);
  expect(last).toMatchObject({
    command: "capacity report",
    coveredMs: 60 * everyMs,
    objectives: [{ cycleMs: 150_000 }, { cycleMs: 300_000 }],
    lines: [{ bytesPerSecond: 125_000 }, { bytesPerSecond: 1 << 20 }],
  });
});

test("a profile of a disk can be taken, gone on with and reported", async () => {
  const place = new Place();
  const file = openSync(place.path("disk.img"), "w");
  ftruncateSync(file, 1 << 20);
  closeSync(file);
  const words = ["capacity", "profile", "--disk", "disk.img", "--for", "1s", "--out", "disk.profile"];
  expect((await place.json(...words)).last).toMatchObject({ command: "capacity profile", samples: 2 });
  expect((await place.json(...words)).last).toMatchObject({ samples: 2 });
  expect(readFileSync(place.path("disk.profile"), "utf8").split("\n")).toHaveLength(7);
  const { last } = await place.json(
    "capacity",
    "report",
    "disk.profile",
    "--retention",
    "keep:last=2",
    "--bandwidth",
    "1Mbit/s",
  );
  expect(last).toMatchObject({ disks: [{ changedBytesPerSecond: 0 }], lines: [{ fallsBehind: false }] });
});

test("wrong words and files are named", async () => {
  const place = new Place();
  writeFileSync(place.path("a.profile"), profileOf(8, 4));
  writeFileSync(place.path("one.profile"), profileOf(1, 4));
  writeFileSync(place.path("text"), "hello\n");
  writeFileSync(place.path("prices.yaml"), "currency: EUR\nstoredGiBMonth: cheap\n");
  const cases: readonly (readonly [words: string, error: RegExp])[] = [
    ["report a.profile --rpo 30s", /samples of 30 s tells nothing about an RPO of 30 s\n.*--rpo 1min or more/],
    ["report a.profile --rpo 1h", /a profile of 4 min is too short for an RPO of 1 h/],
    ["report one.profile", /one.profile: 1 whole sample cannot make a report/],
    ["report text", /line 1 of text is no line of a capacity profile/],
    ["report absent", /there is no file absent/],
    ["report a.profile --bandwidth 100", /'100' is invalid/],
    ["report a.profile --growth 0.3", /'0.3' is invalid/],
    ["report a.profile --retention weekly", /weekly/],
    ["report a.profile --prices prices.yaml", /prices.yaml has no price storedGiBMonth/],
    ["report a.profile --page absent/plan.html", /absent\/plan.html cannot be written \(ENOENT\)/],
    ["profile --for 1h --out new.profile", /nothing to look at is named/],
    ["profile --for soon --out new.profile --agent", /'soon' is invalid/],
    ["profile --for 1h --out text --disk text", /line 1 of text is no line/],
    ["profile --for 1h --out new.profile --disk absent", /absent does not exist/],
    ["profile --for 1h --out new.profile --agent --socket absent", /absent: no agent is running there/],
    ["throughput --vault dir:absent", /there is no vault/],
  ];
  for (const [words, error] of cases) {
    const { code, stderr } = await place.run(["capacity", ...words.split(" ")]);
    expect(stderr, words).toMatch(error);
    expect(code, words).toBeGreaterThan(0);
  }
  expect(readdirSync(place.folder).filter((name) => name.startsWith("new"))).toEqual([]);
});
