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
import { type InstantStatus, type MountSummary, NbdServer, TidemarkError, Vault } from "../../engine/index.ts";
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
  /** Path of an image: the point is not mounted, but taken to an instant target by a test failover. */
  readonly image?: string | undefined;
}

/** From the benchmark. */
export type MountTold = { readonly plan: MountPlan } | "hydrate" | "stop";

/** From the mounting process, to the plan and to `stop`. */
export type MountAnswer =
  /** `servedMs`: from the plan until the point is served, store and vault opened for it. */
  | { readonly servedMs: number }
  /** `hydratedMs`: from when it was served until the image held everything. */
  | { readonly hydratedMs: number }
  | MountEnd
  | { readonly fault: Fault };

export interface MountEnd {
  readonly summary: MountSummary | InstantStatus;
  /** The most memory that the process has had resident. */
  readonly peakRssBytes: number;
}

/** What was opened for a plan. */
interface Serving {
  /** When the image of an instant target holds everything, on the steady clock. */
  readonly hydratedAt: Promise<number>;
  /** Closes all of it again. */
  readonly close: () => Promise<MountEnd>;
}

async function serve(plan: MountPlan): Promise<Serving> {
  const { address, credentials, proxy } = plan.store;
  const sink = await openSink(address, proxy === undefined ? { credentials } : { credentials, proxy });
  const vault = await Vault.open(new NestedSink(sink, plan.prefix), { workers: plan.workers });
  if (plan.image !== undefined) return await serveInstant(vault, sink, plan, plan.image);
  const mount = await vault.mount({ disk: plan.disk, point: "latest" });
  const server = await NbdServer.listen({ listen: { kind: "unix", path: plan.socket } });
  server.addExport({ name: plan.disk, device: mount.device });
  const close = async (): Promise<MountEnd> => {
    await server.close();
    const summary = mount.summary();
    await vault.close();
    await sink[Symbol.asyncDispose]();
    return { summary, peakRssBytes: peakRssBytes() };
  };
  return { hydratedAt: Promise.resolve(performance.now()), close };
}

async function serveInstant(vault: Vault, sink: AsyncDisposable, plan: MountPlan, image: string): Promise<Serving> {
  const { disk, socket } = plan;
  const to = `instant:unix:${socket},image=${image}`;
  const { run } = await vault.failovers.start({ kind: "test", disks: [disk], to });
  const served = await vault.failovers.serve({ run });
  const status = (): InstantStatus => {
    const found = served.status()[0]?.instant;
    if (found == null) throw new TidemarkError("INTERNAL", "the run has no instant target");
    return found;
  };
  const hydratedAt = served.hydrated().then(() => performance.now());
  const close = async (): Promise<MountEnd> => {
    const summary = status();
    await served.stop({ drain: false });
    await vault.failovers.cleanup({ run });
    await vault.close();
    await sink[Symbol.asyncDispose]();
    return { summary, peakRssBytes: peakRssBytes() };
  };
  return { hydratedAt, close };
}

let serving: Serving | undefined;
let servedAt = 0;

async function obey(told: MountTold): Promise<MountAnswer> {
  if (typeof told === "object") {
    const startedAt = performance.now();
    serving = await serve(told.plan);
    servedAt = performance.now();
    return { servedMs: servedAt - startedAt };
  }
  if (serving === undefined)
    throw new TidemarkError("INTERNAL", `the mounting process was told to ${told} before the plan`);
  if (told === "stop") return await serving.close();
  return { hydratedMs: (await serving.hydratedAt) - servedAt };
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
    if ("summary" in said || "fault" in said) process.exit(0);
  });
}

process.on("message", (told: MountTold) => void answer(told));
// The parent is gone or has closed the channel.
process.once("disconnect", () => {
  const end = (): never => process.exit(0);
  if (serving === undefined) end();
  else serving.close().then(end, end);
});
