#!/usr/bin/env node
/**
 * The program `tidemark`. What it can do stands in program.ts.
 *
 * Invariant: Node's own report of an error, with a stack and a code excerpt, is never printed.
 */
import { writeSync } from "node:fs";
import process from "node:process";

// Node would open its debugger to every user of this machine at that signal.
process.on("SIGUSR1", () => undefined);

try {
  // Imported here, so that a failure to load the program is reported as every other.
  const { reportUncaught, runCommandLine } = await import("./program.ts");
  process.on("uncaughtException", (error) => end(reportUncaught(error, process.argv, process.env)));
  // Everything is closed and flushed by now. Ending explicitly keeps a library's forgotten timer or
  // socket from holding up a script.
  process.exit(await runCommandLine(process.argv.slice(2), process.env));
} catch (error) {
  const fact = error instanceof Error ? error.message : String(error);
  end(
    `error: tidemark cannot start: ${fact}\n  raise the limit of open files with \`ulimit -n 1024\`, or install tidemark again\n`,
  );
}

function end(report: string): never {
  try {
    writeSync(2, report);
  } catch {
    process.exit(1); // stderr is gone too, so the exit code alone tells it
  }
  process.exit(1);
}
