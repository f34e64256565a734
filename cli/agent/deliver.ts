/** Delivery of a notification: a POST of JSON, or a command that reads JSON from its input. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { homedir } from "node:os";
import process from "node:process";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import type { NotifyConfig } from "./config.ts";

const webhookMsMax = 15_000;
const commandMsMax = 60_000;

/**
 * Sends `notification` once. Errors: those of a place that did not take it; none of them names the path
 * of a webhook.
 */
export async function deliver(place: NotifyConfig, notification: object, signal: AbortSignal): Promise<void> {
  const text = `${JSON.stringify(notification)}\n`;
  const limit = AbortSignal.any([signal, AbortSignal.timeout(place.kind === "webhook" ? webhookMsMax : commandMsMax)]);
  if (place.kind === "webhook") await post(place.url, text, limit);
  else await run(place.command, place.cwd, text, limit);
}

async function post(url: string, body: string, signal: AbortSignal): Promise<void> {
  let response: Response;
  try {
    const headers = { "Content-Type": "application/json" };
    // A redirect would send the findings to another place.
    response = await fetch(url, { method: "POST", headers, body, redirect: "error", signal });
  } catch (error) {
    const cause = error instanceof Error ? error.cause : undefined;
    throw refused(signal.aborted ? "no answer in time" : (systemCode(cause) ?? "it could not be reached"));
  }
  await response.body?.cancel();
  if (!response.ok) throw refused(`status ${String(response.status)}`);
}

/** The command gets nothing of this process's environment, as hooks do not. */
async function run(command: string, cwd: string, input: string, signal: AbortSignal): Promise<void> {
  const child = spawn("/bin/sh", ["-c", command], {
    cwd,
    env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", HOME: homedir(), LANG: "C.UTF-8" },
    stdio: ["pipe", "ignore", "ignore"],
    // A group of its own, so that what it has started ends with it.
    detached: true,
  });
  // A command need not read its input.
  child.stdin.on("error", () => undefined);
  const kill = (): void => {
    if (child.pid !== undefined && child.exitCode === null && child.signalCode === null)
      process.kill(-child.pid, "SIGKILL");
  };
  signal.addEventListener("abort", kill, { once: true });
  try {
    child.stdin.end(input);
    const [code, ending] = (await once(child, "exit")) as [number | null, string | null];
    if (code !== 0) throw refused(signal.aborted ? "it did not end in time" : `exit code ${String(code ?? ending)}`);
  } catch (error) {
    throw error instanceof TidemarkError ? error : refused(systemCode(error) ?? "unknown");
  } finally {
    signal.removeEventListener("abort", kill);
  }
}

function refused(why: string): TidemarkError {
  return new TidemarkError("UNSUPPORTED", why, { remedy: "look at the place that `notify` names" });
}
