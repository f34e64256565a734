/**
 * Schema of a recovery plan's file: its fields, their types, bounds and defaults, and the JSON schema
 * for editors, which says the same. `plan-file.ts` judges what one field says about another.
 */
import { isIP } from "node:net";
import type { PlanAction } from "../../engine/index.ts";
import { actionBounds, planName } from "../../engine/internal.ts";
import {
  type Field,
  fault,
  list,
  oneOf,
  optional,
  report,
  section,
  text,
  withDefault,
  written,
} from "../agent/fields.ts";
import { parseDuration } from "../quantities.ts";

/** A plan as it is written, with the defaults of what is left out. */
export interface WrittenPlan {
  readonly plan: string;
  readonly machines: readonly WrittenMachine[];
  readonly groups: readonly {
    readonly machines: readonly string[];
    readonly before: readonly PlanAction[];
    readonly after: readonly PlanAction[];
  }[];
  readonly cleanup: readonly PlanAction[];
  readonly networks: Readonly<
    Record<string, { readonly vnet: string; readonly subnets: Readonly<Record<string, string>> }>
  >;
  readonly testNetwork?: string | undefined;
  readonly target?: string | undefined;
  readonly testTarget?: string | undefined;
  readonly objectives: { readonly rpo?: number | undefined; readonly rto?: number | undefined };
}

export interface WrittenMachine {
  readonly name: string;
  readonly disks: readonly string[];
  readonly source?: string | undefined;
  readonly os?: "linux" | "windows" | undefined;
  /** The disk that holds the operating system. */
  readonly osDisk?: string | undefined;
  /** 1: BIOS, 2: UEFI. */
  readonly generation?: 1 | 2 | undefined;
  readonly size?: WrittenSize | undefined;
  readonly nics: readonly WrittenNic[];
}

/** The name of a size of Azure, or what the machine needs. */
export type WrittenSize = string | { readonly vcpus: number; readonly memoryGiB: number };

export interface WrittenNic {
  readonly network: string;
  readonly subnet?: string | undefined;
  readonly ip?: string | undefined;
}

const name: Field<string> = written(
  (value) => (planName.test(value) ? value : fault),
  "is no name",
  "use letters, digits, `.`, `_` and `-`, at most 63",
);

function duration(max: number): Field<number> {
  return written(
    (value) => {
      const elapsedMs = parseDuration(value) ?? Number.NaN;
      return elapsedMs >= 1 && elapsedMs <= max ? elapsedMs : fault;
    },
    "is no duration that it may have",
    `write a number and a unit, as in 60s, up to ${max / 3_600_000}h`,
  );
}

function number(min: number, max: number): Field<number> {
  return written(
    (value) => (/^\d+(\.\d+)?$/.test(value) && Number(value) >= min && Number(value) <= max ? Number(value) : fault),
    "is no number that it may have",
    `write a number from ${min} to ${max}`,
  );
}

/** A section whose names the user gives. */
function named<Value>(of: Field<Value>): Field<Readonly<Record<string, Value>>> {
  return (value, path, faults) => {
    if (typeof value !== "object" || value === null || Array.isArray(value))
      return report(faults, path, value, "is not a section with names", "correct it");
    const before = faults.length;
    const entries = Object.entries(value).map(([key, item]) => [key, of(item, [...path, key], faults)] as const);
    return faults.length === before ? (Object.fromEntries(entries) as Record<string, Value>) : fault;
  };
}

const command = section({
  run: text,
  timeout: withDefault(duration(actionBounds.timeoutMs), "10m"),
  retries: withDefault(number(0, actionBounds.retries), 0),
  pause: withDefault(duration(actionBounds.pauseMs), "5s"),
  onFailure: withDefault(oneOf(["stop", "continue"]), "stop"),
});
const manual = section({ manual: text });

const action: Field<PlanAction> = (value, path, faults) => {
  if (typeof value === "object" && value !== null && "manual" in value) {
    const read = manual(value, path, faults);
    return read === fault ? fault : { kind: "manual", text: read.manual };
  }
  const read = command(value, path, faults);
  if (read === fault) return fault;
  const { run, timeout, retries, pause, onFailure } = read;
  return { kind: "run", command: run, timeoutMs: timeout, retries: Math.floor(retries), pauseMs: pause, onFailure };
};
const actions: Field<readonly PlanAction[]> = withDefault(list(action), []);

const generation: Field<1 | 2> = written(
  (value) => (value === "1" ? 1 : value === "2" ? 2 : fault),
  "is no generation",
  "write 1 for a machine that boots by BIOS, 2 for UEFI",
);

const size: Field<WrittenSize> = (value, path, faults) =>
  typeof value === "string"
    ? text(value, path, faults)
    : section({ vcpus: number(1, 1024), memoryGiB: number(0.5, 65_536) })(value, path, faults);

