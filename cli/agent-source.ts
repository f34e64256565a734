/** The agent of a failover's source, reached through its control socket. */

import { type PointSummary, TidemarkError } from "../engine/index.ts";
import { type RestingSource, type SourceDisks, type SourceSite } from "../engine/internal.ts";
import { askAgent } from "./agent/control-client.ts";
import type { StopSummary } from "./agent/summaries.ts";

/** Errors of its calls: AGENT_UNREACHABLE, ACCESS_REFUSED, and those that the agent reports. */
export function agentSource(socket: string): SourceSite {
  const ask = async (
    path: string,
    fields: object,
    signal: AbortSignal = new AbortController().signal,
  ): Promise<unknown> => await askAgent(socket, { method: "POST", path, fields, signal });
  return {
    async point(source, signal) {
      for (const target of targetsOf(source)) {
        const { points } = (await ask("/v1/point", target, signal)) as { readonly points: readonly PointSummary[] };
        const missing = source.disks.filter((disk) => !points.some((point) => point.disk === disk));
        if (source.group !== null && missing.length > 0) throw notAtRest(missing, "is not in the group of the agent");
      }
    },
    async stop(source, signal) {
      const stopped: string[] = [];
      const atRest: RestingSource[] = [];
      for (const target of targetsOf(source)) {
        const { disks, notDrained, resting } = (await ask(
          "/v1/stop",
          { ...target, drain: true },
          signal,
        )) as StopSummary;
        if (notDrained.length > 0) {
          // Nothing is moved: the disks go on where they are, and the next try stops them again.
          await this.start(source, signal);
          throw notAtRest(notDrained, "may have writes that are in no point");
        }
        stopped.push(...disks);
        atRest.push(...resting.filter(({ disk }) => source.disks.includes(disk)));
      }
      const running = source.disks.filter((disk) => !stopped.includes(disk));
      if (running.length > 0) throw notAtRest(running, "is not in the group of the agent");
      return atRest;
    },
    async start(source, signal) {
      for (const target of targetsOf(source)) await ask("/v1/resume", target, signal);
    },
  };
}

/** A group is asked as a whole: one barrier for its points, one end for its disks. */
function targetsOf({ disks, group }: SourceDisks): readonly object[] {
  return group === null ? disks.map((disk) => ({ disk })) : [{ group }];
}

function notAtRest(disks: readonly string[], fact: string): TidemarkError {
  return new TidemarkError(
    "SOURCE_UNREADABLE",
    `disk ${disks.map((disk) => JSON.stringify(disk)).join(", ")} ${fact}`,
    {
      remedy: "see why with `tidemark agent status`, then run `tidemark jobs resume` with the run",
    },
  );
}
