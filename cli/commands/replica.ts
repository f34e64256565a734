/** `tidemark replica`: images that are kept at the newest point of a disk. */
import { resolve } from "node:path";
import { Command } from "commander";
import type { Application, ReplicaSummary } from "../../engine/index.ts";
import { exitCodes } from "../errors.ts";
import { formatBytes, formatDuration, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, withVaultOptions, withWorkersOption } from "../settings.ts";
import { fields, printable, table } from "../text.ts";
import { refuseInsideVault } from "../vault-folder.ts";
import { type CommandContext, withVault } from "./context.ts";
import { printDamage } from "./verify.ts";

interface RunFlags extends VaultFlags {
  readonly disk: string;
  readonly to: string;
  readonly once?: true;
}

interface RemoveFlags extends VaultFlags {
  readonly keepTarget?: true;
}

export function replicaCommand(context: CommandContext): Command {
  const replica = new Command("replica")
    .description("keep an image at the newest point of a disk, by differences")
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark replica run --disk web --to file:/srv/web.img --vault dir:/v
  $ tidemark replica show --vault dir:/v`,
    );
  addRun(context, replica);
  withVaultOptions(replica.command("show").argument("[replica]", "name of a replica (default: all)"))
    .description("show replicas: which point each holds, its age, and whether it may be used")
    .addHelpText(
      "after",
      `
current: the target holds the newest point. behind: an older one. These may be
used. torn: an application is under way, or was interrupted. changed: another
program may have written the target. missing, empty: there is nothing yet.
failed-over: the target belongs to a failover run.

Example:
  $ tidemark replica show --vault dir:/v`,
    )
    .action(async (name: string | undefined, flags: VaultFlags) => await show(context, name, flags));
  withNamed(replica.command("verify"))
    .description("compare a replica with the point that it holds; exit 3 when it differs")
    .addHelpText(
      "after",
      `
What differs is mended by the next \`tidemark replica run\`.

Example:
  $ tidemark replica verify 0123456789abcdef --vault dir:/v`,
    )
    .action(async (name: string, flags: VaultFlags) => await verify(context, name, flags));
  withNamed(replica.command("remove"))
    .description("remove a replica with its target; a device keeps its content")
    .option("--keep-target", "leave the target as it is")
    .addHelpText("after", "\nExample:\n  $ tidemark replica remove 0123456789abcdef --vault dir:/v")
    .action(async (name: string, flags: RemoveFlags) => await remove(context, name, flags));
  return replica;
}

function withNamed(command: Command): Command {
  return withWorkersOption(withVaultOptions(command.argument("<replica>", "name of the replica")));
}

function addRun(context: CommandContext, replica: Command): void {
  const command = replica
    .command("run")
    .description("bring a replica to the newest point, and to each that follows, until ^C")
    .requiredOption("--disk <name>", "name of the disk in the vault")
    .requiredOption("--to <target>", "file:PATH (a fixed VHD if it ends with .vhd), device:PATH or blob:NAME")
    .option("--once", "end when the replica holds the newest point");
  withWorkersOption(withVaultOptions(command))
    .addHelpText(
      "after",
      `
The target must not exist at first; the content of a device is written over. The
point that it holds is pinned. Do not use the target while the command runs.

Examples:
  $ tidemark replica run --disk web --to file:/srv/web.vhd --vault dir:/v
  $ tidemark replica run --disk web --to blob:replicas/web.vhd --once \\
      --vault azurite:/v`,
    )
    .action(async (flags: RunFlags) => await run(context, flags));
}

async function run(context: CommandContext, flags: RunFlags): Promise<void> {
  const { output } = context;
  const { disk, to, once = false } = flags;
  const [, path] = /^(?:file|device):(.+)$/s.exec(to) ?? [];
  if (path !== undefined) await refuseInsideVault(flags, resolve(path), "target");
  const done = await withVault(context, flags, async ({ replicas }) => {
    const stopped = new AbortController();
    if (!once) context.answerSignals({ stop: () => stopped.abort() });
    return await replicas.run({
      disk,
      to,
      once,
      signal: once ? context.signal : stopped.signal,
      onApplied: (application) => output.item("applied", application, describeApplication(application)),
      onProgress: (progress) => output.progress(progress),
      onNotice: (notice) => output.notice(notice),
    });
  });
  const held =
    done.sequence === null
      ? "is torn: an application was interrupted, and the next run finishes it"
      : `holds point ${done.sequence}`;
  const moved = `written ${formatBytes(done.bytesWritten)}, read ${formatBytes(done.bytesRead)}`;
  const text = `replica ${done.replica} of disk ${printable(disk)} ${held}; ${moved} (${formatDuration(done.elapsedMs)})`;
  output.summary("replica run", done, text);
}

