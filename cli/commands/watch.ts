/**
 * `tidemark watch` and `tidemark agent status --watch`: the agent's status once a second. On a terminal
 * it is a screen with keys; elsewhere each status follows the one before.
 */
import process from "node:process";
import { emitKeypressEvents } from "node:readline";
import { Command, Option } from "commander";
import { hasCode, TidemarkError } from "../../engine/index.ts";
import { askAgent } from "../agent/control-client.ts";
import { systemClock } from "../agent/engine-adapter.ts";
import { controlSocketDefault } from "../agent/listen.ts";
import { describeAgent } from "../agent/status-table.ts";
import type { AgentStatus } from "../agent/supervisor.ts";
import { type WatchRequest, WatchScreen } from "../agent/watch-screen.ts";
import { errorReport } from "../errors.ts";
import { printable } from "../text.ts";
import type { CommandContext } from "./context.ts";

/** The agent's socket, and the disks that are meant. */
export interface TargetFlags {
  readonly socket?: string;
  readonly disk?: string;
  readonly group?: string;
}

const watchEveryMs = 1_000;

export function watchCommand(context: CommandContext): Command {
  return new Command("watch")
    .addOption(new Option("--socket <path>", "the agent's control socket").env("TIDEMARK_SOCKET"))
    .option("--disk <name>", "only this disk")
    .option("--group <name>", "only the disks of this group")
    .description("watch the agent's disks on a screen with keys: health, lag, rates, points")
    .addHelpText(
      "after",
      `
Keys take points, pause and resume, each after a question; ? lists them. Where
stdin or stdout is no terminal, the status is printed every second until ^C.
With --json it prints the disks of each second and one summary at the end.

Examples:
  $ tidemark watch
  $ tidemark watch --group db`,
    )
    .action(async (flags: TargetFlags) => await watchAgent(context, "watch", flags));
}

/**
 * Shows the status every second until ^C or `q`, which is the regular end. An agent that is started again
 * is waited for on a screen. Errors: those of `askStatus`.
 */
export async function watchAgent(
  context: CommandContext,
  command: "watch" | "agent status",
  flags: TargetFlags,
): Promise<void> {
  const { output } = context;
  const ended = new AbortController();
  context.answerSignals({ stop: () => ended.abort() });
  const ask = async (): Promise<AgentStatus> => await askStatus(context, flags, ended.signal);
  let status = await ask();
  const keyed =
    output.isScreen && process.stdin.isTTY ? new KeyedScreen(context, flags, () => ended.abort()) : undefined;
  try {
    for (;;) {
      for (const disk of status.disks) output.item("disk", disk);
      if (keyed === undefined) output.screen(describeAgent(status, output));
      else keyed.show(status);
      await systemClock.sleep(watchEveryMs, ended.signal);
      status = await (keyed === undefined ? ask() : keyed.awaitStatus(ask, ended.signal));
    }
  } catch (error) {
    if (!ended.signal.aborted) throw error;
  } finally {
    keyed?.[Symbol.dispose]();
  }
  output.answer(command, { ...status, disks: status.disks.length }, "");
}

/** The status with the disks of the target. Errors: AGENT_UNREACHABLE, DISK_NOT_FOUND. */
export async function askStatus(
  context: CommandContext,
  flags: TargetFlags,
  signal: AbortSignal,
): Promise<AgentStatus> {
  const whole = (await askAgent(socketOf(context, flags), {
    method: "GET",
    path: "/v1/status",
    signal,
  })) as AgentStatus;
  return { ...whole, disks: chosen(whole.disks, flags) };
}

function socketOf({ environment }: CommandContext, { socket }: TargetFlags): string {
  return socket ?? controlSocketDefault(environment);
}

/** The disks of the target; all when it names none. Errors: DISK_NOT_FOUND. */
function chosen(disks: AgentStatus["disks"], { disk, group }: TargetFlags): AgentStatus["disks"] {
  if (disk === undefined && group === undefined) return disks;
  const found = disks.filter(
    (other) =>
      (disk === undefined || other.disk === disk.normalize("NFC")) &&
      (group === undefined || other.group === group.normalize("NFC")),
  );
  if (found.length > 0) return found;
  const named = [
    ...(disk === undefined ? [] : [`disk ${disk}`]),
    ...(group === undefined ? [] : [`group ${group}`]),
  ].join(" in the ");
  throw new TidemarkError("DISK_NOT_FOUND", `the agent has no ${named}`, {
    remedy: "list its disks with `tidemark agent status`",
  });
}

interface Key {
  readonly name?: string;
  readonly sequence?: string;
  readonly ctrl?: boolean;
}

/** The screen on this terminal, whose keys come one by one until it is disposed of. */
class KeyedScreen implements Disposable {
  readonly #context: CommandContext;
  readonly #flags: TargetFlags;
  readonly #quit: () => void;
  readonly #screen = new WatchScreen();

  constructor(context: CommandContext, flags: TargetFlags, quit: () => void) {
    this.#context = context;
    this.#flags = flags;
    this.#quit = quit;
    emitKeypressEvents(process.stdin);
    process.stdin.setRawMode(true);
    process.stdin.on("keypress", this.#onKey);
    process.stdin.resume();
    process.stdout.on("resize", this.#draw);
  }

  show(status: AgentStatus): void {
    this.#screen.take(status);
    this.#draw();
  }

  /** Asks until the agent answers, and shows meanwhile that it does not. */
  async awaitStatus(ask: () => Promise<AgentStatus>, signal: AbortSignal): Promise<AgentStatus> {
    for (;;) {
      try {
        return await ask();
      } catch (error) {
        if (signal.aborted || !hasCode(error, "AGENT_UNREACHABLE")) throw error;
        this.#screen.lose(printable(error.message));
        this.#draw();
        await systemClock.sleep(watchEveryMs, signal);
      }
    }
  }

  [Symbol.dispose](): void {
    process.stdout.off("resize", this.#draw);
    process.stdin.off("keypress", this.#onKey);
    process.stdin.setRawMode(false);
    process.stdin.pause();
  }

  readonly #draw = (): void => {
    const { output } = this.#context;
    const { rows, columns } = process.stdout;
    const paint: typeof output.paint = (colour, text) => output.paint(colour, text);
    output.screen(this.#screen.text({ rows, columns, paint }));
  };

  readonly #onKey = (_: string | undefined, { name, sequence = "", ctrl = false }: Key): void => {
    const answer = this.#screen.key(ctrl ? `ctrl-${name ?? ""}` : (name ?? sequence));
    if (answer === "quit") this.#quit();
    else if (answer !== "draw") void this.#send(answer);
    this.#draw();
  };

  /** Throws nothing: what fails is told on the screen. */
  async #send({ path, fields, what }: WatchRequest): Promise<void> {
    const { signal } = this.#context;
    try {
      await askAgent(socketOf(this.#context, this.#flags), { method: "POST", path, fields, signal });
      this.#screen.tell(`${what}: done`);
    } catch (error) {
      const { message, remedy } = errorReport(error);
      this.#screen.tell(`${what}: ${printable(message)}; ${printable(remedy)}`);
    }
    this.#draw();
  }
}
