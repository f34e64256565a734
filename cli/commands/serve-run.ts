/**
 * The disks of a failover run, served over NBD in the foreground until ^C: instant targets, and
 * disks that `tidemark reprotect --listen` protects at their new place.
 */
import {
  type ServedDiskStatus,
  type ServedRun,
  TidemarkError,
  throwIfAborted,
  type Vault,
} from "../../engine/index.ts";
import { diskEvent } from "../agent/disk-event.ts";
import { statusLine } from "../agent/status-table.ts";
import { formatBytes } from "../quantities.ts";
import { printable } from "../text.ts";
import type { CommandContext } from "./context.ts";
import { lastPointLimit, withLastPoint } from "./last-point.ts";

const statusEveryMs = 1_000;

/** Begins to serve the disks of a run. Errors: those of `Failovers.serve`. */
export async function openRun(
  { output, signal }: CommandContext,
  { failovers }: Vault,
  run: string,
  cacheBytes?: number,
): Promise<ServedRun> {
  return await failovers.serve({
    run,
    cacheBytes,
    onNotice: (notice) => output.notice(notice),
    onEvent: (event) => {
      const told = diskEvent(event);
      output.item("event", told, told.kind === "point" ? undefined : printable(told.message));
    },
    signal,
  });
}

/**
 * Serves the disks of runs until a signal comes; protected disks get a last point then. `run` goes on
 * with them. Errors: why the last point could not be taken, or an image not be closed.
 */
export async function serveRuns(context: CommandContext, run: string, served: readonly ServedRun[]): Promise<void> {
  await serveUntilStopped(context, served);
  const missed = await withLastPoint(async (options) =>
    (await Promise.all(served.map(async (each) => await each.stop(options)))).find((error) => error !== undefined),
  );
  if (missed === undefined) return;
  throw new TidemarkError(missed.code, `the disks of run ${run} are left without a last point: ${missed.message}`, {
    remedy: `run \`tidemark jobs resume ${run}\`: the writes that no point holds are marked, and shipped first`,
    detail: { run },
    cause: missed,
  });
}

/** Ends serving without last points. */
export async function closeRuns(served: readonly ServedRun[]): Promise<void> {
  await Promise.all(served.map(async (each) => await each.stop({ drain: false })));
}

async function serveUntilStopped(context: CommandContext, served: readonly ServedRun[]): Promise<void> {
  const { output } = context;
  throwIfAborted(context.signal);
  const stopped = new Promise<void>((done) => context.answerSignals({ stop: () => done() }));
  for (const { disk, uri, listen, warnings } of served.flatMap(({ disks, warnings }) =>
    disks.map((each) => ({ ...each, warnings })),
  )) {
    for (const message of warnings) output.item("event", { kind: "notice", disk, message }, printable(message));
    output.item("ready", { disk, listen, uri }, `disk ${printable(disk)} is served at ${printable(uri)}; ^C ends that`);
  }
  const statuses = (): ServedDiskStatus[] => served.flatMap((each) => each.status());
  const tell = (): void => {
    const disks = statuses();
    output.step({ disks }, disks.map(lineOf).join("  "));
  };
  const timer = setInterval(tell, statusEveryMs);
  await stopped;
  clearInterval(timer);
  tell();
  if (statuses().some(({ protection }) => protection !== null))
    output.step({ phase: "drain" }, `taking the last point, in ${lastPointLimit} at most; a second ^C ends without it`);
}

function lineOf({ disk, instant, protection }: ServedDiskStatus): string {
  const copied =
    instant === null || instant.state === "hydrated"
      ? []
      : [`${formatBytes(instant.hydratedBytes)} of ${formatBytes(instant.sizeBytes)} copied`];
  const trouble = instant?.trouble == null ? [] : [printable(instant.trouble.message)];
  return [printable(disk), ...copied, ...trouble, ...(protection === null ? [] : [statusLine(protection)])].join("  ");
}
