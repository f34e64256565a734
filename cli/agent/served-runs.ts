/**
 * Runs whose disks the agent serves: instant targets, and disks that are protected at their new
 * place, until the agent ends. Which runs these are stands in the vault, so they are served again at
 * each start.
 *
 *     look ─► run in the vault: served by an agent, on this host ─► vault held open ─► served
 *     verb ─► released, with last points ─► the engine works on the targets ─► look
 *
 * Invariant: no run is served while a verb works on it.
 */
import os from "node:os";
import { type Finding, type RunSummary, type ServedRun, TidemarkError } from "../../engine/index.ts";
import { errorReport } from "../errors.ts";
import { diskEvent } from "./disk-event.ts";
import type { DiskEvent, VaultPort } from "./ports.ts";
import type { ServedDiskFacts } from "./seen-runs.ts";
import type { Share } from "./shared.ts";
import type { MissedPoint } from "./summaries.ts";

export interface ServedRunsParts {
  readonly holdVault: (name: string, signal: AbortSignal) => Promise<Share<VaultPort>>;
  readonly onEvent: (event: DiskEvent) => void;
}

interface OpenOptions {
  readonly disk: string;
  readonly cacheBytes?: number | undefined;
  readonly signal: AbortSignal;
}

interface Served {
  readonly vault: string;
  readonly run: ServedRun;
  readonly share: Share<VaultPort>;
}

/** Last points have this long. */
const drainMsMax = 60_000;
/** What many instant targets hold of their points in memory, all together. */
const cacheBytesMax: number = 512 * 1024 * 1024;

export class ServedRuns {
  readonly #parts: ServedRunsParts;
  readonly #served = new Map<string, Served>();
  /** Runs that verbs work on. */
  readonly #released = new Map<string, number>();
  readonly #failures = new Map<string, TidemarkError>();
  /** Ends the waiting for last points at the end. */
  readonly #hurry = new AbortController();
  #opening: Promise<unknown> = Promise.resolve();
  #ended: Promise<MissedPoint[]> | undefined;

  constructor(parts: ServedRunsParts) {
    this.#parts = parts;
  }

  /** Serves the runs of a vault that an agent is to serve and that are not served yet. Throws nothing. */
  async serve(vault: string, runs: readonly RunSummary[], signal: AbortSignal): Promise<void> {
    const mine = runs.filter(({ servedBy, host }) => servedBy === "agent" && host === os.hostname().slice(0, 100));
    for (const { run } of runs) if (!mine.some((other) => other.run === run)) this.#failures.delete(run);
    const count = mine.reduce((sum, { disks }) => sum + disks.length, 0);
    const cacheBytes = count <= 4 ? undefined : Math.floor(cacheBytesMax / count);
    for (const { run, disks } of mine) {
      const disk = disks[0]?.disk ?? "";
      await this.open(vault, run, { disk, cacheBytes, signal }).catch((error: unknown) => {
        if (!(error instanceof TidemarkError)) throw error;
        if (signal.aborted) return;
        this.#failures.set(run, error);
        this.#tell(disk, error, `run ${run} is not served`);
      });
    }
  }

