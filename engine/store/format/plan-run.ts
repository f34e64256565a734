/**
 * Document of a plan's run: one failover or test of a recovery plan, that is of several machines in
 * order, with the plan as it was when the run began.
 *
 * Each machine has a failover run of its own, whose name stands here before that run is made. A job is
 * one operation on the plan's run. Its steps are actions and machines, in stages: the steps of one
 * stage are done at the same time, the stages one after the other.
 */
import { groupDisksMax, readWriter } from "./documents.ts";
import { anyText, damaged, type Fields } from "./fields.ts";
import { isDiskName, planRunObjectName } from "./names.ts";
import {
  jobStates,
  longText,
  outputText,
  type RunDocument,
  type RunError,
  type RunJob,
  type RunPoint,
  readNote,
  readRunError,
  readRunPoint,
  readSource,
  runDirections,
  runKinds,
  runName8,
  runOperations,
} from "./run.ts";
import { decodeOfVault, encode } from "./signed-text.ts";

/** A command, or work that a person does while the run waits. */
export type PlanAction =
  | {
      readonly kind: "run";
      /** For `/bin/sh`. */
      readonly command: string;
      readonly timeoutMs: number;
      /** How often it is tried again after a failure. */
      readonly retries: number;
      /** Between two tries. */
      readonly pauseMs: number;
      /** Whether the run goes on without it. */
      readonly onFailure: "stop" | "continue";
    }
  | {
      readonly kind: "manual";
      /** What the person does. */
      readonly text: string;
    };

/** A machine of a plan. */
export interface PlanMachine {
  readonly name: string;
  readonly disks: readonly string[];
  /** Where its disks are written today: an agent's socket, or the image of its only disk; null: not said. */
  readonly source: RunDocument["source"];
}

/** Machines that are taken over at the same time, with what is done before and after. */
export interface PlanGroup {
  /** Names of the machines. */
  readonly machines: readonly string[];
  readonly before: readonly PlanAction[];
  readonly after: readonly PlanAction[];
}

/** A recovery plan. */
export interface Plan {
  readonly name: string;
  readonly machines: readonly PlanMachine[];
  /** In order. */
  readonly groups: readonly PlanGroup[];
  /** After the cleanup of a test, and after a cancel. */
  readonly cleanup: readonly PlanAction[];
  /** Where failovers and tests go: `dir:FOLDER`, `blob:PREFIX`, `replica` (not a test). Null: to be named. */
  readonly target: string | null;
  readonly testTarget: string | null;
  /** What a run is held against; null: no objective. */
  readonly objectives: { readonly rpoMs: number | null; readonly rtoMs: number | null };
  /** Absolute path of the folder in which commands run. */
  readonly folder: string;
  /** The file of the plan, as it is written. */
  readonly text: string;
}

/** A machine in a run. */
export interface PlanRunMachine {
  readonly name: string;
  /** Name of its own failover run, which may not be there yet. */
  readonly run: string;
  /** The group of disks that have a common point; null: each disk has its own point. */
  readonly group: string | null;
  /** Of each disk, in the order of the plan. */
  readonly points: readonly RunPoint[];
  /** Of a failback: the run that took the machine away, and its old images. */
  readonly back: { readonly run: string; readonly images: readonly string[] } | null;
}

/**
 * `Waiting`: for a person. `Suspended`: it was interrupted. `Confirmed`: a person has said that it is
 * done.
 */
export type PlanStepState =
  | "NotStarted"
  | "InProgress"
  | "Waiting"
  | "Suspended"
  | "Succeeded"
  | "Confirmed"
  | "Failed";
const planStepStates: readonly PlanStepState[] = [
  "NotStarted",
  "InProgress",
  "Waiting",
  "Suspended",
  "Succeeded",
  "Confirmed",
  "Failed",
];

/** When in a group a step is done; `cleanup`: after all groups. */
export type PlanPhase = "before" | "machines" | "after" | "cleanup";
const planPhases: readonly PlanPhase[] = ["before", "machines", "after", "cleanup"];

/** A step of a job: an action or a machine. */
export interface PlanStep {
  /** Steps of one stage are done at the same time. */
  readonly stage: number;
  /** Number of the group, from 1; 0: of no group. */
  readonly group: number;
  readonly phase: PlanPhase;
  /** Null: the step is a machine. */
  readonly action: PlanAction | null;
  readonly machine: string | null;
  readonly state: PlanStepState;
  /** How often it was tried. */
  readonly tries: number;
  readonly startMs: number | null;
  readonly endMs: number | null;
  readonly output: string | null;
  readonly exitCode: number | null;
  readonly error: RunError | null;
}

export interface PlanJob extends Omit<RunJob, "tasks"> {
  readonly steps: readonly PlanStep[];
}

/** What it has in common with a machine's run means the same there. */
export interface PlanRunDocument
  extends Pick<RunDocument, "vault" | "run" | "epoch" | "worker" | "kind" | "direction" | "selector" | "target">,
    Pick<RunDocument, "discardPoints" | "createdMs" | "ttlMs" | "notes"> {
  /** The host on which the commands run, and local targets are. */
  readonly host: string;
  readonly plan: Plan;
  readonly machines: readonly PlanRunMachine[];
  readonly jobs: readonly PlanJob[];
}

