/** A failover run as text: state, disks, what is allowed and why the rest is not, what may be deleted. */
import type { RunSummary } from "../engine/index.ts";
import type { Output } from "./output.ts";
import { fields, printable } from "./text.ts";

export function describeRun(run: RunSummary, output: Pick<Output, "time">): string {
  const lines = (name: string, texts: readonly string[]): (readonly [string, string])[] =>
    texts.map((text, index) => [index === 0 ? name : "", text]);
  const failure = run.jobs.at(-1)?.tasks.findLast(({ error }) => error !== null)?.error;
  const last = run.jobs.at(-1);
  const printed = last?.tasks.flatMap(({ output: text, exitCode }) =>
    text === null ? [] : [`exit code ${exitCode ?? "none"}${text === "" ? "" : `: ${text.trimEnd()}`}`],
  );
  return [
    `run ${run.run}: ${run.state}`,
    fields([
      ["kind", run.kind],
      ["written at", run.activeLocation],
      ["health", run.health],
      ...lines(
        "disks",
        run.disks.map(
          ({ disk, sequence, time, consistency, target, complete }) =>
            `${printable(disk)} at point ${sequence} of ${output.time(time)} (${consistency}) → ${printable(target)}${complete ? "" : ", not complete"}`,
        ),
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
      ...(failure == null || last?.state === "Succeeded" ? [] : lines("failed", [printable(failure.message)])),
      ...lines("allowed", run.allowedOperations.length === 0 ? ["nothing"] : run.allowedOperations),
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
    ]),
  ].join("\n");
}
