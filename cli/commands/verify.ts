/**
 * `tidemark verify`: proves points chunk by chunk, heals damage, and compares a point with a disk.
 */
import { Command } from "commander";
import { type Damage, TidemarkError, type VerifySummary } from "../../engine/index.ts";
import { openImage } from "../../engine/internal.ts";
import { exitCodes } from "../errors.ts";
import type { Output } from "../output.ts";
import { formatBytes, formatDuration, formatNumberOf, formatRate } from "../quantities.ts";
import { type VaultFlags, withVaultOptions, withWorkersOption } from "../settings.ts";
import { printable } from "../text.ts";
import { pointSelector } from "../times.ts";
import { told, toldWhile } from "../waiting.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

interface VerifyFlags extends VaultFlags {
  readonly disk?: string;
  readonly point?: string;
  readonly source?: string;
  readonly heal?: boolean;
}

export function verifyCommand(context: CommandContext): Command {
  const command = new Command("verify")
    .description("prove that points can be read back; exit 3 when damage is found")
    .option("--disk <name>", "only this disk (default: every disk)")
    .option(
      "--point <point>",
      "only this point: sequence number, id, `latest`, a time or an age (default: every point)",
    )
    .option("--source <path>", "compare the point (default: latest) with this image or block device, byte for byte")
    .option("--heal", "heal damaged chunks from `--source` or from duplicates in the vault");
  return withWorkersOption(withVaultOptions(command))
    .addHelpText(
      "after",
      `
Every chunk that the points need is fetched and compared with its digest. Damage
is listed with the points and byte ranges that need the chunk.

With --heal, a damaged chunk is written again if the image of --source, or a
duplicate in the vault, holds its content; points are then not compared with the
image. Exit code 3 means that damage is left.

Examples:
  $ tidemark verify --vault azurite:/srv/azurite
  $ tidemark verify --disk web --source web.img --heal --vault dir:/srv/vault`,
    )
    .action(async (flags: VerifyFlags) => await verify(context, flags));
}

async function verify(context: CommandContext, flags: VerifyFlags): Promise<void> {
  const { output } = context;
  if (flags.disk === undefined && (flags.point ?? flags.source) !== undefined) {
    throw new TidemarkError("INVALID_ARGUMENT", "`--point` and `--source` belong to one disk, and none is named", {
      remedy: "add `--disk NAME`",
    });
  }
  const point = flags.point === undefined ? undefined : pointSelector(flags.point);
  const { onNotice } = operation(context);
  const source =
    flags.source === undefined ? undefined : await toldWhile(openImage(flags.source), flags.source, onNotice);
  try {
    const { disk, heal } = flags;
    const compared = source && told(source, source.description, onNotice);
    const options = { disk, point, source: compared, heal, ...operation(context) };
    const summary = await withVault(context, flags, async (vault) => await vault.verify(options));
    printDamage(output, summary.damaged);
    if (summary.damaged.some(({ healed }) => !healed)) context.exitCode = exitCodes.damageFound;
    if (summary.damaged.length === 0) output.summary("verify", summary, describe(summary));
    else output.answer("verify", summary, describe(summary));
  } finally {
    await source?.close();
  }
}

/** Prints each damage for programs. People get one line for all damage of an object in a point. */
export function printDamage(output: Pick<Output, "item">, damaged: readonly Damage[]): void {
  const keyOf = ({ disk, sequence, object, code, healed }: Damage): string =>
    JSON.stringify([disk, sequence, object, code, healed]);
  const places = new Map<string, Damage[]>();
  for (const damage of damaged) {
    const place = places.get(keyOf(damage));
    if (place === undefined) places.set(keyOf(damage), [damage]);
    else place.push(damage);
  }
  for (const damage of damaged) {
    const [first, ...others] = places.get(keyOf(damage)) ?? [];
    output.item("damage", damage, damage === first ? describeDamage(damage, others) : undefined);
  }
}

function describeDamage({ disk, sequence, code, message, healed }: Damage, others: readonly Damage[]): string {
  const object = disk === "" ? "vault" : `disk ${disk}`;
  const where = sequence === null ? object : `${object}, point ${sequence}`;
  const end = Math.max(...others.map(({ extent }) => (extent === null ? 0 : extent.offset + extent.length)));
  const more = others.length === 0 ? "" : `; ${formatNumberOf(others.length, "more place")} up to byte ${end}`;
  return printable(`${healed ? "healed" : "damage"}: ${where}: ${message} (${code})${more}`);
}

function describe({ checkedPoints, checkedChunks, checkedBytes, damaged, elapsedMs }: VerifySummary): string {
  const healed = damaged.filter((damage) => damage.healed).length;
  const found =
    damaged.length === 0
      ? "no damage"
      : `${formatNumberOf(damaged.length, "damage")} found${healed === 0 ? "" : `, ${healed} of them healed`}`;
  const scope = `${formatNumberOf(checkedPoints, "point")}, ${formatNumberOf(checkedChunks, "chunk")}, ${formatBytes(checkedBytes)}`;
  return `${found}: ${scope} checked in ${formatDuration(elapsedMs)} (${formatRate(checkedBytes, elapsedMs)})`;
}
