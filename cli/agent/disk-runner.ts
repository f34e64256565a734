/**
 * Life cycle of one disk in the agent: open its vault, start its protection, export it. Each step
 * is retried until it succeeds; steps that succeeded stay. A running protection survives a store
 * that cannot be reached: the runner never ends it for that, because its clients would lose their
 * disk.
 *
 *     starting ─► vault ─► protection ─► export ─► up ─ (another address) ─► export
 *         ▲         └───────────┴───────────┴─ failed: wait 1, 2, 4 … 60 s
 *
 * A stop is final and undoes the steps in reverse order. The supervisor makes another runner to
 * protect the disk again.
 */
import {
  type Finding,
  type HealthLevel,
  type PointSummary,
  type ProtectionStatus,
  TidemarkError,
} from "../../engine/index.ts";
import { formatListen, type RestingImage, shellWord } from "../../engine/internal.ts";
import { errorReport } from "../errors.ts";
import { formatBytes } from "../quantities.ts";
import type { DiskConfig, PolicyConfig } from "./config.ts";
import type { Copies } from "./copies.ts";
import type {
  Clock,
  CopyFacts,
  DiskEvent,
  EngineAdapter,
  ProtectionPort,
  ReplicaFacts,
  ServerPort,
  VaultPort,
} from "./ports.ts";
import type { Share, SharedResources } from "./shared.ts";

/** A disk as the agent tells of it: its protection, and where it is found. */
export interface DiskStatus extends ProtectionStatus {
  readonly vault: string;
  readonly policy: string;
  readonly image: string;
  /** `unix:PATH` or `tcp:HOST:PORT`; the export has the disk's name. */
  readonly listen: string;
  readonly readOnly: boolean;
  /** Whether it has hooks, which application-consistent points need. */
  readonly hooks: boolean;
  /** The replica that follows the disk, by its policy; null: none, or the disk is not protected. */
  readonly replica: ReplicaFacts | null;
  /** The copies of its points in other vaults. */
  readonly copies: readonly CopyFacts[];
  /** Connections to the address that it is exported on, null while it is not. */
  readonly connections: number | null;
}

export interface RunnerParts {
  readonly engine: EngineAdapter;
  readonly clock: Clock;
  readonly vaults: SharedResources<VaultPort>;
  readonly servers: SharedResources<ServerPort>;
  readonly copies: Pick<Copies, "factsOf" | "findingsOf">;
  /** Opens the vault as it is configured when it is needed. */
  readonly openVault: (name: string, signal: AbortSignal) => Promise<VaultPort>;
  readonly onEvent: (event: DiskEvent) => void;
}

const retryFirstMs = 1_000;
export const retryMsMax = 60_000;

interface Failure {
  readonly error: unknown;
  readonly retryInMs: number;
}

interface Exported {
  readonly address: string;
  readonly server: Share<ServerPort>;
}

export class DiskRunner {
  readonly #parts: RunnerParts;
  readonly #stopping = new AbortController();
  /** Ends the waiting for a last point. */
  readonly #hurry = new AbortController();
  #disk: DiskConfig;
  #policy: PolicyConfig;
  #nudge = new AbortController();
  #vault: Share<VaultPort> | undefined;
  #protection: ProtectionPort | undefined;
  #exported: Exported | undefined;
  #failure: Failure | undefined;
  #paused = false;
  #running: Promise<void> = Promise.resolve();
  #ended: Promise<void> | undefined;
  #missed: TidemarkError | undefined;
  #rest: RestingImage | undefined;
  #isDrained = false;
  /** The status that the disk was left in, and when. */
  #stopped: { readonly status: ProtectionStatus; readonly atMs: number } | undefined;

  /** Begins after `startAfterMs`. Nothing that fails is thrown; it is told and tried again. */
  constructor(disk: DiskConfig, policy: PolicyConfig, parts: RunnerParts, startAfterMs: number) {
    this.#disk = disk;
    this.#policy = policy;
    this.#parts = parts;
    this.#running = this.#run(startAfterMs);
  }

