/** `tidemark agents`: the source machines that have registered with a vault. */
import { Command } from "commander";
import type { RegisteredAgent } from "../../engine/index.ts";
import { formatDuration, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { type Column, fields, fittedTable, printable } from "../text.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

export function agentsCommand(context: CommandContext): Command {
  const agents = new Command("agents")
    .description("show and remove the source machines that have registered with a vault")
    .addHelpText("after", "\nExample:\n  $ tidemark agents list --vault dir:/v");
  withVaultOptions(agents.command("list"))
    .description("show the registered agents, their disks and health, and when each was seen last")
    .addHelpText(
      "after",
      `
An agent that has not been seen for 15 minutes is Critical. Columns that do not
fit are left out.

Example:
  $ tidemark agents list --vault dir:/v`,
    )
    .action(async (flags: VaultFlags) => await list(context, flags));
  withVaultOptions(agents.command("show").argument("<name>", "friendly name of the agent"))
    .description("show one agent")
    .addHelpText("after", "\nExample:\n  $ tidemark agents show web01 --vault dir:/v")
    .action(async (name: string, flags: VaultFlags) => {
      const agent = await withVault(context, flags, async (vault) => await vault.agents.show(name, context));
      context.output.answer("agents show", agent, describe(agent, context));
    });
  withVaultOptions(agents.command("remove").argument("<name>", "friendly name of the agent"))
    .description("remove an agent: it replicates no more; its points stay")
    .addHelpText(
      "after",
      `
No key that was made for it before works any more. Its machine keeps a SAS that
opens the store until it ends: replace the account key to end it at once, and
give the other agents new keys with \`tidemark agent register --renew\` first.

Example:
  $ tidemark agents remove web01 --vault dir:/v`,
    )
    .action(async (name: string, flags: VaultFlags) => {
      const agent = await withVault(context, flags, async (vault) => await vault.agents.remove(name, context));
      const { credentialsUntil } = agent;
      const left =
        credentialsUntil === null
          ? ""
          : `\nits SAS opens the store until ${context.output.time(credentialsUntil)}; replace the account key to end it`;
      context.output.summary("agents remove", agent, `removed agent ${printable(agent.agent)}${left}`);
    });
  return agents;
}

async function list(context: CommandContext, flags: VaultFlags): Promise<void> {
  const { output } = context;
  const found = await withVault(context, flags, async ({ agents }) => await agents.list(operation(context)));
  for (const agent of found) output.item("agent", agent);
  const critical = found.filter(({ health }) => health === "Critical").length;
  const columns: readonly Column<RegisteredAgent>[] = [
    { heading: "AGENT", align: "l", cell: ({ agent }) => agent },
    { heading: "HEALTH", align: "l", cell: ({ health }) => health },
    {
      heading: "SEEN",
      align: "r",
      cell: ({ lastSeenAgeMs: ageMs }) => (ageMs === null ? "never" : formatDuration(ageMs)),
    },
    { heading: "DISKS", align: "l", dropped: 1, cell: ({ disks }) => disks.join(", ") || "-" },
    { heading: "MACHINE", align: "l", dropped: 3, cell: ({ host }) => host },
    { heading: "VERSION", align: "l", dropped: 2, cell: ({ version }) => version ?? "-" },
  ];
  const causes = found.flatMap(({ agent, cause }) => (cause === null ? [] : [printable(`${agent}: ${cause}`)]));
  const text = [
    ...(found.length === 0 ? [] : [fittedTable(columns, found, output.columns)]),
    formatNumberOf(found.length, "agent"),
    ...causes,
  ].join("\n");
  output.answer("agents list", { agents: found.length, critical }, text);
}

function describe(agent: RegisteredAgent, { output }: CommandContext): string {
  const { lastSeen, lastSeenAgeMs, credentialsUntil, cause } = agent;
  const seen = lastSeen === null ? "never" : `${output.time(lastSeen)}, ${formatDuration(lastSeenAgeMs ?? 0)} ago`;
  return fields([
    ["agent", printable(agent.agent)],
    ["health", cause === null ? agent.health : `${agent.health}: ${cause}`],
    ["seen", seen],
    ["machine", printable(`${agent.host} (${agent.machine})`)],
    ["version", agent.version ?? "-"],
    ["disks", printable(agent.disks.join(", "))],
    ["may protect", printable(agent.allowedDisks.join(", "))],
    ["registered", output.time(agent.registered)],
    ...(credentialsUntil === null ? [] : [["credentials until", output.time(credentialsUntil)] as const]),
  ]);
}
