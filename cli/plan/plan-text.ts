/** Plans and their runs as text: what would be done, what was done, what was reached, what is allowed. */
import type { Plan, PlanAction, PlanPreview, PlanRunSummary } from "../../engine/index.ts";
import type { Output } from "../output.ts";
import { formatDuration, formatNumberOf } from "../quantities.ts";
import { commandOf } from "../run-text.ts";
import { fields, printable, table } from "../text.ts";

type Lines = (readonly [name: string, text: string])[];

/** A plan: its groups in order, with what is done before and after. */
export function describePlan({ name, groups, cleanup, target, testTarget, objectives, machines }: Plan): string {
  const { rpoMs, rtoMs } = objectives;
  const disksOf = (machine: string): string => machines.find((each) => each.name === machine)?.disks.join(", ") ?? "";
  const lines: Lines = [
    ["target", target ?? "-"],
    ...(testTarget === null ? [] : [["tests", testTarget] as const]),
    ...(rpoMs === null ? [] : [["rpo", formatDuration(rpoMs)] as const]),
    ...(rtoMs === null ? [] : [["rto", formatDuration(rtoMs)] as const]),
    ...groups.flatMap(
      ({ machines: members, before, after }, index): Lines => [
        [`group ${index + 1}`, before.length === 0 ? "" : `before: ${before.map(actionText).join("; ")}`],
        ...members.map((member) => ["", `${member}: ${disksOf(member)}`] as const),
        ...(after.length === 0 ? [] : [["", `after: ${after.map(actionText).join("; ")}`] as const]),
      ],
    ),
    ...(cleanup.length === 0 ? [] : [["cleanup", cleanup.map(actionText).join("; ")] as const]),
  ];
  return [`plan ${name}: ${formatNumberOf(machines.length, "machine")}`, fields(lines)].join("\n");
}

/** What a run would do, before it does it. */
export function describePreview({ machines, spreadMs, target }: PlanPreview, output: Pick<Output, "time">): string {
  const rows = machines.flatMap(({ machine, disks }) =>
    disks.map((disk, index) => [
      index === 0 ? machine : "",
      disk.disk,
      String(disk.sequence),
      output.time(disk.time),
      disk.consistency,
      disk.target,
    ]),
  );
  return [
    table(["MACHINE", "DISK", "POINT", "TIME", "CONSISTENCY", "TARGET"], rows, "llrlll"),
    `points are up to ${formatDuration(spreadMs)} apart; target ${printable(target)}`,
  ].join("\n");
}

/** The order of a plan as a Mermaid flowchart, which GitHub and others draw. */
export function planGraph({ groups, cleanup }: Plan): string {
  const lines = ["flowchart TD"];
  let last: string[] = [];
  let nodes = 0;
  const add = (text: string, shape: readonly [string, string]): string => {
    nodes += 1;
    const [open, close] = shape;
    const shown = text.replaceAll("&", "#amp;").replaceAll('"', "#quot;").replaceAll("\n", " ");
    lines.push(`  n${nodes}${open}"${shown}"${close}`);
    return `n${nodes}`;
  };
  const follow = (next: readonly string[]): void => {
    for (const from of last) for (const to of next) lines.push(`  ${from} --> ${to}`);
    last = [...next];
  };
  const addActions = (actions: readonly PlanAction[]): void => {
    for (const action of actions)
      follow([add(actionText(action), action.kind === "run" ? ["[[", "]]"] : ["{{", "}}"])]);
  };
  for (const { machines, before, after } of groups) {
    addActions(before);
    // Edges from every machine to every next one would be many: they meet after the group.
    follow(machines.map((machine) => add(machine, ["[", "]"])));
    if (machines.length > 1) follow([add(" ", ["((", "))"])]);
    addActions(after);
  }
  if (cleanup.length > 0) {
    last = [add("cleanup", ["([", "])"])];
    addActions(cleanup);
  }
  return lines.join("\n");
}

/** A run of a plan. */
export function describePlanRun(run: PlanRunSummary, output: Pick<Output, "time" | "columns">): string {
  const several = (name: string, texts: readonly string[]): Lines =>
    texts.map((text, index) => [index === 0 ? name : "", text] as const);
  const job = run.jobs.at(-1);
  const failures = job?.steps.flatMap(({ step, what, error }) =>
    error === null ? [] : [`step ${step}, ${what}: ${error.message}`],
  );
  const rows = job?.steps.map((step) => [
    String(step.step),
    step.group === 0 ? "-" : String(step.group),
    step.phase,
    step.kind,
    short(step.what),
    step.state,
    step.startTime === null || step.endTime === null ? "-" : formatDuration(elapsed(step.startTime, step.endTime)),
  ]);
  const lines: Lines = [
    ["kind", run.kind],
    ["health", run.health],
    ...several(
      "machines",
      run.machines.map((machine) => machineText(machine, output)),
    ),
    ["points", `${run.point}, up to ${formatDuration(run.spreadMs)} apart`],
    ["rpo", reached(run.rpoMs, run.objectives.rpoMs)],
    ["rto", run.rtoMs === null ? "-" : reached(run.rtoMs, run.objectives.rtoMs)],
    ...(run.due === null ? [] : [["due", output.time(run.due)] as const]),
    ...(run.successful === null ? [] : [["successful", run.successful ? "yes" : "no"] as const]),
    ...several(
      "printed",
      job?.steps.flatMap(({ step, output: text }) => (text ? [`step ${step}: ${text.trimEnd()}`] : [])) ?? [],
    ),
    ...several("failed", failures ?? []),
    ...(run.waiting === null
      ? []
      : several("waits", [
          run.waiting.text,
          `when it is done: tidemark jobs resume ${run.run} --step ${run.waiting.step}`,
        ])),
    ...several(
      "allowed",
      run.allowedOperations.length === 0 ? ["nothing"] : run.allowedOperations.map((each) => commandOf(each, run.run)),
    ),
    ...several("left behind", run.leftovers),
    ...several(
      "notes",
      run.notes.map(({ time, text }) => `${output.time(time)} ${text}`),
    ),
  ];
  return [
    `run ${run.run} of plan ${run.plan}: ${run.state}`,
    fields(
      lines.map(([name, text]) => [name, printable(text)] as const),
      output.columns,
    ),
    ...(job === undefined || rows === undefined
      ? []
      : [
          `job ${job.job}: ${job.operation}, ${job.state}`,
          table(["STEP", "GROUP", "PHASE", "KIND", "WHAT", "STATE", "TOOK"], rows, "rrllllr"),
        ]),
  ].join("\n");
}

function machineText(
  { machine, run, state, disks }: PlanRunSummary["machines"][number],
  output: Pick<Output, "time">,
): string {
  const times = disks.map(({ time }) => time).sort();
  const [oldest = ""] = times;
  const points = disks.map(({ disk, sequence }) => `${disk} at point ${sequence}`).join(", ");
  return `${machine} (run ${run}, ${state ?? "not begun"}): ${points}${oldest === "" ? "" : `, of ${output.time(oldest)}`}`;
}

function reached(ms: number, objective: number | null): string {
  if (objective === null) return formatDuration(ms);
  return `${formatDuration(ms)}, ${ms <= objective ? "within" : "beyond"} the objective of ${formatDuration(objective)}`;
}

function actionText(action: PlanAction): string {
  return action.kind === "run" ? action.command : action.text;
}

function elapsed(from: string, to: string): number {
  return Date.parse(to) - Date.parse(from);
}

function short(text: string): string {
  return text.length > 40 ? `${text.slice(0, 39)}…` : text;
}
