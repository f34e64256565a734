/** Plans and their runs as text: what would be done, what was done, what was reached, what is allowed. */
import type { Plan, PlanAction, PlanPreview, PlanRunSummary } from "../../engine/index.ts";
import type { Output } from "../output.ts";
import { formatDuration, formatNumberOf } from "../quantities.ts";
import { commandOf } from "../run-text.ts";
import { type Column, fields, fittedTable, linesOf, printable } from "../text.ts";

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
    ...groups.flatMap(({ machines: members, before, after }, index) =>
      several(`group ${index + 1}`, [
        ...before.map((action) => `before: ${actionText(action)}`),
        ...members.map((member) => `${member}: ${disksOf(member)}`),
        ...after.map((action) => `after: ${actionText(action)}`),
      ]),
    ),
    ...several("cleanup", cleanup.map(actionText)),
  ];
  return [`plan ${name}: ${formatNumberOf(machines.length, "machine")}`, fields(lines)].join("\n");
}

/** What a run would do, before it does it. */
export function describePreview(
  { machines, spreadMs, target }: Omit<PlanPreview, "faults">,
  output: Pick<Output, "time" | "columns">,
): string {
  const rows = machines.flatMap(({ machine, disks }) => disks.map((disk) => ({ ...disk, machine })));
  const columns: readonly Column<(typeof rows)[number]>[] = [
    { heading: "MACHINE", align: "l", cell: ({ machine }) => machine },
    { heading: "DISK", align: "l", cell: ({ disk }) => disk },
    { heading: "POINT", align: "r", cell: ({ sequence }) => String(sequence) },
    { heading: "TIME", align: "l", cell: ({ time }) => output.time(time) },
    { heading: "CONSISTENCY", align: "l", dropped: 1, cell: ({ consistency }) => consistency },
    { heading: "TARGET", align: "l", dropped: 2, cell: ({ target: place }) => place },
  ];
  return [
    fittedTable(columns, rows, output.columns),
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

type Step = PlanRunSummary["jobs"][number]["steps"][number];

const stepColumns: readonly Column<Step>[] = [
  { heading: "STEP", align: "r", cell: ({ step }) => String(step) },
  { heading: "GROUP", align: "r", cell: ({ group }) => (group === 0 ? "-" : String(group)) },
  { heading: "PHASE", align: "l", dropped: 2, cell: ({ phase }) => phase },
  { heading: "KIND", align: "l", dropped: 1, cell: ({ kind }) => kind },
  { heading: "WHAT", align: "l", cell: ({ what }) => short(what) },
  { heading: "STATE", align: "l", cell: ({ state }) => state },
  {
    heading: "TOOK",
    align: "r",
    cell: ({ startTime, endTime }) =>
      startTime === null || endTime === null ? "-" : formatDuration(Date.parse(endTime) - Date.parse(startTime)),
  },
];

/** A run of a plan. */
export function describePlanRun(run: PlanRunSummary, output: Pick<Output, "time" | "columns">): string {
  const job = run.jobs.at(-1);
  // The way on from a wait has a line of its own.
  const allowed = run.allowedOperations.filter((each) => each !== "Resume" || run.waiting === null);
  const failures = job?.steps.flatMap(({ step, what, error }) =>
    error === null ? [] : [`step ${step}, ${what}: ${error.message}`],
  );
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
      job?.steps.flatMap(({ step, output: text }) => (text ? linesOf(`step ${step}: ${text}`) : [])) ?? [],
    ),
    ...several("failed", failures ?? []),
    ...(run.waiting === null
      ? []
      : several("waits", [
          run.waiting.text,
          `when it is done: tidemark jobs resume ${run.run} --step ${run.waiting.step}`,
        ])),
    ...several("allowed", allowed.length === 0 ? ["nothing"] : allowed.map((each) => commandOf(each, run.run))),
    ...several("left behind", run.leftovers),
    ...several("may be deleted", run.mayBeDeleted.length === 0 ? ["nothing"] : run.mayBeDeleted),
    ...several("still needed", run.stillNeeded),
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
    ...(job === undefined
      ? []
      : [`job ${job.job}: ${job.operation}, ${job.state}`, fittedTable(stepColumns, job.steps, output.columns)]),
  ].join("\n");
}

/** Lines of which only the first bears the name. */
function several(name: string, texts: readonly string[]): Lines {
  return texts.map((text, index) => [index === 0 ? name : "", text] as const);
}

function machineText(
  { machine, run, state, disks }: PlanRunSummary["machines"][number],
  output: Pick<Output, "time">,
): string {
  const times = disks.map(({ time }) => time).sort();
  const [oldest = ""] = times;
  const points = disks
    .map(({ disk, sequence, nbd }) => `${disk} at point ${sequence}${nbd === null ? "" : ` (${nbd})`}`)
    .join(", ");
  return `${machine} (run ${run}, ${state ?? "not begun"}): ${points}${oldest === "" ? "" : `, of ${output.time(oldest)}`}`;
}

function reached(ms: number, objective: number | null): string {
  if (objective === null) return formatDuration(ms);
  return `${formatDuration(ms)}, ${ms <= objective ? "within" : "beyond"} the objective of ${formatDuration(objective)}`;
}

function actionText(action: PlanAction): string {
  return action.kind === "run" ? action.command : action.text;
}

function short(text: string): string {
  return text.length > 40 ? `${text.slice(0, 39)}…` : text;
}
