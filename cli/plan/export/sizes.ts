/**
 * Sizes of virtual machines in Azure: the table, and the choice of an exact or the nearest one.
 *
 * A size that is named is taken. Of a machine that says what it needs (vCPUs, memory), the nearest size
 * is the one that has everything and the least of it too much: the smallest product of vCPUs and memory.
 * Sizes with much memory are chosen only where no other has enough; burstable ones only by name.
 *
 * The table follows Microsoft's pages of the series Dsv5, Esv5, Fsv2, Bsv2 and M. All these sizes take
 * premium disks.
 */
import { meant } from "../../agent/fields.ts";
import { formatNumberOf } from "../../quantities.ts";
import type { WrittenSize } from "../plan-schema.ts";
import { type Refusal, refusal } from "./refusal.ts";

/** Generation of a virtual machine: 1 boots by BIOS, 2 by UEFI. */
export type Generation = 1 | 2;

/** A size of Azure. */
export interface Size {
  readonly name: string;
  readonly vcpus: number;
  readonly memoryGiB: number;
  readonly dataDisksMax: number;
  readonly nicsMax: number;
  readonly generations: readonly Generation[];
}

/** A size for a machine. */
export interface ChosenSize {
  readonly name: string;
  /** False: it is the nearest one. */
  readonly isExact: boolean;
  /** Null: the table does not know the size. */
  readonly nicsMax: number | null;
}

type Row = readonly [size: string, vcpus: number, memoryGiB: number, dataDisksMax: number, nicsMax: number];

const general: readonly Row[] = [
  ["D2s_v5", 2, 8, 4, 2],
  ["D4s_v5", 4, 16, 8, 2],
  ["D8s_v5", 8, 32, 16, 4],
  ["D16s_v5", 16, 64, 32, 8],
  ["D32s_v5", 32, 128, 32, 8],
  ["D48s_v5", 48, 192, 32, 8],
  ["D64s_v5", 64, 256, 32, 8],
  ["D96s_v5", 96, 384, 32, 8],
  ["E2s_v5", 2, 16, 4, 2],
  ["E4s_v5", 4, 32, 8, 2],
  ["E8s_v5", 8, 64, 16, 4],
  ["E16s_v5", 16, 128, 32, 8],
  ["E20s_v5", 20, 160, 32, 8],
  ["E32s_v5", 32, 256, 32, 8],
  ["E48s_v5", 48, 384, 32, 8],
  ["E64s_v5", 64, 512, 32, 8],
  ["E96s_v5", 96, 672, 32, 8],
  ["E104is_v5", 104, 672, 64, 8],
  ["F2s_v2", 2, 4, 4, 2],
  ["F4s_v2", 4, 8, 8, 2],
  ["F8s_v2", 8, 16, 16, 4],
  ["F16s_v2", 16, 32, 32, 4],
  ["F32s_v2", 32, 64, 32, 8],
  ["F48s_v2", 48, 96, 32, 8],
  ["F64s_v2", 64, 128, 32, 8],
  ["F72s_v2", 72, 144, 32, 8],
];

const muchMemory: readonly Row[] = [
  ["M8ms", 8, 218.75, 8, 4],
  ["M16ms", 16, 437.5, 16, 8],
  ["M32ts", 32, 192, 32, 8],
  ["M32ls", 32, 256, 32, 8],
  ["M32ms", 32, 875, 32, 8],
  ["M64ls", 64, 512, 64, 8],
  ["M64s", 64, 1024, 64, 8],
  ["M64ms", 64, 1792, 64, 8],
  ["M128s", 128, 2048, 64, 8],
  ["M128ms", 128, 3892, 64, 8],
];

