/**
 * Supervisor of the agent's disks: starts them, finds them by name or group, reloads the
 * configuration, and stops them. A disk that fails does not affect another.
 *
 * Invariant: everything that changes the set of disks (reload, stop, resume of a stopped disk) goes
 * through one queue, so that two reloads never run at once. A disk that was stopped by itself keeps
 * its runner until it is resumed.
 */
import { createHash } from "node:crypto";
import { setMaxListeners } from "node:events";
import process from "node:process";
import {
  type HealthLevel,
  type PointSummary,
  TidemarkError,
  tidemarkVersion,
  type VaultStats,
} from "../../engine/index.ts";
import { shellWord } from "../../engine/internal.ts";
import type { AgentConfig, DiskConfig, VaultConfig } from "./config.ts";
import { isChanged, isReopened, needsRestart, policyOf, sameLimits, settingsAtNextStart } from "./config-changes.ts";
import { Copies } from "./copies.ts";
import type { CopyingParts } from "./copying.ts";
import { DiskRunner, type DiskStatus, type RunnerParts, resumeRemedy, worst } from "./disk-runner.ts";
import { groupPoint } from "./group-point.ts";
import type { AgentPoint, Clock, DiskEvent, EngineAdapter, ServerPort, VaultFacts, VaultPort } from "./ports.ts";
import { type RunFacts, SeenRuns } from "./seen-runs.ts";
import { ServedRuns } from "./served-runs.ts";
import { type Share, SharedResources } from "./shared.ts";
import type { MissedPoint, ReloadSummary, StopSummary } from "./summaries.ts";

export interface SupervisorParts {
  readonly engine: EngineAdapter;
  readonly clock: Clock;
  readonly onEvent: (event: DiskEvent) => void;
}

/** One disk, the disks of one group, or, with neither, all. */
export interface Target {
  readonly disk?: string | undefined;
  readonly group?: string | undefined;
}

export interface AgentStatus {
  readonly version: string;
  readonly pid: number;
  readonly state: "running" | "stopping";
  readonly uptimeMs: number;
  readonly config: string;
  /** The worst of the disks'. */
  readonly health: HealthLevel;
  readonly vaults: readonly VaultStatus[];
  readonly disks: readonly DiskStatus[];
}

export interface VaultStatus extends VaultFacts {
  readonly vault: string;
  readonly open: boolean;
  /** Set by `agent limit`; null while the configuration's limits hold. */
  readonly limitBytesPerSecond: number | "off" | null;
  /** Open failovers and tests, and the newest run of each disk, as the agent last saw them. */
  readonly failovers: readonly RunFacts[];
}

const unknownFacts: VaultFacts = { storedBytes: null, scrubAgeMs: null, collectionAgeMs: null };

/**
 * The first moments of many disks are spread over this, so that they do not all compare and ship at
 * once.
 */
const startSpreadMs = 2_000;

/** Last points have this long; service managers kill after about 90 s. */
const drainMsMax = 60_000;

export class Supervisor {
  readonly #clock: Clock;
  readonly #parts: RunnerParts;
  readonly #startedAtMs: number;
  readonly #runners = new Map<string, DiskRunner>();
  readonly #pointListeners = new Set<(point: PointSummary) => void>();
  readonly #overrides = new Map<string, number>();
  /** The runs that the agent serves, and all runs of its vaults, which are part of the status. */
  readonly served: ServedRuns;
  readonly runs: SeenRuns;
  readonly #copies: Copies;
  #config: AgentConfig;
  #queue: Promise<unknown> = Promise.resolve();
  #stopping = false;

