/** Marks: one file says what is wanted, and a mark that is missed is a failure of the command. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { benchKinds } from "../../bench/kinds.ts";
import { isMet, marksOf, readTargets } from "../../bench/targets.ts";
import { Place } from "../cli/tidemark.ts";
import { repositoryRoot } from "../source-tree.ts";

describe("targets.yaml", () => {
  test("has targets of every case, and each is asked for by the code of a case", async () => {
    const targets = await readTargets();
    const bench = join(repositoryRoot, "bench");
    const code = readdirSync(bench, { recursive: true, encoding: "utf8" })
      .filter((path) => path.endsWith(".ts"))
      .map((path) => readFileSync(join(bench, path), "utf8"))
      .join("\n");
    for (const kind of benchKinds) {
      expect(Object.keys(targets[kind]).length, kind).toBeGreaterThan(0);
      for (const name of Object.keys(targets[kind])) {
        // The code puts the pattern in front of ", of qemu-nbd", and the store behind "draining".
        const parts = name.split(/(?<=k|m)(?=, of qemu-nbd$)|(?<=^draining)(?=,)|(?=, (?:of idle|p99)$)/);
        expect(
          parts.filter((part) => !code.includes(part)),
          `${kind}: ${name}`,
        ).toEqual([]);
      }
    }
  });

  test("a mark with small sizes is judged by its value for quick runs, or not at all", async () => {
    const targets = await readTargets();
    const whole = marksOf(targets, "failover", false);
    expect(whole("planned, the slower of both disks", 2_999)).toMatchObject({ unit: "ms", wanted: 3_000 });
    const small = marksOf(targets, "failover", true)("planned, large disk ÷ 8 GiB disk", 9);
    expect([small.wanted, isMet(small)]).toEqual([null, null]);
    expect(isMet(whole("planned, large disk ÷ 8 GiB disk", 9))).toBe(false);
    expect(() => whole("unheard of", 1)).toThrow(/no mark unheard of/);
  });

  test.each([
    ["open: { newest point of the chain opened: { at most: soon } }", /has no value/],
    ["open: { newest point of the chain opened: { at most: 2 s, quick: 2 } }", /has no value/],
    ["open: { opened: { at most: 2 s } }", /the case open has no mark "opened"/],
    ["opening: { opened: { at most: 2 s } }", /the case opening has no mark/],
    ["open: [", /BAD_INDENT|line/],
    ["open: 5", /mine.yaml: open is no list/],
    ["- open", /mine.yaml is no list/],
    ["open: { newest point of the chain opened: { at most: 2 s, at least: 1 s } }", /has two values/],
  ])("a file with the targets %s is refused", async (text, message) => {
    const place = new Place();
    writeFileSync(place.path("mine.yaml"), text);
    await expect(readTargets(place.path("mine.yaml"))).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      message: expect.stringMatching(message) as string,
    });
  });
});

test("a case that misses a mark exits with 1, and with 0 after --no-fail", async () => {
  const place = new Place();
  writeFileSync(place.path("mine.yaml"), "open: { newest point of the chain opened: { at most: 0 ms } }\n");
  const words = ["bench", "open", "--vault", "dir:v", "--points", "8", "--disk-size", "16MiB", "--workers", "1"];
  const missed = await place.run([...words, "--targets", "mine.yaml"]);
  expect(missed.stdout).toMatch(/newest point of the chain opened .*≤ 0\.000 ms {2}NO/);
  expect(missed.code).toBe(1);
  expect(await place.run([...words, "--targets", "mine.yaml", "--no-fail"])).toMatchObject({ code: 0 });
});

test.each(["100", "100MB/s/s", "fast"])("--rate %s is refused with an example", async (rate) => {
  const ended = await new Place().run(["bench", "churn", "--rate", rate]);
  expect(ended.code).toBe(2);
  expect(ended.stderr).toContain("100MB/s");
});

test.each([
  [["suite", "--out", "file"], 1, "the folder {file} cannot be made (EEXIST)"],
  [["suite", "--baseline", "absent"], 2, "the baseline absent cannot be read (ENOENT)"],
  [["suite", "--vault", "memory:"], 2, "a store that several processes can open"],
  [["churn", "--disk-size", "1KiB"], 2, "1.0 KiB is no size of a disk from 16.0 MiB to 64.0 TiB"],
  [["restart", "--find-limit"], 2, "restart has no limit to find; these have: front, burst, churn, soak, instant"],
  [["initial", "--image", "file", "--vault", "dir:v"], 2, "file has 5 B, which is too little to measure"],
])("bench %j is refused before anything is measured", async (words, code, message) => {
  const place = new Place();
  writeFileSync(place.path("file"), "small");
  const ended = await place.run(["bench", ...words]);
  expect(ended.code).toBe(code);
  expect(ended.stderr).toContain(message.replace("{file}", place.path("file")));
});
