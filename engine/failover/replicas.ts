/**
 * Replicas: disk images that are kept at the newest point of a disk.
 *
 *     replica run:  hold the document  →  apply each new point  →  give it back
 *     failover:     ask the process that holds it to stop  →  hold it  →  document: `run`
 *
 * A process that is asked to stop leaves the replica to the run, and goes on when the run gives it back.
 * A run that is committed has made the target the disk: the replica is no more.
 *
 * Invariant: no program but the one with the lease writes a target. Points that targets hold are pinned,
 * so no prune takes away what the next difference begins with.
 */
import { setTimeout as delay } from "node:timers/promises";
import { forEachAtOnce } from "../concurrency.ts";
import { watchedStore } from "../disk/source/head-watch.ts";
import { hasCode, TidemarkError } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import { shellWord } from "../shell-word.ts";
import type { PointRecord } from "../store/format/documents.ts";
import { replicaObjectName } from "../store/format/names.ts";
import { encodeReplica, type ReplicaDocument } from "../store/format/replica.ts";
import { readDisk } from "../store/points/head.ts";
import { runRequestTiming } from "../timing.ts";
import { verify } from "../upkeep/scrub/verify.ts";
import { ownDevice, refuseDeviceInUse } from "./device-use.ts";
import { isWorker } from "./held-document.ts";
import { Applications, unpinReplica } from "./replica-application.ts";
import {
  findReplica,
  holdReplica,
  listReplicas,
  type ReplicaVault,
  readReplica,
  refuseSource,
  refuseTaken,
  runOf,
} from "./replica-store.ts";
import type {
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
import { StopRequests } from "./run-request.ts";

const readsAtOnce = 8;

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
   * Makes a replica at the target, or brings it to the newest point. Without `once`, it goes on
   * with each new point until `signal` aborts.
   *
   * @throws `DISK_NOT_FOUND`; `TARGET_EXISTS` when the target is no replica of the disk;
   * `WRITER_ACTIVE` when another process works on the replica; as `Vault.materialize`. Without `once`
   * it waits while the replica is the target of a failover; TARGET_IS_SOURCE when that is committed.
   */
  async run(options: ReplicaOptions): Promise<ReplicaDone> {
    return await this.#track(async () => {
      const startedAt = performance.now();
      const { signal, once = false } = options;
      const place = this.#place(options);
      place.store.keys?.assertReads();
      const disk = options.disk.normalize("NFC");
      const named = await parseReplicaTarget(options.to, disk, this.#context.sink);
      const totals = { applications: 0, bytesWritten: 0, bytesRead: 0 };
      for (;;) {
        await this.#begin(place, disk, named);
        const document = await this.#turn(place, named.replica, options, totals);
        if (once || signal?.aborted === true) return doneOf(document, totals, startedAt);
        await this.#untilReturned(place, document, options);
      }
    });
  }

  /** All replicas, by their disks. Throws `DAMAGED` and the errors of the store. */
  async list(options: Pick<OperationOptions, "onNotice" | "signal"> = {}): Promise<ReplicaSummary[]> {
    return await this.#track(async () => {
      const place = this.#place(options);
      const found: ReplicaSummary[] = [];
      await forEachAtOnce(await listReplicas(place), readsAtOnce, async (document) => {
        found.push(await this.#summary(place, document));
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
      const place = this.#place(options);
      return await this.#summary(place, (await readReplica(place, replica)).document);
    });
  }

  /**
   * Compares a replica with the point that it holds. What differs is in the summary.
   *
   * @throws `INVALID_ARGUMENT`; `WRITER_ACTIVE`; `TARGET_FAILED` when the replica holds no point;
   * `INTERRUPTED`.
   */
  async verify(options: OperationOptions & { readonly replica: string }): Promise<ReplicaVerification> {
    return await this.#track(async () => {
      const place = this.#place(options);
      await using held = await holdReplica(place, options.replica);
      const { document } = held;
      const { disk, replica, point, next } = document;
      refuseForeign(document);
      await refuseTaken(place, document);
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
      const place = this.#place(options);
      await using held = await holdReplica(place, options.replica);
      const { document } = held;
      const { replica, disk, target } = document;
      await refuseTaken(place, document);
      if (!keepTarget) {
        refuseForeign(document);
        await refuseSource(place, document);
        await new ReplicaTarget(document, this.#context.sink).remove();
      }
      await unpinReplica({ ...place, disk, onNotice, signal }, replica);
      await held.remove();
      const keptTarget = keepTarget || target.kind === "device";
      return { replica, disk, target: replicaTargetName(document), keptTarget };
    });
  }

  #place({ onNotice, signal }: Pick<OperationOptions, "onNotice" | "signal">): ReplicaVault {
    return { store: watchedStore(this.#context, onNotice), vault: this.#context.document.vault, signal };
  }

  /** Puts the document of a replica that is not there yet. */
  async #begin(place: ReplicaVault, disk: string, named: ReplicaPlace): Promise<void> {
    const { store, vault, signal } = place;
    const there = await findReplica(place, named.replica);
    if (there !== undefined) {
      refuseOther(there.document, disk, named);
      return;
    }
    await readDisk(store, vault, disk, signal);
    const target = new ReplicaTarget(named, this.#context.sink);
    await target.refuseTaken();
    const document = { vault, disk, ...named, epoch: 0, worker: null, point: null, next: null, signature: null };
    await refuseSource(place, document);
    if (named.target.kind === "device") await refuseDeviceInUse(place, named.target.path);
    const name = replicaObjectName(named.replica);
    await store.putOnce(name, encodeReplica(document), { signal });
    try {
      await target.refuseTaken();
      if (named.target.kind === "device") await ownDevice(place, named.target.path, named.replica);
    } catch (error) {
      await store.delete(name);
      throw error;
    }
  }

  /** Holds the replica and applies points, until the caller ends it or a failover asks for the replica. */
  async #turn(
    place: ReplicaVault,
    replica: string,
    options: ReplicaOptions,
    totals: Applications["totals"],
  ): Promise<ReplicaDocument> {
    await using held = await holdReplica(place, replica);
    if (options.once === true) await refuseTaken(place, held.document);
    else if ((await runOf(place, held.document)) !== undefined) return held.document;
    await using requests = new StopRequests(place, { run: replica, epoch: held.document.epoch });
    const signal = options.signal === undefined ? requests.signal : AbortSignal.any([options.signal, requests.signal]);
    const application = new Applications(this.#context, place.store, held, { ...options, signal }, totals);
    if (options.once === true) await application.toNewest();
    else await application.follow();
    return held.document;
  }

  /** Resolves when no failover has the replica. Errors: TARGET_IS_SOURCE when one has made it the disk. */
  async #untilReturned(
    place: ReplicaVault,
    { replica, disk, target }: ReplicaDocument,
    options: ReplicaOptions,
  ): Promise<void> {
    const { signal, onNotice } = options;
    const message = `a failover has replica ${replica}; it is followed again if the failover is cancelled`;
    onNotice?.({ code: "REPLICA_TAKEN", message });
    for (;;) {
      await delay(runRequestTiming.pollMs, undefined, { signal }).catch(() => undefined);
      if (signal?.aborted === true) return;
      try {
        const there = await findReplica(place, replica);
        if (there === undefined) throw handedOver(replica, disk, target.path);
        if ((await runOf(place, there.document)) === undefined) return;
      } catch (error) {
        if (!hasCode(error, "STORE_UNREACHABLE")) throw error;
      }
    }
  }

  async #summary(place: ReplicaVault, document: ReplicaDocument): Promise<ReplicaSummary> {
    const { store, vault, signal } = place;
    const isSeen = isReachable(document);
    const signature = isSeen ? await this.#signatureOf(document) : undefined;
    let newest: PointRecord | undefined;
    try {
      newest = (await readDisk(store, vault, document.disk, signal)).points.at(-1);
    } catch (error) {
      if (!hasCode(error, "DISK_NOT_FOUND")) throw error;
    }
    const isRunning = await isWorker(document.worker);
    const run = await runOf(place, document);
    return summaryOf(document, { newest, isRunning, nowMs: Date.now(), isSeen, signature, run });
  }

  /** A target that cannot be looked at is missing: the other replicas are shown. */
  async #signatureOf(document: ReplicaDocument): Promise<string | null | undefined> {
    try {
      return await new ReplicaTarget(document, this.#context.sink).signature();
    } catch (error) {
      if (!(error instanceof TidemarkError) || document.target.kind === "blob") throw error;
      return undefined;
    }
  }
}

function handedOver(replica: string, disk: string, path: string): TidemarkError {
  const fact = `a failover has made ${path} disk ${JSON.stringify(disk)} itself: it is no replica any more`;
  return new TidemarkError("TARGET_IS_SOURCE", fact, {
    remedy: "name another target for a replica",
    detail: { replica },
  });
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

function torn({ replica, disk, ...place }: ReplicaDocument): TidemarkError {
  return new TidemarkError("TARGET_FAILED", `replica ${replica} holds no point: no application of one has ended`, {
    remedy: `run \`tidemark replica run --once --disk ${shellWord(disk)} --to ${shellWord(replicaTargetName(place))}\` first`,
    detail: { replica },
  });
}
