/** `tidemark protect`: one disk, served and protected in the foreground until ^C. */
import { resolve } from "node:path";
import process from "node:process";
import { Command, InvalidArgumentError } from "commander";
import { TidemarkError } from "../../engine/index.ts";
import { formatListen, parseListen } from "../../engine/internal.ts";
import type { DiskConfig, PolicyConfig, VaultConfig } from "../agent/config.ts";
import { openEngineAdapter } from "../agent/engine-adapter.ts";
import type { DiskEvent, DiskHealth, EngineAdapter, ProtectionPort, ServerPort, VaultPort } from "../agent/ports.ts";
import { parseRetention } from "../agent/retention.ts";
import { checkPolicy } from "../agent/schema.ts";
import { statusLine } from "../agent/status-table.ts";
import { withoutSecrets, wrongInput } from "../errors.ts";
import { formatNumberOf, parseDuration } from "../quantities.ts";
import { type VaultFlags, vaultAddress, vaultOptions, withVaultOptions } from "../settings.ts";
import { printable } from "../text.ts";
import { refuseInsideVault } from "../vault-folder.ts";
import { type CommandContext, nbdAddress, refuseEmptyImage } from "./context.ts";
import { lastPointLimit, withLastPoint } from "./last-point.ts";

interface ProtectFlags extends VaultFlags {
  readonly disk: string;
  readonly listen: string;
  readonly cycle?: string;
  readonly retention?: string;
  readonly pre?: string;
  readonly post?: string;
  readonly group?: string;
  readonly readOnly?: true;
}

const statusEveryMs = 1_000;

export function protectCommand(context: CommandContext): Command {
  const command = new Command("protect")
    .description("serve a disk over NBD and take points while clients write; ^C takes a last one")
    .argument("<image>", "image file or block device")
    .requiredOption("--disk <name>", "name of the disk in the vault, and of the export")
    .requiredOption("--listen <address>", "unix:PATH or tcp:HOST:PORT")
    .option("--cycle <duration>", "time between points, from 1s (default: 5s)", cycle)
    .option("--retention <policy>", "which points stay: 1d, days:7, keep:last=100,daily=7 (default: all)")
    .option("--pre <command>", "command that freezes the application, once an hour")
    .option("--post <command>", "command that thaws it again")
    .option("--group <name>", "name of the group that the disk belongs to")
    .option("--read-only", "clients may only read");
  return withVaultOptions(command)
    .addHelpText(
      "after",
      `
The first ^C takes a last point, the second ends at once; nothing is lost either
way. For several disks that are cut at one barrier, use \`tidemark agent\`.

Examples:
  $ tidemark protect web.img --disk web --vault dir:/srv/vault \\
      --listen unix:/run/web.sock
  $ tidemark protect db.img --disk db --vault dir:/srv/vault --cycle 30s \\
      --listen tcp:127.0.0.1:10809 --pre "fsfreeze -f /mnt/db" \\
      --post "fsfreeze -u /mnt/db"`,
    )
    .action(async (image: string, flags: ProtectFlags) => await protect(context, image, flags));
}

/** What the flags say, in the words of a configuration. */
interface Plan {
  readonly vault: VaultConfig;
  readonly disk: DiskConfig;
  readonly policy: PolicyConfig;
}

async function protect(context: CommandContext, image: string, flags: ProtectFlags): Promise<void> {
  const { environment, signal } = context;
  if (nbdAddress.test(image)) {
    throw new TidemarkError("INVALID_ARGUMENT", `${image} is not an image file or block device of this machine`, {
      remedy: "take points of an NBD export with `tidemark replicate`",
    });
  }
  const plan = planOf(context, image, flags);
  await refuseInsideVault(flags, image, "image");
  // Before the vault is opened: an image that is missing creates none.
  await refuseEmptyImage(plan.disk.image);
  const engine = openEngineAdapter(environment, context.output.notice.bind(context.output));
  let protection: ProtectionPort | undefined;
  const disksOf = (): readonly DiskHealth[] => [
    { disk: plan.disk.name, health: protection?.status().health ?? "Normal" },
  ];
  const vault = await engine.openVault(plan.vault, signal, disksOf);
  try {
    await protectIn(context, engine, vault, plan, (begun) => {
      protection = begun;
    });
  } finally {
    await vault.close();
  }
}

