/**
 * File of a recovery plan, checked: from YAML (JSON is a subset) to the plan that the engine runs, or to
 * every fault at once, each with its line and a remedy. What the vault says against the plan gets its
 * line here, too.
 */
import { dirname, resolve } from "node:path";
import { type Plan, type PlanFault, type PlanMachine } from "../../engine/index.ts";
import { planActionsMax, planMachinesMax, planTarget, planTextMax } from "../../engine/internal.ts";
import type { ConfigFault } from "../agent/config.ts";
import { ConfigDocument, type Path } from "../agent/config-document.ts";
import { type EntryFault, fault, meant } from "../agent/fields.ts";
import { readOwnFile } from "../agent/own-file.ts";
import { placedTarget } from "./placed-target.ts";
import { planSchema, type WrittenMachine, type WrittenPlan } from "./plan-schema.ts";

const machineDisksMax = 64;

/** A plan and the lines of its file. */
export interface LoadedPlan {
  readonly plan: Plan;
  readonly hardware: PlanHardware;
  /** Faults that the vault finds, with their lines. */
  readonly place: (faults: readonly PlanFault[]) => readonly ConfigFault[];
}

/** What the plan says of the machines at the target. A run does without it. */
export interface PlanHardware extends Pick<WrittenPlan, "networks" | "testNetwork"> {
  readonly machines: readonly WrittenMachine[];
}

/** Reads and checks a plan. Errors: INVALID_ARGUMENT and ACCESS_REFUSED when it cannot be read at all. */
export async function loadPlan(path: string): Promise<LoadedPlan | { readonly faults: readonly ConfigFault[] }> {
  const { text } = await readOwnFile(path, "plan", "commands");
  const document = new ConfigDocument(path, text);
  if (!document.isParsed) return { faults: document.faults };
  const faults: EntryFault[] = [];
  const written = planSchema(document.toPlain() ?? {}, [], faults);
  for (const { path: at, key, what, remedy } of faults) {
    if (key !== undefined) document.faultAtKey(at, key, what, remedy);
    else document.fault(at, what, remedy);
  }
  if (text.length > planTextMax) document.fault([], "the plan is longer than 1 MiB", "shorten it");
  if (written === fault) return { faults: document.faults };
  judge(document, written);
  if (document.faults.length > 0) return { faults: document.faults };
  return {
    plan: planOf(written, dirname(resolve(path)), text),
    hardware: written,
    place: (found) => {
      for (const { path: at, error } of found)
        document.fault(at, error.message, error.remedy ?? "see the documentation");
      return document.faults;
    },
  };
}

/** What one field says about another. */
function judge(document: ConfigDocument, { machines, groups, cleanup, target, testTarget }: WrittenPlan): void {
  const names = machines.map(({ name }) => name);
  const disks = new Map<string, string>();
  if (machines.length === 0) document.fault(["machines"], "the plan has no machine", "add one");
  if (machines.length > planMachinesMax)
    document.fault(["machines"], `the plan has ${machines.length} machines`, `leave at most ${planMachinesMax} in it`);
  for (const [index, machine] of machines.entries()) {
    const at: Path = ["machines", index];
    if (names.indexOf(machine.name) < index)
      document.fault([...at, "name"], `there is another machine ${machine.name}`, "give it another name");
    judgeDisks(document, at, machine, disks);
    if (!groups.some(({ machines: members }) => members.includes(machine.name)))
      document.fault([...at, "name"], `machine ${machine.name} is in no group`, "add it to `machines` of a group");
  }
  const seen = new Set<string>();
  for (const [index, { machines: members }] of groups.entries()) {
    if (members.length === 0) document.fault(["groups", index, "machines"], "the group has no machine", "add one");
    for (const [place, name] of members.entries()) {
      const at: Path = ["groups", index, "machines", place];
      if (!names.includes(name))
        document.fault(at, `there is no machine ${name}`, meant(name, names, "add it to `machines`"));
      else if (seen.has(name)) document.fault(at, `machine ${name} is in a group already`, "remove it here or there");
      seen.add(name);
    }
  }
  const actions = cleanup.length + groups.reduce((sum, { before, after }) => sum + before.length + after.length, 0);
  if (actions > planActionsMax)
    document.fault(["groups"], `the plan has ${actions} actions`, `leave at most ${planActionsMax} in it`);
  for (const [field, value] of Object.entries({ target, testTarget })) {
    if (value === undefined || planTarget.test(value)) continue;
    if (field === "target" && /^replica(:.+)?$/.test(value)) continue;
    document.fault(
      [field],
      `${value} is not a target for a plan`,
      "write dir:FOLDER, blob:PREFIX or instant:unix:FOLDER; of failovers, or replica",
    );
  }
}

function judgeDisks(
  document: ConfigDocument,
  at: Path,
  { name, disks, source, osDisk }: WrittenMachine,
  owners: Map<string, string>,
): void {
  if (disks.length === 0 || disks.length > machineDisksMax)
    document.fault([...at, "disks"], `machine ${name} has ${disks.length} disks`, `name 1 to ${machineDisksMax}`);
  for (const [index, disk] of disks.entries()) {
    const owner = owners.get(disk.normalize("NFC"));
    if (owner !== undefined)
      document.fault(
        [...at, "disks", index],
        `disk ${disk} is named already, at machine ${owner}`,
        "remove it here or there",
      );
    owners.set(disk.normalize("NFC"), name);
  }
  if (osDisk !== undefined && !disks.includes(osDisk))
    document.fault([...at, "osDisk"], `machine ${name} has no disk ${osDisk}`, "write the name of one of its `disks`");
  if (source !== undefined && !/^(agent|image):./.test(source))
    document.fault([...at, "source"], `${source} is no source`, "write agent:SOCKET or image:PATH");
  if (source?.startsWith("image:") === true && disks.length > 1)
    document.fault(
      [...at, "source"],
      "one image is the source of one disk",
      "let an agent protect the disks, and write agent:SOCKET",
    );
}

/** Paths are those of the plan's folder. */
function planOf(written: WrittenPlan, folder: string, text: string): Plan {
  const sourceOf = (source: string | undefined): PlanMachine["source"] =>
    source === undefined
      ? null
      : { kind: source.startsWith("agent:") ? "agent" : "image", path: resolve(folder, source.slice(6)) };
  const { plan, machines, groups, cleanup, target, testTarget, objectives } = written;
  return {
    name: plan,
    machines: machines.map(({ name, disks, source }) => {
      return { name, disks: disks.map((disk) => disk.normalize("NFC")), source: sourceOf(source) };
    }),
    groups,
    cleanup,
    target: placedTarget(target, folder) ?? null,
    testTarget: placedTarget(testTarget, folder) ?? null,
    objectives: { rpoMs: objectives.rpo ?? null, rtoMs: objectives.rto ?? null },
    folder,
    text,
  };
}
