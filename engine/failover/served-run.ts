/**
 * Disks of a run while a process serves them: instant targets, and disks that are protected at
 * their new place, each as an export of one NBD server.
 *
 *     clients ─► NbdServer ─► Instant, or Protection ─► image
 *
 * The images are locked while they are open, and that alone says that the run is served: the lease
 * of the run is free meanwhile, so that another process can commit it.
 */
import { exportUri, formatListen, parseListen } from "../disk/nbd/address.ts";
import type { NbdEndpoint } from "../disk/nbd/protocol.ts";
import { NbdServer } from "../disk/nbd/server.ts";
import { TidemarkError } from "../errors.ts";
import type { Notice } from "../notice.ts";
import { lookAtImage } from "../recovery/mount/image-files.ts";
import { Group } from "../replication/protection/groups.ts";
import type { Protection } from "../replication/protection/protection.ts";
import type { ProtectionEvent } from "../replication/protection/protection-state.ts";
import type { ProtectionStatus, ProtectOptions, StopOptions } from "../replication/protection/protection-status.ts";
import { shellWord } from "../shell-word.ts";
import type { RunDocument, RunMember } from "../store/format/run.ts";
import { servedRunTiming } from "../timing.ts";
import type { Instant, InstantOptions, InstantStatus } from "./instant.ts";

/** How long requests under way have when serving ends. */
const graceMs = 2_000;

/** What serving needs of the vault that the disks belong to. What it opens ends with the vault. */
export interface ServingVault {
  readonly stateFolder: string | undefined;
  instant(options: InstantOptions): Promise<Instant>;
  protect(options: ProtectOptions): Promise<Protection>;
}

/** How the disks of a run are served. */
export interface ServeOptions {
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  /** Gets each event of the disks that are protected. */
  readonly onEvent?: ((event: ProtectionEvent) => void) | undefined;
  /** Memory for what is fetched of each instant target, in bytes. Default: that of `Vault.instant`. */
  readonly cacheBytes?: number | undefined;
  /** Ends the opening, not what has been opened. */
  readonly signal?: AbortSignal | undefined;
}

interface WatchedOptions extends ServeOptions {
  /** Whether the vault holds the run; absent: that is not asked. */
  readonly isThere?: (() => Promise<boolean>) | undefined;
}

/** A disk that is served. */
export interface ServedDisk {
  readonly disk: string;
  /** Path of the image or device. */
  readonly image: string;
  /** NBD URI of its export. */
  readonly uri: string;
  /** `unix:PATH` or `tcp:HOST:PORT`. */
  readonly listen: string;
}

/** What a served disk is at now. */
export interface ServedDiskStatus {
  readonly disk: string;
  /** Null: the target is whole. */
  readonly instant: InstantStatus | null;
  /** Null: no points are taken of it. */
  readonly protection: ProtectionStatus | null;
}

interface OpenDisk {
  readonly member: RunMember;
  readonly instant: Instant | undefined;
  readonly protection: Protection | undefined;
}

/** The NBD URI of a member's export; null: the run serves nothing. */
export function uriOfDisk({ serving }: Pick<RunDocument, "serving">, disk: string): string | null {
  return serving === null ? null : exportUri(endpointOf(serving.listen), disk);
}

function endpointOf(listen: string): NbdEndpoint {
  const address = parseListen(listen, "/");
  if (typeof address !== "string") return address;
  throw new TidemarkError("DAMAGED", `the run is served at ${listen}, which ${address}`);
}

/**
 * Refuses what may not happen to targets while they are served. `then` is the command to type
 * afterwards. Errors: WRITER_ACTIVE.
 */
export async function refuseServed(document: RunDocument, then: string): Promise<void> {
  const { run, serving } = document;
  const path = await servedImageOf(document);
  if (path !== undefined)
    throw new TidemarkError("WRITER_ACTIVE", `${path} of run ${run} is being served`, {
      remedy:
        serving?.byAgent === true
          ? `let the agent do it that serves the disks: \`${then} --agent SOCKET\``
          : `end the command that serves it with ^C, then run \`${then}\``,
      detail: { run, path },
    });
}

