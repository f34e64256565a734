/** Failovers and tests as the agent last saw them: what its status shows, and findings of its disks. */
import type { Finding, RunSummary } from "../../engine/index.ts";
import type { DiskStatus } from "./disk-runner.ts";

/** Where a run stands. */
export interface RunFacts
  extends Pick<RunSummary, "run" | "kind" | "state" | "direction" | "activeLocation" | "health" | "overdue"> {
  readonly disks: readonly string[];
}

export class SeenRuns {
  readonly #runs = new Map<string, readonly RunSummary[]>();

  /** The runs of a vault, newest first. */
  note(vault: string, runs: readonly RunSummary[]): void {
    this.#runs.set(vault, runs);
  }

  of(vault: string): readonly RunFacts[] {
    return shownRuns(this.#runs.get(vault) ?? []);
  }

  /** A run that needs an operator is a finding of its disks. */
  addTo(status: DiskStatus): DiskStatus {
    const runs = this.#runs.get(status.vault) ?? [];
    const found = runs.filter(
      ({ health, disks }) => health === "Critical" && disks.some(({ disk }) => disk === status.disk),
    );
    if (found.length === 0) return status;
    return { ...status, health: "Critical", findings: [...found.map(runFinding), ...status.findings] };
  }
}

function runFinding({ run, kind, state, overdue }: RunSummary): Finding {
  return {
    level: "Critical",
    code: overdue ? "TEST_OVERDUE" : "RUN_STOPPED",
    cause: overdue ? `the test ${run} of the disk is overdue` : `the ${kind} ${run} of the disk stopped in ${state}`,
    remedy: overdue
      ? `end it: \`tidemark failover cleanup ${run}\``
      : `see what can be done: \`tidemark failover show ${run}\``,
  };
}

/** Runs that are open, and the newest one of each disk. */
function shownRuns(runs: readonly RunSummary[]): RunFacts[] {
  const seen = new Set<string>();
  return runs.flatMap(({ run, kind, state, direction, activeLocation, health, overdue, disks, allowedOperations }) => {
    const names = disks.map(({ disk }) => disk);
    const isNewest = names.some((disk) => !seen.has(disk));
    for (const disk of names) seen.add(disk);
    if (!isNewest && allowedOperations.length === 0) return [];
    return [{ run, kind, state, direction, activeLocation, health, overdue, disks: names }];
  });
}
