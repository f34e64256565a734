/** `tidemark plan`: recovery plans, their runs and reports; and `tidemark failover` with a plan. */
import { resolve } from "node:path";
import { Command, Option } from "commander";
import type { PlanPreview, PlanRunSummary, StartPlanOptions } from "../../engine/index.ts";
import { type PlanPreviewSummary, refusePlanTarget, type VerbFields } from "../agent/failover-verbs.ts";
import { writeNew } from "../new-file.ts";
import { placedTarget } from "../plan/placed-target.ts";
import { loadFile, refuseFaults } from "../plan/plan-loading.ts";
import { planPage } from "../plan/plan-page.ts";
import { planJsonSchema } from "../plan/plan-schema.ts";
import { describePlan, describePlanRun, planGraph } from "../plan/plan-text.ts";
import { formatDuration, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { type Column, fittedTable, printable } from "../text.ts";
import { refuseInsideVault } from "../vault-folder.ts";
import { type CommandContext, withVault } from "./context.ts";
import { exportCommand, withPlan } from "./plan-export.ts";
import { operate, tellFaults, textOf } from "./run-verbs.ts";

interface PlanFlags extends VaultFlags {
  readonly plan: string;
  readonly to?: string;
  readonly history?: true;
}

const example = (words: string): string => `\nExample:\n  $ tidemark plan ${words} --vault dir:/v`;

export function planCommand(context: CommandContext): Command {
  const plan = new Command("plan").description("check and show recovery plans, their runs and reports").addHelpText(
    "after",
    `
A plan is a YAML file with machines, their disks, and groups in order. It is run with
\`tidemark failover test|planned|unplanned --plan FILE\`; all other verbs of a
failover take the run of a plan, too. docs/plans.md has an example.

Examples:
  $ tidemark plan check --plan shop.yaml --vault dir:/v
  $ tidemark failover test --plan shop.yaml --point common --vault dir:/v
  $ tidemark plan report 0badcafe --out drill.html --vault dir:/v`,
  );
  withPlan(plan.command("check"))
    .description("check a plan, and what the vault says of it; exit 2 with every fault in it")
    .option("--to <target>", "instead of the plan's own target")
    .addOption(new Option("--vault <vault>", "without a vault, the file is checked alone").env("TIDEMARK_VAULT"))
    .addHelpText("after", example("check --plan shop.yaml"))
    .action(async (flags: PlanFlags) => await check(context, flags));
  withPlan(withVaultOptions(plan.command("show")))
    .description("show a plan: its groups in order, with commands and disks")
    .option("--history", "its runs in the vault, too")
    .addHelpText("after", example("show --plan shop.yaml --history"))
    .action(async (flags: PlanFlags) => await show(context, flags));
  withPlan(plan.command("graph"))
    .description("print the order of a plan as a Mermaid flowchart")
    .addHelpText("after", "\nExample:\n  $ tidemark plan graph --plan shop.yaml > shop.mmd")
    .action(async (flags: PlanFlags) => {
      const loaded = await loadFile(flags.plan, tellFaults(context));
      const mermaid = planGraph(loaded.plan);
      context.output.answer("plan graph", { plan: loaded.plan.name, mermaid }, mermaid);
    });
  withVaultOptions(plan.command("list"))
    .description("list the runs of recovery plans, newest first, with what they reached")
    .option("--plan <file>", "only those of this plan")
    .addHelpText("after", example("list"))
    .action(async (flags: VaultFlags & { readonly plan?: string }) => await list(context, flags));
  withVaultOptions(plan.command("report").argument("<run>", "name of the run"))
    .description("report a run: what was reached, every step, its output, the plan as it was")
    .option("--out <file>", "write a page of HTML that needs nothing else")
    .addHelpText("after", example("report 0badcafe --out drill.html"))
    .action(async (run: string, flags: VaultFlags & { readonly out?: string }) => await report(context, run, flags));
  plan.addCommand(exportCommand(context));
  plan
    .command("schema")
    .description("print the JSON schema of a plan's file, for editors")
    .addHelpText("after", "\nExample:\n  $ tidemark plan schema > plan.schema.json")
    .action(() => context.output.help(`${JSON.stringify(planJsonSchema(), undefined, 2)}\n`));
  return plan;
}

/**
 * Begins a run of a plan, after it has shown what it is about to do. Errors: INVALID_ARGUMENT for
 * faults, those of the run.
 */
export async function startPlan(
  context: CommandContext,
  kind: StartPlanOptions["kind"],
  flags: VaultFlags & { readonly agent?: string; readonly dryRun?: true },
  fields: VerbFields,
): Promise<void> {
  const { output } = context;
  await operate(context, `failover ${kind}`, flags, fields, async (ask, request) => {
    const preview = (await ask({ ...request, dryRun: true })) as PlanPreviewSummary;
    if (flags.dryRun === true) return preview;
    output.item("preview", preview, textOf(preview, output));
    return await ask(request);
  });
}

async function check(context: CommandContext, flags: PlanFlags): Promise<void> {
  const { output, signal } = context;
  const loaded = await loadFile(flags.plan, tellFaults(context));
  const { plan } = loaded;
  const isAlone = (flags.vault ?? "") === "";
  if (!isAlone) {
    const to = placedTarget(flags.to, ".");
    for (const target of to === undefined ? [plan.target, plan.testTarget] : [to])
      await refusePlanTarget(flags, target);
    const kinds = plan.testTarget === null ? (["unplanned"] as const) : (["unplanned", "test"] as const);
    const faults = await withVault(context, flags, async ({ plans }) => {
      const found: PlanPreview[] = [];
      for (const kind of kinds) found.push(await plans.preview({ plan, kind, to, signal }));
      return found.flatMap((preview) => preview.faults);
    });
    refuseFaults(flags.plan, loaded, faults, tellFaults(context));
  }
  const disks = plan.machines.reduce((sum, machine) => sum + machine.disks.length, 0);
  const counts = { machines: plan.machines.length, disks, groups: plan.groups.length };
  const sizes = [
    formatNumberOf(counts.machines, "machine"),
    formatNumberOf(disks, "disk"),
    formatNumberOf(counts.groups, "group"),
  ];
  const text = `${printable(flags.plan)} has no fault: ${sizes.join(", ")}`;
  output.summary("plan check", { plan: plan.name, ...counts, withVault: !isAlone }, text);
}

async function show(context: CommandContext, flags: PlanFlags): Promise<void> {
  const { output, signal } = context;
  const { plan } = await loadFile(flags.plan, tellFaults(context));
  const { name, machines, groups, cleanup, target, testTarget, objectives } = plan;
  const runs =
    flags.history === true
      ? await withVault(context, flags, async ({ plans }) => await plans.list({ plan: name, signal }))
      : null;
  for (const run of runs ?? []) output.item("planRun", run);
  output.answer(
    "plan show",
    {
      plan: name,
      machines: machines.map((machine) => ({ machine: machine.name, disks: machine.disks })),
      groups,
      cleanup,
      target,
      testTarget,
      objectives,
      runs: runs?.length ?? null,
    },
    [describePlan(plan), ...(runs === null ? [] : [tableOf(runs, output.columns)])].join("\n"),
  );
}

async function list(context: CommandContext, flags: VaultFlags & { readonly plan?: string }): Promise<void> {
  const { output, signal } = context;
  const plan = flags.plan === undefined ? undefined : (await loadFile(flags.plan, tellFaults(context))).plan.name;
  const runs = await withVault(context, flags, async ({ plans }) => await plans.list({ plan, signal }));
  for (const run of runs) output.item("planRun", run);
  output.answer("plan list", { runs: runs.length }, tableOf(runs, output.columns));
}

async function report(
  context: CommandContext,
  name: string,
  flags: VaultFlags & { readonly out?: string },
): Promise<void> {
  const { output, signal } = context;
  if (flags.out !== undefined) await refuseInsideVault(flags, flags.out, "report");
  const { run, planFile } = await withVault(context, flags, async ({ plans }) => {
    return { run: await plans.show(name, signal), planFile: (await plans.planOf(name, signal)).text };
  });
  const page = flags.out === undefined ? null : resolve(flags.out);
  if (page !== null) await writeNew(page, planPage(run, planFile));
  const text = page === null ? describePlanRun(run, output) : `the report of run ${run.run} is in ${printable(page)}`;
  output.answer("plan report", { ...run, planFile, page }, text);
}

const listed: readonly Column<PlanRunSummary>[] = [
  { heading: "RUN", align: "l", cell: ({ run }) => run },
  { heading: "PLAN", align: "l", cell: ({ plan }) => plan },
  { heading: "KIND", align: "l", cell: ({ kind }) => kind },
  { heading: "BEGUN", align: "l", dropped: 1, cell: ({ created }) => created },
  { heading: "STATE", align: "l", cell: ({ state }) => state },
  { heading: "RPO", align: "r", cell: ({ rpoMs }) => formatDuration(rpoMs) },
  { heading: "RTO", align: "r", cell: ({ rtoMs }) => (rtoMs === null ? "-" : formatDuration(rtoMs)) },
  { heading: "MET", align: "l", cell: ({ met }) => (met === null ? "-" : met ? "yes" : "no") },
  {
    heading: "GOOD",
    align: "l",
    dropped: 2,
    cell: ({ successful }) => (successful === null ? "-" : successful ? "yes" : "no"),
  },
];

function tableOf(runs: readonly PlanRunSummary[], columns: number): string {
  return [...(runs.length === 0 ? [] : [fittedTable(listed, runs, columns)]), formatNumberOf(runs.length, "run")].join(
    "\n",
  );
}