  /** Starts protecting. What fails is retried and shown in the status. */
  constructor(config: AgentConfig, { engine, clock, onEvent }: SupervisorParts) {
    this.#config = config;
    this.#clock = clock;
    this.#startedAtMs = clock.now();
    const hold: CopyingParts["holdVault"] = async (...given) => await this.holdVault(...given);
    this.#copies = new Copies({ holdVault: hold, clock, wallMs: () => Date.now(), onEvent });
    this.#parts = {
      engine,
      clock,
      onEvent: (event) => {
        onEvent(event);
        if (event.point !== undefined) for (const listener of this.#pointListeners) listener(event.point);
      },
      vaults: new SharedResources<VaultPort>(),
      servers: new SharedResources<ServerPort>(),
      copies: this.#copies,
      openVault: async (name, signal) => await this.#openVault(name, signal),
    };
    this.served = new ServedRuns({ holdVault: hold, onEvent });
    this.runs = new SeenRuns(this.served);
    for (const disk of config.disks.values()) this.#start(disk, config);
    this.#copies.begin(config);
  }

  get config(): AgentConfig {
    return this.#config;
  }

  status(): AgentStatus {
    const disks = this.#inOrder().map((runner) => this.runs.addTo(runner.status()));
    return {
      version: tidemarkVersion,
      pid: process.pid,
      state: this.#stopping ? "stopping" : "running",
      uptimeMs: Math.round(this.#clock.now() - this.#startedAtMs),
      config: this.#config.path,
      health: worst(disks.map(({ health }) => health)),
      vaults: [...this.#config.vaults.keys()].map((vault) => ({
        vault,
        open: this.#parts.vaults.get(vault) !== undefined,
        limitBytesPerSecond: shownLimit(this.#overrides.get(vault)),
        ...(this.#parts.vaults.get(vault)?.facts() ?? unknownFacts),
        failovers: this.runs.of(vault),
      })),
      disks,
    };
  }

  /** Errors: DISK_NOT_FOUND. */
  disk(name: string): DiskStatus {
    return this.runs.addTo(this.#select({ disk: name.normalize("NFC") })[0].status());
  }

  /** The points of a disk, oldest first, from its vault. Errors: DISK_NOT_FOUND, those of the store. */
  async points(name: string, signal: AbortSignal): Promise<readonly AgentPoint[]> {
    const { disk } = this.#select({ disk: name.normalize("NFC") })[0];
    const { recoveryPointRetention } = policyOf(disk, this.#config);
    return await this.useVault(
      disk.vault,
      signal,
      async (vault) => await vault.points(disk.name, recoveryPointRetention, signal),
    );
  }

  /** What the points of a vault take. Reads every map. Errors: VAULT_NOT_FOUND, those of the store. */
  async vaultStats(name: string, signal: AbortSignal): Promise<VaultStats> {
    return await this.useVault(name, signal, async (vault) => await vault.stats(signal));
  }

  /** Opens a vault if it is not open. It stays open until it is released. Errors: VAULT_NOT_FOUND. */
  async holdVault(name: string, signal: AbortSignal, like?: VaultPort): Promise<Share<VaultPort>> {
    return await this.#parts.vaults.acquire(name, async () => await this.#openVault(name, signal, like));
  }

  /** Opens a vault if it is not open, and gives it to `use`. Errors: VAULT_NOT_FOUND, those of both. */
  async useVault<Result>(
    name: string,
    signal: AbortSignal,
    use: (vault: VaultPort) => Promise<Result>,
  ): Promise<Result> {
    const share = await this.holdVault(name, signal);
    try {
      return await use(share.resource);
    } finally {
      await share.release();
    }
  }

  /**
   * Takes a point now of each disk of the target and resolves when all are committed; the points of
   * a group are of one barrier. A group goes on without its stopped disks. Errors: DISK_NOT_FOUND,
   * INVALID_ARGUMENT for what is stopped or paused, CUT_TIMED_OUT when a group does not come
   * together, and what the first failing disk says.
   */
  async point(
    target: Target,
    options: { readonly applicationConsistent: boolean; readonly signal: AbortSignal },
  ): Promise<readonly PointSummary[]> {
    const [first, ...rest] = this.#selectRunning(target);
    for (const runner of [first, ...rest]) runner.refuseWhilePaused();
    if (target.group === undefined || rest.length === 0) {
      const runners = target.disk === undefined ? [first, ...rest] : [first];
      return await Promise.all(runners.map(async (runner) => await runner.point(options)));
    }
    const { applicationConsistent, signal } = options;
    // The application of a group may have its hooks on one disk only; all are cut while it rests.
    const hooked = [first, ...rest].filter(({ disk }) => disk.hooks !== undefined);
    const disks = [first, ...rest].map((runner) => {
      const asksForApp = applicationConsistent && (hooked.length === 0 || hooked.includes(runner));
      return {
        name: runner.disk.name,
        isDecisive: asksForApp === applicationConsistent,
        point: async () => await runner.point({ applicationConsistent: asksForApp, signal }),
      };
    });
    return await groupPoint(target.group, disks, (listener) => {
      this.#pointListeners.add(listener);
      return () => this.#pointListeners.delete(listener);
    });
  }

  /**
   * No more points until `resume`; writes go on and are tracked. Gives the names. Errors:
   * DISK_NOT_FOUND, INVALID_ARGUMENT for what is stopped.
   */
  pause(target: Target): readonly string[] {
    return this.#selectRunning(target).map((runner) => {
      runner.pause();
      return runner.disk.name;
    });
  }

  /**
   * Undoes a pause, and begins to protect again what was stopped. Gives the names. Errors:
   * DISK_NOT_FOUND, INTERRUPTED.
   */
  async resume(target: Target): Promise<readonly string[]> {
    const runners = this.#select(target);
    for (const runner of runners) if (!runner.isStopping()) runner.resume();
    const stopped = runners.filter((runner) => runner.isStopping());
    await Promise.all(stopped.map(async ({ ended }) => await ended));
    await this.#enqueue(async () => {
      for (const runner of stopped) {
        this.#refuseAtTheEnd("start it again to protect the disk");
        const disk = this.#config.disks.get(runner.disk.name);
        // A reload or another resume that was faster has done it.
        if (disk !== undefined && this.#runners.get(disk.name) === runner) this.#start(disk, this.#config, 0);
      }
    });
    return runners.map(({ disk }) => disk.name);
  }

