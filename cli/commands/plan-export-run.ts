/** Export of a plan's run: its machines as a template for Azure, or as guests of this host. */
import { access, constants } from "node:fs/promises";
import { resolve } from "node:path";
import { FileVolume, type PlanFault, type PlanRunSummary, type Sink, TidemarkError } from "../../engine/index.ts";
import { shellWord } from "../../engine/internal.ts";
import { parseVaultSpec } from "../../sink/index.ts";
import { isLoopback } from "../../sink/internal.ts";
import type { PlanExport } from "../json.ts";
import { writeNew } from "../new-file.ts";
import { armTemplate } from "../plan/export/arm.ts";
import { azureNames, azureTemplate, type BlobPlace } from "../plan/export/azure-template.ts";
import { bicepTemplate } from "../plan/export/bicep.ts";
import { type BootRecord, bootRecordBytes, bootRecordOf } from "../plan/export/boot.ts";
import { libvirtDomain, qemuScript } from "../plan/export/guests.ts";
import { readInventory } from "../plan/export/inventory.ts";
import {
  azureMachines,
  localMachines,
  type MadeMachine,
  type Ruled,
  type RuleOptions,
} from "../plan/export/machines.ts";
import { isRefusal } from "../plan/export/refusal.ts";
import { loadFile, refuseFaults } from "../plan/plan-loading.ts";
import { formatNumberOf } from "../quantities.ts";
import { type VaultFlags, vaultAddress } from "../settings.ts";
import { printable } from "../text.ts";
import { refuseInsideVault } from "../vault-folder.ts";
import { type CommandContext, withVault } from "./context.ts";
import { tellFaults } from "./run-verbs.ts";

export interface ExportFlags extends VaultFlags {
  readonly plan: string;
  readonly format: Format;
  readonly machine?: string;
  readonly inventory?: readonly string[];
  readonly out?: string;
}

type Format = PlanExport["format"];

/** Of a machine, when all its disks are there and have not gone back. */
const madeStates: ReadonlySet<string> = new Set([
  "TestFailoverCompleted",
  "PlannedFailoverCompleted",
  "UnplannedFailoverCompleted",
  "ChangeRecoveryPointCompleted",
  "CommitFailoverCompleted",
]);

/** Errors: INVALID_ARGUMENT, TARGET_EXISTS, TARGET_FAILED, those of the vault. */
export async function exportRun(context: CommandContext, name: string | undefined, flags: ExportFlags): Promise<void> {
  const { output, signal } = context;
  const { format, out } = flags;
  const loaded = await loadFile(flags.plan, tellFaults(context));
  if (out !== undefined) await refuseInsideVault(flags, out, "file");
  const inventory = flags.inventory === undefined ? undefined : await readInventory(flags.inventory);
  const { run, made } = await withVault(context, flags, async ({ plans }, sink) => {
    const shown =
      name === undefined
        ? newestOf(await plans.list({ plan: loaded.plan.name, signal }), loaded.plan.name)
        : await plans.show(name, signal);
    return { run: shown, made: await madeMachines(shown, flags, sink) };
  });
  const options: RuleOptions = { hardware: loaded.hardware, isTest: run.kind === "test", inventory };
  const machines = flags.machine === undefined ? made : made.filter(({ machine }) => machine === flags.machine);
  if (machines.length === 0) throw nothingMade(run, flags.machine);
  const missing = run.machines.filter((each) => !isMade(each)).map(({ machine }) => machine);
  const notes = missing.length === 0 ? [] : [`not at the target yet: ${missing.join(", ")}`];
  const exported = isAzure(format)
    ? exportToAzure(azureMachines(machines, options), { run, notes, format, place: placeOf(vaultAddress(flags)) })
    : await exportHere(localMachines(machines, options), { run, notes, format });
  if ("faults" in exported) {
    const faults = exported.faults.map(({ path, what, remedy }): PlanFault => {
      return { path, error: new TidemarkError("INVALID_ARGUMENT", what, { remedy }) };
    });
    refuseFaults(flags.plan, loaded, faults, tellFaults(context));
    return;
  }
  const { text, ...rest } = exported;
  if (out !== undefined) await writeNew(out, text);
  const file = out === undefined ? null : resolve(out);
  const said = [
    `${formatNumberOf(rest.machines.length, "machine")} of run ${run.run} in ${printable(out ?? "")}`,
    ...rest.notes.map((note) => `note: ${printable(note)}`),
  ];
  output.answer(
    "plan export",
    { plan: run.plan, run: run.run, format, ...rest, file, text: out === undefined ? text : null },
    out === undefined ? text.trimEnd() : said.join("\n"),
  );
}

type Exported = Pick<PlanExport, "machines" | "notes"> & { readonly text: string };
type Faults = Pick<Ruled<never>, "faults">;

function isAzure(format: Format): format is "arm" | "bicep" {
  return format === "arm" || format === "bicep";
}