async function protectIn(
  context: CommandContext,
  engine: EngineAdapter,
  vault: VaultPort,
  plan: Plan,
  onBegun: (protection: ProtectionPort) => void,
): Promise<void> {
  const { output, signal } = context;
  const onEvent = (event: DiskEvent): void =>
    output.item("event", event, event.kind === "point" ? undefined : printable(event.message));
  const protection = await vault.protect({ disk: plan.disk, policy: plan.policy, onEvent }, signal);
  onBegun(protection);
  try {
    await serveUntilStopped(context, engine, protection, plan);
  } catch (error) {
    await protection.stop({ drain: false, signal });
    throw error;
  }
  output.step({ phase: "drain" }, "taking the last point …");
  const missed = await withLastPoint(async (options) => await protection.stop(options));
  const status = protection.status();
  if (missed !== undefined) {
    throw new TidemarkError(missed.code, `disk ${plan.disk.name} is left without a last point: ${missed.message}`, {
      remedy: "start `tidemark protect` again: the writes that no point holds are marked, and shipped first",
      detail: { disk: plan.disk.name, backlogBytes: status.backlogBytes },
      cause: missed,
    });
  }
  output.summary(
    "protect",
    status,
    `${formatNumberOf(status.pointsCommitted, "point")} of disk ${printable(plan.disk.name)} committed`,
  );
}

async function serveUntilStopped(
  context: CommandContext,
  engine: EngineAdapter,
  protection: ProtectionPort,
  { disk, vault }: Plan,
): Promise<void> {
  const { output, signal } = context;
  const tell = (message: string): void =>
    output.item("event", { kind: "notice", disk: disk.name, message }, printable(message));
  const server: ServerPort = await engine.listen(disk.listen, signal);
  try {
    server.addExport({ name: disk.name, device: protection.device, readOnly: disk.readOnly });
    const stopped = new Promise<void>((resolve) => context.answerSignals({ stop: () => resolve() }));
    for (const message of server.warnings) tell(message);
    const listen = formatListen(disk.listen.address);
    output.item("ready", { disk: disk.name, listen }, `disk ${printable(disk.name)} is served on ${printable(listen)}`);
    const timer = setInterval(() => output.step(protection.status(), statusLine(protection.status())), statusEveryMs);
    await stopped;
    clearInterval(timer);
    tell(
      `the last point goes to ${withoutSecrets(vault.address)}, in ${lastPointLimit} at most; a second ^C ends without it`,
    );
  } finally {
    await server.close();
  }
}

function planOf(context: CommandContext, image: string, flags: ProtectFlags): Plan {
  const { disk: name, pre, post } = flags;
  const address = parseListen(flags.listen, process.cwd());
  if (typeof address === "string")
    throw wrongInput(`--listen ${flags.listen} ${address}`, "write unix:PATH or tcp:HOST:PORT");
  if ((pre === undefined) !== (post === undefined))
    throw wrongInput("--pre and --post belong together", "give both, or neither");
  const hooks = pre === undefined || post === undefined ? undefined : { pre, post, cwd: process.cwd() };
  const checked = checkPolicy({
    ...(flags.cycle === undefined ? {} : { crashConsistentFrequency: flags.cycle }),
    appConsistentFrequency: hooks === undefined ? "off" : "1h",
    recoveryPointThreshold: "off",
    recoveryPointRetention: "off",
  });
  const [first] = checked.faults;
  // Nothing else in it comes from a flag.
  if (checked.entry === undefined || first !== undefined) {
    throw wrongInput(`--cycle ${flags.cycle ?? ""} is not a time between points`, first?.remedy ?? "write it as 5s");
  }
  const { stateFolder } = vaultOptions(flags, context.environment, context.signal);
  return {
    vault: { name: "vault", address: vaultAddress(flags), stateFolder, bandwidth: [] },
    disk: {
      name: name.normalize("NFC"),
      image: resolve(image),
      vault: "vault",
      policy: "flags",
      listen: { address, tls: undefined },
      hooks,
      group: flags.group,
      readOnly: flags.readOnly === true,
    },
    policy: {
      ...checked.entry,
      ...(flags.retention === undefined ? {} : { recoveryPointRetention: parseRetention(flags.retention) }),
      name: "flags",
    },
  };
}

function cycle(text: string): string {
  if (parseDuration(text) === undefined) throw new InvalidArgumentError("It is not a duration such as 5s.");
  return text;
}
