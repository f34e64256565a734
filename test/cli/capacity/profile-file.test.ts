import { appendFileSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { expect, onTestFinished, test } from "vitest";
import { ProfileWriter, readProfile } from "../../../cli/capacity/profile-file.ts";
import { decodeLine, encodeLine, type ProfileLine, type SampleLine } from "../../../cli/capacity/profile-lines.ts";
import { sketchOf } from "../../../cli/capacity/sketch.ts";
import { runsOf } from "../../depth.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";

const start: ProfileLine = {
  type: "start",
  version: 1,
  disk: "d",
  source: "scan",
  time: "2026-01-01T00:00:00.000Z",
  everyMs: 30_000,
  sizeBytes: 1 << 20,
};

function sampleAt(minute: number): SampleLine {
  const time = new Date(Date.UTC(2026, 0, 1, 0, minute)).toISOString();
  return { type: "sample", disk: "d", time, spanMs: 60_000, changed: sketchOf(1, [[minute, 5]]) };
}

function newPath(): string {
  const folder = createFolder("profile");
  onTestFinished(async () => await removeFolder(folder));
  return join(folder, "disk.profile");
}

async function linesOf(path: string): Promise<readonly ProfileLine[]> {
  const lines: ProfileLine[] = [];
  for await (const line of readProfile(path)) lines.push(line);
  return lines;
}

async function append(path: string, ...lines: readonly ProfileLine[]): Promise<void> {
  const writer = await ProfileWriter.open(path);
  for (const line of lines) await writer.append(line);
  await writer[Symbol.asyncDispose]();
}

test("a profile that is cut off anywhere loses its last line only, and the next profiler goes on behind the rest", async () => {
  const path = newPath();
  await append(path, start, sampleAt(1), sampleAt(2));
  const whole = readFileSync(path);
  const ends = [...whole.entries()].filter(([, byte]) => byte === 10).map(([at]) => at + 1);
  for (const length of [ends[2] ?? 0, (ends[2] ?? 0) - 1, (ends[1] ?? 0) + 1, (ends[0] ?? 0) + 40, 60, 0]) {
    writeFileSync(path, whole.subarray(0, length));
    await append(path, start, sampleAt(9));
    const kept = [start, sampleAt(1), sampleAt(2)].slice(0, ends.filter((end) => end <= length).length);
    expect(await linesOf(path)).toEqual([...kept, start, sampleAt(9)]);
  }
});

test("a file that is no profile is not touched", async () => {
  const path = newPath();
  for (const content of ["hello", "hello\n", '{"type":"other"}\n', "\0".repeat(200_000), "x".repeat(100_000)]) {
    writeFileSync(path, content);
    await expect(ProfileWriter.open(path)).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    expect(readFileSync(path, "utf8")).toBe(content);
  }
});

test("a fault inside a profile is named with its line", async () => {
  const path = newPath();
  await append(path, start, sampleAt(1));
  appendFileSync(path, "no line\n");
  await expect(linesOf(path)).resolves.toHaveLength(2);
  appendFileSync(path, `${encodeLine(sampleAt(2))}\n`);
  await expect(linesOf(path)).rejects.toMatchObject({ code: "INVALID_ARGUMENT", detail: { line: 3 } });
});

test("a second profiler of one file is refused", async () => {
  const path = newPath();
  const writer = await ProfileWriter.open(path);
  await expect(ProfileWriter.open(path)).rejects.toMatchObject({ code: "WRITER_ACTIVE" });
  await writer[Symbol.asyncDispose]();
  await append(path, start);
});

test("a file that is not there is named", async () => {
  await expect(linesOf(newPath())).rejects.toMatchObject({ code: "SOURCE_NOT_FOUND" });
});

test("a line that was changed at random decodes to a line whose numbers can be used, or to nothing", () => {
  const text = encodeLine(sampleAt(3));
  fc.assert(
    fc.property(fc.nat(text.length - 1), fc.string({ maxLength: 3 }), (at, put) => {
      const line = decodeLine(text.slice(0, at) + put + text.slice(at + put.length));
      if (line?.type !== "sample") return;
      expect(line.spanMs).toBeGreaterThanOrEqual(0);
      expect(line.changed?.share ?? 1).toBeGreaterThan(0);
    }),
    { numRuns: runsOf(2_000) },
  );
});

test("a truncated profile keeps what it had", async () => {
  const path = newPath();
  await append(path, start, sampleAt(1));
  truncateSync(path, readFileSync(path).length - 3);
  expect(await linesOf(path)).toEqual([start]);
});
