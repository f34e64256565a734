/** Checks of `copies`: points of disks that the agent copies from one of its vaults to another by schedule. */
import { type CopiedPoints, parsePolicy, type RetentionPolicy, TidemarkError } from "../../engine/index.ts";
import {
  type EntryFault,
  type Field,
  isWritten,
  list,
  meant,
  optional,
  type Path,
  report,
  section,
  text,
  withDefault,
} from "./fields.ts";
import { type Checked, check, type DiskEntry, duration, retention } from "./schema.ts";

/** One entry of `copies`. Times in milliseconds. */
export interface CopyConfig {
  /** Names of vaults. */
  readonly from: string;
  readonly to: string;
  /** Undefined: all disks that the agent protects in `from`. */
  readonly disks?: readonly string[] | undefined;
  readonly points: CopiedPoints;
  readonly every: number;
  /** Of the copied disks in `to`. */
  readonly recoveryPointRetention: RetentionPolicy;
  /** The lag above which a disk has a finding; undefined: three times `every`. */
  readonly recoveryPointThreshold?: number | undefined;
}

type NamedDisk = Pick<DiskEntry, "name" | "vault">;

const minute = 60_000;
const day = 24 * 60 * minute;

const copiesSchema: Field<readonly CopyConfig[]> = list(
  section({
    from: text,
    to: text,
    disks: optional(list(text)),
    points: withDefault(points, "latest"),
    every: withDefault(duration({ min: minute, max: 30 * day, example: "15m" }), "15m"),
    recoveryPointRetention: withDefault(retention, "off"),
    recoveryPointThreshold: optional(duration({ min: minute, max: 365 * day, example: "1h" })),
  }),
);

export const checkCopies = (value: unknown): Checked<readonly CopyConfig[]> => check(copiesSchema, value ?? []);

function points(value: unknown, path: Path, faults: EntryFault[]): ReturnType<Field<CopiedPoints>> {
  if (value === "all" || value === "latest") return value;
  const remedy = "write latest, all, or a policy such as days:7";
  if (!isWritten(value)) return report(faults, path, value, "is no choice of points", remedy);
  try {
    return parsePolicy(String(value));
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    return report(faults, path, value, `is no choice of points: ${error.message}`, remedy);
  }
}

/** The disks of an entry, in the order of the configuration. */
export function disksOfCopy({ from, disks }: CopyConfig, all: Iterable<NamedDisk>): string[] {
  const named = disks?.map((name) => name.normalize("NFC"));
  return [...all]
    .filter(({ vault, name }) => vault === from && named?.includes(name) !== false)
    .map(({ name }) => name);
}

/** Reports what the entries say against one another, and against vaults and disks. */
export function judgeCopies(
  copies: readonly CopyConfig[],
  vaults: ReadonlySet<string>,
  disks: ReadonlyMap<string, NamedDisk>,
  fault: (at: Path, what: string, remedy: string) => void,
): void {
  const seen = new Set<string>();
  for (const [index, copy] of copies.entries()) {
    const at: Path = ["copies", index];
    for (const side of ["from", "to"] as const) {
      if (!vaults.has(copy[side]))
        fault(
          [...at, side],
          `the vault ${copy[side]} is not defined`,
          meant(copy[side], [...vaults], "define it under vaults"),
        );
    }
    if (copy.from === copy.to) fault([...at, "to"], "both vaults of the copy are the same", "name another vault");
    for (const [place, name] of (copy.disks ?? []).entries()) {
      const known = disksOfCopy({ ...copy, disks: undefined }, disks.values());
      if (!known.includes(name.normalize("NFC")))
        fault(
          [...at, "disks", place],
          `no disk ${name} is protected in the vault ${copy.from}`,
          meant(name, known, "name disks of this file"),
        );
    }
    for (const name of disksOfCopy(copy, disks.values())) {
      if (seen.has(JSON.stringify([copy.to, name])))
        fault(at, `the disk ${name} is copied to the vault ${copy.to} already`, "remove it here or there");
      seen.add(JSON.stringify([copy.to, name]));
    }
  }
}
