/**
 * Machines of a plan's run, ready for another place: what the run has made, what the plan says of the
 * hardware, and what the rules make of both.
 *
 * Pure functions. A rule without an answer becomes a fault with its place in the plan, and one pass
 * finds all of them; what the user may want to know becomes a note.
 */
import { formatNumberOf } from "../../quantities.ts";
import type { PlanHardware } from "../plan-file.ts";
import type { WrittenMachine, WrittenSize } from "../plan-schema.ts";
import { type BootRecord, chooseOsDisk, generationOf } from "./boot.ts";
import { type Inventory, nicsOf, type PlacedNic, placeNic } from "./networks.ts";
import { isRefusal, type Refusal, refusal } from "./refusal.ts";
import { type ChosenSize, chooseSize, type Generation, sizeNamed } from "./sizes.ts";

/** A disk that a run has made. */
export interface MadeDisk {
  readonly disk: string;
  /** `blob:`, `file:`, `vhd:` or `device:`, and where. */
  readonly target: string;
  /** Id of the point. */
  readonly point: string;
  readonly boot: BootRecord;
}

/** A machine of which the run has made every disk. */
export interface MadeMachine {
  readonly machine: string;
  /** Number of its group in the plan. */
  readonly group: number;
  readonly disks: readonly MadeDisk[];
}

/** A machine and where its operating system is. */
interface BootedMachine extends MadeMachine {
  readonly os: WrittenMachine["os"];
  readonly osDisk: MadeDisk;
  /** The others, in the order of the plan. */
  readonly dataDisks: readonly MadeDisk[];
  readonly generation: Generation;
}

/** A machine as a virtual machine of Azure. */
export interface AzureMachine extends BootedMachine {
  readonly os: "linux" | "windows";
  readonly size: ChosenSize;
  readonly nics: readonly PlacedNic[];
}

/** A machine as a guest of this host. */
export interface LocalMachine extends BootedMachine {
  readonly vcpus: number;
  readonly memoryMiB: number;
  /** Network of each NIC at the target. */
  readonly networks: readonly string[];
}

/** What the rules found. */
export interface Ruled<Machine> {
  readonly machines: readonly Machine[];
  readonly faults: readonly (Refusal & { readonly path: readonly (string | number)[] })[];
  readonly notes: readonly string[];
}

/** How the machines are ruled. */
export interface RuleOptions {
  readonly hardware: PlanHardware;
  /** A test has a network of its own. */
  readonly isTest: boolean;
  /** What is at the target; undefined: not known. */
  readonly inventory: Inventory | undefined;
}

/** Of each machine: size, NICs, OS disk and generation in Azure. */
export function azureMachines(made: readonly MadeMachine[], options: RuleOptions): Ruled<AzureMachine> {
  const { networks, testNetwork } = options.hardware;
  const rules = new Rules<AzureMachine>(made, options);
  const placed: PlacedNic[] = [];
  if (options.isTest && testNetwork === undefined) {
    const remedy = "add `testNetwork:` with a network at the target";
    rules.refuse([], refusal("the run is a test, and the plan names no network for one", remedy));
  }
  const networkRules = {
    networks,
    testNetwork: options.isTest ? testNetwork : undefined,
    inventory: options.inventory,
  };
  rules.each((booted, written, rule) => {
    const { machine, dataDisks, generation } = booted;
    const os = rule("os", written.os ?? missing(machine, "os", "os: linux"));
    const size = rule("size", chooseSizeOf(written, { dataDisks: dataDisks.length, generation }));
    const kept = nicsOf(written.nics, size?.nicsMax ?? null);
    if (kept.length === 0) rule("nics", missing(machine, "nics", "nics: [{network: NAME}]"));
    const nics: PlacedNic[] = [];
    for (const nic of kept) {
      const found = rule("nics", placeNic(nic, networkRules, placed));
      if (found === undefined) continue;
      placed.push(found);
      nics.push(found);
      if (found.isFirst) rules.note(`machine ${machine} gets the first by name: ${found.network}, ${found.subnet}`);
    }
    if (os === undefined || size === undefined) return undefined;
    const { name, isExact, nicsMax } = size;
    if (!isExact) rules.note(`machine ${machine} gets the nearest size: ${name}`);
    if (nicsMax === null)
      rules.note(`the table lacks the size ${name} of machine ${machine}; its NICs are not counted`);
    const lost = written.nics.length - kept.length;
    if (lost > 0) rules.note(`machine ${machine} loses ${formatNumberOf(lost, "NIC")}: ${name} has ${kept.length}`);
    return { ...booted, os, size, nics };
  });
  return rules.ruled;
}