/** Machines of a plan. */
export const planMachinesMax = 100;
/** Actions of a plan. */
export const planActionsMax = 100;
/** Characters of a plan's file. */
export const planTextMax: number = 1024 * 1024;
/** Jobs that a run remembers; older ones go. */
export const planJobsMax = 16;
const notesMax = 256;
/** Names of plans and machines: they are part of file names and of the environment. */
export const planName: RegExp = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
const planText = /^[^\0]{0,1048576}$/u;
/** The most that an action may have: a day, a hundred tries, an hour. */
export const actionBounds = { timeoutMs: 86_400_000, retries: 100, pauseMs: 3_600_000 } as const;

export function encodePlanRun(document: PlanRunDocument): Uint8Array {
  return encode("plan", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodePlanRun(bytes: Uint8Array, object: string, vault: string): PlanRunDocument {
  const { fields } = decodeOfVault("plan", bytes, object, vault);
  const document: PlanRunDocument = {
    vault,
    run: fields.text("run", runName8),
    epoch: fields.integer("epoch"),
    worker: fields.nestedOrNull("worker", readWriter),
    kind: fields.oneOf("kind", runKinds),
    direction: fields.oneOf("direction", runDirections),
    host: fields.text("host", anyText),
    plan: fields.nested("plan", readPlan),
    selector: fields.text("selector", anyText),
    target: fields.text("target", longText),
    discardPoints: fields.boolean("discardPoints"),
    createdMs: fields.integer("createdMs"),
    ttlMs: fields.integerOrNull("ttlMs"),
    notes: fields.list("notes", notesMax, readNote),
    machines: fields.list("machines", planMachinesMax, readMachine),
    jobs: fields.list("jobs", planJobsMax, readJob),
  };
  if (object !== planRunObjectName(document.run)) throw damaged(object, "it is the document of another run");
  return document;
}

function readPlan(fields: Fields): Plan {
  return {
    name: fields.text("name", planName),
    machines: fields.list("machines", planMachinesMax, (machine) => ({
      name: machine.text("name", planName),
      disks: machine.texts("disks", groupDisksMax, { test: isDiskName }),
      source: machine.nestedOrNull("source", readSource),
    })),
    groups: fields.list("groups", planMachinesMax, (group) => ({
      machines: group.texts("machines", planMachinesMax, planName),
      before: group.list("before", planActionsMax, readAction),
      after: group.list("after", planActionsMax, readAction),
    })),
    cleanup: fields.list("cleanup", planActionsMax, readAction),
    target: fields.textOrNull("target", longText),
    testTarget: fields.textOrNull("testTarget", longText),
    objectives: fields.nested("objectives", (objectives) => ({
      rpoMs: objectives.integerOrNull("rpoMs"),
      rtoMs: objectives.integerOrNull("rtoMs"),
    })),
    folder: fields.text("folder", longText),
    text: fields.text("text", planText),
  };
}

function readAction(fields: Fields): PlanAction {
  const kind = fields.oneOf("kind", ["run", "manual"]);
  if (kind === "manual") return { kind, text: fields.text("text", longText) };
  return {
    kind,
    command: fields.text("command", longText),
    timeoutMs: fields.integer("timeoutMs", 1, actionBounds.timeoutMs),
    retries: fields.integer("retries", 0, actionBounds.retries),
    pauseMs: fields.integer("pauseMs", 0, actionBounds.pauseMs),
    onFailure: fields.oneOf("onFailure", ["stop", "continue"]),
  };
}

function readMachine(fields: Fields): PlanRunMachine {
  return {
    name: fields.text("name", planName),
    run: fields.text("run", runName8),
    group: fields.textOrNull("group", anyText),
    points: fields.list("points", groupDisksMax, readRunPoint),
    back: fields.nestedOrNull("back", (back) => ({
      run: back.text("run", runName8),
      images: back.texts("images", groupDisksMax, longText),
    })),
  };
}

function readJob(fields: Fields): PlanJob {
  return {
    operation: fields.oneOf("operation", runOperations),
    state: fields.oneOf("state", jobStates),
    startMs: fields.integer("startMs"),
    endMs: fields.integerOrNull("endMs"),
    steps: fields.list("steps", planMachinesMax + planActionsMax, (step) => ({
      stage: step.integer("stage", 1),
      group: step.integer("group"),
      phase: step.oneOf("phase", planPhases),
      action: step.nestedOrNull("action", readAction),
      machine: step.textOrNull("machine", planName),
      state: step.oneOf("state", planStepStates),
      tries: step.integer("tries"),
      startMs: step.integerOrNull("startMs"),
      endMs: step.integerOrNull("endMs"),
      output: step.textOrNull("output", outputText),
      exitCode: step.integerOrNull("exitCode"),
      error: step.nestedOrNull("error", readRunError),
    })),
  };
}
