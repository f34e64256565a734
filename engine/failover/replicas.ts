/**
 * Replicas: disk images that are kept at the newest point of a disk.
 *
 * An application brings a target from the point that it holds to the newest one, and writes only what
 * differs between the two:
 *
 *     pin the new point  →  document: `next`  →  target, durable  →  document: `point`  →  other pins go
 *
 * A point that a target holds is pinned, so no prune takes away what the next difference begins with.
 * An application that was interrupted in good order leaves the signature of the mixture, and the next one
 * begins with the same difference. After a crash, or when another program has written the target, all of
 * the target is compared.
 *
 * Invariant: while a byte of a target may differ from its point, its document has a `next`, or a
 * signature that the target has not. No program but the one with the lease writes a target.
 */
import { setTimeout as delay } from "node:timers/promises";
import { forEachAtOnce } from "../concurrency.ts";
import { watchedStore } from "../disk/source/head-watch.ts";
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import type { Notice } from "../notice.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import { materialize } from "../recovery/restore/materialize.ts";
import type { MaterializeMode } from "../recovery/restore/target.ts";
import type { PointRecord } from "../store/format/documents.ts";
import { documentBytesMax } from "../store/format/documents.ts";
import { headName, replicaObjectName, replicasPrefix } from "../store/format/names.ts";
import {
  decodeReplica,
  encodeReplica,
  type ReplicaDocument,
  type ReplicaPoint,
  replicaName16,
} from "../store/format/replica.ts";
import { readClaim } from "../store/points/failover-claim.ts";
import { readDisk } from "../store/points/head.ts";
import { deletePin, isOf, listPins, putPin } from "../store/points/pins.ts";
import { selectPoint } from "../store/points/points.ts";
import type { Store } from "../store/store.ts";
import { replicaTiming } from "../timing.ts";
import { verify } from "../upkeep/scrub/verify.ts";
import { HeldDocument, isWorker } from "./held-document.ts";
import type {
  Application,
  RemoveReplicaOptions,
  ReplicaDone,
  ReplicaOptions,
  ReplicaRemoved,
  ReplicaSummary,
  ReplicaVerification,
} from "./replica-summary.ts";
import { doneOf, summaryOf } from "./replica-summary.ts";
import {
  isReachable,
  parseReplicaTarget,
  type ReplicaPlace,
  ReplicaTarget,
  replicaTargetName,
} from "./replica-target.ts";
import { formatOf } from "./target.ts";

const readsAtOnce = 8;
/** How often the newest point is looked for again because a prune has just dropped it. */
const looksMax = 4;

type Held = HeldDocument<ReplicaDocument>;

/** Keeps, shows, compares and removes the replicas of a vault. */
export class Replicas {
  readonly #context: VaultContext;
  readonly #track: <Result>(start: () => Promise<Result>) => Promise<Result>;

  /** @internal */
  constructor(context: VaultContext, track: <Result>(start: () => Promise<Result>) => Promise<Result>) {
    this.#context = context;
    this.#track = track;
  }

