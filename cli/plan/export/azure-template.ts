/**
 * Infrastructure as code for Azure: the machines of a run as managed disks, NICs and virtual machines.
 *
 *     page blob ─► disk (import) ─┐
 *     subnet ────► NIC ───────────┴► virtual machine ─► virtual machines of the next group
 *
 * One model, printed as an ARM template or as Bicep. An expression knows both spellings. Nothing here
 * calls Azure Resource Manager: an operator deploys the template.
 */
import type { AzureMachine, MadeDisk } from "./machines.ts";
import { type Refusal, refusal } from "./refusal.ts";

/** What the deployment evaluates. */
export class Expression {
  /** Without the brackets of a template. */
  readonly arm: string;
  readonly bicep: string;

  constructor(arm: string, bicep: string = arm) {
    this.arm = arm;
    this.bicep = bicep;
  }

  /** A call of a function that both languages have. */
  static call(name: string, ...given: readonly (string | Expression)[]): Expression {
    const spelled = (language: "arm" | "bicep"): string => {
      const words = given.map((each) => (typeof each === "string" ? literal[language](each) : each[language]));
      return `${name}(${words.join(", ")})`;
    };
    return new Expression(spelled("arm"), spelled("bicep"));
  }
}

/** A text within an expression. */
const literal = {
  arm: (text: string): string => `'${text.replaceAll("'", "''")}'`,
  bicep: (text: string): string => `'${escaped(text)}'`,
} as const;

export type Value = string | number | boolean | Expression | readonly Value[] | { readonly [name: string]: Value };

export function isList(value: Value): value is readonly Value[] {
  return Array.isArray(value);
}

/** A parameter of the deployment, a text. */
export interface Parameter {
  readonly name: string;
  readonly description: string;
  /** Undefined: the operator has to give it. */
  readonly default?: Value | undefined;
  readonly allowed?: readonly string[] | undefined;
}

export interface Resource {
  /** Name within a Bicep file. */
  readonly symbol: string;
  readonly type: string;
  readonly apiVersion: string;
  readonly name: string;
  readonly body: { readonly [name: string]: Value };
  /** Resources whose ids the body holds. */
  readonly uses: readonly Resource[];
  /** Resources that have to be there first for another reason. */
  readonly after: readonly Resource[];
}

export interface Template {
  readonly notes: readonly string[];
  readonly parameters: readonly Parameter[];
  readonly resources: readonly Resource[];
}

/** Where the page blobs are. */
export interface BlobPlace {
  /** URL of the container; undefined: Azure cannot read it, and the operator names another. */
  readonly containerUrl: string | undefined;
  /** Storage account of the container, where its URL says it. */
  readonly account: string | undefined;
}

export interface TemplateOptions {
  readonly place: BlobPlace;
  readonly run: string;
  readonly notes: readonly string[];
}

const compute = { disks: "2024-03-02", virtualMachines: "2024-07-01" } as const;
const networkApi = "2024-05-01";

/**
 * Names of machines in Azure, without what its names may not hold, or why two machines have one. Names
 * of a test end with `-test`, as those of Azure Site Recovery do.
 */
export function azureNames(
  machines: readonly { readonly machine: string }[],
  isTest: boolean,
): ReadonlyMap<string, string> | Refusal {
  const names = new Map<string, string>();
  for (const { machine } of machines) {
    const name = `${machine.replace(/[^A-Za-z0-9-]/g, "-").replace(/^-+|-+$/g, "")}${isTest ? "-test" : ""}`;
    const other = [...names].find(([, taken]) => taken.toLowerCase() === name.toLowerCase());
    if (other !== undefined)
      return refusal(`machines ${other[0]} and ${machine} would have one name in Azure, ${name}`, "rename one of them");
    names.set(machine, name);
  }
  return names;
}

/** Resources of one deployment, at most. */
const resourcesMax = 800;

/** The template for these machines, which have different names. Refused: it would be too large for a deployment. */
export function azureTemplate(
  machines: readonly AzureMachine[],
  names: ReadonlyMap<string, string>,
  { place, run, notes }: TemplateOptions,
): Template | Refusal {
  const resources: Resource[] = [];
  /** The virtual machines of the present group, and of the one before it. */
  let [group, before, present] = [0, [] as Resource[], [] as Resource[]];
  for (const [index, machine] of [...machines].sort((a, b) => a.group - b.group).entries()) {
    if (machine.group !== group) [group, before, present] = [machine.group, present, []];
    const parts = machineResources(machine, names.get(machine.machine) ?? "", `machine${index + 1}`, run, before);
    resources.push(...parts);
    present.push(...parts.slice(-1));
  }
  if (resources.length > resourcesMax) {
    const fact = `a deployment has at most ${resourcesMax} resources, and these machines have ${resources.length}`;
    return refusal(fact, "write one template for each with `--machine`");
  }
  return { notes, parameters: parametersOf(place), resources };
}

