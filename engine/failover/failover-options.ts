/** How runs are begun and worked on. */
import type { OperationOptions } from "../progress.ts";
import type { RunDocument, RunKind } from "../store/format/run.ts";
import type { DiskAtPoint } from "./run-members.ts";
import type { SourceSite } from "./source.ts";

/** Serves the disks of runs in the background, as an agent does: the runs whose `servedBy` is `agent`. */
export interface RunServer {
  /** Ends serving a run, with last points of disks that are protected, until the work is over. */
  release(run: string): Promise<void>;
}

/** What effects need of their caller. */
export interface FailoverOptions extends OperationOptions {
  /** @internal Opens the agent behind a control socket. Absent: a run that names one cannot be worked on. */
  readonly openAgent?: ((socket: string) => SourceSite) | undefined;
  /** @internal Serves runs in this process. Absent: a command does, in the foreground. */
  readonly server?: RunServer | undefined;
  /**
   * @internal Of plans: begins to serve the instant targets of a machine's run. `cacheBytes`: memory for each
   * of its disks. Absent: they are not served.
   */
  readonly serve?: ((run: string, cacheBytes: number) => Promise<void>) | undefined;
  /** Environment of check and shutdown commands. Default: empty. */
  readonly environment?: Readonly<Record<string, string>> | undefined;
}

/** How a run is begun. */
export interface StartFailoverOptions extends FailoverOptions {
  readonly kind: Exclude<RunKind, "failback">;
  /** Names of the disks, or of a group whose disks these are. */
  readonly disks?: readonly string[] | undefined;
  readonly group?: string | undefined;
  /**
   * `instant:unix:PATH`, `instant:tcp:HOST:PORT` (each with `,image=PATH`), `file:PATH`, `vhd:PATH`,
   * `dir:FOLDER`, `device:PATH`, `blob:PREFIX`; not of a test: `replica`, each disk's own replica, or
   * `replica:NAME`, one of several.
   */
  readonly to: string;
  /**
   * `latest`, `latest-processed`, `latest-app`, `latest-crash`, `common`, a sequence number, an id or
   * an ISO time. Default: `latest`. A planned failover takes the last point.
   */
  readonly point?: string | undefined;
  /** Command that is run against each target; 0 means that it is good. */
  readonly check?: string | undefined;
  /** Command that stops what writes the source. */
  readonly shutdown?: string | undefined;
  /** Where the disks are written today. A planned failover needs it. */
  readonly source?: RunDocument["source"] | undefined;
  /** After this time a test is overdue. */
  readonly ttlMs?: number | undefined;
  readonly note?: string | undefined;
  /** What becomes of a failover that is neither committed nor cancelled in time. Default: nothing. */
  readonly ending?: RunDocument["ending"] | undefined;
}

/** How disks go back. */
export interface FailbackOptions
  extends FailoverOptions,
    Pick<StartFailoverOptions, "source" | "shutdown" | "note" | "ending"> {
  /** The run that took the disks to where they are. */
  readonly run: string;
  /** An image or block device for each disk, in the order of the run. It is written over. */
  readonly to: readonly string[];
}

/** How an operation on a run works. */
export interface OperateOptions extends FailoverOptions {
  readonly run: string;
  readonly note?: string | undefined;
}

/** What the run of a recovery plan has decided for the run of one machine. */
export interface MachineOfPlan {
  /** Name of the plan's run. */
  readonly plan: string;
  /** Name that the machine's run gets. */
  readonly run: string;
  /** The group of disks whose common points count; null: each disk has its own. */
  readonly group: string | null;
  /** In the order of the disks. */
  readonly chosen: readonly DiskAtPoint[];
}
