/**
 * Process that mounts and serves one point for a benchmark: the `Vault.mount` and `NbdServer` of
 * `tidemark mount`, in a process of its own, as any other NBD server is. `MountingProcess` starts
 * it. It ends when told to, or with its parent, and gives up the reader hold in both cases, because
 * a leased object cannot be removed.
 *
 * Parent and child talk over the channel that Node gives them: first the plan, so that no
 * credential is in an argument or in the environment, and at the end the order to stop. A module
 * that imports the types of those messages imports nothing else.
 */
import process from "node:process";
import { type MountSummary, NbdServer, TidemarkError, Vault } from "../../engine/index.ts";
import { openSink } from "../../sink/index.ts";
import type { Fault, StoreAddress } from "../live/orders.ts";
import { peakRssBytes } from "../machine.ts";
import { NestedSink } from "../nested-sink.ts";

export interface MountPlan {
  readonly store: StoreAddress;
  /** Where in the store the vault lies; ends with a slash. */
  readonly prefix: string;
  readonly disk: string;
  /** Path of the Unix socket on which the newest point is served. */
  readonly socket: string;
  readonly workers: number;
}

/** From the benchmark. */
export type MountTold = { readonly plan: MountPlan } | "stop";

/** From the mounting process, to the plan and to `stop`. */
export type MountAnswer =
  /** `servedMs`: from the plan until the point is served, store and vault opened for it. */
  { readonly servedMs: number } | MountEnd | { readonly fault: Fault };

export interface MountEnd {
  readonly summary: MountSummary;
  /** The most memory that the process has had resident. */
  readonly peakRssBytes: number;
}

/** How all that was opened for a mount is closed again. */
type Close = () => Promise<MountEnd>;

async function serve(plan: MountPlan): Promise<Close> {
  const { address, credentials, proxy } = plan.store;
  const sink = await openSink(address, proxy === undefined ? { credentials } : { credentials, proxy });
  const vault = await Vault.open(new NestedSink(sink, plan.prefix), { workers: plan.workers });
  const mount = await vault.mount({ disk: plan.disk, point: "latest" });
  const server = await NbdServer.listen({ listen: { kind: "unix", path: plan.socket } });
  server.addExport({ name: plan.disk, device: mount.device });
  return async () => {
    await server.close();
    const summary = mount.summary();
    await vault.close();
    await sink[Symbol.asyncDispose]();
    return { summary, peakRssBytes: peakRssBytes() };
  };
}

let closing: Close | undefined;

async function obey(told: MountTold): Promise<MountAnswer> {
  if (told !== "stop") {
    const startedAt = performance.now();
    closing = await serve(told.plan);
    return { servedMs: performance.now() - startedAt };
  }
  if (closing === undefined)
    throw new TidemarkError("INTERNAL", "the mounting process was told to stop before the plan");
  return await closing();
}

async function answer(told: MountTold): Promise<void> {
  let said: MountAnswer;
  try {
    said = await obey(told);
  } catch (error) {
    const known =
      error instanceof TidemarkError ? error : new TidemarkError("INTERNAL", String(error), { cause: error });
    said = { fault: { code: known.code, message: known.message, remedy: known.remedy } };
  }
  process.send?.(said, undefined, undefined, () => {
    if (!("servedMs" in said)) process.exit(0);
  });
}

process.on("message", (told: MountTold) => void answer(told));
// The parent is gone or has closed the channel.
process.once("disconnect", () => {
  const end = (): never => process.exit(0);
  if (closing === undefined) end();
  else closing().then(end, end);
});
