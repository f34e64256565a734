/**
 * Applications of points to the target of a replica.
 *
 *     pin the new point  →  document: `next`  →  target, durable  →  document: `point`  →  other pins go
 *
 * An application writes only what differs between the point that the target holds and the new one. One
 * that was interrupted in good order leaves the signature of the mixture, and the next one begins with
 * the same difference. After a crash, or when another program has written the target, all of it is
 * compared.
 *
 * Invariant: while a byte of a target may differ from its point, its document has a `next`, or a
 * signature that the target has not.
 */
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import type { Notice } from "../notice.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import { materialize } from "../recovery/restore/materialize.ts";
import type { MaterializeMode } from "../recovery/restore/target.ts";
import type { PointRecord } from "../store/format/documents.ts";
import { headName } from "../store/format/names.ts";
import type { ReplicaPoint } from "../store/format/replica.ts";
import { readDisk } from "../store/points/head.ts";
import { deletePin, isOf, listPins, putPin } from "../store/points/pins.ts";
import { selectPoint } from "../store/points/points.ts";
import type { Store } from "../store/store.ts";
import { replicaTiming } from "../timing.ts";
import { ownDevice } from "./device-use.ts";
import { type HeldReplica, refuseSource } from "./replica-store.ts";
import type { Application, HeldPoint } from "./replica-summary.ts";
import { ReplicaTarget, replicaTargetName } from "./replica-target.ts";
import { pointWithId } from "./run-points.ts";
import { formatOf } from "./target.ts";

/** How often the newest point is looked for again because a prune has just dropped it. */
const looksMax = 4;

/** How points are applied. */
export interface ApplicationOptions extends OperationOptions {
  readonly onApplied?: ((application: Application) => void) | undefined;
  readonly onHolds?: ((held: HeldPoint) => void) | undefined;
  readonly onIdle?: ((wake: () => void) => void) | undefined;
  /** Between two looks for a new point, in ms. */
  readonly pollMs?: number | undefined;
}

/** Applies points to the target of one replica. */
export class Applications {
  readonly totals: { applications: number; bytesWritten: number; bytesRead: number };
  readonly #context: VaultContext;
  readonly #store: Store;
  readonly #held: HeldReplica;
  readonly #options: ApplicationOptions;
  readonly #signal: AbortSignal;
  readonly #target: ReplicaTarget;

  /** `totals` gets what each application moves. */
  constructor(
    context: VaultContext,
    store: Store,
    held: HeldReplica,
    options: ApplicationOptions,
    totals: Applications["totals"],
  ) {
    this.totals = totals;
    this.#context = context;
    this.#store = store;
    this.#held = held;
    this.#options = options;
    this.#signal = options.signal === undefined ? held.signal : AbortSignal.any([options.signal, held.signal]);
    this.#target = new ReplicaTarget(held.document, context.sink);
  }

  /** Applies the newest point, after the one whose application was interrupted. */
  async toNewest(): Promise<void> {
    for (let looks = 1; ; looks += 1) {
      try {
        await this.toPoint("latest");
        return;
      } catch (error) {
        // Another point has become the newest one, and a prune has dropped this one.
        if (!hasCode(error, "POINT_NOT_FOUND") || looks === looksMax) throw error;
      }
    }
  }

