/**
 * Effects of a failover run: the work that a running state stands for.
 *
 * Each effect looks at what is there before it does something, so it may be done again from its
 * beginning after a crash at any call.
 *
 * Invariant: the run in the vault says that a target may be a mixture (`held` is null) before the
 * first byte of it changes, and names a point for it only when the target is whole and durable.
 */
import { watchedStore } from "../disk/source/head-watch.ts";
import { TidemarkError, throwIfAborted } from "../errors.ts";
import type { Notice } from "../notice.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import { HydratingImage } from "../recovery/mount/hydrating-image.ts";
import { discardImage } from "../recovery/mount/image-files.ts";
import { materialize } from "../recovery/restore/materialize.ts";
import { openImage } from "../recovery/restore/vhd.ts";
import { replicate } from "../replication/replicate.ts";
import type { RunMember } from "../store/format/run.ts";
import { disableByClaim, putClaim, readClaim, removeClaim, settleClaim } from "../store/points/failover-claim.ts";
import { WriterLease } from "../store/points/writer-lease.ts";
import { Store } from "../store/store.ts";
import { prune } from "../upkeep/prune/prune.ts";
import { parsePolicy } from "../upkeep/retention/policy.ts";
import type { FailoverOptions } from "./failover-options.ts";
import { ImageReturn } from "./image-return.ts";
import { choosePoints } from "./point-choice.ts";
import { ReplicaOfRun } from "./replica-run.ts";
import { lastPointAbsent } from "./run-checks.ts";
import { type PrintedByCommands, RunCommands } from "./run-commands.ts";
import { isMoved } from "./run-facts.ts";
import { comparablePoint, pinPoint, pointWithId, unpinPoints } from "./run-points.ts";
import { type HeldRun, readRun } from "./run-store.ts";
import type { RunEffect } from "./run-table.ts";
import { leftoversOf, ownTarget, replicaAt, runTargetOf } from "./run-target.ts";
import { replicateInstant, ServedRun, type ServingVault } from "./served-run.ts";
import { type SourceDisks, type SourceSite, takeLastPoint } from "./source.ts";
import { formatOf, materializeName, type OwnedTarget, ownedTargetOf, targetName } from "./target.ts";

/** Carries the effects of one run out. */
export class Effects implements AsyncDisposable {
  readonly #context: VaultContext;
  readonly #vault: ServingVault;
  readonly #store: Store;
  readonly #held: HeldRun;
  readonly #options: FailoverOptions;
  readonly #signal: AbortSignal;
  #bytesWritten = 0;
  #bytesRead = 0;
  readonly #commands: RunCommands;
  /** The ways back of disks, from their first difference to the end. */
  readonly #returns = new Map<string, ImageReturn>();

