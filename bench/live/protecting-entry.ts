/**
 * Process that protects and serves one disk for a benchmark: the `Vault.protect` and `NbdServer` of
 * `tidemark protect`, in a process of its own, as any other NBD server is. `ProtectingProcess`
 * starts it. It ends when told to, or with its parent.
 */
import { randomFillSync } from "node:crypto";
import process from "node:process";
import {
  Bandwidth,
  limited,
  NbdServer,
  type PointSummary,
  type Protection,
  type ProtectionEvent,
  type Sink,
  subscribeDiagnostics,
  TidemarkError,
  Vault,
} from "../../engine/index.ts";
import { openSink } from "../../sink/index.ts";
import { DiscardingSink } from "../discarding-sink.ts";
import { rangeBytes } from "../image.ts";
import { answerParent } from "./asked-process.ts";
import { MeteredSink } from "./metered-sink.ts";
import {
  type Condition,
  type Order,
  type ProtectionPlan,
  policyOf,
  type SeenPoint,
  type StoreAddress,
} from "./orders.ts";

/** 1 Gbit/s. It holds while a cycle drains. */
const discardedBytesPerSecond = 125_000_000;

/** A disk under protection, and how all that it took is closed again. */
interface Opened {
  readonly protection: Protection;
  readonly metered: MeteredSink;
  /** Of the store that discards. */
  readonly bandwidth: Bandwidth;
  readonly close: () => Promise<void>;
}

class Protecting {
  readonly #opened: Promise<Opened>;
  readonly #points: SeenPoint[] = [];
  readonly #failures: string[] = [];
  /** Time of the cut that is drained, in ms since 1970. */
  #drainingFromMs = 0;

  constructor(plan: ProtectionPlan) {
    this.#opened = this.#open(plan);
    this.#opened.catch(() => undefined); // told by `ready`
  }

  async ready(): Promise<Condition> {
    return this.#condition(await this.#opened);
  }

  async obey(order: Exclude<Order, { readonly kind: "serve" }>): Promise<Condition> {
    const opened = await this.#opened;
    const { protection } = opened;
    switch (order.kind) {
      case "point":
        return this.#condition(opened, { point: await protection.point() });
      case "pause":
        protection.pause();
        break;
      case "resume":
        protection.resume();
        break;
      case "drain":
        await this.#drain(opened, order.bytes);
        break;
      case "rest":
        return this.#condition(opened, { drainedMs: await this.#rest(opened) });
      case "status":
        break;
      case "stop":
        await opened.close();
        break;
    }
    return this.#condition(opened);
  }

  async #open(plan: ProtectionPlan): Promise<Opened> {
    const bandwidth = new Bandwidth();
    const sink = plan.store === "discarding" ? limited(new DiscardingSink(), bandwidth) : await openStore(plan.store);
    const { stateFolder, workers, lanes, indexBytesMax } = plan;
    const metered = new MeteredSink(sink, plan.prefix);
    const vault = await Vault.openOrCreate(metered, {
      stateFolder,
      workers,
      lanes,
      indexBytesMax,
    });
    const { disk, image, cycleMs } = plan;
    const protection = await vault.protect({
      disk,
      image,
      stateFolder,
      policy: policyOf(cycleMs),
      onEvent: (event) => this.#note(event),
    });
    const server = await NbdServer.listen({ listen: { kind: "unix", path: plan.socket } });
    server.addExport({ name: disk, device: protection.device });
    const close = async (): Promise<void> => {
      await server.close();
      await protection.stop({ drain: false });
      await vault.close();
      await sink[Symbol.asyncDispose]();
    };
    return { protection, metered, bandwidth, close };
  }

  #note(event: ProtectionEvent): void {
    if (event.kind === "point") this.#points.push({ cutAtMs: Date.parse(event.point.time), committedAtMs: Date.now() });
    if (event.kind === "failure") this.#failures.push(event.message);
  }

  /**
   * Has the next cycle ship `bytes`: they are changed right after a cut, so that all of them are in
   * the cut after it.
   */
  async #drain({ protection, bandwidth }: Opened, bytes: number): Promise<void> {
    protection.resume();
    await protection.point();
    await cutOf(0);
    await change(protection, bytes);
    bandwidth.setLimit(discardedBytesPerSecond);
    this.#drainingFromMs = await cutOf(1);
  }

  /** Ends the cycle and ships what was written under it. */
  async #rest({ protection, bandwidth }: Opened): Promise<number> {
    bandwidth.setLimit(undefined);
    const point = await protection.point();
    protection.pause();
    const drained = this.#points.find(({ cutAtMs }) => cutAtMs >= this.#drainingFromMs);
    return (drained?.committedAtMs ?? Date.parse(point.time)) - this.#drainingFromMs;
  }

  #condition(
    { protection, metered }: Opened,
    more: { readonly point?: PointSummary; readonly drainedMs?: number } = {},
  ): Condition {
    const { state, backlogBytes, lag, barrier } = protection.status();
    return {
      state,
      backlogBytes,
      committedLagMs: lag.committedMs,
      barrierMsMax: barrier.maxMs,
      // libuv gives kibibytes on every platform.
      peakRssBytes: process.resourceUsage().maxRSS * 1024,
      points: this.#points,
      failures: this.#failures,
      point: more.point ?? null,
      store: metered.traffic(),
      drainedMs: more.drainedMs ?? 0,
    };
  }
}

async function openStore({ address, ...options }: StoreAddress): Promise<Sink> {
  return await openSink(
    address,
    options.proxy === undefined ? { credentials: options.credentials } : { ...options, proxy: options.proxy },
  );
}

/** Time of the next cut that has at least `dirtyBytesMin`, in ms since 1970. */
async function cutOf(dirtyBytesMin: number): Promise<number> {
  return await new Promise((resolve) => {
    const unsubscribe = subscribeDiagnostics(({ name, event }) => {
      if (name !== "cut.made" || event.dirtyBytes < dirtyBytesMin) return;
      unsubscribe();
      resolve(event.timeMs);
    });
  });
}

/** Overwrites the first `bytes` of the disk with what no vault has seen. */
async function change({ device }: Protection, bytes: number): Promise<void> {
  const range = Buffer.alloc(rangeBytes);
  for (let offset = 0; offset < Math.min(bytes, device.sizeBytes); offset += range.length) {
    const length = Math.min(range.length, bytes - offset, device.sizeBytes - offset);
    await device.write(offset, randomFillSync(range.subarray(0, length)));
  }
}

let protecting: Protecting | undefined;

async function obey(order: Order): Promise<Condition> {
  if (order.kind === "serve") {
    protecting = new Protecting(order.plan);
    return await protecting.ready();
  }
  if (protecting === undefined) throw new TidemarkError("INTERNAL", "an order came before the plan");
  return await protecting.obey(order);
}

answerParent(obey, ({ kind }: Order) => kind === "stop");
// The parent is gone.
process.once("disconnect", () => process.exit(0));
