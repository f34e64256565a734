/**
 * Process that mounts and serves one point for a benchmark: the `Vault.mount` and `NbdServer` of
 * `tidemark mount`, in a process of its own, as any other NBD server is. `MountingProcess` starts
 * it. It ends when told to, or with its parent, and gives up the reader hold in both cases, because
 * a leased object cannot be removed. A module that imports the types of its orders and answers
 * imports nothing else.
 */
import process from "node:process";
import { type InstantStatus, type MountSummary, NbdServer, TidemarkError, Vault } from "../../engine/index.ts";
import { openSink } from "../../sink/index.ts";
import { answerParent } from "../live/asked-process.ts";
import type { StoreAddress } from "../live/orders.ts";
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
export type MountOrder = { readonly plan: MountPlan } | "hydrate" | "stop";

/** To the plan, to `hydrate` and to `stop`. */
export type MountAnswer =
  /** `servedMs`: from the plan until the point is served, store and vault opened for it. */
  | { readonly servedMs: number }
  /** `hydratedMs`: from when it was served until the image held everything. */
  | { readonly hydratedMs: number }
  | MountEnd;

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

async function obey(order: MountOrder): Promise<MountAnswer> {
  if (typeof order === "object") {
    const startedAt = performance.now();
    serving = await serve(order.plan);
    servedAt = performance.now();
    return { servedMs: servedAt - startedAt };
  }
  if (serving === undefined)
    throw new TidemarkError("INTERNAL", `the mounting process was told to ${order} before the plan`);
  if (order === "stop") return await serving.close();
  return { hydratedMs: (await serving.hydratedAt) - servedAt };
}

answerParent(obey, (order: MountOrder) => order === "stop");
const end = (): never => process.exit(0);
// The parent is gone or has closed the channel, perhaps while this module was loaded.
if (!process.connected) end();
process.once("disconnect", () => {
  if (serving === undefined) end();
  else serving.close().then(end, end);
});