  get disk(): DiskConfig {
    return this.#disk;
  }

  /** True from the moment that it is to stop; `ended` resolves when it has. */
  isStopping(): boolean {
    return this.#stopping.signal.aborted;
  }

  /** Why the last point that a stop asked for could not be taken. */
  get missed(): TidemarkError | undefined {
    return this.#missed;
  }

  /** Which point the image is, as a stop has left it. */
  get rest(): RestingImage | undefined {
    return this.#rest;
  }

  /** Whether a stop has left all of the disk in its newest point, as far as that is known. */
  get isDrained(): boolean {
    return this.#isDrained && this.status().backlogBytes === 0;
  }

  get ended(): Promise<void> {
    return this.#ended ?? Promise.resolve();
  }

  status(): DiskStatus {
    const { vault, policy, image, listen, readOnly, hooks } = this.#disk;
    const status = this.#stoppedStatus() ?? this.#protection?.status() ?? this.#absentStatus();
    const failure = this.#stopped === undefined ? this.#failure : undefined;
    const { copies } = this.#parts;
    const found = copies.findingsOf(this.#disk.name);
    const findings = [...(failure === undefined ? [] : [failureFinding(failure)]), ...found, ...status.findings];
    return {
      ...status,
      findings,
      health: worst([status.health, ...findings.map(({ level }) => level)]),
      vault,
      policy,
      image,
      listen: formatListen(listen.address),
      readOnly,
      hooks: hooks !== undefined,
      replica: this.#protection?.replica() ?? null,
      copies: copies.factsOf(this.#disk.name),
      connections: this.#exported?.server.resource.connections ?? null,
    };
  }

  /**
   * Errors: those of the point, of the start that failed, and INVALID_ARGUMENT while the disk is
   * only starting.
   */
  async point(options: {
    readonly applicationConsistent: boolean;
    readonly signal: AbortSignal;
  }): Promise<PointSummary> {
    if (this.#protection !== undefined) return await this.#protection.point(options);
    if (this.#failure !== undefined) throw this.#failure.error;
    throw new TidemarkError("INVALID_ARGUMENT", `the disk ${this.#disk.name} is not protected yet`, {
      remedy: "wait until `tidemark agent status` shows it protecting",
    });
  }

  /**
   * Errors: INVALID_ARGUMENT while the disk is paused. A request for a point would wait for the end
   * of the pause.
   */
  refuseWhilePaused(): void {
    if (!this.#paused) return;
    const { name } = this.#disk;
    throw new TidemarkError("INVALID_ARGUMENT", `the disk ${name} is paused, so no point of it is taken`, {
      remedy: `resume it first: \`tidemark agent resume --disk ${shellWord(name)}\``,
    });
  }

  pause(): void {
    this.#paused = true;
    this.#protection?.pause();
  }

  resume(): void {
    this.#paused = false;
    this.#protection?.resume();
    // What failed may work now, such as a disk whose failover was cancelled.
    if (this.#failure !== undefined) this.#nudge.abort();
  }

  setPolicy(policy: PolicyConfig): void {
    this.#policy = policy;
    this.#protection?.setPolicy(policy);
  }

  /**
   * Takes up what the image has grown by, and tells whether it has. Throws nothing: failures are
   * told.
   */
  async grow(): Promise<boolean> {
    const protection = this.#protection;
    const before = protection?.status().sizeBytes;
    await this.#told("what the image has grown by is not protected", async () => await protection?.grow());
    return protection?.status().sizeBytes !== before;
  }

  /**
   * Takes over what may change while the disk is protected: its policy's name and where it is
   * exported.
   */
  update(disk: DiskConfig): void {
    this.#disk = disk;
    this.#nudge.abort();
  }

  /**
   * Ends the export, takes a last point when `drain` says so, and saves what has to be known at the
   * next start. Throws nothing: failures are told. Idempotent; another call may only hurry the
   * first one.
   */
  async stop({ drain, signal }: { readonly drain: boolean; readonly signal: AbortSignal }): Promise<void> {
    const hurry = (): void => this.#hurry.abort();
    if (!drain || signal.aborted) hurry();
    signal.addEventListener("abort", hurry, { once: true });
    this.#ended ??= this.#end(drain);
    await this.#ended;
    signal.removeEventListener("abort", hurry);
  }

  async #end(drain: boolean): Promise<void> {
    this.#stopping.abort();
    this.#nudge.abort();
    await this.#running;
    await this.#told("the export could not be ended", async () => await this.#unexport());
    const protection = this.#protection;
    if (protection !== undefined) {
      const isSaved = await this.#told("the tracking could not be closed", async () => {
        this.#missed = await protection.stop({ drain, signal: this.#hurry.signal });
      });
      if (this.#missed !== undefined) this.#tell("failure", this.#missed, "no last point could be taken");
      this.#rest = protection.rest();
      // A paused disk gets no last point.
      const hasLast = isSaved && drain && !this.#paused && this.#missed === undefined;
      this.#isDrained = hasLast || this.#rest !== undefined;
      this.#protection = undefined;
    }
    await this.#told("the vault could not be closed", async () => await this.#vault?.release());
    this.#vault = undefined;
    this.#stopped = {
      status: stoppedStatus(protection?.status() ?? this.#absentStatus()),
      atMs: this.#parts.clock.now(),
    };
  }

  async #run(startAfterMs: number): Promise<void> {
    if (startAfterMs > 0) await this.#sleep(startAfterMs);
    for (let failures = 0; !this.isStopping(); ) {
      this.#nudge = new AbortController();
      try {
        await this.#bringUp(this.#stopping.signal);
        failures = 0;
        this.#failure = undefined;
        await this.#sleep(undefined);
      } catch (error) {
        if (this.isStopping()) return;
        const retryInMs = Math.min(retryFirstMs * 2 ** failures, retryMsMax);
        failures += 1;
        this.#failure = { error, retryInMs };
        this.#tell("failure", error, `tried again in ${retryInMs / 1_000} s`);
        await this.#sleep(retryInMs);
      }
    }
  }

  async #bringUp(signal: AbortSignal): Promise<void> {
    const { vaults, openVault, onEvent } = this.#parts;
    const { vault } = this.#disk;
    this.#vault ??= await vaults.acquire(vault, async () => await openVault(vault, signal));
    if (this.#protection === undefined) {
      const disk = this.#disk;
      this.#protection = await this.#vault.resource.protect({ disk, policy: this.#policy, onEvent }, signal);
      // What was asked for while it started.
      this.#protection.setPolicy(this.#policy);
      if (this.#paused) this.#protection.pause();
    }
    if (this.#exported?.address !== listenKey(this.#disk)) {
      await this.#unexport();
      await this.#export(this.#protection, signal);
    }
  }

  async #export(protection: ProtectionPort, signal: AbortSignal): Promise<void> {
    const { name, listen, readOnly } = this.#disk;
    const address = listenKey(this.#disk);
    const server = await this.#parts.servers.acquire(
      address,
      async () => await this.#parts.engine.listen(listen, signal),
    );
    try {
      server.resource.addExport({ name, device: protection.device, readOnly });
    } catch (error) {
      await server.release();
      throw error;
    }
    this.#exported = { address, server };
    for (const message of server.resource.warnings) this.#parts.onEvent({ kind: "notice", disk: name, message });
    this.#parts.onEvent({
      kind: "state",
      disk: name,
      message: `exported as ${name} on ${formatListen(listen.address)}`,
    });
  }