  /**
   * Ends the exports and the protection of the target's disks, with a last point each when `drain`
   * says so; all other disks go on. They stay stopped, through reloads too, until `resume`. What is
   * stopped already is no error. Errors: DISK_NOT_FOUND, INTERRUPTED.
   */
  async stopDisks(target: Target, options: { readonly drain: boolean }): Promise<StopSummary> {
    // The queue only begins the stops, so that no other request waits for the last points.
    const { runners, ended } = await this.#enqueue(async () => {
      this.#refuseAtTheEnd("all of its disks are being stopped");
      const selected = this.#select(target);
      return { runners: selected, ended: this.#end(selected, options) };
    });
    await ended;
    const namesOf = (some: readonly DiskRunner[]): string[] => some.map(({ disk }) => disk.name);
    return {
      disks: namesOf(runners),
      notDrained: namesOf(runners.filter(({ isDrained }) => !isDrained)),
      resting: runners.flatMap(({ rest, disk }) => (rest === undefined ? [] : { disk: disk.name, ...rest })),
    };
  }

  /**
   * Holds until it is set again or the agent ends. Infinity: no limit; undefined: the
   * configuration's limits hold again. Errors: VAULT_NOT_FOUND.
   */
  setLimit(vault: string, bytesPerSecond: number | undefined): void {
    this.#vaultConfig(vault);
    if (bytesPerSecond === undefined) this.#overrides.delete(vault);
    else this.#overrides.set(vault, bytesPerSecond);
    this.#parts.vaults.get(vault)?.setLimit(bytesPerSecond);
  }

  /** Goes over to `next`, which has been checked. Disks that it does not concern notice nothing. */
  async reload(next: AgentConfig): Promise<ReloadSummary> {
    return await this.#enqueue(async () => await this.#apply(next));
  }

  /**
   * Ends every disk, with a last point each when `drain` says so; `signal` cuts that short. Gives the
   * disks that are left without it. Idempotent.
   */
  async stop(options: { readonly drain: boolean; readonly signal?: AbortSignal }): Promise<readonly MissedPoint[]> {
    this.#stopping = true;
    return await this.#enqueue(async () => {
      const runners = this.#inOrder();
      await Promise.all([this.#copies.stop(), this.#remove([...this.#runners.keys()], options)]);
      return runners.flatMap(({ disk, missed }) => (missed === undefined ? [] : { disk: disk.name, error: missed }));
    });
  }

  async #apply(next: AgentConfig): Promise<ReloadSummary> {
    this.#refuseAtTheEnd("start it again with the new configuration");
    const before = this.#config;
    const reopened = new Set(
      [...before.vaults.values()]
        .filter((vault) => isReopened(vault, next.vaults.get(vault.name)))
        .map(({ name }) => name),
    );
    const removed: string[] = [];
    const restarted: string[] = [];
    const changed: string[] = [];
    for (const runner of this.#inOrder()) {
      const { name } = runner.disk;
      const disk = next.disks.get(name);
      if (disk === undefined) removed.push(name);
      else if (runner.isStopping()) {
        if (needsRestart(runner.disk, disk) || isChanged(runner.disk, disk, before, next)) changed.push(name);
      } else if (reopened.has(runner.disk.vault) || needsRestart(runner.disk, disk)) restarted.push(name);
      else if (isChanged(runner.disk, disk, before, next)) changed.push(name);
    }
    // First everything that sets images, addresses and vaults free, then everything that needs
    // them.
    await this.#copies.end(next, reopened);
    await this.served.closeVaults(reopened);
    await this.#remove([...removed, ...restarted], { drain: true });
    this.#config = next;
    for (const vault of this.#overrides.keys()) if (!next.vaults.has(vault)) this.#overrides.delete(vault);
    const limits = this.#applyLimits(before, next, reopened);
    for (const name of changed) {
      const disk = next.disks.get(name);
      if (disk === undefined) continue;
      this.#runners.get(name)?.setPolicy(policyOf(disk, next));
      this.#runners.get(name)?.update(disk);
    }
    const grown: string[] = [];
    for (const [name, runner] of this.#runners) if (!runner.isStopping() && (await runner.grow())) grown.push(name);
    const added = [...next.disks.values()].filter(({ name }) => !before.disks.has(name)).map(({ name }) => name);
    for (const disk of next.disks.values()) if (!this.#runners.has(disk.name)) this.#start(disk, next);
    this.#copies.begin(next);
    return { added, removed, restarted, changed, grown, limits, atNextStart: settingsAtNextStart(before, next) };
  }

  #applyLimits(before: AgentConfig, next: AgentConfig, reopened: ReadonlySet<string>): readonly string[] {
    const limits: string[] = [];
    for (const vault of next.vaults.values()) {
      const old = before.vaults.get(vault.name);
      if (old === undefined || reopened.has(vault.name) || sameLimits(old, vault)) continue;
      this.#parts.vaults.get(vault.name)?.setBandwidth(vault);
      limits.push(vault.name);
    }
    return limits;
  }

  #start(disk: DiskConfig, config: AgentConfig, startAfterMs: number = spreadMs(disk, config)): void {
    this.#runners.set(disk.name, new DiskRunner(disk, policyOf(disk, config), this.#parts, startAfterMs));
  }

  /** Stops disks that have no place here any more. */
  async #remove(
    names: readonly string[],
    options: { readonly drain: boolean; readonly signal?: AbortSignal },
  ): Promise<void> {
    const runners = names.flatMap((name) => this.#runners.get(name) ?? []);
    await this.#end(runners, options);
    for (const name of names) this.#runners.delete(name);
  }

  async #end(
    runners: readonly DiskRunner[],
    { drain, signal }: { readonly drain: boolean; readonly signal?: AbortSignal },
  ): Promise<void> {
    const limit = new AbortController();
    // Each disk listens.
    setMaxListeners(0, limit.signal);
    const over = new AbortController();
    const cut = (): void => limit.abort();
    signal?.addEventListener("abort", cut, { once: true });
    if (signal?.aborted === true) cut();
    const timer = this.#clock.sleep(drainMsMax, over.signal).then(cut);
    await Promise.all(runners.map(async (runner) => await runner.stop({ drain, signal: limit.signal })));
    signal?.removeEventListener("abort", cut);
    over.abort();
    await timer;
  }

  async #openVault(name: string, signal: AbortSignal, like?: VaultPort): Promise<VaultPort> {
    const config = this.#vaultConfig(name);
    const disksOf = (): readonly DiskStatus[] => this.status().disks.filter(({ vault }) => vault === name);
    const vault = await this.#parts.engine.openVault(config, signal, disksOf, like);
    const override = this.#overrides.get(name);
    if (override !== undefined) vault.setLimit(override);
    return vault;
  }

  /** Errors: VAULT_NOT_FOUND. */
  #vaultConfig(name: string): VaultConfig {
    const config = this.#config.vaults.get(name);
    if (config !== undefined) return config;
    throw new TidemarkError("VAULT_NOT_FOUND", `the agent has no vault ${name}`, {
      remedy: `its vaults are ${[...this.#config.vaults.keys()].join(", ")}`,
    });
  }

  /** In the order of the configuration, also after some were restarted. */
  #inOrder(): readonly DiskRunner[] {
    return [...this.#config.disks.keys()].flatMap((name) => this.#runners.get(name) ?? []);
  }

  #select({ disk, group }: Target): readonly [DiskRunner, ...DiskRunner[]] {
    const all = this.#inOrder();
    const [first, ...rest] = all.filter(
      (runner) =>
        (disk === undefined || runner.disk.name === disk) && (group === undefined || runner.disk.group === group),
    );
    if (first !== undefined) return [first, ...rest];
    const what = disk === undefined ? (group === undefined ? "disks" : `group ${group}`) : `disk ${disk}`;
    const names = all
      .map((runner) => (group === undefined ? runner.disk.name : runner.disk.group))
      .filter((name) => name !== undefined);
    throw new TidemarkError("DISK_NOT_FOUND", `the agent has no ${what}`, {
      remedy:
        names.length === 0
          ? "add it to the configuration, then `tidemark agent reload`"
          : `it has ${[...new Set(names)].join(", ")}`,
    });
  }

  #selectRunning(target: Target): readonly [DiskRunner, ...DiskRunner[]] {
    const selected = this.#select(target);
    const [first, ...rest] = selected.filter((runner) => !runner.isStopping());
    if (first !== undefined) return [first, ...rest];
    const [{ disk }, ...others] = selected;
    if (others.length === 0) {
      throw new TidemarkError("INVALID_ARGUMENT", `the disk ${disk.name} has been stopped`, {
        remedy: resumeRemedy(disk.name),
      });
    }
    const [what, flags] =
      target.group === undefined ? ["", ""] : [` of the group ${target.group}`, ` --group ${shellWord(target.group)}`];
    throw new TidemarkError("INVALID_ARGUMENT", `all disks${what} have been stopped`, {
      remedy: `protect them again: \`tidemark agent resume${flags}\``,
    });
  }

  #refuseAtTheEnd(remedy: string): void {
    if (this.#stopping) throw new TidemarkError("INTERRUPTED", "the agent is stopping", { remedy });
  }

  async #enqueue<Result>(work: () => Promise<Result>): Promise<Result> {
    const turn = this.#queue.then(work);
    // The next in the queue waits for the end, not for the success, of the one before.
    this.#queue = turn.then(
      () => undefined,
      () => undefined,
    );
    return await turn;
  }
}

/** JSON has no infinity. */
function shownLimit(bytesPerSecond: number | undefined): number | "off" | null {
  return bytesPerSecond === Number.POSITIVE_INFINITY ? "off" : (bytesPerSecond ?? null);
}

/** The same for a name at every start. */
function spreadMs({ name }: DiskConfig, { disks }: AgentConfig): number {
  const fraction = createHash("sha256").update(name).digest().readUInt32BE(0) / 2 ** 32;
  return disks.size === 1 ? 0 : Math.floor(fraction * startSpreadMs);
}
