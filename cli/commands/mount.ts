/**
 * `tidemark mount`: instant restore. Serves any point as a disk over NBD, in the foreground until
 * ^C.
 */
import { resolve } from "node:path";
import process from "node:process";
import { Command } from "commander";
import {
  type Mount,
  type MountSummary,
  type NbdEndpoint,
  NbdServer,
  TidemarkError,
  throwIfAborted,
} from "../../engine/index.ts";
import { closing, exportUri, formatListen, parseListen } from "../../engine/internal.ts";
import { formatBytes, formatCount, formatDuration } from "../quantities.ts";
import { byteSize, type VaultFlags, withVaultOptions, withWorkersOption } from "../settings.ts";
import { fields, printable } from "../text.ts";
import { pointSelector } from "../times.ts";
import { refuseInsideVault } from "../vault-folder.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

interface MountFlags extends VaultFlags {
  readonly disk: string;
  readonly point: string;
  readonly listen: string;
  readonly writable?: true;
  readonly overlay?: string;
  readonly cache?: number;
}

const statusEveryMs = 1_000;

export function mountCommand(context: CommandContext): Command {
  const command = new Command("mount")
    .description("serve any point over NBD at once, without writing it out; until ^C")
    .requiredOption("--disk <name>", "name of the disk in the vault, and of the export")
    .requiredOption("--point <point>", "sequence number, id, `latest`, a time or an age")
    .requiredOption("--listen <address>", "unix:PATH or tcp:HOST:PORT; port 0 takes any")
    .option("--writable", "clients may write; the vault does not change")
    .option("--overlay <path>", "keep what clients write in this file (default: discard it)")
    .option("--cache <size>", "memory for blocks that were read (default: 256MiB)", byteSize);
  return withWorkersOption(withVaultOptions(command))
    .addHelpText(
      "after",
      `
A mounted point cannot be pruned. An overlay belongs to one point: mount that
point with it again to continue where clients left it.

Examples:
  $ tidemark mount --disk web --point latest --vault dir:/srv/vault \\
      --listen unix:/run/web.sock
  $ nbdfuse /mnt/web.img 'nbd+unix:///web?socket=/run/web.sock'
  $ tidemark mount --disk web --point 2026-05-01T12:00:00Z --vault dir:/v \\
      --listen tcp:127.0.0.1:10809 --writable --overlay web.overlay`,
    )
    .action(async (flags: MountFlags) => await mount(context, flags));
}

async function mount(context: CommandContext, flags: MountFlags): Promise<void> {
  const { output } = context;
  const point = pointSelector(flags.point);
  const address = parseListen(flags.listen, process.cwd());
  if (typeof address === "string") {
    throw new TidemarkError("INVALID_ARGUMENT", `--listen ${flags.listen} ${address}`, {
      remedy: "write unix:PATH or tcp:HOST:PORT",
    });
  }
  if (flags.overlay !== undefined) await refuseInsideVault(flags, flags.overlay, "overlay");
  const summary = await withVault(context, flags, async (vault) => {
    const mounted = await vault.mount({
      disk: flags.disk,
      point,
      writable: flags.writable,
      overlay: flags.overlay === undefined ? undefined : resolve(flags.overlay),
      cacheBytes: flags.cache,
      ...operation(context),
    });
    return await closing(mounted, async () => await serveUntilStopped(context, mounted, address));
  });
  output.summary("mount", summary, describe(summary));
}

/** Serves the mount until a signal comes, and gives what clients read and wrote. */
async function serveUntilStopped(context: CommandContext, mounted: Mount, address: NbdEndpoint): Promise<MountSummary> {
  const { output } = context;
  const { disk, sequence, point, time } = mounted.point;
  const server = await NbdServer.listen({ listen: address });
  return await closing(server, async () => {
    server.addExport({ name: disk, device: mounted.device, description: `point ${sequence} of ${time}` });
    throwIfAborted(context.signal);
    const stopped = new Promise<void>((done) => context.answerSignals({ stop: () => done() }));
    for (const message of server.warnings) output.item("event", { kind: "notice", disk, message }, printable(message));
    const uri = exportUri(server.address, disk);
    const ready = { disk, point, sequence, listen: formatListen(server.address), uri };
    output.item("ready", ready, `point ${sequence} of disk ${printable(disk)} is served at ${printable(uri)}`);
    const timer = setInterval(() => output.step(mounted.summary(), statusLine(mounted.summary())), statusEveryMs);
    await stopped;
    clearInterval(timer);
    return mounted.summary();
  });
}

function statusLine({ bytesRead, bytesFetched, bytesWritten, cachedBytes }: MountSummary): string {
  return `read ${formatBytes(bytesRead)}  written ${formatBytes(bytesWritten)}  fetched ${formatBytes(bytesFetched)}  cached ${formatBytes(cachedBytes)}`;
}

function describe(summary: MountSummary): string {
  const {
    disk,
    sequence,
    writable,
    overlay,
    bytesRead,
    bytesWritten,
    bytesFetched,
    cacheHits,
    cacheMisses,
    elapsedMs,
  } = summary;
  const blocks = cacheHits + cacheMisses;
  const share = blocks === 0 ? "" : ` (${Math.floor((cacheHits / blocks) * 100)} %)`;
  const written =
    overlay === null ? `${formatBytes(bytesWritten)}, not kept` : `${formatBytes(bytesWritten)}, kept in ${overlay}`;
  return [
    `point ${sequence} of disk ${printable(disk)} was served for ${formatDuration(elapsedMs)}`,
    fields([
      ["read", formatBytes(bytesRead)],
      ["fetched", `${formatBytes(bytesFetched)} from the vault`],
      ["cache hits", `${formatCount(cacheHits)} of ${formatCount(blocks)} blocks${share}`],
      ...(writable ? [["written", written] as const] : []),
    ]),
  ].join("\n");
}
