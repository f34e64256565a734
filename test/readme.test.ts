/** The README's examples are run as they stand there, from another folder, as programs that have installed the package. */
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import ts from "typescript";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ConfigFolder } from "./cli/agent/configuration.ts";

const { resolve } = createRequire(import.meta.url);
const readme = readFileSync(join(import.meta.dirname, "..", "README.md"), "utf8");
const mib = 1024 * 1024;
let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "tidemark-readme-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

/** The one block of the README in `language` that holds `words`. */
function block(language: string, words: string): string {
  const blocks = [...readme.matchAll(/```(\w+)\n([\s\S]+?)```/g)].filter(
    ([, name, text = ""]) => name === language && text.includes(words),
  );
  expect(blocks).toHaveLength(1);
  return blocks[0]?.[2] ?? "";
}

/** What the example that holds `words` prints, line by line. */
async function outputOf(words: string): Promise<readonly string[]> {
  // The package's own exports map decides what the two names mean.
  const program = ts
    .transpile(block("ts", words), { target: ts.ScriptTarget.ES2023, module: ts.ModuleKind.ESNext })
    .replace(/from "(tidemark(?:\/sink)?)"/g, (_, name: string) => `from ${JSON.stringify(pathToFileURL(resolve(name)).href)}`);
  writeFileSync(join(folder, "example.mjs"), program);
  const { stdout } = await promisify(execFile)(process.execPath, ["example.mjs"], { cwd: folder });
  return stdout.trimEnd().split("\n");
}

describe("the README's example", () => {
  test("of a volume of one's own does what it says", async () => {
    const lines = await outputOf("const volume: Volume");
    expect(lines).toContainEqual(expect.stringMatching(/^8388608 of 8388608$/));
    expect(lines).toContainEqual(expect.stringMatching(/^point 1: 65536 new bytes, stored as \d{3,4}$/));
    expect(lines).toContainEqual(expect.stringMatching(/^1 \d{4}-\d\d-\d\dT.*Z crash$/));
    expect(readFileSync(join(folder, "back.img")).equals(Buffer.alloc(8 * mib, 7))).toBe(true);
  });

  test("of a live disk takes points of what is written", async () => {
    writeFileSync(join(folder, "web.img"), "content");
    truncateSync(join(folder, "web.img"), 8 * mib);
    const lines = await outputOf("vault.protect");
    expect(lines).toContainEqual(expect.stringMatching(/^point \d, crash: 4096 bytes changed$/));
    expect(lines.at(-1)).toBe("state: protection has ended");
    expect(readFileSync(join(folder, "web.img")).subarray(4096, 4103).toString()).toBe("written");
  });

  test("of a list of changes has only those read", async () => {
    writeFileSync(join(folder, "web.img"), Buffer.alloc(8 * mib, 1));
    const lines = await outputOf("new ChangeTracker");
    expect(lines).toEqual(["point 1: 8388608 bytes read", "point 2: 4096 bytes read"]);
  });

  test("of a configuration has no fault but that this machine lacks what it names", async () => {
    const faults = await new ConfigFolder().faults(block("yaml", "policies:"));
    expect(faults).toEqual([
      expect.stringContaining(": /dev/vg0/pg-data does not exist"),
      expect.stringContaining(": /dev/vg0/pg-log does not exist"),
    ]);
  });
});
