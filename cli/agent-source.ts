/** The agent of a failover's source, reached through its control socket. */
import { type PointSummary, type SourceSite, TidemarkError } from "../engine/index.ts";
import { askAgent } from "./agent/control-client.ts";
import type { StopSummary } from "./agent/supervisor.ts";

/** Errors of its calls: AGENT_UNREACHABLE, ACCESS_REFUSED, and those that the agent reports. */
export function agentSource(socket: string): SourceSite {
  const ask = async (
    path: string,
    fields: object,
    signal: AbortSignal = new AbortController().signal,
  ): Promise<unknown> => await askAgent(socket, { method: "POST", path, fields, signal });
  return {
    async point(disks, signal) {
      for (const disk of disks) {
        const { points } = (await ask("/v1/point", { disk }, signal)) as { readonly points: readonly PointSummary[] };
        if (points.length === 0) throw notAtRest([disk], "has taken no last point");
      }
    },
    async stop(disks, signal) {
      for (const disk of disks) {
        const { notDrained } = (await ask("/v1/stop", { disk, drain: true }, signal)) as StopSummary;
        if (notDrained.length > 0) throw notAtRest(notDrained, "has writes that are in no point");
      }
    },
    async start(disks, signal) {
      for (const disk of disks) await ask("/v1/resume", { disk }, signal);
    },
  };
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
