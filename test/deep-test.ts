/**
 * Tests that only a deep run has: those that take long and repeat, in another scene or with real
 * processes, what a test of the quick run proves.
 */
import { test } from "vitest";
import { byDepth } from "./depth.ts";

/** Registers nothing, however it is called. */
const notRegistered: typeof test = new Proxy(test, { apply: () => notRegistered, get: () => notRegistered });

/** `test` in a deep run; a quick run does not have the test at all. */
export const deepTest: typeof test = byDepth(notRegistered, test);
