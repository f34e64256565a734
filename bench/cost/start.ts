/**
 * Benchmark: how long a command takes that does next to nothing, and an import of the library, each in
 * a new process. The yardstick is Node alone.
 */
import { randomFillSync } from "node:crypto";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { TidemarkError } from "../../engine/index.ts";
import { runProgram } from "../live/programs.ts";
import { peakRssBytes } from "../machine.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { StepLog } from "../steps.ts";

const [listStep, importStep, bareStep] = ["points list", "import the library", "Node alone"] as const;
const diskBytes: number = 1024 * 1024;
/** Starts of each in one run: a single one says little. */
const startsARun = 5;

export async function benchStart(config: BenchConfig): Promise<CaseOutcome> {
  const { temporaryFolder, runs, signal, mark } = config;
  const folder = join(temporaryFolder, "start");
  await mkdir(folder);
  const log = new StepLog(config);
  const program = fileURLToPath(import.meta.resolve("#program"));
  const node = async (...words: readonly string[]): Promise<void> => {
    const { exitCode, stderr } = await runProgram(process.execPath, words, folder, signal, { HOME: folder });
    if (exitCode !== 0) throw new TidemarkError("INTERNAL", `node ${words.join(" ")} failed: ${stderr.trim()}`);
  };
  const ofVault = ["--vault", "dir:vault", "--disk", "start"];
  await writeFile(join(folder, "disk.img"), randomFillSync(Buffer.alloc(diskBytes)));
  await node(program, "replicate", "disk.img", ...ofVault);
  const library = `import ${JSON.stringify(import.meta.resolve("tidemark"))}`;
  for (let run = 0; run < runs; run += 1) {
    for (let start = 0; start < startsARun; start += 1) {
      for (const [step, role, words] of [
        [bareStep, "yardstick", ["--eval", "0"]],
        [importStep, "tidemark", ["--input-type=module", "--eval", library]],
        [listStep, "tidemark", [program, "points", "list", ...ofVault]],
      ] as const)
        await log.time(
          step,
          { role, unit: "operations" },
          run,
          async () => await node(...words),
          () => 1,
        );
    }
  }
  await rm(folder, { recursive: true });
  return {
    image: null,
    steps: log.steps(),
    marks: [
      mark("points list of a small vault", log.medianMs(listStep)),
      mark("import of the library", log.medianMs(importStep)),
    ],
    counts: {},
    hashes: {},
    peakRssBytes: peakRssBytes(),
  };
}
