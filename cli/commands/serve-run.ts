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

/**
 * Serves the disks until a signal comes; protected disks get a last point then. Errors: those of
 * `Failovers.serve`, and why the last point could not be taken.
 */
export async function serveRun(context: CommandContext, vault: Vault, run: string): Promise<void> {
  const { output, signal } = context;
  const served = await vault.failovers.serve({
    run,
    onNotice: (notice) => output.notice(notice),
    onEvent: (event) => {
      const told = diskEvent(event);
      output.item("event", told, told.kind === "point" ? undefined : printable(told.message));
    },
    signal,
  });
  try {
    await serveUntilStopped(context, served);
  } catch (error) {
    await served.stop({ drain: false });
    throw error;
  }
  const missed = await withLastPoint(async (options) => await served.stop(options));
  if (missed === undefined) return;
  throw new TidemarkError(missed.code, `the disks of run ${run} are left without a last point: ${missed.message}`, {
    remedy: `run \`tidemark jobs resume ${run}\`: the writes that no point holds are marked, and shipped first`,
    detail: { run },
    cause: missed,
  });
}

async function serveUntilStopped(context: CommandContext, served: ServedRun): Promise<void> {
  const { output } = context;
  throwIfAborted(context.signal);
  const stopped = new Promise<void>((done) => context.answerSignals({ stop: () => done() }));
  for (const { disk, uri, listen } of served.disks) {
    for (const message of served.warnings) output.item("event", { kind: "notice", disk, message }, printable(message));
    output.item("ready", { disk, listen, uri }, `disk ${printable(disk)} is served at ${printable(uri)}; ^C ends that`);
  }
  const tell = (): void => {
    const disks = served.status();
    output.step({ disks }, disks.map(lineOf).join("  "));
  };
  const timer = setInterval(tell, statusEveryMs);
  await stopped;
  clearInterval(timer);
  tell();
  if (served.status().some(({ protection }) => protection !== null))
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