  /** Serves a run if it is not served and no verb works on it. Errors: as `Failovers.serve`. */
  async open(vault: string, run: string, options: OpenOptions): Promise<void> {
    // One at a time: two would meet at the locks of the images.
    const turn = this.#opening.then(async () => {
      if (this.#isFree(run)) await this.#open(vault, run, options);
    });
    this.#opening = turn.catch(() => undefined);
    await turn;
  }

  /** Ends serving a run until `resume`. Gives what `Failovers` needs of it. */
  async release(run: string): Promise<void> {
    this.#released.set(run, (this.#released.get(run) ?? 0) + 1);
    await this.#opening;
    await this.#close(run, { drain: true, signal: AbortSignal.timeout(drainMsMax) });
  }

  /** A verb is over: the run may be served again. */
  resume(run: string): void {
    const left = (this.#released.get(run) ?? 0) - 1;
    if (left > 0) this.#released.set(run, left);
    else this.#released.delete(run);
  }

  /** The disks of a run that is served here; undefined: it is not. */
  factsOf(run: string): readonly ServedDiskFacts[] | undefined {
    const served = this.#served.get(run)?.run;
    if (served === undefined) return undefined;
    return served.status().map(({ disk, instant, protection }) => ({
      disk,
      uri: served.disks.find((other) => other.disk === disk)?.uri ?? "",
      hydratedBytes: instant?.hydratedBytes ?? null,
      sizeBytes: instant?.sizeBytes ?? protection?.sizeBytes ?? null,
      protection: protection?.state ?? null,
      committedMs: protection?.lag.committedMs ?? null,
    }));
  }

  /** Why a run that the agent has to serve is not served; undefined: it is. */
  findingOf(run: string): Finding | undefined {
    const failure = this.#failures.get(run);
    if (failure === undefined) return undefined;
    const { message, remedy } = errorReport(failure);
    return { level: "Critical", code: "RUN_NOT_SERVED", cause: `run ${run} is not served: ${message}`, remedy };
  }

  /** Ends serving the runs of these vaults, because they are opened anew. The next look serves them again. */
  async closeVaults(vaults: ReadonlySet<string>): Promise<void> {
    await this.#opening;
    const names = [...this.#served].filter(([, { vault }]) => vaults.has(vault)).map(([name]) => name);
    for (const name of names) await this.#close(name, { drain: true, signal: AbortSignal.timeout(drainMsMax) });
  }

  /**
   * Ends serving for good. Gives the disks whose last point could not be taken. Idempotent; another call
   * may only hurry the first one.
   */
  async stop({ drain }: { readonly drain: boolean }): Promise<MissedPoint[]> {
    if (!drain) this.#hurry.abort();
    this.#ended ??= this.#end(drain);
    return await this.#ended;
  }

  async #end(drain: boolean): Promise<MissedPoint[]> {
    await this.#opening;
    const signal = AbortSignal.any([this.#hurry.signal, AbortSignal.timeout(drainMsMax)]);
    const runs = [...this.#served.keys()];
    return (await Promise.all(runs.map(async (run) => await this.#close(run, { drain, signal })))).flat();
  }

  #isFree(run: string): boolean {
    return this.#ended === undefined && !this.#served.has(run) && !this.#released.has(run);
  }

  async #open(vault: string, run: string, { disk, cacheBytes, signal }: OpenOptions): Promise<void> {
    const { holdVault, onEvent } = this.#parts;
    const share = await holdVault(vault, signal);
    try {
      const served = await share.resource.failovers.serve({
        run,
        cacheBytes,
        onNotice: ({ code, message }) => onEvent({ kind: "notice", disk, code, message }),
        onEvent: (event) => onEvent(diskEvent(event)),
        signal,
      });
      this.#served.set(run, { vault, run: served, share });
      this.#failures.delete(run);
      for (const { disk: name, uri } of served.disks)
        onEvent({ kind: "state", disk: name, message: `run ${run}: served at ${uri}` });
      for (const message of served.warnings) onEvent({ kind: "notice", disk, message });
    } catch (error) {
      await share.release();
      throw error;
    }
  }

  async #close(
    run: string,
    options: { readonly drain: boolean; readonly signal: AbortSignal },
  ): Promise<readonly MissedPoint[]> {
    const served = this.#served.get(run);
    if (served === undefined) return [];
    this.#served.delete(run);
    const disk = served.run.disks[0]?.disk ?? "";
    try {
      const error = await served.run.stop(options);
      if (error === undefined) return [];
      this.#tell(disk, error, `no last point of run ${run} could be taken`);
      return [{ disk, error }];
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      this.#tell(disk, error, `run ${run} was not ended in good order`);
      return [];
    } finally {
      await served.share.release();
    }
  }

  #tell(disk: string, error: TidemarkError, what: string): void {
    const { code, message, remedy } = errorReport(error);
    this.#parts.onEvent({ kind: "failure", disk, code, message: `${message}: ${what}; ${remedy}` });
  }
}
