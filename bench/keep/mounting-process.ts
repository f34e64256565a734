/**
 * Handle of a process that mounts and serves a point. The process ends by `stop` or `end`, when
 * this object is disposed of, and with its parent.
 */
import { setTimeout as delay } from "node:timers/promises";
import { TidemarkError } from "../../engine/index.ts";
import { AskedProcess } from "../live/asked-process.ts";
import { nbdUri } from "../live/protecting-process.ts";
import type { MountAnswer, MountEnd, MountOrder, MountPlan } from "./mounting-entry.ts";

/** For giving up the hold, when there is no time for questions. */
const endMsMax = 2_000;

export class MountingProcess extends AskedProcess<MountOrder, MountAnswer> {
  /** Where NBD clients find the point. */
  readonly uri: string;

  private constructor({ socket, disk }: MountPlan, signal: AbortSignal | undefined) {
    super("#mounting-process", "the mounting process", signal);
    this.uri = nbdUri(socket, disk);
  }

  /**
   * Resolves when the point is served, with the time that took from the moment when the process had
   * the plan. Errors: those of `Vault.mount` and of the store.
   */
  static async start(
    plan: MountPlan,
    signal: AbortSignal | undefined,
  ): Promise<{ readonly process: MountingProcess; readonly servedMs: number }> {
    const started = new MountingProcess(plan, signal);
    try {
      const answer = await started.ask({ plan });
      if (!("servedMs" in answer)) throw unasked();
      return { process: started, servedMs: answer.servedMs };
    } catch (error) {
      await started.end();
      throw error;
    }
  }

  /** Waits until the image of an instant target holds everything. Gives the time from when it was served. */
  async hydrate(): Promise<number> {
    const answer = await this.ask("hydrate");
    if (!("hydratedMs" in answer)) throw unasked();
    return answer.hydratedMs;
  }

  /** Ends the mount in good order, and the process. */
  async stop(): Promise<MountEnd> {
    const answer = await this.ask("stop");
    if (!("summary" in answer)) throw unasked();
    await this.program.ended;
    return answer;
  }

  /**
   * Ends the process, in good order if that does not take long. Resolves when it is gone.
   * Idempotent.
   */
  async end(): Promise<void> {
    this.tell("stop");
    const over = new AbortController();
    const late = delay(endMsMax, undefined, { signal: over.signal }).catch(() => undefined);
    await Promise.race([this.program.ended, late]);
    over.abort();
    await this.kill();
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
  }
}

function unasked(): TidemarkError {
  return new TidemarkError("INTERNAL", "the mounting process answered what it was not asked");
}
