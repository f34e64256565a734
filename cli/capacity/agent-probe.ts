/**
 * Probe of an agent: what its disks were written, and what its points shipped.
 *
 * The agent tells rates over the last minute and its newest point. So it is asked every second, and
 * each point is taken into the sums when it is first seen. Points that are made faster than that
 * count as the newest of them.
 *
 * An agent that does not answer, as while it is started again, leaves a gap.
 */
import { hasCode, type Notice } from "../../engine/index.ts";
import { askAgent } from "../agent/control-client.ts";
import type { AgentStatus } from "../agent/supervisor.ts";
import type { PointSums, ProfileLine } from "./profile-lines.ts";
import { type Probe, SampleTimes } from "./profiler.ts";

const pollMs = 1_000;

/** What has been seen of a disk since the last sample. */
interface Seen {
  readonly sizeBytes: number;
  readonly rates: number[];
  pointsCommitted: number;
  points: PointSums;
}

const noPoints: PointSums = { count: 0, changedBytes: 0, newBytes: 0, storedBytes: 0 };

export interface AgentProbeOptions {
  readonly socket: string;
  readonly everyMs: number;
  readonly onNotice: (notice: Notice) => void;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
  /** Asks the agent. Errors: AGENT_UNREACHABLE, which the first call throws and later ones report as a notice. */
  readonly ask?: (signal: AbortSignal) => Promise<AgentStatus>;
}

export function agentProbe(options: AgentProbeOptions): Probe {
  const { socket, everyMs, onNotice, now = Date.now } = options;
  const {
    ask = async (signal: AbortSignal) =>
      (await askAgent(socket, { method: "GET", path: "/v1/status", signal })) as AgentStatus,
  } = options;
  const times = new SampleTimes(now);
  const seen = new Map<string, Seen>();
  let hasBegun = false;
  let isAway = false;

  const look = async (signal: AbortSignal): Promise<void> => {
    let status: AgentStatus;
    try {
      status = await ask(signal);
    } catch (error) {
      if (signal.aborted) return;
      if (!hasBegun || !hasCode(error, "AGENT_UNREACHABLE")) throw error;
      if (!isAway) onNotice({ code: "NO_ANSWER", message: `${error.message}; what happens meanwhile is not seen` });
      isAway = true;
      seen.clear();
      return;
    }
    hasBegun = true;
    isAway = false;
    for (const disk of status.disks) take(seen, disk);
  };

  const told = new Set<string>();
  return {
    poll: { everyMs: pollMs, look },
    async lines(signal) {
      await look(signal);
      const moment = times.next();
      const lines: ProfileLine[] = [];
      for (const [disk, { sizeBytes, rates, points, pointsCommitted }] of seen) {
        if (!told.has(disk)) {
          told.add(disk);
          lines.push({ type: "start", version: 1, disk, source: "agent", time: moment.time, everyMs, sizeBytes });
        } else if (moment.spanMs > 0 && rates.length > 0) {
          const rate = rates.reduce((sum, each) => sum + each, 0) / rates.length;
          const writtenBytes = Math.round((rate * moment.spanMs) / 1_000);
          lines.push({ type: "sample", disk, ...moment, writtenBytes, points });
        }
        seen.set(disk, { sizeBytes, rates: [], points: noPoints, pointsCommitted });
      }
      return lines;
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

function take(seen: Map<string, Seen>, disk: AgentStatus["disks"][number]): void {
  const { sizeBytes, pointsCommitted, latest, churnBytesPerSecond } = disk;
  const before = seen.get(disk.disk);
  if (before === undefined) {
    seen.set(disk.disk, { sizeBytes, rates: [], points: noPoints, pointsCommitted });
    return;
  }
  before.rates.push(churnBytesPerSecond);
  // An agent that was started again counts from 0.
  const made = Math.max(0, pointsCommitted - before.pointsCommitted);
  before.pointsCommitted = pointsCommitted;
  if (latest === null || made === 0) return;
  const { count, changedBytes, newBytes, storedBytes } = before.points;
  before.points = {
    count: count + made,
    changedBytes: changedBytes + made * latest.changedBytes,
    newBytes: newBytes + made * latest.newBytes,
    storedBytes: storedBytes + made * latest.storedBytes,
  };
}
