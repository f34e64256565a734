/**
 * Guard process of a hook (a dead man's switch): thaws the application when the agent is killed
 * between a freeze and its thaw.
 *
 *     agent ──pipe──► guard (sh)        knows the thaw, and the process group of the command that runs
 *       └──gate──► command (sh -c)      waits at its gate until the guard knows its group
 *
 * The guard is a shell in a process group of its own. It reads a pipe whose other end only the
 * agent holds. If the pipe closes before the line `thawed`, the guard ends the command that still
 * runs and then runs the thaw.
 *
 * Invariant: while a command runs, the guard knows its process group. A thaw may therefore run
 * twice, and may run without a freeze; a thaw command must bear both.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import type { HookStep } from "../../store/format/documents.ts";
import { messageOf } from "./hook-record.ts";

/** One command of a hook: the phase that it serves, and how it is run. */
export interface CommandSettings {
  readonly phase: HookStep["phase"];
  readonly command: string;
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
}

/**
 * The guard's program. It ignores the signals that a terminal or a service manager sends to all
 * processes of the agent; the thaw that it starts does not ignore them. It waits until the
 * processes that it kills have ended, so that the thaw runs after them. The wait is bounded,
 * because a zombie that no parent reaps still counts as running.
 */
const guardScript = `
trap '' HUP INT TERM
group=
while read -r word value; do
  case $word in
    running) group=$value ;;
    ended) group= ;;
    thawed) exit 0 ;;
  esac
done
for name in TERM KILL; do
  [ -n "$group" ] && kill -s "$name" -- "-$group" 2>/dev/null || continue
  tenths=0
  while [ "$tenths" -lt 20 ] && kill -s 0 -- "-$group" 2>/dev/null; do
    sleep 0.1
    tenths=$((tenths + 1))
  done
done
trap - HUP INT TERM
exec /bin/sh -c "$1"
`;

/** A running guard. */
export class Guard {
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;

  constructor(child: ChildProcess, ended: Promise<void>) {
    this.#child = child;
    this.#ended = ended;
  }

  /**
   * Writes a line to the guard. Resolves when the line is in the pipe, where it outlives this
   * process, and also when the guard has been killed: this process still thaws.
   */
  tell(line: string): Promise<void> {
    return new Promise((resolve) => {
      if (this.#child.stdin === null) resolve();
      else this.#child.stdin.write(`${line}\n`, () => resolve());
    });
  }

  /** Ends the guard after the thaw, and waits for its end. */
  async dismiss(): Promise<void> {
    await this.tell("thawed");
    this.#child.stdin?.end();
    await this.#ended;
  }
}

/**
 * Starts a guard for the thaw that `settings` gives. `failure` says why it could not be started.
 */
export async function startGuard({
  command,
  cwd,
  env,
}: CommandSettings): Promise<Guard | { readonly failure: string }> {
  const child: ChildProcess = spawn("/bin/sh", ["-c", guardScript, "tidemark-guard", command], {
    cwd,
    env,
    detached: true,
    stdio: ["pipe", "ignore", "ignore"],
  });
  child.stdin?.on("error", () => undefined); // a guard that has been killed
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  try {
    await once(child, "spawn");
  } catch (error) {
    return { failure: `the guard could not be started: ${messageOf(error)}` };
  }
  return new Guard(child, ended);
}
