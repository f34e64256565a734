/**
 * The state machine of a protected disk: `transition(state, input, now)` gives the next state and
 * its effects. It is pure. It reads no clock, holds no timer and touches neither the disk nor the
 * store; `Protection` carries out what it decides.
 *
 *     wait ─► open ─► cut ─► ship ─► prune ─► wait        each arrow is an input that ends the step on its left
 *      │ ▲             └──► skip ──────┘   │
 *      │ └── failed, from any step ◄───────┘
 *      ├──► rest ──► wait                  a long wait is interrupted to acknowledge a garbage collection
 *      ├──► leave ─► wait                  paused: the session is closed
 *      └──► end                            stopped, or failed for good
 *
 * One step is under way at a time, and exactly one input ends it: `waited`, `opened`, `cut`,
 * `skipped`, `committed`, `done` or `failed`. All other inputs arrive during a step and leave it as
 * it is; what they ask for is decided when the step ends.
 *
 * What is known of the vault's newest point decides how the next point is made:
 *   - `changed`: the newest point is the base of the marks. Only marked granules are read.
 *   - `compare`: it is the base, but a crash has widened the marks to regions. Marked regions are
 *     compared with the vault's map.
 *   - `scan`: it is not the base. The whole disk is compared with the vault's map. Earlier points
 *     stay readable.
 *
 * A scan, and the first point after an abandoned cut, are made of an inexact cut: no old content is
 * kept, so the point is fuzzy when the disk is written meanwhile. An exact point follows at once.
 *
 * Invariants: a request is answered by one point, whose exact cut was made after the request, or is
 * refused; a fuzzy point answers no request. Old marks are trusted only while the newest point in
 * the vault is their base.
 */