const nic = section({
  network: text,
  subnet: optional(text),
  ip: optional(
    written((value) => (isIP(value) === 0 ? fault : value), "is no address", "write it as 10.0.0.4 or fd00::4"),
  ),
});

const machine: Field<WrittenMachine> = section({
  name,
  disks: list(text),
  source: optional(text),
  os: optional(oneOf(["linux", "windows"])),
  osDisk: optional(text),
  generation: optional(generation),
  size: optional(size),
  nics: withDefault(list(nic), []),
});

const dayMs = 86_400_000;

export const planSchema: Field<WrittenPlan> = section({
  plan: name,
  machines: list(machine),
  groups: list(section({ machines: list(text), before: actions, after: actions })),
  cleanup: actions,
  networks: withDefault(named(section({ vnet: text, subnets: withDefault(named(text), {}) })), {}),
  testNetwork: optional(text),
  target: optional(text),
  testTarget: optional(text),
  objectives: withDefault(section({ rpo: optional(duration(30 * dayMs)), rto: optional(duration(30 * dayMs)) }), {}),
});

type JsonSchema = Readonly<Record<string, unknown>>;

const textOf = (description: string): JsonSchema => ({ type: "string", minLength: 1, description });
const durationOf = (description: string): JsonSchema => ({
  type: "string",
  pattern: "^\\d+(\\.\\d+)?\\s*(ms|s|m|min|h|d|w)$",
  description,
});
const objectOf = (properties: JsonSchema, required: readonly string[]): JsonSchema => ({
  type: "object",
  properties,
  required,
  additionalProperties: false,
});
const listOf = (items: JsonSchema, description: string): JsonSchema => ({ type: "array", items, description });

/** For editors: JSON Schema, draft 2020-12. */
export function planJsonSchema(): JsonSchema {
  const nameOf = (description: string): JsonSchema => ({ type: "string", pattern: planName.source, description });
  const actionsOf = (description: string): JsonSchema => listOf({ $ref: "#/$defs/action" }, description);
  const target = "dir:FOLDER, blob:PREFIX, instant:unix:FOLDER or replica";
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    title: "Recovery plan of Tidemark",
    ...objectOf(
      {
        plan: nameOf("name of the plan"),
        machines: listOf({ $ref: "#/$defs/machine" }, "at most 100"),
        groups: listOf(
          objectOf(
            {
              machines: listOf({ type: "string" }, "names of machines, which are taken over at the same time"),
              before: actionsOf("one by one, before the machines"),
              after: actionsOf("one by one, after the machines"),
            },
            ["machines"],
          ),
          "in order; each machine is in one group",
        ),
        cleanup: actionsOf("after the cleanup of a test, and after a cancel"),
        networks: {
          type: "object",
          description: "networks of the machines, and what they are at the target",
          additionalProperties: objectOf(
            {
              vnet: textOf("network at the target"),
              subnets: { type: "object", additionalProperties: { type: "string" } },
            },
            ["vnet"],
          ),
        },
        testNetwork: textOf("network at the target for the machines of a test"),
        target: textOf(`where failovers go: ${target}`),
        testTarget: textOf("where tests go: dir:FOLDER, blob:PREFIX or instant:unix:FOLDER (default: target)"),
        objectives: objectOf({ rpo: durationOf("greatest age of a point"), rto: durationOf("longest run") }, []),
      },
      ["plan", "machines", "groups"],
    ),
    $defs: {
      machine: objectOf(
        {
          name: nameOf("name of the machine"),
          disks: listOf({ type: "string" }, "names of its disks in the vault, 1 to 64"),
          source: textOf("where its disks are written today: agent:SOCKET, or image:PATH of its only disk"),
          os: { enum: ["linux", "windows"] },
          osDisk: textOf("the disk that holds the operating system (default: the only one that boots, else the first)"),
          generation: { enum: [1, 2], description: "1: BIOS, 2: UEFI (default: what the disk boots by)" },
          size: {
            anyOf: [
              { type: "string" },
              objectOf({ vcpus: { type: "number" }, memoryGiB: { type: "number" } }, ["vcpus", "memoryGiB"]),
            ],
          },
          nics: listOf(
            objectOf({ network: textOf("a network"), subnet: textOf("a subnet"), ip: textOf("an address") }, [
              "network",
            ]),
            "network interfaces",
          ),
        },
        ["name", "disks"],
      ),
      action: {
        anyOf: [
          objectOf(
            {
              run: textOf("for /bin/sh, in the folder of the plan"),
              timeout: durationOf("default 10m, at most 24h"),
              retries: { type: "integer", minimum: 0, maximum: actionBounds.retries },
              pause: durationOf("between two tries; default 5s"),
              onFailure: { enum: ["stop", "continue"], default: "stop" },
            },
            ["run"],
          ),
          objectOf({ manual: textOf("what a person does; the run waits") }, ["manual"]),
        ],
      },
    },
  };
}
