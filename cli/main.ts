#!/usr/bin/env node
/** The program `tidemark`. What it can do stands in program.ts. */
import process from "node:process";
import { runCommandLine } from "./program.ts";

// Everything is closed and flushed by now. Ending explicitly keeps a library's forgotten timer or
// socket from holding up a script.
process.exit(await runCommandLine(process.argv.slice(2), process.env));