  async #unexport(): Promise<void> {
    const exported = this.#exported;
    this.#exported = undefined;
    if (exported === undefined) return;
    try {
      await exported.server.resource.removeExport(this.#disk.name);
    } finally {
      await exported.server.release();
    }
  }

  /** Until `delayMs` are over (never, when undefined), the disk changed, or it is to stop. */
  async #sleep(delayMs: number | undefined): Promise<void> {
    const { signal } = this.#nudge;
    if (signal.aborted || this.isStopping()) return;
    if (delayMs !== undefined) await this.#parts.clock.sleep(delayMs, signal);
    else await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  }

  async #told(what: string, work: () => Promise<unknown>): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (error) {
      this.#tell("failure", error, what);
      return false;
    }
  }

  #tell(kind: DiskEvent["kind"], error: unknown, what: string): void {
    const { code, message, remedy } = errorReport(error);
    this.#parts.onEvent({ kind, disk: this.#disk.name, code, message: `${message}: ${what}; ${remedy}` });
  }

  /** The ages of the newest cuts grow while the disk is stopped. */
  #stoppedStatus(): ProtectionStatus | undefined {
    if (this.#stopped === undefined) return undefined;
    const { status, atMs } = this.#stopped;
    const elapsedMs = this.#parts.clock.now() - atMs;
    const aged = (ageMs: number | null): number | null => (ageMs === null ? null : Math.round(ageMs + elapsedMs));
    const { capturedMs, shippedMs, committedMs } = status.lag;
    return {
      ...status,
      lag: { capturedMs: aged(capturedMs), shippedMs: aged(shippedMs), committedMs: aged(committedMs) },
    };
  }

  #absentStatus(): ProtectionStatus {
    return {
      disk: this.#disk.name,
      group: this.#disk.group ?? null,
      state: this.#failure === undefined ? "starting" : "failed",
      health: "Normal",
      findings: [],
      sizeBytes: 0,
      lag: { capturedMs: null, shippedMs: null, committedMs: null },
      ...atRest,
      backlogBytes: 0,
      points: null,
      pointsCommitted: 0,
      latest: null,
      barrier: { lastMs: 0, maxMs: 0 },
    };
  }
}

