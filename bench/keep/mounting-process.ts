/**
 * Handle of a process that mounts and serves a point. The process ends by `stop` or `end`, when
 * this object is disposed of, and with its parent.
 */
import { fork } from "node:child_process";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { interrupted, TidemarkError, throwIfAborted } from "../../engine/index.ts";
import { Program } from "../live/programs.ts";
import { nbdUri } from "../live/protecting-process.ts";
import type { MountAnswer, MountEnd, MountPlan, MountTold } from "./mounting-entry.ts";

/** For giving up the hold, when there is no time for questions. */
const endMsMax = 2_000;

export class MountingProcess implements AsyncDisposable {
  /** Where NBD clients find the point. */
  readonly uri: string;
  readonly #program: Program;
  readonly #signal: AbortSignal | undefined;

  private constructor(program: Program, plan: MountPlan, signal: AbortSignal | undefined) {
    this.uri = nbdUri(plan.socket, plan.disk);
    this.#program = program;
    this.#signal = signal;
  }

  /**
   * Resolves when the point is served, with the time that took from the moment when the process had
   * the plan. Errors: those of `Vault.mount` and of the store.
   */
  static async start(
    plan: MountPlan,
    signal: AbortSignal | undefined,
  ): Promise<{ readonly process: MountingProcess; readonly servedMs: number }> {
    // A ^C at the terminal is for us; what it means for the process we tell it.
    const child = fork(fileURLToPath(import.meta.resolve("#mounting-process")), [], {
      execArgv: [],
      detached: true,
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
    const started = new MountingProcess(new Program(child, "the mounting process"), plan, signal);
    try {
      const answer = await started.#ask({ plan });
      if (!("servedMs" in answer)) throw unasked();
      return { process: started, servedMs: answer.servedMs };
    } catch (error) {
      await started.end();
      throw error;
    }
  }

  /** Waits until the image of an instant target holds everything. Gives the time from when it was served. */
  async hydrate(): Promise<number> {
    const answer = await this.#ask("hydrate");
    if (!("hydratedMs" in answer)) throw unasked();
    return answer.hydratedMs;
  }

  /** Ends the mount in good order, and the process. */
  async stop(): Promise<MountEnd> {
    const answer = await this.#ask("stop");
    if (!("summary" in answer)) throw unasked();
    await this.#program.ended;
    return answer;
  }

  /**
   * Ends the process, in good order if that does not take long. Resolves when it is gone.
   * Idempotent.
   */
  async end(): Promise<void> {
    const { child, ended } = this.#program;
    const stop: MountTold = "stop";
    // Whether it was heard, the end will show.
    if (child.connected) child.send(stop, () => undefined);
    const over = new AbortController();
    const late = delay(endMsMax, undefined, { signal: over.signal }).catch(() => undefined);
    await Promise.race([ended, late]);
    over.abort();
    await this.#program.kill();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
  }

  /** One question at a time. */
  async #ask(told: MountTold): Promise<Exclude<MountAnswer, { readonly fault: unknown }>> {
    throwIfAborted(this.#signal);
    const { child, ended } = this.#program;
    const over = new AbortController();
    const answered = new Promise<MountAnswer>((resolve, reject) => {
      const heard = (answer: MountAnswer): void => resolve(answer);
      child.once("message", heard);
      over.signal.addEventListener("abort", () => child.off("message", heard), { once: true });
      const given = this.#signal;
      given?.addEventListener("abort", () => reject(interrupted(given)), { once: true, signal: over.signal });
      void ended.then(() => reject(new TidemarkError("INTERNAL", "the process that mounts the point has ended")));
      child.send(told, (error) => {
        if (error !== null)
          reject(new TidemarkError("INTERNAL", "the mounting process cannot be told anything", { cause: error }));
      });
    });
    try {
      const answer = await answered;
      if (!("fault" in answer)) return answer;
      const { code, message, remedy } = answer.fault;
      throw new TidemarkError(code, message, remedy === undefined ? {} : { remedy });
    } finally {
      over.abort();
    }
  }
}

function unasked(): TidemarkError {
  return new TidemarkError("INTERNAL", "the mounting process answered what it was not asked");
}