  /**
   * Brings a replica to the newest point, and makes it first if there is none at the target. Without
   * `once`, it goes on with each new point until `signal` aborts, which is then no error, and waits for
   * a store that is away.
   *
   * @throws `DISK_NOT_FOUND`; `TARGET_EXISTS` when the target is no replica of the disk;
   * `WRITER_ACTIVE` when another process works on the replica; as `Vault.materialize`.
   */
  async run(options: ReplicaOptions): Promise<ReplicaDone> {
    return await this.#track(async () => {
      const startedAt = performance.now();
      const { signal, once = false } = options;
      const disk = options.disk.normalize("NFC");
      const store = watchedStore(this.#context, options.onNotice);
      const place = await parseReplicaTarget(options.to, disk, this.#context.sink);
      await this.#begin(store, disk, place, signal);
      await using held = await this.#take(store, place.replica, signal);
      const application = new Applications(this.#context, store, held, options);
      if (once) await application.toNewest();
      else await application.follow();
      return doneOf(held.document, application.totals, startedAt);
    });
  }

  /** All replicas, by their disks. Throws `DAMAGED` and the errors of the store. */
  async list(options: Pick<OperationOptions, "onNotice" | "signal"> = {}): Promise<ReplicaSummary[]> {
    return await this.#track(async () => {
      const store = watchedStore(this.#context, options.onNotice);
      const names: string[] = [];
      for await (const { name } of store.list(replicasPrefix, options)) names.push(name);
      const found: ReplicaSummary[] = [];
      await forEachAtOnce(names, readsAtOnce, async (name) => {
        const there = await store.find(name, documentBytesMax, options);
        if (there === undefined) return; // removed since it was listed
        found.push(await this.#summary(store, decodeReplica(there.bytes, name, this.#vault), options.signal));
      });
      return found.sort((a, b) => (a.disk + a.replica < b.disk + b.replica ? -1 : 1));
    });
  }

  /**
   * One replica.
   *
   * @throws `INVALID_ARGUMENT` when there is none of this name; `DAMAGED`.
   */
  async show(replica: string, options: Pick<OperationOptions, "onNotice" | "signal"> = {}): Promise<ReplicaSummary> {
    return await this.#track(async () => {
      const store = watchedStore(this.#context, options.onNotice);
      return await this.#summary(store, (await this.#read(store, replica, options.signal)).document, options.signal);
    });
  }

