/**
 * Replica as the target of a failover: the run takes it, and moves only what differs from the point
 * that it holds.
 *
 *     take: ask its process to stop  →  hold it  →  document: `run`
 *     make, change the point: apply the point, by differences
 *     cancel: document without `run`: the replica follows its disk again
 *     commit: pins and document go: the target is the disk
 *
 * Each step looks at what is there before it does something, so it may be done again after a crash.
 */
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import { runRequestName } from "../store/format/names.ts";
import type { ReplicaDocument } from "../store/format/replica.ts";
import type { RunMember } from "../store/format/run.ts";
import { Store } from "../store/store.ts";
import { runRequestTiming } from "../timing.ts";
import { Applications, unpinReplica } from "./replica-application.ts";
import {
  findReplica,
  type HeldReplica,
  holdReplica,
  listReplicas,
  type ReplicaVault,
  readReplica,
  refuseTaken,
} from "./replica-store.ts";
import { isReachable } from "./replica-target.ts";
import { requestStop } from "./run-request.ts";
import type { MemberTarget } from "./target.ts";

/** The replica of each disk, as a target. Errors: INVALID_ARGUMENT, WRITER_ACTIVE when another run has it. */
export async function replicaTargets(
  place: ReplicaVault,
  to: string,
  disks: readonly string[],
): Promise<readonly MemberTarget[]> {
  const [, named] = /^replica:(.*)$/s.exec(to) ?? [];
  const replicas = (await listReplicas(place)).filter(
    (document) => isReachable(document) && (named === undefined || document.replica === named),
  );
  const targets: MemberTarget[] = [];
  for (const disk of disks) {
    const document = onlyOne(
      disk,
      replicas.filter((candidate) => candidate.disk === disk),
    );
    await refuseTaken(place, document);
    targets.push({ ...document.target, replica: document.replica });
  }
  return targets;
}

function onlyOne(disk: string, found: readonly ReplicaDocument[]): ReplicaDocument {
  const [document, other] = found;
  if (document !== undefined && other === undefined) return document;
  const names = found.map(({ replica }) => `replica:${replica}`).join(" or ");
  const fact = document === undefined ? "no such replica that this host can reach" : `${found.length} replicas here`;
  throw new TidemarkError("INVALID_ARGUMENT", `disk ${JSON.stringify(disk)} has ${fact}`, {
    remedy:
      document === undefined
        ? "`tidemark replica show` shows the replicas; `tidemark replica run` makes one"
        : `name one of them, for one disk at a time: \`--to\` ${names}`,
    detail: { disk },
  });
}

/** The hand of a run on a replica. */
export class ReplicaOfRun {
  readonly #context: VaultContext;
  readonly #run: string;
  readonly #replica: string;
  readonly #options: OperationOptions;

  constructor(
    context: VaultContext,
    run: string,
    { replica }: { readonly replica: string },
    options: OperationOptions = {},
  ) {
    this.#context = context;
    this.#run = run;
    this.#replica = replica;
    this.#options = options;
  }

  /** Takes the replica for the run. Errors: WRITER_ACTIVE when its process does not answer, or another run has it. */
  async own(): Promise<void> {
    const held = await this.#hold();
    await held.release();
  }

  /** Brings the target to a point. Gives what was moved, and what the target holds. */
  async bringTo(point: string): Promise<{
    readonly bytesWritten: number;
    readonly bytesRead: number;
    readonly held: RunMember["held"];
  }> {
    await using held = await this.#hold();
    const totals = { applications: 0, bytesWritten: 0, bytesRead: 0 };
    await new Applications(this.#context, this.#place.store, held, this.#options, totals).toPoint(point);
    return { ...totals, held: { point, signature: held.document.signature } };
  }

  /** Gives the replica back: it follows its disk again. */
  async remove(): Promise<void> {
    if (!(await this.#isOurs())) return;
    await using held = await this.#hold();
    await held.swap({ ...held.document, run: undefined });
  }

  /** Gives the target to the user: the replica is no more. */
  async handOver(): Promise<void> {
    if (!(await this.#isOurs())) return;
    const { onNotice = () => undefined, signal } = this.#options;
    await using held = await this.#hold();
    await unpinReplica({ ...this.#place, disk: held.document.disk, onNotice, signal }, this.#replica);
    await held.remove();
  }

  /** Nothing: the target was there before the run, and stays. */
  async leftovers(): Promise<string[]> {
    return await Promise.resolve([]);
  }

  async #isOurs(): Promise<boolean> {
    return (await findReplica(this.#place, this.#replica))?.document.run === this.#run;
  }

  /** Holds the replica for the run. A process that follows it is asked to stop. */
  async #hold(): Promise<HeldReplica> {
    const place = this.#place;
    const deadline = performance.now() + runRequestTiming.waitMsMax;
    for (let isAsked = false; ; isAsked = true) {
      const { document } = await readReplica(place, this.#replica);
      await refuseTaken(place, document, this.#run);
      const held = await this.#holdUnlessHeld(performance.now() > deadline);
      if (held === undefined) {
        await requestStop(place, { run: this.#replica, epoch: document.epoch });
        await delay(runRequestTiming.pollMs / 4, undefined, { signal: place.signal }).catch(() => undefined);
        throwIfAborted(place.signal);
        continue;
      }
      try {
        if (isAsked) await place.store.delete(runRequestName(this.#replica));
        await refuseTaken(place, held.document, this.#run);
        if (held.document.run !== this.#run) await held.swap({ ...held.document, run: this.#run });
        return held;
      } catch (error) {
        await held.release();
        throw error;
      }
    }
  }

  async #holdUnlessHeld(isLast: boolean): Promise<HeldReplica | undefined> {
    try {
      return await holdReplica(this.#place, this.#replica);
    } catch (error) {
      if (isLast || !hasCode(error, "WRITER_ACTIVE")) throw error;
      return undefined;
    }
  }

  get #place(): ReplicaVault {
    const { sink, document } = this.#context;
    return { store: new Store(sink), vault: document.vault, signal: this.#options.signal };
  }
}