function exportToAzure(
  ruled: ReturnType<typeof azureMachines>,
  {
    run: { run, kind },
    place,
    format,
    notes: before,
  }: {
    readonly run: PlanRunSummary;
    readonly place: BlobPlace;
    readonly format: "arm" | "bicep";
    readonly notes: readonly string[];
  },
): Exported | Faults {
  const names = azureNames(ruled.machines, kind === "test");
  const notes = [...before, ...ruled.notes];
  const template = isRefusal(names) ? names : azureTemplate(ruled.machines, names, { place, run, notes });
  const faults = isRefusal(template) ? [...ruled.faults, { path: ["machines"], ...template }] : ruled.faults;
  if (isRefusal(names) || isRefusal(template) || faults.length > 0) return { faults };
  return {
    machines: ruled.machines.map(({ machine, osDisk, generation, size, nics }) => ({
      machine,
      name: names.get(machine) ?? machine,
      osDisk: osDisk.disk,
      generation,
      size: size.name,
      exact: size.isExact,
      nics: nics.map(({ network, subnet, address }) => ({ network, subnet, address })),
    })),
    notes,
    text: format === "arm" ? armTemplate(template) : bicepTemplate(template),
  };
}

async function exportHere(
  ruled: ReturnType<typeof localMachines>,
  {
    run: { run, plan, kind },
    format,
    notes: before,
  }: { readonly run: PlanRunSummary; readonly format: Format; readonly notes: readonly string[] },
): Promise<Exported | Faults> {
  const { machines, faults } = ruled;
  const [first, ...others] = machines;
  if (faults.length > 0 || first === undefined) return { faults };
  if (format === "libvirt" && others.length > 0) {
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `a domain of libvirt is one machine, and the run has ${machines.length}`,
      {
        remedy: `add \`--machine ${shellWord(first.machine)}\``,
      },
    );
  }
  const notes = [...before, ...ruled.notes];
  const options = { plan, run, isTest: kind === "test", notes };
  return {
    machines: machines.map(({ machine, osDisk, generation, vcpus, memoryMiB, networks }) => ({
      machine,
      name: machine,
      osDisk: osDisk.disk,
      generation,
      size: `${vcpus} vCPUs, ${memoryMiB} MiB`,
      exact: true,
      nics: networks.map((network) => ({ network, subnet: null, address: null })),
    })),
    notes,
    text: format === "libvirt" ? libvirtDomain(first, options, await hasKvm()) : qemuScript(machines, options),
  };
}

async function hasKvm(): Promise<boolean> {
  return await access("/dev/kvm", constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
}

/** The newest run that has disks at its target. Errors: INVALID_ARGUMENT when there is none. */
function newestOf(runs: readonly PlanRunSummary[], plan: string): PlanRunSummary {
  const newest = runs.find((run) => run.machines.some(isMade));
  if (newest !== undefined) return newest;
  throw new TidemarkError("INVALID_ARGUMENT", `no run of plan ${plan} has disks at its target`, {
    remedy: "run the plan first; `tidemark plan list` shows its runs",
  });
}

function isMade({ state }: PlanRunSummary["machines"][number]): boolean {
  return state !== null && madeStates.has(state);
}

function nothingMade({ run }: PlanRunSummary, machine: string | undefined): TidemarkError {
  const what = machine === undefined ? "no machine" : `no machine ${machine}`;
  return new TidemarkError("INVALID_ARGUMENT", `run ${run} has ${what} at its target`, {
    remedy: `\`tidemark failover show ${run}\` says what can be done`,
    detail: { run },
  });
}

/**
 * The machines whose disks are at the target, with what they boot by. Errors: INVALID_ARGUMENT when the
 * targets are of another kind, those of reading them.
 */
async function madeMachines(
  { run, host, machines }: PlanRunSummary,
  { format }: ExportFlags,
  sink: Sink,
): Promise<MadeMachine[]> {
  const found: MadeMachine[] = [];
  for (const { machine, group, disks } of machines.filter(isMade)) {
    const made: MadeMachine["disks"][number][] = [];
    for (const { disk, target, point } of disks) {
      if (target === null || target.startsWith("blob:") !== isAzure(format)) {
        const needed = isAzure(format) ? "page blobs" : `images of host ${host}`;
        throw new TidemarkError(
          "INVALID_ARGUMENT",
          `${format} needs ${needed}, and ${target ?? disk} of run ${run} is none`,
          {
            remedy: isAzure(format)
              ? "run the plan with `--to blob:PREFIX`, or name `--format qemu` or `libvirt`"
              : "run the plan with `--to dir:FOLDER`, or name `--format arm` or `bicep`",
            detail: { run, target },
          },
        );
      }
      made.push({ disk, target, point, boot: await bootOf(target, sink) });
    }
    found.push({ machine, group, disks: made });
  }
  return found;
}

async function bootOf(target: string, sink: Sink): Promise<BootRecord> {
  const path = target.slice(target.indexOf(":") + 1);
  if (target.startsWith("blob:")) {
    const { sizeBytes } = await sink.statPages(path);
    const head = Buffer.alloc(Math.min(sizeBytes, bootRecordBytes));
    await sink.readPages(path, 0, head);
    return bootRecordOf(head);
  }
  const volume = await FileVolume.open(path);
  try {
    const head = Buffer.alloc(Math.min(await volume.sizeBytes(), bootRecordBytes));
    await volume.read(0, head);
    return bootRecordOf(head);
  } finally {
    await volume.close();
  }
}

/** Azure reads blobs of its own storage only. */
function placeOf(address: string): BlobPlace {
  const spec = parseVaultSpec(address);
  if (spec.kind !== "azure" || isLoopback(new URL(spec.containerUrl).hostname))
    return { containerUrl: undefined, account: undefined };
  return { containerUrl: spec.containerUrl, account: spec.account };
}