function describeApplication({ sequence, target, bytesWritten, isWhole, lagMs, elapsedMs }: Application): string {
  const way = isWhole ? "compared whole" : "by differences";
  const work = `${formatBytes(bytesWritten)} written in ${formatDuration(elapsedMs)}`;
  return printable(`point ${sequence} applied to ${target}, ${way}: ${work}, ${formatDuration(lagMs)} behind the disk`);
}

async function show(context: CommandContext, name: string | undefined, flags: VaultFlags): Promise<void> {
  const { output, signal } = context;
  const options = { signal, onNotice: output.notice.bind(output) };
  if (name !== undefined) {
    const replica = await withVault(context, flags, async ({ replicas }) => await replicas.show(name, options));
    output.answer("replica show", replica, describe(replica));
    return;
  }
  const found = await withVault(context, flags, async ({ replicas }) => await replicas.list(options));
  for (const replica of found) output.item("replica", replica);
  const rows = found.map((replica) => [
    replica.replica,
    printable(replica.disk),
    stateText(replica),
    replica.sequence === null ? "-" : String(replica.sequence),
    replica.ageMs === null ? "-" : formatDuration(replica.ageMs),
    printable(replica.target),
  ]);
  const text = [
    ...(rows.length === 0 ? [] : [table(["REPLICA", "DISK", "STATE", "POINT", "AGE", "TARGET"], rows, "lllrrl")]),
    formatNumberOf(found.length, "replica"),
  ].join("\n");
  output.answer("replica show", { replicas: found.length }, text);
}

function stateText({ state, behindPoints, isRunning }: ReplicaSummary): string {
  const behind = state === "behind" && behindPoints !== null ? ` by ${formatNumberOf(behindPoints, "point")}` : "";
  return `${state}${behind}${isRunning ? ", at work" : ""}`;
}

function describe(replica: ReplicaSummary): string {
  const { host, sequence, time, ageMs, isSeen, run } = replica;
  return [
    `replica ${replica.replica}: ${stateText(replica)}`,
    fields([
      ["disk", printable(replica.disk)],
      ["target", printable(replica.target)],
      ...(host === null ? [] : [["host", `${printable(host)}${isSeen ? "" : ", not looked at from here"}`] as const]),
      ...(run === null ? [] : [["run", `${run}: \`tidemark failover show ${run}\` tells more`] as const]),
      ...(time === null ? [] : [["point", `${String(sequence)} of ${time}`] as const]),
      ...(ageMs === null ? [] : [["age", formatDuration(ageMs)] as const]),
    ]),
  ].join("\n");
}

async function verify(context: CommandContext, replica: string, flags: VaultFlags): Promise<void> {
  const { output, signal } = context;
  const summary = await withVault(
    context,
    flags,
    async ({ replicas }) =>
      await replicas.verify({
        replica,
        signal,
        onProgress: (progress) => output.progress(progress),
        onNotice: (notice) => output.notice(notice),
      }),
  );
  printDamage(output, summary.damaged);
  if (summary.damaged.length > 0) context.exitCode = exitCodes.damageFound;
  const outcome = summary.equal ? "equals its point" : "differs from its point";
  const text = `replica ${replica} ${outcome}: ${formatBytes(summary.checkedBytes)} checked in ${formatDuration(summary.elapsedMs)}`;
  if (summary.damaged.length === 0) output.summary("replica verify", summary, text);
  else output.answer("replica verify", summary, text);
}

async function remove(context: CommandContext, replica: string, flags: RemoveFlags): Promise<void> {
  const { output, signal } = context;
  const { keepTarget } = flags;
  const options = { replica, keepTarget, signal, onNotice: output.notice.bind(output) };
  const removed = await withVault(context, flags, async ({ replicas }) => await replicas.remove(options));
  const what = removed.keptTarget ? `; ${removed.target} stays as it is` : ` with ${removed.target}`;
  output.summary("replica remove", removed, printable(`removed replica ${replica}${what}`));
}