/** An instant target of the run that a process has open; undefined: there is none. */
export async function servedImageOf({ members }: RunDocument): Promise<string | undefined> {
  for (const { target } of members)
    if (target.kind === "instant" && (await lookAtImage(target.path)) === "open") return target.path;
  return undefined;
}

/** The served disks of a run, until `stop`. Made by `Failovers.serve`. */
export class ServedRun implements AsyncDisposable {
  readonly run: string;
  readonly disks: readonly ServedDisk[];
  readonly #server: NbdServer;
  readonly #open: readonly OpenDisk[];
  readonly #watch: NodeJS.Timeout | undefined;
  #stopping: Promise<TidemarkError | undefined> | undefined;

  private constructor(
    document: RunDocument,
    server: NbdServer,
    open: readonly OpenDisk[],
    { isThere, onNotice }: WatchedOptions,
  ) {
    this.run = document.run;
    const look = async (ask: () => Promise<boolean>): Promise<void> => {
      if (await ask()) return;
      clearInterval(this.#watch);
      onNotice?.({ code: "RUN_FORGOTTEN", message: forgotten(document) });
    };
    if (isThere !== undefined) {
      // A store that does not answer has forgotten nothing yet.
      this.#watch = setInterval(() => void look(isThere).catch(() => undefined), servedRunTiming.lookMs).unref();
    }
    this.#server = server;
    this.#open = open;
    this.disks = open.map(({ member: { disk, target } }) => ({
      disk,
      image: target.path,
      uri: exportUri(server.address, disk),
      listen: formatListen(server.address),
    }));
  }

  /**
   * Opens all disks, then listens. `protects`: points are taken of them. Errors: TARGET_FAILED (an
   * image is gone), those of `Vault.instant`, `Vault.protect` and `NbdServer.listen`.
   *
   * @internal
   */
  static async open(
    vault: ServingVault,
    document: RunDocument,
    protects: boolean,
    options: WatchedOptions,
  ): Promise<ServedRun> {
    const { group: name, serving, members } = document;
    if (serving === null) throw new TidemarkError("INTERNAL", `run ${document.run} has no address to serve at`);
    const group = name === null || !protects ? undefined : new Group(name);
    const open: OpenDisk[] = [];
    try {
      for (const member of members) open.push(await openDisk(vault, member, { protects, group, ...options }));
      const server = await NbdServer.listen({ listen: endpointOf(serving.listen) });
      for (const { member, instant, protection } of open) {
        const device = instant?.device ?? protection?.device;
        const description = `point ${member.point.sequence}, run ${document.run}`;
        if (device !== undefined) server.addExport({ name: member.disk, device, description });
      }
      return new ServedRun(document, server, open, options);
    } catch (error) {
      await closeDisks(open, { drain: false });
      throw error;
    }
  }

  /** What the operator should know about how the server is reached: sentences. */
  get warnings(): readonly string[] {
    return this.#server.warnings;
  }

  /** What each disk is at now. Never throws. */
  status(): ServedDiskStatus[] {
    return this.#open.map(({ member: { disk }, instant, protection }) => ({
      disk,
      instant: instant?.status() ?? null,
      protection: protection?.status() ?? null,
    }));
  }

  /** Resolves when all images hold everything, durably, or when they are closed before that. */
  async hydrated(): Promise<void> {
    await Promise.all(this.#open.map(async ({ instant }) => await instant?.hydrated()));
  }

  /**
   * Ends serving and closes the images. With `drain`, takes a last point of each protected disk
   * first, until `signal` aborts. Idempotent.
   *
   * @returns why a last point could not be taken; undefined if all were taken or none was wanted.
   * @throws TidemarkError when what is known of an image cannot be saved.
   */
  async stop(options: StopOptions): Promise<TidemarkError | undefined> {
    this.#stopping ??= this.#stop(options);
    return await this.#stopping;
  }

  /** `stop` without a last point. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop({ drain: false });
  }

  async #stop(options: StopOptions): Promise<TidemarkError | undefined> {
    clearInterval(this.#watch);
    // A read that waits for a store that is away does not end by itself soon.
    await this.#server.close({ graceMs });
    return await closeDisks(this.#open, options);
  }
}

/** What is left is in files and with the operator: the vault knows nothing of it. */
function forgotten({ run, members }: RunDocument): string {
  const commands = members.map(({ disk, target }) => `replicate ${shellWord(target.path)} --disk ${shellWord(disk)}`);
  return (
    `the vault does not hold run ${run} any more: the store has forgotten it, and nothing keeps the former source from ` +
    "making points; stop that source, wait until the disks are copied, end serving, and run " +
    commands.map((command) => `\`tidemark ${command}\``).join(" and ")
  );
}

interface OpenDiskOptions extends ServeOptions {
  readonly protects: boolean;
  readonly group: Group | undefined;
}

async function openDisk(vault: ServingVault, member: RunMember, options: OpenDiskOptions): Promise<OpenDisk> {
  const { disk, target } = member;
  const { protects, group, onEvent, signal } = options;
  if (target.kind !== "instant") {
    const { stateFolder } = vault;
    if (stateFolder === undefined) {
      throw new TidemarkError("INVALID_ARGUMENT", `${target.path} cannot be protected without a state folder`, {
        remedy: "open the vault with `stateFolder`",
      });
    }
    const protection = await vault.protect({ disk, image: target.path, stateFolder, group, onEvent });
    return { member, instant: undefined, protection };
  }
  const instant = await openInstant(vault, member, options);
  if (!protects) return { member, instant, protection: undefined };
  try {
    return { member, instant, protection: await instant.protect({ group, onEvent, signal }) };
  } catch (error) {
    await instant.close();
    throw error;
  }
}

/** Opens an image that is there: one that is gone would begin anew, without what was written to it. */
async function openInstant(
  vault: ServingVault,
  { disk, target, held }: RunMember,
  { onNotice, cacheBytes, signal }: ServeOptions,
): Promise<Instant> {
  if ((await lookAtImage(target.path)) === "absent") {
    throw new TidemarkError("TARGET_FAILED", `the image ${target.path} of disk ${JSON.stringify(disk)} is gone`, {
      remedy: "bring it back with its folder, or choose the point again: `tidemark failover change-point`",
      detail: { path: target.path },
    });
  }
  return await vault.instant({ disk, image: target.path, point: held?.point, onNotice, cacheBytes, signal });
}

/** Of a protection that takes a point on request: the next one is due after the work is over. */
const onRequestMs: number = 24 * 60 * 60 * 1000;

/** Takes one point of an instant target: its marks tell what differs. Gives the bytes that it read. */
export async function replicateInstant(
  vault: ServingVault,
  member: RunMember,
  options: Pick<ServeOptions, "onNotice" | "signal">,
): Promise<number> {
  await using instant = await openInstant(vault, member, options);
  const policy = { crashConsistentFrequencyMs: onRequestMs };
  const protection = await instant.protect({ policy, signal: options.signal });
  const { changedBytes } = await protection.point({ signal: options.signal });
  return changedBytes;
}

async function closeDisks(open: readonly OpenDisk[], options: StopOptions): Promise<TidemarkError | undefined> {
  const closed = await Promise.allSettled(
    open.map(async ({ instant, protection }) => {
      const missed = await protection?.stop(options);
      await instant?.close();
      return missed;
    }),
  );
  for (const outcome of closed) if (outcome.status === "rejected") throw outcome.reason;
  return closed.map((outcome) => (outcome.status === "fulfilled" ? outcome.value : undefined)).find(Boolean);
}
