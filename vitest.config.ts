import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { ViteUserConfig } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";
import { CountsReporter } from "./test/counts-reporter.ts";
import { byDepth } from "./test/depth.ts";

/** Files that take longest at the depth `deep`. */
const long =
  /\/test\/(process\/|cli\/(stress|bad-places|processes|failback)|bench\/|docs\/examples|.*-(crash|sessions)\.)/;

/** Begins with the long files, so that they do not leave a processor idle at the end. */
class LongFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const sorted = await super.sort(files);
    const isLong = ({ moduleId }: TestSpecification): boolean => long.test(moduleId);
    return [...sorted.filter(isLong), ...sorted.filter((file) => !isLong(file))];
  }
}

/** A quick run has nothing of a file whose tests are all deep. */
const isQuick = (text: string): boolean =>
  !text.includes('deep-test.ts"') || /import \{[^}]*\b(?:test|it)\b[^}]*\} from "vitest"/.test(text);

/** Every test file of this run: a deep one has only the files that depth changes. */
const files = readdirSync("test", { recursive: true, encoding: "utf8" })
  .filter((path) => path.endsWith(".test.ts"))
  .map((path) => ({ path: join("test", path), text: readFileSync(join("test", path), "utf8") }))
  .filter(({ text }) => byDepth(isQuick(text), /\b(?:depth|deep-test)\.ts"|"fast-check"/.test(text)));

/** Files that replace modules need a process whose modules no other file has loaded. */
const replaces = ({ text }: { readonly text: string }): boolean => /\bvi\.(mock|doMock|resetModules)\(/.test(text);

const pathsOf = (some: typeof files): string[] => some.map(({ path }) => path);

/**
 * Tests run in child processes, so that a test that kills, locks or opens too much harms no other.
 * Three at a time: many of them wait for an Azurite of their own, and a machine with two cores is the
 * smallest one that has to be green. Four in a deep run, whose tests wait longer. Files take turns in
 * the same processes: to load the engine anew for each of them cost a third of the run.
 */
const config: ViteUserConfig = {
  test: {
    projects: [
      { extends: true, test: { name: "replacing modules", include: pathsOf(files.filter(replaces)), isolate: true } },
      {
        extends: true,
        test: { name: "plain", include: pathsOf(files.filter((file) => !replaces(file))), isolate: false },
      },
    ],
    setupFiles: ["test/set-up.ts"],
    pool: "forks",
    maxWorkers: byDepth(3, 4),
    sequence: { sequencer: LongFirst },
    // For a machine whose processors are shared. A test that is expected to take longer says so.
    testTimeout: byDepth(60_000, 180_000),
    hookTimeout: 60_000,
    teardownTimeout: 10_000,
    reporters: [new CountsReporter()],
    coverage: {
      provider: "v8",
      include: ["bench/**/*.ts", "cli/**/*.ts", "engine/**/*.ts", "sink/**/*.ts"],
      exclude: ["test/**"],
      reporter: ["json-summary"], // scripts/coverage.js prints it
    },
  },
};
export default config;
