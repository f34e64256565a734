import { mkdtempSync, rmSync } from "node:fs";
import { open, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { contentHash, copySparsely, randomWords, scatterWrites } from "../../bench/image.ts";
import { type BenchKind, type BenchOptions, type BenchReport, formatBench, runBench } from "../../bench/index.ts";
import { median } from "../../bench/steps.ts";
import { DirectorySink } from "../../sink/index.ts";
import { MemorySink, MemoryStore } from "../../sink/testing.ts";
import { deepTest } from "../deep-test.ts";

const mib = 1024 * 1024;
const imageBytes = 24 * mib;
const timesRun = 2;

let folder: string;
let image: string;
let store: MemoryStore;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "bench-test-"));
  image = join(folder, "disk.img");
  store = new MemoryStore();
  await writeImage(image);
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

/** 24 MiB: text-like data, random data, a repetition of it, and holes between them. */
async function writeImage(path: string): Promise<void> {
  const file = await open(path, "wx");
  try {
    await file.truncate(imageBytes);
    const next = randomWords(99);
    const random = Buffer.alloc(3 * mib);
    for (let at = 0; at < random.length; at += 4) random.writeUInt32LE(next(), at);
    const text = Buffer.alloc(4 * mib);
    for (let at = 0; at < text.length; at += 1) text[at] = 97 + ((random[Math.floor(at / 7)] ?? 0) % 9);
    await file.write(text, 0, text.length, mib);
    await file.write(random, 0, random.length, 8 * mib);
    await file.write(random, 0, random.length, 20 * mib);
  } finally {
    await file.close();
  }
}

function options(kind: BenchKind, given: Partial<BenchOptions> = {}): BenchOptions {
  return {
    kind,
    image,
    kernelMs: 2,
    indexEntries: 2048,
    scatterWrites: 200,
    workers: 2,
    openVaultSink: () => Promise.resolve(new MemorySink({ store })),
    temporaryFolder: join(folder, "work"),
    ...given,
  };
}

function expectWhole(report: BenchReport, kind: BenchKind): void {
  expect(report).toMatchObject({ type: "bench", case: kind, seed: 7 });
  expect(report.machine.cores).toBeGreaterThan(0);
  expect(new Date(report.machine.date).getTime()).not.toBeNaN();
  expect(report.peakRssBytes).toBeGreaterThan(mib);
  expect(report.steps.length).toBeGreaterThan(0);
  for (const step of report.steps) {
    const numbers = [step.amount, step.medianMs, step.fastestMs, step.slowestMs, step.perSecond, step.runs];
    expect(
      numbers.filter((value) => !Number.isFinite(value) || value < 0),
      step.name,
    ).toEqual([]);
    expect(step.medianMs, step.name).toBeGreaterThan(0);
  }
  expect(report.marks.length).toBeGreaterThan(0);
  expect(report.marks.filter(({ value, wanted }) => !Number.isFinite(value) || !Number.isFinite(wanted))).toEqual([]);
  expect(Object.entries(report.counts).filter(([, value]) => !Number.isFinite(value))).toEqual([]);
  for (const hash of Object.values(report.hashes)) expect(hash).toMatch(/^[0-9a-f]{32,64}$/);
  expect(JSON.parse(JSON.stringify(report))).toEqual(report);
  const lines = formatBench(report).split("\n");
  expect(lines.filter((line) => line.length > 80)).toEqual([]);
  for (const { name } of report.steps)
    expect(
      lines.some((line) => line.includes(name.slice(0, 30))),
      name,
    ).toBe(true);
}

const names = ({ steps }: BenchReport): string[] => steps.map(({ name }) => name);

