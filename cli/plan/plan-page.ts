/**
 * Report of a plan's run as one page of HTML that needs nothing else: what was reached against the
 * objectives, every step with its output, the points, the notes, and the plan as it was.
 */
import type { PlanRunSummary } from "../../engine/index.ts";
import { escaped, htmlPage, htmlTable } from "../html-page.ts";
import { formatDuration } from "../quantities.ts";

/** The page. `planText` is the file of the plan as the run keeps it. */
export function planPage(run: PlanRunSummary, planText: string): string {
  const { rpoMs, rtoMs } = run.objectives;
  const facts: readonly (readonly [string, string])[] = [
    ["Plan", escaped(run.plan)],
    ["Run", escaped(run.run)],
    ["Kind", escaped(`${run.kind}, ${run.direction}`)],
    ["State", escaped(run.state)],
    ["Begun", escaped(run.created)],
    ["Host", escaped(run.host)],
    ["Points", escaped(`${run.point}, up to ${formatDuration(run.spreadMs)} apart`)],
    ["Target", escaped(run.target)],
    ["RPO reached", `${formatDuration(run.rpoMs)}${against(run.rpoMs, rpoMs)}`],
    ["RTO reached", run.rtoMs === null ? "not yet" : `${formatDuration(run.rtoMs)}${against(run.rtoMs, rtoMs)}`],
    ["Successful", run.successful === null ? "open" : mark(run.successful)],
    ["Left behind", run.leftovers.length === 0 ? "nothing" : run.leftovers.map(escaped).join("<br>")],
  ];
  const machines = run.machines.map((machine) => [
    escaped(machine.machine),
    String(machine.group),
    escaped(machine.run),
    escaped(machine.state ?? "not begun"),
    machine.disks
      .map(({ disk, sequence, time, consistency, target }) =>
        escaped(`${disk}: point ${sequence} of ${time}, ${consistency}${target === null ? "" : ` → ${target}`}`),
      )
      .join("<br>"),
    `${formatDuration(machine.rpoMs)}${against(machine.rpoMs, rpoMs)}`,
    machine.rtoMs === null ? "-" : `${formatDuration(machine.rtoMs)}${against(machine.rtoMs, rtoMs)}`,
  ]);
  const jobs = run.jobs.map((job) => {
    const rows = job.steps.map((step) => [
      String(step.step),
      step.group === 0 ? "-" : String(step.group),
      escaped(`${step.phase}, ${step.kind}`),
      escaped(step.what),
      `<span class="${step.state === "Failed" ? "no" : "yes"}">${escaped(step.state)}</span>`,
      escaped(step.startTime ?? "-"),
      step.startTime === null || step.endTime === null
        ? "-"
        : formatDuration(Date.parse(step.endTime) - Date.parse(step.startTime)),
      [
        ...(step.tries > 1 ? [`${step.tries} tries`] : []),
        ...(step.exitCode === null ? [] : [`exit code ${step.exitCode}`]),
        ...(step.error === null ? [] : [escaped(step.error.message)]),
        ...(step.output ? [`<pre>${escaped(step.output)}</pre>`] : []),
      ].join("<br>"),
    ]);
    const title = `<h3>${escaped(`${job.operation}: ${job.state}, ${job.startTime} to ${job.endTime ?? "now"}`)}</h3>`;
    return title + htmlTable(["Step", "Group", "Phase", "What", "State", "Begun", "Took", "Result"], rows);
  });
  const notes = run.notes.map(({ time, text }) => [escaped(time), escaped(text)]);
  const body = `<h1>${escaped(`Recovery plan ${run.plan}`)}</h1>
${htmlTable(
  [],
  facts.map(([name, text]) => [`<b>${name}</b>`, text]),
)}<h2>Machines</h2>${htmlTable(["Machine", "Group", "Run", "State", "Disks", "RPO", "RTO"], machines)}
<h2>Steps</h2>${jobs.join("\n")}
<h2>Notes</h2>${notes.length === 0 ? "<p>none</p>" : htmlTable(["Time", "Note"], notes)}
<h2>The plan as it was</h2><pre>${escaped(planText)}</pre>`;
  return htmlPage(`Recovery plan ${run.plan}, run ${run.run}`, body);
}

function against(ms: number, objective: number | null): string {
  return objective === null ? "" : `, objective ${formatDuration(objective)}: ${mark(ms <= objective)}`;
}

function mark(isGood: boolean): string {
  return isGood ? '<span class="yes">yes</span>' : '<span class="no">no</span>';
}
