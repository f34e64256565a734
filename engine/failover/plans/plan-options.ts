/** How runs of recovery plans are begun, and what is known of them before. */
import { TidemarkError } from "../../errors.ts";
import type { Plan } from "../../store/format/plan-run.ts";
import type { RunDocument, RunKind } from "../../store/format/run.ts";
import type { FailoverOptions } from "../failover-options.ts";
import { namesReplicas } from "../run-checks.ts";
import type { PlanFault } from "./plan-points.ts";
import { planTarget } from "./plan-target.ts";

/** How a run of a plan is begun, or looked at before it begins. */
export interface StartPlanOptions extends FailoverOptions {
  readonly plan: Plan;
  readonly kind: Exclude<RunKind, "failback">;
  /**
   * `latest`, `latest-processed`, `latest-app`, `latest-crash` of each machine, `common` to all, or a
   * time. Default: `latest`. A planned failover takes the last points.
   */
  readonly point?: string | undefined;
  /** Instead of the plan's own target. */
  readonly to?: string | undefined;
  /** After this time a test is overdue. */
  readonly ttlMs?: number | undefined;
  readonly note?: string | undefined;
}

/** How the machines of a plan's run go back. */
export interface FailbackPlanOptions extends FailoverOptions {
  /** The run that took the machines to where they are. */
  readonly run: string;
  /** An image or block device for each disk, in the order of the plan. It is written over. */
  readonly to: readonly string[];
  /** Where a machine without a source of its own is written. */
  readonly source?: RunDocument["source"] | undefined;
  readonly note?: string | undefined;
}

/** What a run would do. */
export interface PlanPreview {
  readonly target: string;
  readonly machines: readonly PlanPreviewMachine[];
  /** How far the oldest and the newest point of all disks are apart. */
  readonly spreadMs: number;
  /** Why the run cannot begin; empty: it can. */
  readonly faults: readonly PlanFault[];
}

/** A machine, with the points and targets that it would get. */
export interface PlanPreviewMachine {
  readonly machine: string;
  readonly disks: readonly {
    readonly disk: string;
    readonly sequence: number;
    readonly time: string;
    readonly consistency: string;
    readonly target: string;
  }[];
}

/** What the options ask for, with what the plan says. Errors: INVALID_ARGUMENT. */
export function asked({ plan, kind, point = "latest", to }: StartPlanOptions): {
  readonly kind: StartPlanOptions["kind"];
  readonly selector: string;
  readonly target: string;
} {
  const target = to ?? (kind === "test" ? (plan.testTarget ?? plan.target) : plan.target);
  const remedy = "name dir:FOLDER, blob:PREFIX, instant:unix:FOLDER or, of a failover, replica";
  if (target === null)
    throw new TidemarkError("INVALID_ARGUMENT", `the plan ${plan.name} names no target, and no other is given`, {
      remedy: `${remedy}, with \`--to\` or in the plan`,
    });
  if (!planTarget.test(target) && !namesReplicas(target))
    throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(target)} is not a target for a plan`, { remedy });
  if (/^\d+$/.test(point) || /^[0-9a-f]{32}$/.test(point))
    throw new TidemarkError("INVALID_ARGUMENT", "a sequence number or an id names a point of one disk only", {
      remedy: "name common, latest or a time",
    });
  return { kind, selector: kind === "planned" ? "latest" : point, target };
}