  constructor(context: VaultContext, held: HeldRun, options: FailoverOptions, vault: ServingVault) {
    this.#vault = vault;
    this.#context = context;
    this.#store = watchedStore(context, options.onNotice);
    this.#held = held;
    this.#options = options;
    this.#signal = options.signal === undefined ? held.signal : AbortSignal.any([options.signal, held.signal]);
    this.#commands = new RunCommands(options.environment ?? {}, this.#signal);
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  get bytesRead(): number {
    return this.#bytesRead;
  }

  /** What the commands since the last call printed; undefined: there were none. */
  takeCommands(): PrintedByCommands | undefined {
    return this.#commands.take();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const back of this.#returns.values()) await back[Symbol.asyncDispose]();
  }

  async carryOut(effect: RunEffect): Promise<void> {
    throwIfAborted(this.#signal);
    await this[effect]();
  }

  /** Stages what the old images lack, while the disks go on where they are. */
  async synchronize(): Promise<void> {
    const { selector } = this.#held.document;
    if (selector === "latest") await this.#orNote("the request for a last point", this.#askForPoint());
    await this.#choose("latest", false);
    for (const { disk } of this.#held.document.members) await this.#stage(disk);
  }

  /**
   * Brings the redo log of a disk's old image to the member's point. The point stays pinned: the next
   * differences are those from it.
   */
  async #stage(disk: string): Promise<ImageReturn> {
    const member = this.#member(disk);
    await this.#own(member);
    const back = this.#returnOf(member);
    await this.#pin(disk, member.point.id);
    const { bytesRead } = await back.stage(
      member,
      async (id) => await comparablePoint({ ...this.#place, disk }, id, member.point.volumeBytes),
    );
    this.#bytesRead += bytesRead;
    return back;
  }

  #returnOf(member: RunMember): ImageReturn {
    const { disk, target } = member;
    const present = this.#returns.get(disk);
    if (present !== undefined) return present;
    const owned = ownedTargetOf(this.#context, this.#held.document, member);
    const back = new ImageReturn(this.#context, { disk, target, owned, ...this.#operation });
    this.#returns.set(disk, back);
    return back;
  }

  /** Shuts the source down or tries to, takes the disks, and chooses the points again. */
  async prepare(): Promise<void> {
    const { run, plan, kind, shutdown, selector, group, members } = this.#held.document;
    const isPlanned = kind !== "unplanned";
    const disks = this.#disks;
    // Another run may have been faster: then nothing is stopped for this one.
    for (const member of members) await this.#own(member);
    // An interrupted try may have left a claim, which would refuse the last point of an image.
    for (const disk of disks) await removeClaim({ ...this.#place, disk }, run);
    if (isPlanned) {
      if (shutdown !== null) await this.#commands.shutDown(this.#held.document);
      await this.#bringToRest();
    } else {
      if (shutdown !== null) await this.#orNote("the shutdown command", this.#commands.shutDown(this.#held.document));
      if (selector === "latest") await this.#orNote("the request for a last point", this.#askForPoint());
    }
    for (const disk of disks) await putClaim({ ...this.#place, disk }, run);
    if (isPlanned) for (const disk of disks) await this.#proveWithoutWriter(disk);
    // The run of a plan has chosen points that fit those of the other machines.
    if (plan !== undefined && !isPlanned && selector !== "latest") return;
    // The last points of disks at rest hold everything that was acknowledged, also of a group, whose
    // newest common point may be older.
    await this.#choose(isPlanned ? "latest" : selector, !isPlanned && group !== null);
  }

  async #choose(selector: string, isGroup: boolean): Promise<void> {
    const chosen = await choosePoints(this.#place, this.#disks, selector, isGroup);
    const members = this.#held.document.members.map((member, index): RunMember => {
      const { sequence, id, timeMs, consistency, volumeBytes } = chosen[index]?.point ?? member.point;
      return { ...member, point: { sequence, id, timeMs, consistency, volumeBytes } };
    });
    await this.#held.swap({ ...this.#held.document, members });
  }

  /** A source that does not answer is a note, not an end. */
  async #orNote(what: string, work: Promise<void>): Promise<void> {
    try {
      await work;
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      throwIfAborted(this.#signal);
      this.#notify({ code: "SOURCE_UNREACHED", message: `${what} failed, and the run goes on: ${error.message}` });
    }
  }

  async #bringToRest(): Promise<void> {
    const { source } = this.#held.document;
    if (source?.kind === "agent") {
      const site = this.#agent(source.path);
      for (const { disk, path, point, signature } of await site.stop(this.#sourceDisks, this.#signal)) {
        if ((await pointWithId({ ...this.#place, disk }, point)) === undefined) {
          await site.start(this.#sourceDisks, this.#signal);
          throw lastPointAbsent(disk);
        }
        await this.#swapMember({ ...this.#member(disk), origin: { path, point, signature } });
      }
      return;
    }
    for (const { disk } of this.#held.document.members) {
      const present = source === null ? await this.#presentMember(disk) : undefined;
      if (present?.target.kind === "instant") {
        this.#bytesRead += await replicateInstant(this.#vault, present, this.#operation);
        continue;
      }
      const path = source?.path ?? present?.target.path ?? "";
      const origin = await takeLastPoint(this.#context, { disk, path, ...this.#operation });
      await this.#swapMember({ ...this.#member(disk), origin });
    }
  }

  /** The member of the run that took a disk to where it is written today. */
  async #presentMember(disk: string): Promise<RunMember> {
    const claim = await readClaim({ ...this.#place, disk });
    const { run } = claim?.place ?? {};
    if (run !== undefined) await this.#options.server?.release(run);
    const { members } = run === undefined ? { members: [] } : (await readRun(this.#place, run)).document;
    const found = members.find((member) => member.disk === disk);
    if (found !== undefined) return found;
    throw new TidemarkError("INVALID_ARGUMENT", `the place of disk ${JSON.stringify(disk)} is not known`, {
      remedy: "name its agent with `--socket` or its image with `--source`",
      detail: { disk },
    });
  }

  async #askForPoint(): Promise<void> {
    const { source } = this.#held.document;
    if (source?.kind === "agent") await this.#agent(source.path).point(this.#sourceDisks, this.#signal);
  }

  #agent(socket: string): SourceSite {
    const { openAgent } = this.#options;
    if (openAgent !== undefined) return openAgent(socket);
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `the run names an agent at ${socket}, and none can be asked from here`,
      {
        remedy: "use the command line",
      },
    );
  }

  /**
   * Takes the writer lease and gives it back: a writer that began before the claim would still have
   * it. Errors: WRITER_ACTIVE.
   */
  async #proveWithoutWriter(disk: string): Promise<void> {
    const lease = await WriterLease.take({ ...this.#place, disk, onNotice: this.#notify });
    await lease.leave();
  }

  /** Brings every target to its member's point. */
  async makeTargets(): Promise<void> {
    for (const { disk } of this.#held.document.members) {
      if (this.#held.document.kind === "failback") {
        await this.#bringBack(disk);
        continue;
      }
      const member = this.#member(disk);
      const { point, target, held } = member;
      throwIfAborted(this.#signal);
      const replica = this.#replicaOf(target);
      if (replica !== undefined) {
        await this.#bringReplica(member, replica);
        continue;
      }
      const owned = ownedTargetOf(this.#context, this.#held.document, member);
      const isThere = await this.#own(member);
      if (target.kind === "instant") {
        await this.#beginInstant(member, owned);
        continue;
      }
      const isUntouched =
        isThere && held !== null && held.signature !== null && held.signature === (await owned.signature());
      if (isUntouched && held.point === point.id) {
        await this.#unpin(disk);
        continue;
      }
      await this.#pin(disk, point.id);
      const since = isUntouched
        ? await comparablePoint({ ...this.#place, disk }, held.point, point.volumeBytes)
        : undefined;
      if (held !== null) await this.#swapMember({ ...member, held: null });
      const changed = isThere ? (target.kind === "blob" ? "replace" : "in-place") : "create";
      const { bytesWritten, bytesRead } = await materialize(this.#context, {
        ...this.#operation,
        disk,
        point: point.id,
        to: materializeName(target),
        format: formatOf(target.kind),
        mode: changed,
        since,
      });
      this.#bytesWritten += bytesWritten;
      this.#bytesRead += bytesRead;
      await this.#swapMember({ ...member, held: { point: point.id, signature: await owned.signature() } });
      await this.#unpin(disk);
    }
  }

  async #own(member: RunMember): Promise<boolean> {
    return await ownTarget(this.#context, this.#place, this.#held.document, member);
  }

  #replicaOf({ replica }: RunMember["target"]): ReplicaOfRun | undefined {
    const { run } = this.#held.document;
    return replica === undefined ? undefined : new ReplicaOfRun(this.#context, run, { replica }, this.#operation);
  }

  async #bringReplica(member: RunMember, replica: ReplicaOfRun): Promise<void> {
    if (member.held !== null) await this.#swapMember({ ...member, held: null });
    const { bytesWritten, bytesRead, held } = await replica.bringTo(member.point.id);
    this.#bytesWritten += bytesWritten;
    this.#bytesRead += bytesRead;
    await this.#swapMember({ ...member, held });
  }

  /** Stages what an old image lacks, then applies it. An apply that has begun is ended first. */
  async #bringBack(disk: string): Promise<void> {
    await this.#endApply(disk);
    const { point, held } = this.#member(disk);
    const back = await this.#stage(disk);
    if (held?.point !== point.id || (await back.isFilled())) await this.#apply(disk, back);
    else await back.discard();
    await this.#unpin(disk);
  }

  async #apply(disk: string, back: ImageReturn): Promise<void> {
    const { held, bytesWritten } = await back.apply(
      async () => await this.#swapMember({ ...this.#member(disk), held: null, isMixture: true }),
    );
    this.#bytesWritten += bytesWritten;
    await this.#swapMember({ ...this.#member(disk), held, isMixture: undefined });
    await back.discard();
  }

  /** Ends an apply that a dead process has begun: without the vault, because all of it is staged. */
  async #endApply(disk: string): Promise<void> {
    const back = this.#returnOf(this.#member(disk));
    if (!(await back.isUnderWay())) return;
    if (await back.isFilled()) await this.#apply(disk, back);
    // A damaged log: what it has begun ends with a comparison.
    else await back.discard();
  }

  /** Brings an old image that is a mixture to the point. Of one that is gone it is only said. */
  async #makeWhole(disk: string, isThere: boolean): Promise<void> {
    if (isThere) await this.#endApply(disk);
    const { isMixture, target } = this.#member(disk);
    if (isMixture !== true) return;
    // The log was damaged, or another process keeps it where this one does not look.
    if (isThere) await this.#bringBack(disk);
    else {
      const message = `${target.path} is gone; if it comes back, it is a mixture of two points`;
      this.#notify({ code: "SOURCE_UNREACHED", message });
    }
  }

  /** Begins an image as the point. What stands there is of an interrupted try, or of another point. */
  async #beginInstant(member: RunMember, owned: OwnedTarget): Promise<void> {
    const { disk, point, target, held } = member;
    if (held?.point === point.id) return;
    const image = target.path;
    await discardImage(this.#context, { ...this.#operation, disk, image });
    await owned.removeContent();
    const begun = await HydratingImage.open(this.#context, {
      disk,
      image,
      point: point.id,
      onNotice: this.#notify,
      signal: this.#signal,
    });
    await begun.close();
    await this.#swapMember({ ...member, held: { point: point.id, signature: null } });
  }

  async checkTargets(): Promise<void> {
    const { document } = this.#held;
    if (document.check === null) return;
    await using served =
      document.serving === null ? undefined : await ServedRun.open(this.#vault, document, false, this.#operation);
    for (const member of document.members)
      await this.#commands.check(document, member, served?.disks.find(({ disk }) => disk === member.disk)?.uri);
  }

  /** The targets become the user's, and the choice of the point ends. */
  async commit(): Promise<void> {
    const { members, discardPoints } = this.#held.document;
    // Targets that are handed over are the user's: they may have moved.
    for (const member of isMoved(this.#held.document) ? [] : members) await this.#refuseGone(member);
    for (const { disk } of members) await this.#proveWithoutWriter(disk);
    // The newest point stays: the way back compares with it.
    const policy = parsePolicy("keep:last=1");
    for (const { disk, target } of discardPoints ? members : []) {
      await this.#replicaOf(target)?.unpin();
      await prune(this.#context, { ...this.#operation, disk, policy });
    }
    for (const member of members)
      await runTargetOf(this.#context, this.#held.document, member, this.#operation).handOver();
  }

  /** There is no way back from a commit: nothing is handed over that is not there. Errors: TARGET_FAILED. */
  async #refuseGone(member: RunMember): Promise<void> {
    const { run } = this.#held.document;
    if (await ownedTargetOf(this.#context, this.#held.document, member).exists()) return;
    const fact = `the target ${targetName(member.target)} of disk ${JSON.stringify(member.disk)} is gone`;
    throw new TidemarkError("TARGET_FAILED", fact, {
      remedy: `bring it back, or make it anew: \`tidemark failover change-point ${run} --point POINT\``,
      detail: { disk: member.disk, target: targetName(member.target) },
    });
  }

  /** The migration is complete: the targets are the user's, and no writer makes points of the disks. */
  async disable(): Promise<void> {
    const { run, members } = this.#held.document;
    await this.commit();
    for (const { disk } of members) await disableByClaim({ ...this.#place, disk }, "MigrationComplete", run);
  }

  /** Replicates each disk from its new place, by differences, and lets no other place write it. */
  async reprotect(): Promise<void> {
    const { run, host, members, serving } = this.#held.document;
    for (const member of members) {
      const { disk, target } = member;
      throwIfAborted(this.#signal);
      await settleClaim({ ...this.#place, disk }, { run, host, path: target.path });
      if (serving?.protects === true) continue;
      if (target.kind === "instant") {
        this.#bytesRead += await replicateInstant(this.#vault, member, this.#operation);
        continue;
      }
      const volume = await openImage(target.path);
      try {
        const { scannedBytes } = await replicate(this.#context, { ...this.#operation, disk, volume }, "shared");
        this.#bytesRead += scannedBytes;
      } finally {
        await volume.close();
      }
    }
  }

  async removeTargets(): Promise<void> {
    const { kind, members } = this.#held.document;
    for (const { disk, target } of members) {
      const member = this.#member(disk);
      const owned = ownedTargetOf(this.#context, this.#held.document, member);
      if (kind === "failback") await this.#makeWhole(disk, await owned.exists());
      // Of an image that has gone, a store that went back may hold the pin again.
      if (target.kind === "instant" && ((await owned.isOwned()) || (await owned.remains()).length === 0))
        await discardImage(this.#context, { ...this.#operation, disk, image: target.path });
      const made = runTargetOf(this.#context, this.#held.document, member, this.#operation);
      // A run that died with its mark beside the target of a replica that was faster has made nothing there.
      await ((await replicaAt(this.#place, target)) !== undefined ? made.handOver() : made.remove());
      await this.#unpin(disk);
    }
  }

  /** Errors: TARGET_FAILED when something of the run is there. */
  async lookAgain(): Promise<void> {
    const left = await leftoversOf(this.#context, this.#held.document);
    if (left.length === 0) return;
    throw new TidemarkError("TARGET_FAILED", `of the run is left: ${left.join(", ")}`, {
      remedy:
        "stop the programs that use it, move away or delete what the run cannot remove, and run the command again",
      detail: { leftovers: left.length },
    });
  }

  async freeDisks(): Promise<void> {
    const { run, kind, source } = this.#held.document;
    await this.lookAgain();
    for (const disk of this.#disks) await removeClaim({ ...this.#place, disk }, run);
    if (kind === "unplanned" || source?.kind !== "agent") return;
    const starting = this.#agent(source.path).start(this.#sourceDisks, this.#signal);
    await this.#orNote("`tidemark agent resume`, which protects the disks again,", starting);
  }

  async #pin(disk: string, id: string): Promise<void> {
    await pinPoint({ ...this.#place, disk, onNotice: this.#notify }, this.#held.document.run, id);
  }

  async #unpin(disk: string): Promise<void> {
    await unpinPoints({ ...this.#place, disk, onNotice: this.#notify }, this.#held.document.run);
  }

  async #swapMember(next: RunMember): Promise<void> {
    const { document } = this.#held;
    const members = document.members.map((member) => (member.disk === next.disk ? next : member));
    await this.#held.swap({ ...document, members });
  }

  #member(disk: string): RunMember {
    const member = this.#held.document.members.find((candidate) => candidate.disk === disk);
    if (member === undefined) throw new TidemarkError("INTERNAL", `the run has no disk ${JSON.stringify(disk)}`);
    return member;
  }

  get #disks(): readonly string[] {
    return this.#held.document.members.map(({ disk }) => disk);
  }

  get #sourceDisks(): SourceDisks {
    return { disks: this.#disks, group: this.#held.document.group };
  }

  get #place(): { readonly store: Store; readonly vault: string; readonly signal: AbortSignal } {
    return { store: this.#store, vault: this.#context.document.vault, signal: this.#signal };
  }

  get #operation(): OperationOptions {
    return { onProgress: this.#options.onProgress, onNotice: this.#options.onNotice, signal: this.#signal };
  }

  readonly #notify = (notice: Notice): void => {
    this.#options.onNotice?.(notice);
  };
}
