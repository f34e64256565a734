/** A failover run as text: state, disks, what is allowed and why the rest is not, what may be deleted. */
import type { RunSummary } from "../engine/index.ts";
import type { Output } from "./output.ts";
import { formatDuration } from "./quantities.ts";
import { fields, linesOf, printable } from "./text.ts";

/** What a user types for an operation. */
const commands: Readonly<Partial<Record<RunSummary["allowedOperations"][number], (run: string) => string>>> = {
  TestFailoverCleanup: (run) => `tidemark failover cleanup ${run}`,
  ChangePit: (run) => `tidemark failover change-point ${run} --point POINT`,
  Commit: (run) => `tidemark failover commit ${run}`,
  CancelFailover: (run) => `tidemark failover cancel ${run}`,
  ReverseReplicate: (run) => `tidemark reprotect ${run}`,
  Failback: (run) => `tidemark failback ${run} --to IMAGE`,
  CompleteMigration: (run) => `tidemark migrate complete ${run}`,
  Resume: (run) => `tidemark jobs resume ${run}`,
};

/** An operation with the command that does it. */
export function commandOf(operation: RunSummary["allowedOperations"][number], run: string): string {
  const command = commands[operation];
  return command === undefined ? operation : `${operation}: ${command(run)}`;
}

export function describeRun(run: RunSummary, output: Pick<Output, "time" | "columns">): string {
  const lines = (name: string, texts: readonly string[]): (readonly [string, string])[] =>
    texts.map((text, index) => [index === 0 ? name : "", text]);
  const failure = run.jobs.at(-1)?.tasks.findLast(({ error }) => error !== null)?.error;
  const last = run.jobs.at(-1);
  const printed = last?.tasks.flatMap(({ output: text, exitCode }) =>
    text === null ? [] : [`exit code ${exitCode ?? "none"}`, ...linesOf(text)],
  );
  return [
    `run ${run.run}: ${run.state}`,
    fields(
      [
        ["kind", run.kind],
        ...(run.plan === null ? [] : [["plan", `a machine of run ${run.plan}`] as const]),
        ["written at", run.activeLocation],
        ["health", run.health],
        ...lines(
          "disks",
          run.disks.map(({ disk, sequence, time, consistency, target, complete }) => {
            const point = `point ${sequence} of ${output.time(time)} (${consistency}${ageAt(run.created, time)})`;
            return `${printable(disk)} at ${point} → ${printable(target)}${complete ? "" : ", not complete"}`;
          }),
        ),
        ...lines(
          "nbd",
          run.disks.flatMap(({ nbd }) => (nbd === null ? [] : [printable(nbd)])),
        ),
        ...(run.due === null ? [] : [["due", `${output.time(run.due)}${run.overdue ? ", overdue" : ""}`] as const]),
        ...(run.ending?.due == null
          ? []
          : [["waits", `${run.ending.action} at ${output.time(run.ending.due)} unless it is ended before`] as const]),
        ...(run.successful === null ? [] : [["successful", run.successful ? "yes" : "no"] as const]),
        ...lines("commands", (printed ?? []).map(printable)),
        ...(failure == null || last?.state === "Succeeded"
          ? []
          : lines("failed", [failure.message, ...(failure.remedy === null ? [] : [failure.remedy])].map(printable))),
        ...lines(
          "allowed",
          run.allowedOperations.length === 0
            ? ["nothing"]
            : run.allowedOperations.map((operation) => commandOf(operation, run.run)),
        ),
        ...lines(
          "not allowed",
          run.refusedOperations
            .filter(({ operation }) => !/^(Test|Planned|Unplanned)Failover$/.test(operation))
            .map(({ operation, reason }) => `${operation}: ${reason}`),
        ),
        ...lines("left behind", run.leftovers.map(printable)),
        ...lines("may be deleted", run.mayBeDeleted.length === 0 ? ["nothing"] : run.mayBeDeleted.map(printable)),
        ...lines("still needed", run.stillNeeded.map(printable)),
        ...lines(
          "notes",
          run.notes.map(({ time, text }) => `${output.time(time)} ${printable(text)}`),
        ),
      ],
      output.columns,
    ),
  ].join("\n");
}

/** How old a point was when its run began, unless the run took it. */
function ageAt(created: string, time: string): string {
  const ageMs = Date.parse(created) - Date.parse(time);
  return ageMs <= 0 ? "" : `, ${formatDuration(ageMs)} before the run`;
}