const burstable: readonly Row[] = [
  ["B2ts_v2", 2, 1, 4, 2],
  ["B2ls_v2", 2, 4, 4, 2],
  ["B2s_v2", 2, 8, 4, 2],
  ["B4ls_v2", 4, 8, 8, 2],
  ["B4s_v2", 4, 16, 8, 2],
  ["B8ls_v2", 8, 16, 16, 2],
  ["B8s_v2", 8, 32, 16, 2],
  ["B16ls_v2", 16, 32, 32, 4],
  ["B16s_v2", 16, 64, 32, 4],
  ["B32ls_v2", 32, 64, 32, 4],
  ["B32s_v2", 32, 128, 32, 4],
];

function sizesOf(rows: readonly Row[], generations: readonly Generation[]): readonly Size[] {
  return rows.map(([size, vcpus, memoryGiB, dataDisksMax, nicsMax]) => {
    return { name: `Standard_${size}`, vcpus, memoryGiB, dataDisksMax, nicsMax, generations };
  });
}

/** In the order in which they are looked at: the next only where no size of one before fits. */
const chosenFrom: readonly (readonly Size[])[] = [sizesOf(general, [1, 2]), sizesOf(muchMemory, [1, 2])];

export const sizes: readonly Size[] = [...chosenFrom.flat(), ...sizesOf(burstable, [2])];

/** What a machine has besides vCPUs and memory. */
interface Needs {
  readonly dataDisks: number;
  readonly generation: Generation;
}

/** The size that a plan names, or the nearest to what it asks for. */
export function chooseSize(written: WrittenSize, needs: Needs): ChosenSize | Refusal {
  if (typeof written !== "string") return nearestSize(written, needs);
  const named = sizeNamed(written);
  if (named === undefined) return unknownSize(written);
  const lack = lackOf(named, needs);
  if (lack === undefined) return { name: named.name, isExact: true, nicsMax: named.nicsMax };
  const other = nearestSize(named, needs);
  const remedy = "name" in other ? `write \`size: ${other.name}\`` : other.remedy;
  return refusal(`${named.name} ${lack}`, remedy);
}

/** Names of Azure are the same in capital and small letters. */
export function sizeNamed(name: string): Size | undefined {
  return sizes.find((size) => size.name.toLowerCase() === name.toLowerCase());
}

/** Sizes come and go: one that the table lacks is taken as it is written, if it can be one. */
function unknownSize(written: string): ChosenSize | Refusal {
  if (/^Standard_[A-Z]\w*$/.test(written)) return { name: written, isExact: true, nicsMax: null };
  const full = `Standard_${written.replace(/^Standard_/i, "")}`;
  const names = sizes.map(({ name }) => name);
  const remedy = meant(full, names, "write a size such as Standard_D2s_v5, or {vcpus: 2, memoryGiB: 8}");
  return refusal(`${written} is no size of Azure`, remedy);
}

function nearestSize(
  { vcpus, memoryGiB }: { readonly vcpus: number; readonly memoryGiB: number },
  needs: Needs,
): ChosenSize | Refusal {
  for (const table of chosenFrom) {
    const [best] = table
      .filter((size) => size.vcpus >= vcpus && size.memoryGiB >= memoryGiB && lackOf(size, needs) === undefined)
      .sort((a, b) => a.vcpus * a.memoryGiB - b.vcpus * b.memoryGiB);
    if (best === undefined) continue;
    const isExact = best.vcpus === vcpus && best.memoryGiB === memoryGiB;
    return { name: best.name, isExact, nicsMax: best.nicsMax };
  }
  const disks = formatNumberOf(needs.dataDisks, "data disk");
  return refusal(
    `no size of the table has ${vcpus} vCPUs, ${memoryGiB} GiB and room for ${disks}`,
    "ask for less, or write the name of a size that has it",
  );
}

function lackOf({ dataDisksMax, generations }: Size, { dataDisks, generation }: Needs): string | undefined {
  if (dataDisks > dataDisksMax) return `takes ${dataDisksMax} data disks, and the machine has ${dataDisks}`;
  return generations.includes(generation) ? undefined : `does not boot machines of generation ${generation}`;
}
