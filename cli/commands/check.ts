/** `tidemark check`: whether a vault can be in a store, before anything relies on it. */
import { Command } from "commander";
import { parseVaultSpec } from "../../sink/index.ts";
import { exitCodes, withoutSecrets } from "../errors.ts";
import type { Finding } from "../preflight/finding.ts";
import { formatNumberOf } from "../quantities.ts";
import { sinkOptions, type VaultFlags, vaultAddress, withVaultOptions } from "../settings.ts";
import { printable } from "../text.ts";
import { type CommandContext, withSink } from "./context.ts";

export function checkCommand(context: CommandContext): Command {
  return withVaultOptions(new Command("check"))
    .description("check a store before it is used: way, clock, rights, account; leaves nothing behind")
    .addHelpText(
      "after",
      `
One line each: the way to the endpoint (directly, through a proxy, past it), TLS,
the clock, the right to list, write, read, lease and delete, page blobs, and of a
storage account what a vault or Azure Site Recovery cannot live with. Exit 1 when
one of them failed. \`tidemark capacity throughput\` measures the store, and
\`tidemark stress store\` checks its guarantees.

Examples:
  $ tidemark check --vault https://shop.blob.core.windows.net/vault
  $ tidemark check --vault dir:/srv/vault --json`,
    )
    .action(async (flags: VaultFlags) => await check(context, flags));
}

async function check(context: CommandContext, flags: VaultFlags): Promise<void> {
  const { output, environment, signal } = context;
  const address = vaultAddress(flags);
  const spec = parseVaultSpec(address);
  const { proxy } = sinkOptions(address, environment, signal);
  const { preflight } = await import("../preflight/preflight.ts");
  const found: Finding[] = [];
  const onFinding = (finding: Finding): void => {
    found.push(finding);
    output.item("check", finding, textOf(finding, output.paint.bind(output)));
  };
  await withSink(context, flags, async (sink) => await preflight(sink, { spec, proxy, signal, onFinding }));
  const count = (state: Finding["state"]): number => found.filter((each) => each.state === state).length;
  const counts = { ok: count("ok"), advice: count("advice"), failed: count("failed"), skipped: count("skipped") };
  const verdict = counts.failed === 0 ? "a vault can be there" : `${formatNumberOf(counts.failed, "check")} failed`;
  output.answer("check", { vault: withoutSecrets(address), ...counts }, verdict);
  if (counts.failed > 0) context.exitCode = exitCodes.failed;
}

const colours = { ok: "green", advice: "yellow", failed: "red", skipped: "gray" } as const;

function textOf({ check: name, state, fact, remedy }: Finding, paint: CommandContext["output"]["paint"]): string {
  const line = `${paint(colours[state], state.padEnd("skipped".length))}  ${name.padEnd("immutability".length)}  ${printable(fact)}`;
  return remedy === null ? line : `${line}: ${printable(remedy)}`;
}
