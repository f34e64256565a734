/** The README's example is run as it stands there, from another folder, as a program that has installed the package. */
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import ts from "typescript";
import { afterEach, beforeEach, expect, test } from "vitest";

const { resolve } = createRequire(import.meta.url);
let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "tidemark-readme-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

test("the README's example does what it says", async () => {
  const readme = readFileSync(join(import.meta.dirname, "..", "README.md"), "utf8");
  const example = /```ts\n([\s\S]+?)```/.exec(readme)?.[1] ?? "";
  // The package's own exports map decides what the two names mean.
  const program = ts
    .transpile(example, { target: ts.ScriptTarget.ES2023, module: ts.ModuleKind.ESNext })
    .replace(/from "(tidemark(?:\/sink)?)"/g, (_, name: string) => `from ${JSON.stringify(pathToFileURL(resolve(name)).href)}`);
  writeFileSync(join(folder, "example.mjs"), program);
  const { stdout } = await promisify(execFile)(process.execPath, ["example.mjs"], { cwd: folder });
  const lines = stdout.trimEnd().split("\n");
  expect(lines).toContainEqual(expect.stringMatching(/^8388608 of 8388608$/));
  expect(lines).toContainEqual(expect.stringMatching(/^point 1: 65536 new bytes, stored as \d{3,4}$/));
  expect(lines).toContainEqual(expect.stringMatching(/^1 \d{4}-\d\d-\d\dT.*Z crash$/));
  expect(readFileSync(join(folder, "back.img")).equals(Buffer.alloc(8 * 1024 * 1024, 7))).toBe(true);
});