function parameter(name: string): Expression {
  return new Expression(`parameters('${name}')`, name);
}

const groupName = new Expression("resourceGroup().name");

function parametersOf({ containerUrl, account }: BlobPlace): Parameter[] {
  const accountId =
    account === undefined ? undefined : Expression.call("resourceId", "Microsoft.Storage/storageAccounts", account);
  return [
    {
      name: "location",
      description: "Region of the machines. It has to be that of the storage account.",
      default: new Expression("resourceGroup().location"),
    },
    {
      name: "containerUri",
      description: "URL of the container that holds the page blobs, without a SAS",
      default: containerUrl,
    },
    {
      name: "storageAccountId",
      description: "Resource id of the storage account that holds the page blobs",
      default: accountId,
    },
    { name: "networkGroup", description: "Resource group of the virtual networks", default: groupName },
    {
      name: "diskSku",
      description: "Kind of the managed disks",
      default: "StandardSSD_LRS",
      allowed: ["Standard_LRS", "StandardSSD_LRS", "StandardSSD_ZRS", "Premium_LRS", "Premium_ZRS"],
    },
  ];
}

/** Disks and NICs of a machine, and the machine last. */
function machineResources(
  { os, osDisk, dataDisks, generation, nics, size }: AzureMachine,
  name: string,
  symbol: string,
  run: string,
  after: readonly Resource[],
): Resource[] {
  const osType = os === "linux" ? "Linux" : "Windows";
  const location = parameter("location");
  const diskResource = (made: MadeDisk, place: string, more: { readonly [name: string]: Value }): Resource => ({
    symbol: `${symbol}${place === "os" ? "Os" : `Data${place}`}`,
    type: "Microsoft.Compute/disks",
    apiVersion: compute.disks,
    name: `${name}-${place === "os" ? "os" : `data-${place}`}`,
    body: {
      location,
      sku: { name: parameter("diskSku") },
      tags: { tidemarkDisk: made.disk, tidemarkPoint: made.point },
      properties: {
        ...more,
        creationData: {
          createOption: "Import",
          sourceUri: blobUri(made.target.slice("blob:".length)),
          storageAccountId: parameter("storageAccountId"),
        },
      },
    },
    uses: [],
    after: [],
  });
  const boot = diskResource(osDisk, "os", { osType, hyperVGeneration: `V${generation}` });
  const data = dataDisks.map((made, lun) => diskResource(made, String(lun), {}));
  const cards = nics.map(({ network, subnet, address }, index): Resource => {
    const subnets = "Microsoft.Network/virtualNetworks/subnets";
    const id = Expression.call("resourceId", parameter("networkGroup"), subnets, network, subnet);
    return {
      symbol: `${symbol}Nic${index}`,
      type: "Microsoft.Network/networkInterfaces",
      apiVersion: networkApi,
      name: `${name}-nic-${index}`,
      body: {
        location,
        properties: {
          ipConfigurations: [
            {
              name: "ipconfig1",
              properties: {
                subnet: { id },
                privateIPAllocationMethod: address === null ? "Dynamic" : "Static",
                ...(address === null ? {} : { privateIPAddress: address }),
              },
            },
          ],
        },
      },
      uses: [],
      after: [],
    };
  });
  const machine: Resource = {
    symbol,
    type: "Microsoft.Compute/virtualMachines",
    apiVersion: compute.virtualMachines,
    name,
    body: {
      location,
      tags: { tidemarkRun: run },
      properties: {
        hardwareProfile: { vmSize: size.name },
        storageProfile: {
          osDisk: { osType, createOption: "Attach", managedDisk: { id: idOf(boot) } },
          dataDisks: data.map((disk, lun) => ({ lun, createOption: "Attach", managedDisk: { id: idOf(disk) } })),
        },
        networkProfile: {
          networkInterfaces: cards.map((card, index) => ({ id: idOf(card), properties: { primary: index === 0 } })),
        },
      },
    },
    uses: [boot, ...data, ...cards],
    after,
  };
  return [boot, ...data, ...cards, machine];
}

/** The id of a resource of the same deployment. */
export function idOf({ type, name, symbol }: Pick<Resource, "type" | "name" | "symbol">): Expression {
  return new Expression(Expression.call("resourceId", type, name).arm, `${symbol}.id`);
}

function blobUri(name: string): Expression {
  const path = `/${name}`;
  const { arm } = Expression.call("concat", parameter("containerUri"), path);
  return new Expression(arm, `'\${containerUri}${escaped(path)}'`);
}

/** A text between the quotes of Bicep. */
export function escaped(text: string): string {
  return text
    .replaceAll("\\", "\\\\")
    .replaceAll("'", "\\'")
    .replaceAll("${", "\\${")
    .replaceAll("\r", "\\r")
    .replaceAll("\n", "\\n")
    .replaceAll("\t", "\\t");
}
