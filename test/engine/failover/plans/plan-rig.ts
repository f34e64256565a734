/** Plans for tests: a plan of some machines with commands that write a log. */
import type { Plan, PlanAction } from "../../../../engine/store/format/plan-run.ts";

/** A command that appends `word` to the file `log` of the plan's folder. */
export function logged(word: string, more: Partial<Extract<PlanAction, { kind: "run" }>> = {}): PlanAction {
  const command = `echo "${word}" >> log`;
  return { kind: "run", command, timeoutMs: 20_000, retries: 0, pauseMs: 1, onFailure: "stop", ...more };
}

/** Two groups: `db` with two disks, then `web` and `app`. */
export function shopPlan(folder: string, more: Partial<Plan> = {}): Plan {
  return {
    name: "shop",
    machines: [
      { name: "db", disks: ["data", "log"], source: null },
      { name: "web", disks: ["web"], source: null },
      { name: "app", disks: ["app"], source: null },
    ],
    groups: [
      { machines: ["db"], before: [logged("before db")], after: [logged("after db")] },
      { machines: ["web", "app"], before: [], after: [logged("after web")] },
    ],
    cleanup: [logged("cleanup")],
    target: `dir:${folder}`,
    testTarget: null,
    objectives: { rpoMs: 3_600_000, rtoMs: 3_600_000 },
    folder,
    text: "plan: shop\n",
    ...more,
  };
}