import assert from "node:assert/strict";
import { TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { PointRecord } from "../../store/format/documents.ts";
import { type PointSummary, pointSummary } from "../../store/points/points.ts";
import { protectionTiming } from "../../timing.ts";
import { isMapDamage } from "../replicate.ts";
import type { Due } from "./schedule.ts";

/**
 * `starting`: no session with the vault yet. `initial`: the first point ships what the disk holds.
 * `resyncing`: tracking was lost, so the disk is compared with the vault. `protecting`: every cycle
 * gives a point. `waiting`: the store or the writer lease cannot be had; writes are tracked.
 * `failed`: no points are taken any more.
 */
export type ProtectionState =
  | "starting"
  | "initial"
  | "resyncing"
  | "protecting"
  | "waiting"
  | "paused"
  | "stopped"
  | "failed";

/** An event of a protected disk, for logs and for people. `message` is one sentence. */
export type ProtectionEvent =
  | { readonly kind: "state"; readonly disk: string; readonly state: ProtectionState; readonly message: string }
  | { readonly kind: "point"; readonly disk: string; readonly point: PointSummary; readonly message: string }
  | {
      readonly kind: "prune";
      readonly disk: string;
      readonly removedPoints: number;
      readonly keptPoints: number;
      readonly heldPoints: number;
      readonly message: string;
    }
  | { readonly kind: "notice"; readonly disk: string; readonly code: Notice["code"]; readonly message: string }
  | { readonly kind: "failure"; readonly disk: string; readonly error: TidemarkError; readonly message: string };

/** A point that a client has asked for and waits for. */
export interface PointRequest {
  readonly applicationConsistent: boolean;
  readonly resolve: (point: PointSummary) => void;
  readonly reject: (error: TidemarkError) => void;
}

/** What is known of the vault's newest point; see above. */
export type Knowledge = "changed" | "compare" | "scan";

/** What a cut is made for; the same when it is shipped. */
interface Cycle {
  readonly known: Knowledge;
  readonly isExact: boolean;
  /** False: the newest point's map is damaged, and the new point lists everything anew. */
  readonly isParentSound: boolean;
  readonly wantsApp: boolean;
  /** Requests that the point answers. */
  readonly requests: readonly PointRequest[];
}

/** What the driver is doing. */
export type Step =
  /** Until `waitMs` have passed (Infinity: without limit) or the effect `wake`. */
  | { readonly kind: "wait"; readonly waitMs: number; readonly isLong: boolean }
  | { readonly kind: "rest" | "leave" | "open" | "skip" | "prune" | "end" }
  | (Cycle & { readonly kind: "cut" | "ship" });

export interface MachineState {
  readonly disk: string;
  readonly hasHook: boolean;
  readonly step: Step;
  readonly shown: ProtectionState;
  readonly known: Knowledge;
  /**
   * Why it is not known what has changed since the vault's newest point. Told when the disk is
   * scanned.
   */
  readonly whyUnknown: string;
  /** False once the newest point's map turned out to be damaged, until there is a newer point. */
  readonly isParentSound: boolean;
  /** False after a cut was abandoned, until the next point. */
  readonly isExact: boolean;
  /** A point whose commit was tried, until this session or the next one learns the outcome. */
  readonly tried: { readonly id: string; readonly cutAtMs: number } | undefined;
  /** An application-consistent point was due by schedule and has not been committed. */
  readonly isAppOwed: boolean;
  readonly isPaused: boolean;
  /** The last point is taken: alone, and without a prune after it. */
  readonly isDraining: boolean;
  readonly isStopping: boolean;
  /** A cycle begins as soon as the present step allows. */
  readonly isCycleRequested: boolean;
  /** Requests that no cut under way answers. */
  readonly waiting: readonly PointRequest[];
  readonly failuresInRow: number;
  /** When the cycle that failed is tried again, on the steady clock. */
  readonly retryAtMs: number;
  /** Why no points are taken any more. */
  readonly failure: TidemarkError | undefined;
  readonly latest: PointSummary | null;
  readonly pointsCommitted: number;
}

export type Input =
  | { readonly kind: "cycleRequested" | "barrierOpened" | "paused" | "resumed" | "draining" | "stopping" | "stopped" }
  | { readonly kind: "requested" | "withdrawn"; readonly request: PointRequest }
  /**
   * The commit of a point is about to be tried; its cut was made at `cutAtMs` on the steady clock.
   */
  | { readonly kind: "committing"; readonly id: string; readonly cutAtMs: number }
  // Ends of steps.
  | { readonly kind: "waited" | "done" }
  /** `found` is given for a new session. */
  | { readonly kind: "opened"; readonly found: Found | undefined }
  /** `isEmpty`: nothing has changed since the newest point, the size neither. */
  | { readonly kind: "cut"; readonly isEmpty: boolean; readonly isGroup: boolean }
  | { readonly kind: "skipped"; readonly cutAtMs: number }
  | { readonly kind: "committed"; readonly point: PointRecord }
  /** The session is closed. `isFatal`: points cannot be taken any more. */
  | { readonly kind: "failed"; readonly error: unknown; readonly isFatal: boolean };

/** What a new session finds as the vault's newest point. */
export interface Found {
  readonly newest: PointRecord | undefined;
  /** See `ProtectedDisk.rebase`. */
  readonly relation: "current" | "earlier" | "unknown";
  /** The marks have a base. */
  readonly isBased: boolean;
  /** What the state folder has seen of the disk that its head does not list any more, in words. */
  readonly older?: string | undefined;
}

export type Effect =
  | { readonly kind: "wake" }
  /** Ends the step that is under way, if it is part of a cycle. */
  | { readonly kind: "abort" }
  /** For the schedule: a point is begun. */
  | { readonly kind: "began"; readonly consistency: Due["consistency"] }
  | { readonly kind: "answer"; readonly request: PointRequest; readonly point: PointSummary }
  | { readonly kind: "refuse"; readonly request: PointRequest; readonly error: TidemarkError }
  | { readonly kind: "tell"; readonly event: ProtectionEvent }
  // For the measures: every write before `cutAtMs` is in a committed point; a cycle failed; no more
  // are begun; a scan has to be made.
  | { readonly kind: "succeeded"; readonly cutAtMs: number }
  | { readonly kind: "failed" | "gaveUp"; readonly error: TidemarkError }
  | { readonly kind: "trackingLost"; readonly reason: string };

/** When an input arrives: on the steady clock, and the next point that is due by schedule. */
export interface Now {
  readonly steadyMs: number;
  readonly due: Due;
}

const notMadeHere = "the vault's newest point is not one that was made here";

/** The driver begins with `step`: a first wait that ends at once. */
export function initialState(
  disk: string,
  { hasHook, known, whyUnknown = notMadeHere }: { hasHook: boolean; known: Knowledge; whyUnknown: string | undefined },
): MachineState {
  return {
    disk,
    hasHook,
    step: { kind: "wait", waitMs: 1, isLong: false },
    shown: "starting",
    known,
    whyUnknown,
    isParentSound: true,
    isExact: true,
    tried: undefined,
    isAppOwed: false,
    isPaused: false,
    isDraining: false,
    isStopping: false,
    isCycleRequested: false,
    waiting: [],
    failuresInRow: 0,
    retryAtMs: 0,
    failure: undefined,
    latest: null,
    pointsCommitted: 0,
  };
}

export interface Transition {
  readonly state: MachineState;
  /** In the order in which they are to be carried out. */
  readonly effects: readonly Effect[];
}

export function transition(state: MachineState, input: Input, now: Now): Transition {
  const draft: Draft = { ...state, effects: [] };
  take(draft, input, now);
  const { effects, ...next } = draft;
  return { state: next, effects };
}

/** The next state while it is made. Lists are replaced, never changed. */
type Draft = { -readonly [Key in keyof MachineState]: MachineState[Key] } & { readonly effects: Effect[] };

function take(draft: Draft, input: Input, now: Now): void {
  const { step, effects } = draft;
  switch (input.kind) {
    case "cycleRequested":
      requestCycle(draft);
      return;
    case "barrierOpened": {
      const isIdle = step.kind === "wait" || step.kind === "rest";
      if (isIdle && draft.failuresInRow === 0 && !draft.isPaused) requestCycle(draft);
      return;
    }
    case "requested":
      draft.waiting = [...draft.waiting, input.request];
      requestCycle(draft);
      return;
    case "withdrawn": {
      const others = (requests: readonly PointRequest[]): PointRequest[] =>
        requests.filter((request) => request !== input.request);
      draft.waiting = others(draft.waiting);
      if ("requests" in step) draft.step = { ...step, requests: others(step.requests) };
      return;
    }
    case "paused":
      draft.isPaused = true;
      effects.push({ kind: "abort" });
      requestCycle(draft);
      return;
    case "resumed":
      draft.isPaused = false;
      requestCycle(draft);
      return;
    case "draining":
      draft.isDraining = true;
      return;
    case "stopping":
      draft.isStopping = true;
      effects.push({ kind: "abort" });
      requestCycle(draft);
      return;
    case "stopped":
      show(draft, "stopped", "protection has ended");
      return;
    case "committing":
      draft.tried = { id: input.id, cutAtMs: input.cutAtMs };
      return;
    case "waited":
      if (step.kind === "wait" && step.isLong && !draft.isCycleRequested) draft.step = { kind: "rest" };
      else idle(draft, now);
      return;
    case "done":
      if (step.kind === "leave" && draft.isPaused)
        show(draft, "paused", "paused: writes are tracked, no points are taken");
      idle(draft, now);
      return;
    case "opened":
      if (input.found !== undefined) relate(draft, input.found);
      begin(draft, now);
      return;
    case "cut": {
      assert(step.kind === "cut", "a cut was to be made");
      const isWanted = !step.isExact || step.wantsApp || step.requests.length > 0 || input.isGroup;
      draft.step = input.isEmpty && !isWanted ? { kind: "skip" } : { ...step, kind: "ship" };
      return;
    }
    case "skipped":
      effects.push({ kind: "succeeded", cutAtMs: input.cutAtMs });
      show(draft, "protecting", "every write is in the newest point");
      finish(draft, now);
      return;
    case "committed":
      shipped(draft, input.point, now);
      return;
    case "failed":
      failed(draft, input.error, input.isFatal, now);
      return;
  }
}

/**
 * Whether the cycle under way is to be done as fast as it can be: a client waits for its point or for
 * the next one, the protection ends, the cycle before failed, or the disk is not yet under protection.
 */
export function isHurried({ step, waiting, isCycleRequested, isDraining, failuresInRow }: MachineState): boolean {
  if (step.kind !== "ship" || step.known !== "changed" || !step.isExact || step.requests.length > 0) return true;
  return waiting.length > 0 || isCycleRequested || isDraining || failuresInRow > 0;
}

function requestCycle(draft: Draft): void {
  draft.isCycleRequested = true;
  if (draft.step.kind === "wait") draft.effects.push({ kind: "wake" });
}

/** Decides what comes after a cycle, or after a wait. */
function idle(draft: Draft, { steadyMs, due }: Now): void {
  if (draft.isStopping) {
    end(draft, ended());
    return;
  }
  const isRetry = draft.failuresInRow > 0;
  // A retry does not wait for the next tick, which may be hours away: a client may wait for the
  // point.
  const inMs = draft.isPaused ? Infinity : isRetry ? draft.retryAtMs - steadyMs : due.inMs;
  if (draft.isCycleRequested || (inMs <= 0 && (isRetry || due.isPoint))) {
    draft.isCycleRequested = false;
    draft.step = { kind: draft.isPaused ? "leave" : "open" };
  } else {
    const waitMs = draft.isPaused ? Infinity : Math.min(Math.max(inMs, 1), protectionTiming.restMsMax);
    draft.step = { kind: "wait", waitMs, isLong: inMs > protectionTiming.restMsMax };
  }
}

/** Relates the marks to the newest point that a new session finds in the vault. */
function relate(draft: Draft, { newest, relation, isBased, older }: Found): void {
  const { tried } = draft;
  if (newest !== undefined && newest.id === tried?.id) {
    // The commit took effect, although its answer was lost. What the point was made of stays
    // marked, which does no harm.
    if (draft.known === "scan") draft.known = "changed";
    committed(draft, newest, tried.cutAtMs);
  }
  draft.tried = undefined;
  draft.latest = newest === undefined ? null : pointSummary(draft.disk, newest);
  if (relation === "earlier") {
    // Of points before a restart only regions are known, so marked regions are compared.
    if (draft.known === "changed") draft.known = "compare";
    notice(
      draft,
      "STORE_REGRESSED",
      "the store has lost points: what had changed since its newest point is shipped again",
    );
  } else if (relation === "unknown") {
    draft.known = "scan";
    if (older !== undefined) notice(draft, "STORE_REGRESSED", older);
    if (newest !== undefined) {
      draft.effects.push({ kind: "trackingLost", reason: draft.whyUnknown });
      notice(draft, "STATE_LOST", `${draft.whyUnknown}: the disk is compared with the vault`);
    } else if (isBased && older === undefined) {
      notice(draft, "STORE_REGRESSED", "the store has lost every point of the disk: all of it is shipped again");
    }
  }
}

/** Begins a point. */
function begin(draft: Draft, { due }: Now): void {
  const { known, isParentSound } = draft;
  if (known === "scan") {
    if (draft.latest === null) show(draft, "initial", "the first point is being made");
    else show(draft, "resyncing", "the disk is compared with the vault");
  }
  const isExact = draft.isExact && known !== "scan";
  const requests = isExact ? draft.waiting : [];
  if (isExact) draft.waiting = [];
  if (known !== "scan" && draft.hasHook && due.inMs <= 0 && due.consistency === "app") draft.isAppOwed = true;
  const wantsApp = isExact && (draft.isAppOwed || requests.some((request) => request.applicationConsistent));
  draft.effects.push({ kind: "began", consistency: wantsApp ? "app" : "crash" });
  draft.step = { kind: "cut", known, isExact, isParentSound, wantsApp, requests };
}

function shipped(draft: Draft, point: PointRecord, now: Now): void {
  const { step, tried } = draft;
  assert(step.kind === "ship" && tried?.id === point.id, "a point is committed after its commit was tried");
  const summary = committed(draft, point, tried.cutAtMs, step.requests);
  if (step.known === "scan") draft.whyUnknown = notMadeHere;
  else show(draft, "protecting", "every cycle gives a crash-consistent point");
  if (step.wantsApp) draft.isAppOwed = false;
  draft.latest = summary;
  draft.known = "changed";
  draft.isExact = true;
  if (!step.isExact) draft.isCycleRequested = true; // what was written meanwhile makes the next, exact point
  finish(draft, now);
}

function committed(
  draft: Draft,
  point: PointRecord,
  cutAtMs: number,
  requests: readonly PointRequest[] = [],
): PointSummary {
  const summary = pointSummary(draft.disk, point);
  draft.tried = undefined;
  draft.pointsCommitted += 1;
  draft.isParentSound = true;
  draft.effects.push({ kind: "succeeded", cutAtMs });
  for (const request of requests) draft.effects.push({ kind: "answer", request, point: summary });
  const message = `point ${String(summary.sequence)}, ${summary.consistency}, ${String(summary.changedBytes)} bytes changed`;
  draft.effects.push({ kind: "tell", event: { kind: "point", disk: draft.disk, point: summary, message } });
  return summary;
}

function finish(draft: Draft, now: Now): void {
  draft.failuresInRow = 0;
  if (draft.isDraining) idle(draft, now);
  else draft.step = { kind: "prune" };
}

function failed(draft: Draft, error: unknown, isFatal: boolean, now: Now): void {
  const { step } = draft;
  if ("requests" in step) draft.waiting = [...step.requests, ...draft.waiting]; // the next point answers them
  if (draft.isStopping && !isFatal) idle(draft, now);
  else if (isFatal || !(error instanceof TidemarkError)) giveUp(draft, error);
  else {
    if (error.code !== "INTERRUPTED") backOff(draft, error, now);
    idle(draft, now);
  }
}

function backOff(draft: Draft, error: TidemarkError, { steadyMs }: Now): void {
  const { code, message } = error;
  draft.effects.push({ kind: "failed", error });
  draft.effects.push({ kind: "tell", event: { kind: "failure", disk: draft.disk, error, message } });
  if (code === "CUT_ABANDONED") draft.isExact = false;
  const isDamage = draft.isParentSound && isMapDamage(error, draft.disk);
  if (isDamage) {
    draft.known = "scan";
    draft.isParentSound = false;
    notice(draft, "PARENT_DAMAGED", `${message}; the next point does not build on it`);
  }
  draft.failuresInRow += 1;
  draft.retryAtMs =
    steadyMs + Math.min(protectionTiming.backOffMsMax, protectionTiming.backOffMsMin * 2 ** (draft.failuresInRow - 1));
  // A cycle that will go another way begins at once.
  if (isDamage || (draft.failuresInRow === 1 && (code === "STORE_REGRESSED" || code === "CUT_ABANDONED")))
    draft.isCycleRequested = true;
  else if (code !== "CUT_ABANDONED" && code !== "CUT_TIMED_OUT") {
    show(draft, "waiting", "no point can be made now: the cycle is tried again, and writes are tracked meanwhile");
  }
}

/**
 * A fault of the program itself: the disk is served and tracked as before, but no points are taken
 * any more.
 */
function giveUp(draft: Draft, cause: unknown): void {
  const error =
    cause instanceof TidemarkError
      ? cause
      : new TidemarkError("INTERNAL", `protection ended: ${String(cause)}`, { cause });
  draft.failure = error;
  draft.effects.push({ kind: "gaveUp", error });
  end(draft, error);
  show(draft, "failed", error.message);
  draft.effects.push({ kind: "tell", event: { kind: "failure", disk: draft.disk, error, message: error.message } });
}

function end(draft: Draft, error: TidemarkError): void {
  draft.step = { kind: "end" };
  for (const request of draft.waiting) draft.effects.push({ kind: "refuse", request, error });
  draft.waiting = [];
}

export function ended(): TidemarkError {
  return new TidemarkError("INTERRUPTED", "the protection was ended or paused before the point was committed", {
    remedy: "start or resume it; what has changed is known and is in the next point",
  });
}

function show(draft: Draft, state: ProtectionState, message: string): void {
  if (draft.shown === state) return;
  draft.shown = state;
  draft.effects.push({ kind: "tell", event: { kind: "state", disk: draft.disk, state, message } });
}

function notice(draft: Draft, code: Notice["code"], message: string): void {
  draft.effects.push({ kind: "tell", event: { kind: "notice", disk: draft.disk, code, message } });
}