describe("each case tells everything that it measured", () => {
  test("kernels, without an image", async () => {
    const report = await runBench(options("kernels", { image: undefined }));
    expectWhole(report, "kernels");
    expect(report.image).toBeNull();
    expect(names(report).map((name) => name.replace(/, \d+ KiB$/, ""))).toEqual([
      "zero test, zeros",
      "fingerprint, zeros",
      "fingerprint, XXH3-128",
      "digest, BLAKE3",
      "digest, SHA-256",
      "LZ4 compress, text",
      "LZ4 compress, random",
      "LZ4 decompress, text",
      "dedup index, insert",
      "dedup index, look up",
    ]);
  });

  deepTest("kernels: the same seed gives the same results, another seed others", async () => {
    const [report, again] = [await runBench(options("kernels")), await runBench(options("kernels"))];
    expect(again.hashes).toEqual(report.hashes);
    const other = await runBench(options("kernels", { seed: 8 }));
    const digest = names(report).find((name) => name.includes("BLAKE3")) ?? "";
    expect(other.hashes[digest]).toMatch(/^[0-9a-f]{32}$/);
    expect(other.hashes[digest]).not.toBe(report.hashes[digest]);
  });

  test("pipeline, whose bare kernels do the very work of the cycle", async () => {
    const report = await runBench(options("pipeline"));
    expectWhole(report, "pipeline");
    const amounts = Object.fromEntries(report.steps.map(({ name, amount }) => [name, amount]));
    const { counts } = report;
    expect(amounts["digest"]).toBe((counts["newBytes"] ?? 0) + (counts["dedupedBytes"] ?? 0));
    expect(amounts["LZ4"]).toBe(counts["newBytes"]);
    expect(amounts["fingerprint"]).toBe(counts["scannedBytes"]);
    expect(counts["discardedBytes"]).toBe(counts["storedBytes"]);
    expect(counts["newBytes"]).toBeGreaterThan(6 * mib);
  });

  test(`initial, ${timesRun} times, with the point proved`, async () => {
    const report = await runBench(options("initial", { runs: timesRun, check: true }));
    expectWhole(report, "initial");
    expect(names(report)).toEqual([
      "first replication, fresh vault",
      "read back and prove",
      "first replication, encrypted",
      "read back and prove, encrypted",
      "plain upload, 4 lanes",
    ]);
    expect(report.steps.map(({ runs }) => runs)).toEqual(Array.from({ length: 5 }, () => timesRun));
    expect(report.hashes["point"]).toBe(report.hashes["image"]);
    // The random data are there twice and go out once.
    expect(report.counts["dedupedBytes"]).toBe(3 * mib);
    expect(report.image).toEqual({ path: image, sizeBytes: imageBytes, allocatedBytes: 10 * mib });
  });

  test("scattered, on a copy: the image stays as it was", async () => {
    const before = await readFile(image);
    const report = await runBench(options("scattered"));
    expectWhole(report, "scattered");
    expect(report.counts["changedBytes"]).toBe(report.counts["writtenBytes"]);
    expect(report.counts["unchangedStoredBytes"]).toBe(0);
    expect(names(report)).toEqual(expect.arrayContaining(["verify the newest point", "verify it against the disk"]));
    expect(before.equals(await readFile(image))).toBe(true);
  });

  test("restore, from a folder, with what peers needed", async () => {
    const peerFile = join(folder, "peers.ndjson");
    await writeFile(
      peerFile,
      '{"peer":"restic","step":"first-backup","seconds":9}\n\n{"peer":"restic","step":"restore","seconds":5,"storeBytes":1}\n',
    );
    const report = await runBench(
      options("restore", { peerFile, openVaultSink: async () => await DirectorySink.open(join(folder, "vault")) }),
    );
    expectWhole(report, "restore");
    expect(report.hashes["point"]).toBe(report.hashes["image"]);
    expect(report.marks.map(({ name }) => name)).toEqual([
      "of the slower of both ceilings",
      "faster than restic (5.0 s)",
      "peak resident memory",
    ]);
    const [restore, ceiling] = ["restore to a new raw file", "Get ceiling, 4 MiB × 4"].map((name) =>
      report.steps.find((step) => step.name === name),
    );
    expect(restore?.amount).toBeGreaterThanOrEqual(10 * mib);
    expect(ceiling?.amount).toBe(report.counts["storedBytes"]);
  });
});

describe("a benchmark leaves nothing behind", () => {
  deepTest("neither in the store nor in the temporary folder", async () => {
    await new MemorySink({ store }).createContainer();
    await new MemorySink({ store }).putObject("vault.json", Buffer.from("somebody's"), { ifAbsent: true });
    await runBench(options("initial"));
    expect([...(store.objects?.keys() ?? [])]).toEqual(["vault.json"]);
    expect(await readdir(join(folder, "work"))).toEqual([]);
  });

  test("when it is interrupted in the middle", async () => {
    const abort = new AbortController();
    const onProgress = ({ step }: { readonly step: string }): void => {
      if (step.startsWith("plain upload")) abort.abort();
    };
    await expect(runBench(options("initial", { signal: abort.signal, onProgress }))).rejects.toMatchObject({
      code: "INTERRUPTED",
    });
    expect([...(store.objects?.keys() ?? [])]).toEqual([]);
    expect(await readdir(join(folder, "work"))).toEqual([]);
  });
});

test("kernels, which never wait, hear of an interruption between two of them", async () => {
  const abort = new AbortController();
  const begun: string[] = [];
  const onProgress = ({ step }: { readonly step: string }): void => {
    begun.push(step);
    setImmediate(() => {
      abort.abort();
    });
  };
  await expect(runBench(options("kernels", { signal: abort.signal, onProgress }))).rejects.toMatchObject({
    code: "INTERRUPTED",
  });
  expect(begun).toHaveLength(1);
});

test("every fault of the options is told at once", async () => {
  const running = runBench(options("initial", { image: undefined, runs: 0, seed: 0 }));
  await expect(running).rejects.toMatchObject({
    code: "INVALID_ARGUMENT",
    message: expect.stringMatching(/image; 0 .*runs.*; 0 .*seed/) as string,
  });
});

test("a peers' file that tells nothing is refused with its line", async () => {
  const peerFile = join(folder, "peers.ndjson");
  await writeFile(peerFile, '{"peer":"restic","step":"restore","seconds":5}\nnot JSON\n');
  await expect(runBench(options("kernels", { peerFile }))).rejects.toMatchObject({
    code: "INVALID_ARGUMENT",
    message: expect.stringContaining("peers.ndjson:2") as string,
  });
});

test("a sparse copy holds the same and keeps the holes", async () => {
  const copy = join(folder, "copy.img");
  await copySparsely(image, copy, undefined);
  expect((await readFile(copy)).equals(await readFile(image))).toBe(true);
  expect((await stat(copy)).blocks).toBeLessThanOrEqual((10 * mib + mib) / 512);
  expect(await contentHash(copy, undefined)).toBe(await contentHash(image, undefined));
});

test("scattered writes change exactly the granules that they count", async () => {
  const before = await readFile(image);
  const granules = await scatterWrites(image, 100, 5, undefined);
  const after = await readFile(image);
  const changed = Array.from({ length: imageBytes / 4096 }, (_, granule) => granule * 4096).filter(
    (at) => !after.subarray(at, at + 4096).equals(before.subarray(at, at + 4096)),
  );
  expect(changed).toHaveLength(granules);
});

test("the median of an even number lies between the middle two", () => {
  expect([median([3]), median([5, 1]), median([9, 1, 2]), median([4, 1, 3, 2])]).toEqual([3, 3, 2, 2.5]);
});