  /** Applies the point that `selector` names, likewise. Errors: POINT_NOT_FOUND, those of `materialize`. */
  async toPoint(selector: string): Promise<void> {
    for (;;) if (await this.#apply(selector)) return;
  }

  /** Applies each new point until the caller's signal aborts. */
  async follow(): Promise<void> {
    const { disk } = this.#held.document;
    let seen: string | undefined;
    let failures = 0;
    try {
      for (;;) {
        try {
          const etag = await this.#store.etagOf(headName(disk), { signal: this.#signal });
          if (etag === undefined || etag !== seen) await this.toNewest();
          seen = etag;
          failures = 0;
        } catch (error) {
          if (!hasCode(error, "STORE_UNREACHABLE")) throw error;
          failures += 1;
          this.#notify({ code: "STORE_AWAY", message: `${error.message}; the replica waits for the store` });
        }
        const { pollMs, backOffMsMax } = replicaTiming;
        const waitMs = Math.min((this.#options.pollMs ?? pollMs) * 2 ** failures, backOffMsMax);
        await this.#sleep(waitMs);
        throwIfAborted(this.#signal);
      }
    } catch (error) {
      throwIfAborted(this.#held.signal);
      if (this.#options.signal?.aborted !== true) throw error;
    }
  }

  async #sleep(waitMs: number): Promise<void> {
    if (this.#signal.aborted) return;
    await new Promise<void>((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, waitMs);
      this.#signal.addEventListener("abort", done);
      this.#options.onIdle?.(done);
    });
  }

  #holds({ sequence, id, timeMs }: PointRecord): void {
    this.#options.onHolds?.({ sequence, point: id, time: new Date(timeMs).toISOString() });
  }

  /** Applies one point, unless the target holds the wanted one. Returns whether it holds it then. */
  async #apply(selector: string): Promise<boolean> {
    const { disk, run } = this.#held.document;
    throwIfAborted(this.#signal);
    const startedAt = performance.now();
    const { vault } = this.#context.document;
    if (run === undefined) await refuseSource({ store: this.#store, vault, signal: this.#signal }, this.#held.document);
    const head = await readDisk(this.#store, vault, disk, this.#signal);
    const wanted = await selectPoint(this.#store, head, selector, this.#signal);
    const signature = await this.#target.signature();
    const { point, next, signature: known } = this.#held.document;
    const isKnown = signature !== undefined && signature !== null && signature === known;
    if (isKnown && next === null && point?.id === wanted.id) {
      await this.#unpinOthers(wanted);
      this.#holds(wanted);
      return true;
    }
    const find = async (held: ReplicaPoint | null): Promise<PointRecord | undefined> =>
      held === null || !isKnown ? undefined : await pointWithId(this.#pinPlace, held.id);
    const base = await find(point);
    const begun = await find(next);
    // The differences of a mixture are known only against the point that was being applied.
    const goal = base !== undefined && begun !== undefined ? begun : wanted;
    const isDevice = this.#held.document.target.kind === "device";
    const mode = signature === undefined && !isDevice ? "create" : await this.#target.modeFor(goal.volumeBytes);
    const isComparable =
      mode === "in-place" && base?.volumeBytes === goal.volumeBytes && (next === null || goal === begun);
    if (isDevice && point === null)
      await ownDevice(this.#pinPlace, this.#held.document.target.path, this.#held.document.replica);
    await this.#pin(goal);
    const summary = await this.#write(isComparable ? point : null, goal, mode);
    await this.#unpinOthers(goal);
    this.totals.applications += 1;
    this.totals.bytesWritten += summary.bytesWritten;
    this.totals.bytesRead += summary.bytesRead;
    const { replica } = this.#held.document;
    const application: Application = {
      replica,
      disk,
      target: replicaTargetName(this.#held.document),
      point: goal.id,
      sequence: goal.sequence,
      time: new Date(goal.timeMs).toISOString(),
      isWhole: !isComparable,
      bytesWritten: summary.bytesWritten,
      bytesRead: summary.bytesRead,
      lagMs: Math.max(0, Date.now() - goal.timeMs),
      elapsedMs: Math.round(performance.now() - startedAt),
    };
    this.#options.onApplied?.(application);
    this.#holds(goal);
    return goal.id === wanted.id;
  }

  /** Writes the target, between the two swaps that mark it. */
  async #write(
    base: ReplicaPoint | null,
    goal: PointRecord,
    mode: MaterializeMode,
  ): Promise<{ readonly bytesWritten: number; readonly bytesRead: number }> {
    const { sequence, id, timeMs, volumeBytes } = goal;
    const next = { sequence, id, timeMs, volumeBytes };
    const { document } = this.#held;
    await this.#held.swap({ ...document, point: base, next, signature: null });
    try {
      const { bytesWritten, bytesRead } = await materialize(this.#context, {
        disk: document.disk,
        point: id,
        to: this.#target.materializeName,
        format: formatOf(document.target.kind),
        mode,
        since: base?.id,
        onProgress: this.#options.onProgress,
        onNotice: this.#options.onNotice,
        signal: this.#signal,
      });
      const signature = (await this.#target.signature()) ?? null;
      await this.#held.swap({ ...this.#held.document, point: next, next: null, signature });
      return { bytesWritten, bytesRead };
    } catch (error) {
      if (error instanceof TidemarkError && base !== null) await this.#leaveMixture();
      throw error;
    }
  }

  /** Nothing writes the target any more, and where it is a mixture is known. */
  async #leaveMixture(): Promise<void> {
    try {
      const signature = (await this.#target.signature()) ?? null;
      await this.#held.swap({ ...this.#held.document, signature });
    } catch (error) {
      // The next application compares all of the target.
      if (!(error instanceof TidemarkError)) throw error;
    }
  }

  async #pin(point: PointRecord): Promise<void> {
    const name = pinName(this.#held.document.replica);
    await putPin({ ...this.#pinPlace, point, name, untilMs: null, nowMs: Date.now() });
  }

  async #unpinOthers(point: PointRecord): Promise<void> {
    await unpinReplica(this.#pinPlace, this.#held.document.replica, point);
  }

  get #pinPlace(): PinPlace {
    const { vault } = this.#context.document;
    const { disk } = this.#held.document;
    return { store: this.#store, vault, disk, onNotice: this.#notify, signal: this.#signal };
  }

  readonly #notify = (notice: Notice): void => {
    this.#options.onNotice?.(notice);
  };
}

export interface PinPlace {
  readonly store: Store;
  readonly vault: string;
  readonly disk: string;
  readonly onNotice: (notice: Notice) => void;
  readonly signal: AbortSignal | undefined;
}

function pinName(replica: string): string {
  return `replica ${replica}`;
}

/** Removes the pins of a replica, but for those of one point. */
export async function unpinReplica(place: PinPlace, replica: string, but?: PointRecord): Promise<void> {
  const { store, vault, disk, onNotice, signal } = place;
  for (const pin of await listPins(store, vault, disk, onNotice, signal)) {
    if (pin.document?.name !== pinName(replica) || (but !== undefined && isOf(pin, but))) continue;
    await deletePin(store, pin, signal);
  }
}
