/**
 * Handle of a process that protects and serves a disk. The process ends by `stop` or `kill`, when
 * this object is disposed of, and with its parent.
 */
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { interrupted, type PointSummary, TidemarkError, throwIfAborted } from "../../engine/index.ts";
import type { Answer, Condition, Order, ProtectionPlan, Told } from "./orders.ts";
import { Program } from "./programs.ts";

interface Waiting {
  readonly resolve: (condition: Condition) => void;
  readonly reject: (error: TidemarkError) => void;
}

export class ProtectingProcess implements AsyncDisposable {
  /** Where fio finds the disk. */
  readonly uri: string;
  readonly #program: Program;
  readonly #signal: AbortSignal | undefined;
  readonly #waiting = new Map<number, Waiting>();
  #lastNumber = 0;

  private constructor(program: Program, plan: ProtectionPlan, signal: AbortSignal | undefined) {
    this.uri = nbdUri(plan.socket, plan.disk);
    this.#program = program;
    this.#signal = signal;
    program.child.on("message", (answer: Answer) => {
      const waiting = this.#waiting.get(answer.number);
      this.#waiting.delete(answer.number);
      if ("condition" in answer) waiting?.resolve(answer.condition);
      else waiting?.reject(new TidemarkError(answer.fault.code, answer.fault.message, remedied(answer.fault.remedy)));
    });
    void program.ended.then(() =>
      this.#giveUp(new TidemarkError("INTERNAL", `the process that protects ${plan.image} has ended`)),
    );
  }

  /** Resolves when the disk is served. Errors: those of `Vault.protect` and of the store. */
  static async start(
    plan: ProtectionPlan,
    signal: AbortSignal | undefined,
  ): Promise<{ process: ProtectingProcess; condition: Condition }> {
    // A ^C at the terminal is for us; what it means for the process we tell it.
    const child = fork(fileURLToPath(import.meta.resolve("#protecting-process")), [], {
      execArgv: [],
      detached: true,
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
    const program = new Program(child, "the protecting process");
    const started = new ProtectingProcess(program, plan, signal);
    try {
      const told: Told = { plan };
      return { process: started, condition: await started.#tell(0, told) };
    } catch (error) {
      await started.kill();
      throw error;
    }
  }

  get pid(): number {
    return this.#program.child.pid ?? NaN;
  }

  /** Takes a point and resolves when it is committed. */
  async point(): Promise<PointSummary> {
    const { point } = await this.order({ kind: "point" });
    if (point === null) throw new TidemarkError("INTERNAL", "a point was answered by none");
    return point;
  }

  /** Errors: those of the order; INTERRUPTED at ^C. */
  async order(order: Order): Promise<Condition> {
    this.#lastNumber += 1;
    return await this.#tell(this.#lastNumber, { number: this.#lastNumber, order });
  }

  /** Ends the protection with its exact marks saved, and the process. */
  async stop(): Promise<Condition> {
    const condition = await this.order({ kind: "stop" });
    await this.#program.ended;
    return condition;
  }

  /** kill -9. Resolves when the process is gone. */
  async kill(): Promise<void> {
    await this.#program.kill();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  async #tell(number: number, told: Told): Promise<Condition> {
    const signal = this.#signal;
    throwIfAborted(signal);
    let stop = (): void => undefined;
    const answered = new Promise<Condition>((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject });
      if (signal !== undefined) stop = () => reject(interrupted(signal));
      signal?.addEventListener("abort", stop, { once: true });
      this.#program.child.send(told, (error) => {
        if (error !== null)
          reject(new TidemarkError("INTERNAL", "the protecting process cannot be told anything", { cause: error }));
      });
    });
    try {
      return await answered;
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  #giveUp(error: TidemarkError): void {
    for (const waiting of this.#waiting.values()) waiting.reject(error);
    this.#waiting.clear();
  }
}

/** doc/uri.md of the NetworkBlockDevice project. */
export function nbdUri(socket: string, exportName: string): string {
  return `nbd+unix:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(socket)}`;
}

function remedied(remedy: string | undefined): { readonly remedy?: string } {
  return remedy === undefined ? {} : { remedy };
}
