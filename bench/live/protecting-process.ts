/** Handle of a process that protects and serves a disk. It ends by `stop` or `kill`, and with its parent. */
import { type PointSummary, TidemarkError } from "../../engine/index.ts";
import { AskedProcess } from "./asked-process.ts";
import type { Condition, Order, ProtectionPlan } from "./orders.ts";

export class ProtectingProcess extends AskedProcess<Order, Condition> {
  /** Where fio finds the disk. */
  readonly uri: string;

  private constructor({ socket, disk }: ProtectionPlan, signal: AbortSignal | undefined) {
    super("#protecting-process", "the protecting process", signal);
    this.uri = nbdUri(socket, disk);
  }

  /** Resolves when the disk is served. Errors: those of `Vault.protect` and of the store. */
  static async start(
    plan: ProtectionPlan,
    signal: AbortSignal | undefined,
  ): Promise<{ process: ProtectingProcess; condition: Condition }> {
    const started = new ProtectingProcess(plan, signal);
    try {
      return { process: started, condition: await started.ask({ kind: "serve", plan }) };
    } catch (error) {
      await started.kill();
      throw error;
    }
  }

  get pid(): number {
    return this.program.child.pid ?? NaN;
  }

  /** Takes a point and resolves when it is committed. */
  async point(): Promise<PointSummary> {
    const { point } = await this.ask({ kind: "point" });
    if (point === null) throw new TidemarkError("INTERNAL", "a point was answered by none");
    return point;
  }

  /** Ends the protection with its exact marks saved, and the process. */
  async stop(): Promise<Condition> {
    const condition = await this.ask({ kind: "stop" });
    await this.program.ended;
    return condition;
  }
}

/** doc/uri.md of the NetworkBlockDevice project. */
export function nbdUri(socket: string, exportName: string): string {
  return `nbd+unix:///${encodeURIComponent(exportName)}?socket=${encodeURIComponent(socket)}`;
}
