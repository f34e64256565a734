/** `tidemark bench`. */
import { Command } from "commander";
import type { CommandContext } from "./context.ts";
export function benchCommand(_context: CommandContext): Command {
  return new Command("bench");
}
