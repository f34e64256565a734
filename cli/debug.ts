/**
 * Events of the engine on stderr, for `--debug`.
 *
 * The engine publishes on `node:diagnostics_channel`, on channels named `tidemark:*`.
 * The engine's table names them. An event becomes one line: the time, its channel, and its facts as
 * JSON.
 *
 * Invariant: what is printed passes the same mask for secrets as every error.
 */
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import { diagnosticNames } from "../engine/index.ts";
import { withoutSecrets } from "./errors.ts";
import { newsToStderr } from "./text-stream.ts";

/** Channels whose events are printed. */
export const debugChannels: readonly string[] = diagnosticNames.map((name) => `tidemark:${name}`);

/**
 * Prints every event on `channels` until it is disposed of. `write` takes one line with its end.
 */
export function printDebugEvents(
  channels: readonly string[],
  write: (line: string) => void = newsToStderr(),
): Disposable {
  const print = (event: unknown, channel: string | symbol): void => {
    write(withoutSecrets(`${new Date().toISOString()} ${String(channel)} ${JSON.stringify(event)}\n`));
  };
  for (const channel of channels) subscribe(channel, print);
  return {
    [Symbol.dispose]: () => {
      for (const channel of channels) unsubscribe(channel, print);
    },
  };
}