  /**
   * Compares a replica with the point that it holds, byte by byte. What differs is in the summary, and
   * the next application then compares all of the target.
   *
   * @throws `INVALID_ARGUMENT`; `WRITER_ACTIVE`; `TARGET_FAILED` when the replica holds no point;
   * `INTERRUPTED`.
   */
  async verify(options: OperationOptions & { readonly replica: string }): Promise<ReplicaVerification> {
    return await this.#track(async () => {
      const store = watchedStore(this.#context, options.onNotice);
      await using held = await this.#take(store, options.replica, options.signal);
      const { document } = held;
      const { disk, replica, point, next } = document;
      refuseForeign(document);
      if (point === null || next !== null) throw torn(document);
      await using source = await new ReplicaTarget(document, this.#context.sink).open(point.volumeBytes);
      const { onProgress, onNotice, signal } = options;
      const summary = await verify(this.#context, { disk, point: point.id, source, onProgress, onNotice, signal });
      const differs = summary.damaged.some(({ code }) => code === "SOURCE_DIFFERS");
      if (differs) await held.swap({ ...held.document, signature: null });
      return { ...summary, replica, disk, target: replicaTargetName(document), point: point.id, equal: !differs };
    });
  }

  /**
   * Removes a replica: its target, unless that is a device or `keepTarget` is given, its pin, and what
   * the vault says of it.
   *
   * @throws `INVALID_ARGUMENT` when there is none of this name, or its target is on another host;
   * `TARGET_IS_SOURCE` when the disk itself is written there; `WRITER_ACTIVE`.
   */
  async remove(options: RemoveReplicaOptions): Promise<ReplicaRemoved> {
    return await this.#track(async () => {
      const { keepTarget = false, onNotice = () => undefined, signal } = options;
      const store = watchedStore(this.#context, onNotice);
      await using held = await this.#take(store, options.replica, signal);
      const { document } = held;
      const { replica, disk, target } = document;
      if (!keepTarget) {
        refuseForeign(document);
        await refuseSource(store, document, signal);
        await new ReplicaTarget(document, this.#context.sink).remove();
      }
      await unpin({ store, vault: this.#vault, disk, onNotice, signal }, replica);
      await held.remove();
      const keptTarget = keepTarget || target.kind === "device";
      return { replica, disk, target: replicaTargetName(document), keptTarget };
    });
  }

  get #vault(): string {
    return this.#context.document.vault;
  }

  /** Puts the document of a replica that is not there yet. */
  async #begin(store: Store, disk: string, place: ReplicaPlace, signal: AbortSignal | undefined): Promise<void> {
    const name = replicaObjectName(place.replica);
    const there = await store.find(name, documentBytesMax, { signal });
    if (there !== undefined) {
      refuseOther(decodeReplica(there.bytes, name, this.#vault), disk, place);
      return;
    }
    await readDisk(store, this.#vault, disk, signal);
    const target = new ReplicaTarget(place, this.#context.sink);
    await target.refuseTaken();
    const empty = { epoch: 0, worker: null, point: null, next: null, signature: null };
    const bytes = encodeReplica({ vault: this.#vault, disk, ...place, ...empty });
    await store.putOnce(name, bytes, { signal });
    try {
      await target.refuseTaken();
    } catch (error) {
      await store.delete(name);
      throw error;
    }
  }

  async #read(
    store: Store,
    replica: string,
    signal: AbortSignal | undefined,
  ): Promise<{ readonly document: ReplicaDocument; readonly etag: string }> {
    const name = replicaObjectName(replica);
    const there = replicaName16.test(replica) ? await store.find(name, documentBytesMax, { signal }) : undefined;
    if (there === undefined) {
      throw new TidemarkError("INVALID_ARGUMENT", `the vault holds no replica ${JSON.stringify(replica)}`, {
        remedy: "`tidemark replica show` shows the replicas",
      });
    }
    return { document: decodeReplica(there.bytes, name, this.#vault), etag: there.etag };
  }

  async #take(store: Store, replica: string, signal: AbortSignal | undefined): Promise<Held> {
    return await HeldDocument.take<ReplicaDocument>({
      store,
      name: replicaObjectName(replica),
      lease: ["replica", this.#vault, replica],
      signal,
      read: async () => await this.#read(store, replica, signal),
      encode: encodeReplica,
      title: `replica ${replica}`,
      detail: { replica },
      showCommand: `tidemark replica show ${replica}`,
    });
  }

  async #summary(store: Store, document: ReplicaDocument, signal: AbortSignal | undefined): Promise<ReplicaSummary> {
    const isSeen = isReachable(document);
    const signature = isSeen ? await new ReplicaTarget(document, this.#context.sink).signature() : undefined;
    let newest: PointRecord | undefined;
    try {
      newest = (await readDisk(store, this.#vault, document.disk, signal)).points.at(-1);
    } catch (error) {
      if (!hasCode(error, "DISK_NOT_FOUND")) throw error;
    }
    const isRunning = await isWorker(document.worker);
    return summaryOf(document, { newest, isRunning, nowMs: Date.now(), isSeen, signature });
  }
}

/** Applies points to the target of one replica. */
class Applications {
  readonly totals = { applications: 0, bytesWritten: 0, bytesRead: 0 };
  readonly #context: VaultContext;
  readonly #store: Store;
  readonly #held: Held;
  readonly #options: ReplicaOptions;
  readonly #signal: AbortSignal;
  readonly #target: ReplicaTarget;

  constructor(context: VaultContext, store: Store, held: Held, options: ReplicaOptions) {
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
        if (await this.#apply()) return;
      } catch (error) {
        // Another point has become the newest one, and a prune has dropped this one.
        if (!hasCode(error, "POINT_NOT_FOUND") || looks === looksMax) throw error;
      }
    }
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
        await delay(waitMs, undefined, { signal: this.#signal }).catch(() => undefined);
        throwIfAborted(this.#signal);
      }
    } catch (error) {
      throwIfAborted(this.#held.signal);
      if (this.#options.signal?.aborted !== true) throw error;
    }
  }

  /** Applies one point, unless the target holds the newest. Returns whether it holds it then. */
  async #apply(): Promise<boolean> {
    const { disk } = this.#held.document;
    throwIfAborted(this.#signal);
    const startedAt = performance.now();
    await refuseSource(this.#store, this.#held.document, this.#signal);
    const head = await readDisk(this.#store, this.#context.document.vault, disk, this.#signal);
    const newest = await selectPoint(this.#store, head, "latest", this.#signal);
    const signature = await this.#target.signature();
    const { point, next, signature: known } = this.#held.document;
    const isKnown = signature !== undefined && signature !== null && signature === known;
    if (isKnown && next === null && point?.id === newest.id) {
      await this.#unpinOthers(newest);
      return true;
    }
    const find = async (held: ReplicaPoint | null): Promise<PointRecord | undefined> =>
      held === null || !isKnown ? undefined : await this.#find(held.id);
    const base = await find(point);
    const begun = await find(next);
    // The differences of a mixture are known only against the point that was being applied.
    const goal = base !== undefined && begun !== undefined ? begun : newest;
    const isDevice = this.#held.document.target.kind === "device";
    const mode = signature === undefined && !isDevice ? "create" : await this.#target.modeFor(goal.volumeBytes);
    const isComparable =
      mode === "in-place" && base?.volumeBytes === goal.volumeBytes && (next === null || goal === begun);
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
    return goal.id === newest.id;
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

  /** Undefined: a prune has dropped the point, or the store has forgotten it. */
  async #find(id: string): Promise<PointRecord | undefined> {
    try {
      const { vault } = this.#context.document;
      const head = await readDisk(this.#store, vault, this.#held.document.disk, this.#signal);
      return await selectPoint(this.#store, head, id, this.#signal);
    } catch (error) {
      if (hasCode(error, "POINT_NOT_FOUND")) return undefined;
      throw error;
    }
  }

  async #pin(point: PointRecord): Promise<void> {
    const name = pinName(this.#held.document.replica);
    await putPin({ ...this.#pinPlace, point, name, untilMs: null, nowMs: Date.now() });
  }

  async #unpinOthers(point: PointRecord): Promise<void> {
    await unpin(this.#pinPlace, this.#held.document.replica, point);
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

interface PinPlace {
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
async function unpin(place: PinPlace, replica: string, but?: PointRecord): Promise<void> {
  const { store, vault, disk, onNotice, signal } = place;
  for (const pin of await listPins(store, vault, disk, onNotice, signal)) {
    if (pin.document?.name !== pinName(replica) || (but !== undefined && isOf(pin, but))) continue;
    await deletePin(store, pin, signal);
  }
}

function refuseOther({ disk, target }: ReplicaDocument, wanted: string, place: ReplicaPlace): void {
  if (disk === wanted && target.kind === place.target.kind) return;
  const name = replicaTargetName({ target });
  throw new TidemarkError("TARGET_EXISTS", `the target ${name} is a replica of disk ${JSON.stringify(disk)}`, {
    remedy: `name another target, or remove that replica with \`tidemark replica remove ${place.replica}\``,
    detail: { target: name },
  });
}

function refuseForeign(document: ReplicaDocument): void {
  if (isReachable(document)) return;
  const { replica, host } = document;
  throw new TidemarkError("INVALID_ARGUMENT", `the target of replica ${replica} is on host ${String(host)}`, {
    remedy: "run the command there; `tidemark replica remove --keep-target` works anywhere",
    detail: { replica },
  });
}

/** Refuses a target at which a failover or a failback has the disk itself written. */
async function refuseSource(store: Store, document: ReplicaDocument, signal: AbortSignal | undefined): Promise<void> {
  const { vault, disk, replica, target, host } = document;
  const claim = await readClaim({ store, vault, disk, signal });
  if (claim?.place?.path !== target.path || claim.place.host !== host) return;
  throw new TidemarkError("TARGET_IS_SOURCE", `disk ${JSON.stringify(disk)} itself is written at ${target.path}`, {
    remedy: `run \`tidemark replica remove ${replica} --keep-target\``,
    detail: { replica },
  });
}

function torn({ replica, disk, ...place }: ReplicaDocument): TidemarkError {
  return new TidemarkError("TARGET_FAILED", `replica ${replica} holds no point: no application of one has ended`, {
    remedy: `run \`tidemark replica run --once --disk ${disk} --to ${replicaTargetName(place)}\` first`,
    detail: { replica },
  });
}
