/**
 * Recovery plans: failovers and tests of several machines in order, as one run.
 *
 *     operation ─► steps of a job ─► next stage: commands, or the runs of the machines ─► swap the run ─► next stage …
 *
 * The driver of `plan-table.ts`, as `failovers.ts` is that of a single run. A process that dies leaves
 * the job in progress, and `resume` goes on at the steps that are not over. Each machine has a run of
 * its own, which everything that is known of single runs is true of.
 *
 * Invariant: an operation begins only when every machine allows it.
 */
import os from "node:os";
import { watchedStore } from "../../disk/source/head-watch.ts";
import { hasCode, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { planRunObjectName } from "../../store/format/names.ts";
import { encodePlanRun, type Plan, type PlanRunDocument, type PlanRunMachine } from "../../store/format/plan-run.ts";
import type { RunOperation } from "../../store/format/run.ts";
import type { FailoverOptions, OperateOptions } from "../failover-options.ts";
import type { Failovers } from "../failovers.ts";
import { checkNote, commandsOfOperations } from "../run-checks.ts";
import { directionOf } from "../run-members.ts";
import { StopRequests, stopJob } from "../run-request.ts";
import { findRun, newRunName } from "../run-store.ts";
import type { JobSummary } from "../run-summary.ts";
import { beginningOf, hasEnded, transition } from "../run-table.ts";
import { refuseServed } from "../served-run.ts";
import { changeJob, endPlanJob, refused, refuseElsewhere, refuseStep, waits, withJob, withNote } from "./plan-jobs.ts";
import {
  asked,
  type FailbackPlanOptions,
  type PlanPreview,
  type PlanPreviewMachine,
  type StartPlanOptions,
} from "./plan-options.ts";
import { namesOfTargets, type PreviewedMachine, pointsOf, previewPlan, spreadOf } from "./plan-points.ts";
import { PlanSteps, refusalOf } from "./plan-steps.ts";
import { findPlanRun, type HeldPlanRun, listPlanRuns, type PlanPlace, readPlanRun, takePlanRun } from "./plan-store.ts";
import { describePlanRun, type PlanRunDone, type PlanRunSummary, planJobsOf } from "./plan-summary.ts";
import { nextOf, retried, stateOfPlan, waitingIn } from "./plan-table.ts";

const rememberedMs: number = 90 * 24 * 60 * 60 * 1000;

/** Runs of recovery plans. `Vault.plans` gives it. */
export class Plans {
  readonly #context: VaultContext;
  readonly #failovers: Failovers;
  readonly #track: <Result>(start: () => Promise<Result>) => Promise<Result>;

  /** @internal */
  constructor(
    context: VaultContext,
    failovers: Failovers,
    track: <Result>(start: () => Promise<Result>) => Promise<Result>,
  ) {
    this.#context = context;
    this.#failovers = failovers;
    this.#track = track;
  }

  /** What a run would do, and every reason why it cannot begin. Changes nothing. Throws errors of the store. */
  async preview(options: StartPlanOptions): Promise<PlanPreview> {
    return await this.#track(async () => {
      const { machines, faults } = await previewPlan(this.#context, this.#place(options), options.plan, asked(options));
      return {
        target: asked(options).target,
        machines: machines.map((machine) => ({ machine: machine.name, disks: disksOf(machine) })),
        spreadMs: spreadOf(machines.flatMap(({ chosen }) => chosen.map(({ point }) => point))),
        faults,
      };
    });
  }

  /**
   * Begins a run of a plan and works on it until it waits for an operation or for a person.
   *
   * @throws the first fault of `preview` before anything has changed; `WRITER_ACTIVE`; `HOOK_FAILED`
   * when a command fails, and what the work on a machine ends with. The run then says what can be done.
   */
  async start(options: StartPlanOptions): Promise<PlanRunDone> {
    return await this.#track(async () => {
      const { kind, plan, note, ttlMs = null } = options;
      if (note !== undefined) checkNote(note);
      const place = this.#place(options);
      const { selector, target } = asked(options);
      const { machines, faults } = await previewPlan(this.#context, place, plan, { kind, selector, target });
      const [first] = faults;
      if (first !== undefined) throw first.error;
      const direction = await directionOf(
        { ...place, signal: options.signal },
        plan.machines.flatMap(({ disks }) => disks),
      );
      const members: Omit<PlanRunMachine, "run">[] = machines.map(({ name, group, chosen }) => ({
        name,
        group,
        points: chosen.map(({ point: { sequence, id, timeMs, consistency, volumeBytes } }) => {
          return { sequence, id, timeMs, consistency, volumeBytes };
        }),
        back: null,
      }));
      return await this.#begin(options, { kind, plan, direction, selector, target, ttlMs }, members);
    });
  }

  /**
   * Takes the machines of a reprotected run back, in the order of the plan.
   *
   * @throws as `start`; `INVALID_ARGUMENT` when a machine is not where the run took it.
   */
  async failback(options: FailbackPlanOptions): Promise<PlanRunDone> {
    return await this.#track(async () => {
      const { to, source = null, note } = options;
      if (note !== undefined) checkNote(note);
      const place = this.#place(options);
      const { document: former } = await readPlanRun(place, options.run);
      if (stateOfPlan(former) !== "Protected" || former.direction !== "PrimaryToRecovery")
        throw refused(former, "Failback", "only machines of a failover that was committed and reprotected go back");
      const count = former.plan.machines.reduce((sum, { disks }) => sum + disks.length, 0);
      if (to.length !== count) {
        throw new TidemarkError("INVALID_ARGUMENT", `the plan has ${count} disks, and ${to.length} images are named`, {
          remedy: `name one image or device for each of ${former.plan.machines.flatMap(({ disks }) => disks).join(", ")}, in this order`,
        });
      }
      let at = 0;
      const members: Omit<PlanRunMachine, "run">[] = [];
      for (const { name, run, group, points } of former.machines) {
        const images = to.slice(at, at + points.length);
        at += points.length;
        members.push({ name, group, points, back: { run, images } });
      }
      const plan: Plan = {
        ...former.plan,
        machines: former.plan.machines.map((machine) => ({ ...machine, source })),
      };
      const common = { kind: "failback", direction: "RecoveryToPrimary", selector: "latest", ttlMs: null } as const;
      return await this.#begin(options, { ...common, plan, target: to.join(" ").slice(0, 8000) }, members);
    });
  }

  /** Takes the targets of a failover to other points. The commands of the plan are not run. */
  async changePoint(options: OperateOptions & { readonly point: string }): Promise<PlanRunDone> {
    const { point: selector } = options;
    return await this.#operate("ChangePit", options, async (document, place) => {
      const { kind, target } = document;
      if (kind === "failback") throw refused(document, "ChangePit", "a failback goes to the last points");
      const chosen = new Map<string, PreviewedMachine>();
      if (selector === "common") {
        // The targets are there already, so only the choice counts.
        const free = { kind: "test", selector, target } as const;
        const { machines, faults } = await previewPlan(this.#context, place, document.plan, free);
        const fault = faults.find(({ path }) => path[0] === "machines");
        if (fault !== undefined) throw fault.error;
        for (const machine of machines) chosen.set(machine.name, machine);
      } else {
        for (const { name, disks } of document.plan.machines)
          chosen.set(name, { name, targets: [], ...(await pointsOf(place, disks, selector)) });
      }
      const machines = document.machines.map((machine): PlanRunMachine => {
        const points = chosen.get(machine.name)?.chosen.map(({ point }) => point) ?? machine.points;
        return {
          ...machine,
          group: chosen.get(machine.name)?.group ?? null,
          points: points.map(({ sequence, id, timeMs, consistency, volumeBytes }) => {
            return { sequence, id, timeMs, consistency, volumeBytes };
          }),
        };
      });
      return { ...document, selector, machines };
    });
  }

  /** Ends the choice of the points. `discardPoints` drops all but the newest point of each disk. */
  async commit(options: OperateOptions & { readonly discardPoints?: boolean | undefined }): Promise<PlanRunDone> {
    const discardPoints = options.discardPoints === true;
    return await this.#operate("Commit", options, (document) => Promise.resolve({ ...document, discardPoints }));
  }

  /** Brings back the state before a failover, the last group first; then the plan's cleanup. */
  async cancel(options: OperateOptions): Promise<PlanRunDone> {
    return await this.#operate("CancelFailover", options);
  }

  /** Removes what a test made, the last group first; then the plan's cleanup. */
  async cleanup(options: OperateOptions): Promise<PlanRunDone> {
    return await this.#operate("TestFailoverCleanup", options);
  }

  /**
   * Protects the disks of all machines at their new place. Throws INVALID_ARGUMENT with `listen`: the
   * machines are served one by one.
   */
  async reprotect(options: OperateOptions & { readonly listen?: string | undefined }): Promise<PlanRunDone> {
    if (options.listen !== undefined) {
      throw new TidemarkError("INVALID_ARGUMENT", "one address does not serve the machines of a plan", {
        remedy: "leave `--listen` out, or run `tidemark reprotect` with the run of each machine",
      });
    }
    return await this.#operate("ReverseReplicate", options);
  }

  /** Commits what is not committed, and disables the protection of all disks. */
  async completeMigration(options: OperateOptions): Promise<PlanRunDone> {
    return await this.#operate("CompleteMigration", options);
  }

  /**
   * Goes on with a run that waits for a person, was interrupted, or failed. `step` (from 1) has
   * been done by hand.
   */
  async resume(options: OperateOptions & { readonly step?: number | undefined }): Promise<PlanRunDone> {
    const { step } = options;
    return await this.#track(
      async () =>
        (step === undefined ? await this.#serveAgain(options) : undefined) ??
        (await this.#work(options.run, options, async (document) => {
          const outcome = transition(stateOfPlan(document), "Resume");
          if ("reason" in outcome) throw refused(document, "Resume", outcome.reason);
          refuseElsewhere(document);
          const job = document.jobs.at(-1);
          const waiting = waitingIn(job);
          if (waiting !== null && step === undefined) throw waits(document, waiting);
          if (step !== undefined) refuseStep(document, step);
          const confirmed = changeJob(document, (last) => ({
            ...last,
            steps: last.steps.map((each, index) =>
              index + 1 === step ? { ...each, state: "Confirmed", endMs: Date.now() } : each,
            ),
          }));
          if (job === undefined) return withJob(document, beginningOf(document.kind).operation);
          return withNote(changeJob(confirmed, retried), options.note);
        })),
    );
  }

  /** Stops the job that is under way, wherever its process is: see `Failovers.cancelJob`. */
  async cancelJob(options: {
    readonly run: string;
    readonly signal?: AbortSignal | undefined;
  }): Promise<PlanRunSummary> {
    return await this.#track(async () => {
      const place = this.#place(options);
      const { run } = options;
      const isOpen = ({ jobs }: PlanRunDocument): boolean => jobs.at(-1)?.endMs === null;
      const read = async (): Promise<PlanRunDocument> => (await readPlanRun(place, run)).document;
      const wasOpen = await stopJob(
        place,
        async () => await read().then((document) => (isOpen(document) ? document : undefined)),
        async () => {
          await using held = await takePlanRun(place, run);
          if (isOpen(held.document)) await held.swap(endPlanJob(held.document, "Cancelled"));
        },
      );
      const document = await read();
      if (!wasOpen) {
        throw new TidemarkError("INVALID_ARGUMENT", `no job of run ${run} is under way`, {
          remedy: `\`tidemark failover show ${run}\` says what can be done`,
        });
      }
      return await describePlanRun(this.#context, place, { ...document, worker: null });
    });
  }

  /** Whether there is such a run of a plan. */
  async has(run: string, signal?: AbortSignal): Promise<boolean> {
    return await this.#track(async () => (await findPlanRun(this.#place({ signal }), run)) !== undefined);
  }

  /** One run. Throws INVALID_ARGUMENT when there is none. */
  async show(run: string, signal?: AbortSignal): Promise<PlanRunSummary> {
    return await this.#track(async () => {
      const place = this.#place({ signal });
      return await describePlanRun(this.#context, place, (await readPlanRun(place, run)).document);
    });
  }

  /** The plan of a run, as it was when the run began. Throws INVALID_ARGUMENT when there is no such run. */
  async planOf(run: string, signal?: AbortSignal): Promise<Plan> {
    return await this.#track(async () => (await readPlanRun(this.#place({ signal }), run)).document.plan);
  }

  /** All runs, newest first; of one plan with `plan`, its name. */
  async list(
    options: { readonly plan?: string | undefined; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<PlanRunSummary[]> {
    return await this.#track(async () => {
      const place = this.#place(options);
      const found: PlanRunSummary[] = [];
      for (const document of await listPlanRuns(place))
        if (options.plan === undefined || document.plan.name === options.plan)
          found.push(await describePlanRun(this.#context, place, document));
      return found;
    });
  }

  /** All jobs of all runs of plans, newest first. */
  async jobs(signal?: AbortSignal): Promise<JobSummary[]> {
    return (await this.list({ signal })).flatMap(planJobsOf).sort((a, b) => (a.startTime < b.startTime ? 1 : -1));
  }

  /** Puts a new run into the vault and works on it. */
  async #begin(
    options: FailoverOptions & { readonly note?: string | undefined },
    facts: Pick<PlanRunDocument, "kind" | "plan" | "direction" | "selector" | "target" | "ttlMs">,
    members: readonly Omit<PlanRunMachine, "run">[],
  ): Promise<PlanRunDone> {
    const place = this.#place(options);
    place.store.keys?.assertReads();
    await this.#failovers.forgetOld(options.signal);
    await this.#forgetOld(place);
    const taken = new Set<string>();
    const name = async (): Promise<string> => {
      const run = newRunName();
      const isTaken = taken.has(run) || (await findRun(place, run)) || (await findPlanRun(place, run));
      taken.add(run);
      return isTaken ? await name() : run;
    };
    const run = await name();
    const machines: PlanRunMachine[] = [];
    for (const member of members) machines.push({ ...member, run: await name() });
    const document: PlanRunDocument = {
      vault: place.vault,
      run,
      epoch: 0,
      worker: null,
      ...facts,
      host: os.hostname().slice(0, 100),
      discardPoints: false,
      createdMs: Date.now(),
      notes: [],
      machines,
      jobs: [],
    };
    const encoded = encodePlanRun(withNote(document, options.note));
    await place.store.putOnce(planRunObjectName(run), encoded, { signal: options.signal });
    return await this.#work(run, options, (created) => withJob(created, beginningOf(facts.kind).operation));
  }

  async #operate(
    operation: RunOperation,
    options: OperateOptions,
    change: (document: PlanRunDocument, place: PlanPlace) => Promise<PlanRunDocument> = (document) =>
      Promise.resolve(document),
  ): Promise<PlanRunDone> {
    const { note } = options;
    if (note !== undefined) checkNote(note);
    return await this.#track(
      async () =>
        await this.#work(options.run, options, async (document, place) => {
          const outcome = transition(stateOfPlan(document), operation);
          if ("reason" in outcome) throw refused(document, operation, outcome.reason);
          refuseElsewhere(document);
          for (const { run } of document.machines) {
            const found = (await findRun(place, run))?.document;
            const refusal = refusalOf(operation, found);
            if (refusal !== undefined) throw refusal;
            if (operation === "Commit" || found === undefined) continue;
            await options.server?.release(run);
            await refuseServed(found, `${commandsOfOperations[operation]} ${document.run}`);
          }
          return withJob(withNote(await change(document, place), note), operation);
        }),
    );
  }

  /** Takes the run, lets `begin` decide its job, and works until the job ends or waits for a person. */
  async #work(
    run: string,
    options: FailoverOptions,
    begin: (document: PlanRunDocument, place: PlanPlace) => PlanRunDocument | Promise<PlanRunDocument>,
  ): Promise<PlanRunDone> {
    const startedAt = performance.now();
    const place = { ...this.#place(options), store: watchedStore(this.#context, options.onNotice) };
    await using held = await takePlanRun(place, run);
    await held.swap(await begin(held.document, place));
    await using requests = new StopRequests(place, held.document);
    const ends = [requests.signal, held.signal, ...(options.signal === undefined ? [] : [options.signal])];
    const signal = AbortSignal.any(ends);
    const steps = this.#stepsOf({ ...place, signal }, held, options);
    const failure = await this.#carryOut(held.document, steps, signal, () => held.document).catch(
      async (error: unknown) => {
        if (!(error instanceof TidemarkError) || hasCode(error, "SEAT_LOST")) throw error;
        const stopped = requests.signal.aborted ? "Cancelled" : "Suspended";
        const state = signal.aborted ? stopped : "Failed";
        await steps.update((document) => endPlanJob(document, state));
        throw error;
      },
    );
    if (failure !== undefined) throw failure;
    const summary = await describePlanRun(this.#context, place, { ...held.document, worker: null });
    return { ...summary, ...steps.moved, elapsedMs: Math.round(performance.now() - startedAt) };
  }

  /** Serves the machines of a run that is done or waits for a person; undefined: there is nothing to serve. */
  async #serveAgain(options: OperateOptions): Promise<PlanRunDone | undefined> {
    const startedAt = performance.now();
    const { signal = new AbortController().signal } = options;
    const place = { ...this.#place(options), signal };
    const { document } = await readPlanRun(place, options.run);
    const isIdle = "reason" in transition(stateOfPlan(document), "Resume") || waitingIn(document.jobs.at(-1)) !== null;
    if (!isIdle || options.serve === undefined) return undefined;
    await using held = await takePlanRun(place, options.run);
    if ((await this.#stepsOf(place, held, options).serveMachines()) === 0) return undefined;
    const summary = await describePlanRun(this.#context, place, { ...held.document, worker: null });
    const elapsedMs = Math.round(performance.now() - startedAt);
    return { ...summary, bytesWritten: 0, bytesRead: 0, elapsedMs };
  }

  #stepsOf(place: PlanPlace & { signal: AbortSignal }, held: HeldPlanRun, options: FailoverOptions): PlanSteps {
    return new PlanSteps({ place, failovers: this.#failovers, held, options });
  }

  /** Does what is left of the newest job, and gives what ended it when a step failed. */
  async #carryOut(
    { kind, jobs }: PlanRunDocument,
    steps: PlanSteps,
    signal: AbortSignal,
    current: () => PlanRunDocument,
  ): Promise<TidemarkError | undefined> {
    const operation = jobs.at(-1)?.operation;
    const choosesPoints =
      operation === "TestFailover" || operation === "UnplannedFailover" || operation === "ChangePit";
    if (choosesPoints && kind !== "planned") await steps.pinPoints();
    // What an earlier process has begun and does not serve any more.
    if (operation === beginningOf(kind).operation) await steps.serveMachines();
    for (;;) {
      throwIfAborted(signal);
      const next = nextOf(current().jobs.at(-1) ?? { steps: [] });
      if (next.kind === "steps") {
        await steps.carryOut(next.steps);
        continue;
      }
      if (next.kind === "done" && operation === "ChangePit") await steps.serveMachines();
      const state = next.kind === "done" ? "Succeeded" : next.kind === "failed" ? "Failed" : "Suspended";
      await steps.update((document) => endPlanJob(document, state));
      return next.kind === "failed" ? steps.failure : undefined;
    }
  }

  /** Deletes the records of runs that ended long ago, except that of a plan whose machines are where it took them. */
  async #forgetOld(place: PlanPlace): Promise<void> {
    for (const document of await listPlanRuns(place)) {
      const { run, createdMs, jobs, machines } = document;
      const isOld = place.store.nowMs - (jobs.at(-1)?.endMs ?? createdMs) > rememberedMs;
      if (!isOld || !hasEnded(stateOfPlan(document))) continue;
      const left = await Promise.all(machines.map(async (machine) => await findRun(place, machine.run)));
      if (left.every((found) => found === undefined))
        await place.store.delete(planRunObjectName(run), { signal: place.signal });
    }
  }

  #place({ signal }: { readonly signal?: AbortSignal | undefined }): PlanPlace {
    return { store: watchedStore(this.#context, undefined), vault: this.#context.document.vault, signal };
  }
}

function disksOf(machine: PreviewedMachine): PlanPreviewMachine["disks"] {
  const targets = namesOfTargets(machine);
  return machine.chosen.map(({ disk, point: { sequence, timeMs, consistency } }, index) => {
    return { disk, sequence, time: new Date(timeMs).toISOString(), consistency, target: targets[index] ?? "" };
  });
}
