/** Failovers and tests as the agent last saw them: what its status shows, and findings of its disks. */
import type { Finding, ProtectionState, RunSummary } from "../../engine/index.ts";
import type { DiskStatus } from "./disk-runner.ts";

/** Where a run stands. */
export interface RunFacts
  extends Pick<RunSummary, "run" | "kind" | "state" | "direction" | "activeLocation" | "health" | "overdue"> {
  readonly disks: readonly string[];
  /** The disks that the agent serves for the run; null: it serves none. */
  readonly serving: readonly ServedDiskFacts[] | null;
}

/** A disk that the agent serves for a run. */
export interface ServedDiskFacts {
  readonly disk: string;
  /** NBD URI of its export. */
  readonly uri: string;
  /** Bytes of an instant target that have been copied; null: it is whole. */
  readonly hydratedBytes: number | null;
  readonly sizeBytes: number | null;
  /** State of its protection, and the age of its newest point; null: no points are taken of it here. */
  readonly protection: ProtectionState | null;
  readonly committedMs: number | null;
}

/** What the agent serves of runs. */
export interface Serving {
  factsOf(run: string): readonly ServedDiskFacts[] | undefined;
  findingOf(run: string): Finding | undefined;
}

export class SeenRuns {
  readonly #runs = new Map<string, readonly RunSummary[]>();
  readonly #serving: Serving;

  constructor(serving: Serving) {
    this.#serving = serving;
  }

  /** The runs of a vault, newest first. */
  note(vault: string, runs: readonly RunSummary[]): void {
    this.#runs.set(vault, runs);
  }

  of(vault: string): readonly RunFacts[] {
    return shownRuns(this.#runs.get(vault) ?? [], this.#serving);
  }

  /** A run that needs an operator is a finding of its disks. So is a failover for which a disk is stopped. */
  addTo(given: DiskStatus): DiskStatus {
    const all = this.#runs.get(given.vault) ?? [];
    const runs = all.filter(({ disks }) => disks.some(({ disk }) => disk === given.disk));
    const status = withFailover(given, runs);
    const found = runs.flatMap((run) => [
      ...(run.health === "Critical" ? [runFinding(run)] : []),
      ...[this.#serving.findingOf(run.run)].filter((finding) => finding !== undefined),
    ]);
    if (found.length === 0) return status;
    return { ...status, health: "Critical", findings: [...found, ...status.findings] };
  }
}

/** A disk that a failover has stopped is not protected again before that is cancelled. */
function withFailover(status: DiskStatus, runs: readonly RunSummary[]): DiskStatus {
  const failover = runs.find(({ kind }) => kind !== "test");
  if (failover === undefined) return status;
  const { run, kind, state, activeLocation } = failover;
  const isOver = state === "Protected" || state === "MarkedForDeletion";
  if (isOver && activeLocation === "Primary") return status;
  const findings = status.findings.map((finding): Finding => {
    if (finding.code !== "STOPPED") return finding;
    const cause = `the ${kind} failover ${run} has the disk: it is neither exported nor protected here`;
    return {
      ...finding,
      code: "FAILED_OVER",
      cause,
      remedy: `see what can be done: \`tidemark failover show ${run}\``,
    };
  });
  return { ...status, findings };
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
function shownRuns(runs: readonly RunSummary[], serving: Serving): RunFacts[] {
  const seen = new Set<string>();
  return runs.flatMap(({ run, kind, state, direction, activeLocation, health, overdue, disks, allowedOperations }) => {
    const names = disks.map(({ disk }) => disk);
    const isNewest = names.some((disk) => !seen.has(disk));
    for (const disk of names) seen.add(disk);
    if (!isNewest && allowedOperations.length === 0) return [];
    return [
      {
        run,
        kind,
        state,
        direction,
        activeLocation,
        health,
        overdue,
        disks: names,
        serving: serving.factsOf(run) ?? null,
      },
    ];
  });
}