/** What is not measured while there is no protection. */
const atRest = {
  churnBytesPerSecond: 0,
  uploadBytesPerSecond: 0,
  preservedBytes: 0,
  lastPrune: null,
} as const;

/** How the disk was left. The warning reminds the operator of a stop that was forgotten. */
function stoppedStatus(last: ProtectionStatus): ProtectionStatus {
  const { disk, backlogBytes } = last;
  const left =
    backlogBytes === 0
      ? ""
      : `; ${formatBytes(backlogBytes)} of it were not in the vault then and will be shipped when it is resumed`;
  const finding: Finding = {
    level: "Warning",
    code: "STOPPED",
    cause: `the disk has been stopped: it is neither exported nor protected${left}`,
    remedy: resumeRemedy(disk),
  };
  return { ...last, ...atRest, state: "stopped", health: finding.level, findings: [finding] };
}

/** What brings a stopped disk back. */
export function resumeRemedy(disk: string): string {
  return `protect it again: \`tidemark agent resume --disk ${shellWord(disk)}\``;
}

/** The worst of some levels; Normal of none. */
export function worst(levels: readonly HealthLevel[]): HealthLevel {
  if (levels.includes("Critical")) return "Critical";
  return levels.includes("Warning") ? "Warning" : "Normal";
}

/**
 * Equal for disks whose exports one server serves, and different as soon as another one is needed.
 */
export function listenKey({ listen: { address, tls } }: Pick<DiskConfig, "listen">): string {
  return tls === undefined ? formatListen(address) : `${formatListen(address)} ${JSON.stringify(tls)}`;
}

function failureFinding({ error, retryInMs }: Failure): Finding {
  const { code, message, remedy } = errorReport(error);
  return { level: "Critical", code, cause: message, remedy: `${remedy}; tried again every ${retryInMs / 1_000} s` };
}
