/** Context of a command in this process that no signal ends. */
import type { CommandContext } from "../../cli/commands/context.ts";
import type { Output } from "../../cli/output.ts";

export function idleContext(output: Output): CommandContext {
  const ignored = (): void => undefined;
  const { signal } = new AbortController();
  return { output, environment: {}, signal, answerSignals: ignored, allowRest: ignored, exitCode: 0, utc: true };
}
