import type { ViteUserConfig } from "vitest/config";
import { CountsReporter } from "./test/counts-reporter.ts";

/**
 * Tests run in child processes, so that a test that kills, locks or opens too much harms no other. Two at a time: many of them
 * start an Azurite of their own, and a machine with two cores is the smallest one that has to be green.
 */
const config: ViteUserConfig = {
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 60_000,
    teardownTimeout: 10_000,
    reporters: [new CountsReporter()],
  },
};
export default config;
