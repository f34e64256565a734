/** Commands of a run, which an operator gave it: the check of a target, and the shutdown of the source. */
import { TidemarkError, throwIfAborted } from "../errors.ts";
import { runCommand } from "../replication/protection/hook-command.ts";
import type { RunDocument, RunMember } from "../store/format/run.ts";
import { variablesOf } from "./run-facts.ts";
import { targetName } from "./target.ts";

/** What commands printed, and how the last one ended. */
export interface PrintedByCommands {
  readonly output: string;
  readonly exitCode: number | null;
}

/** What a task keeps of the output of its commands: the end. */
const outputCharactersMax = 16_384;

export class RunCommands {
  readonly #environment: Readonly<Record<string, string>>;
  readonly #signal: AbortSignal;
  #printed: PrintedByCommands | undefined;

  constructor(environment: Readonly<Record<string, string>>, signal: AbortSignal) {
    this.#environment = environment;
    this.#signal = signal;
  }

  /** What the commands since the last call printed; undefined: there were none. */
  take(): PrintedByCommands | undefined {
    const printed = this.#printed;
    this.#printed = undefined;
    return printed;
  }

  /** Checks a target. `uri`: where it is served. Errors: HOOK_FAILED, INTERRUPTED. */
  async check(document: RunDocument, member: RunMember, uri: string | undefined): Promise<void> {
    const { kind, path } = member.target;
    const image = kind === "blob" ? targetName(member.target) : path;
    const place = uri === undefined ? { TIDEMARK_IMAGE: image } : { TIDEMARK_NBD: uri };
    const exitCode = await this.#run(document.check ?? "", { ...variablesOf(document, member), ...place });
    if (exitCode === 0) return;
    const ending = exitCode === null ? "was ended by a signal" : `ended with exit code ${exitCode}`;
    throw new TidemarkError("HOOK_FAILED", `the check of disk ${JSON.stringify(member.disk)} ${ending}`, {
      remedy: `see its output with \`tidemark failover show ${document.run}\``,
      detail: { disk: member.disk },
    });
  }

  /** Stops what writes the source. Errors: HOOK_FAILED, INTERRUPTED. */
  async shutDown(document: RunDocument): Promise<void> {
    const [first] = document.members;
    const exitCode = await this.#run(document.shutdown ?? "", first === undefined ? {} : variablesOf(document, first));
    if (exitCode === 0) return;
    throw new TidemarkError("HOOK_FAILED", `the shutdown command ended with ${exitCode ?? "a signal"}`, {
      remedy: "see its output with `tidemark failover show`",
    });
  }

  /** Runs a command to its end and keeps what it printed. */
  async #run(command: string, variables: Readonly<Record<string, string>>): Promise<number | null> {
    const env = { ...this.#environment, ...variables };
    const step = await runCommand({ phase: "pre", command, cwd: "/", env }, undefined, this.#signal);
    const output = `${this.#printed?.output ?? ""}${step.output}`.slice(-outputCharactersMax);
    this.#printed = { output, exitCode: step.exitCode };
    throwIfAborted(this.#signal);
    return step.exitCode;
  }
}