function chooseSizeOf({ name, size }: WrittenMachine, needs: Parameters<typeof chooseSize>[1]): ChosenSize | Refusal {
  return size === undefined ? missing(name, "size", "size: {vcpus: 2, memoryGiB: 8}") : chooseSize(size, needs);
}

/** Of each machine: vCPUs, memory, OS disk and firmware on this host. */
export function localMachines(made: readonly MadeMachine[], options: RuleOptions): Ruled<LocalMachine> {
  const { networks: mapped, testNetwork } = options.hardware;
  const rules = new Rules<LocalMachine>(made, options);
  rules.each((booted, written, rule) => {
    const size = rule("size", wantedOf(written));
    if (size === undefined) return undefined;
    const of = (network: string): string =>
      (Object.hasOwn(mapped, network) ? mapped[network]?.vnet : undefined) ?? network;
    // Without a network of its own, a test is attached to none.
    const networks = written.nics.flatMap(({ network }) => (options.isTest ? (testNetwork ?? []) : of(network)));
    return { ...booted, vcpus: Math.ceil(size.vcpus), memoryMiB: Math.ceil(size.memoryGiB * 1024), networks };
  });
  return rules.ruled;
}

function wantedOf({ name, size }: WrittenMachine): Exclude<WrittenSize, string> | Refusal {
  if (size === undefined) return missing(name, "size", "size: {vcpus: 2, memoryGiB: 8}");
  if (typeof size !== "string") return size;
  return (
    sizeNamed(size) ?? refusal(`the table does not know what ${size} has`, "write `size: {vcpus: 2, memoryGiB: 8}`")
  );
}

function missing(machine: string, field: string, example: string): Refusal {
  return refusal(`machine ${machine} has no \`${field}\``, `add \`${example}\``);
}

type Path = readonly (string | number)[];

/** The answer of a rule for a field of the machine; undefined after a refusal, which is kept. */
type Rule = <Value>(field: keyof WrittenMachine, answer: Value | Refusal) => Value | undefined;

/** The machines of a run under rules, with all faults and notes. */
class Rules<Machine> {
  readonly #made: readonly MadeMachine[];
  readonly #hardware: PlanHardware;
  readonly #machines: Machine[] = [];
  readonly #faults: Ruled<Machine>["faults"][number][] = [];
  readonly #notes = new Set<string>();

  constructor(made: readonly MadeMachine[], { hardware }: RuleOptions) {
    this.#made = made;
    this.#hardware = hardware;
  }

  get ruled(): Ruled<Machine> {
    return { machines: this.#machines, faults: this.#faults, notes: [...this.#notes] };
  }

  note(text: string): void {
    this.#notes.add(text);
  }

  refuse(path: Path, fault: Refusal): void {
    this.#faults.push({ path, ...fault });
  }

  /** Rules each machine that the plan has. */
  each(work: (booted: BootedMachine, written: WrittenMachine, rule: Rule) => Machine | undefined): void {
    for (const made of this.#made) {
      const index = this.#hardware.machines.findIndex(({ name }) => name === made.machine);
      const written = this.#hardware.machines[index];
      if (written === undefined) {
        this.refuse(["machines"], refusal(`the plan lacks machine ${made.machine} of the run`, "add it"));
        continue;
      }
      const rule: Rule = (field, answer) => {
        if (!isRefusal(answer)) return answer;
        this.refuse(["machines", index, field], answer);
        return undefined;
      };
      const booted = this.#booted(made, written, rule);
      const machine = booted && work(booted, written, rule);
      if (machine !== undefined) this.#machines.push(machine);
    }
  }

  #booted(made: MadeMachine, { os, osDisk, generation }: WrittenMachine, rule: Rule): BootedMachine | undefined {
    const found = rule("osDisk", chooseOsDisk(made.disks, osDisk?.normalize("NFC")));
    if (found === undefined) return undefined;
    if (found.boot === "none" && generation === undefined)
      this.note(`the disk ${found.disk} of machine ${made.machine} does not look as if it boots`);
    const dataDisks = made.disks.filter((each) => each !== found);
    return { ...made, os, osDisk: found, dataDisks, generation: generationOf(found, generation) };
  }
}
