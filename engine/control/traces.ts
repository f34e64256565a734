/**
 * What is there of a vault's disks, as the names of objects tell it, and nothing else: where lists of points are lost, names are where a repair begins.
 */
import type { DiskObject } from "../format/names.ts";
import {
  decodeDiskName,
  disksPrefix,
  manifestName,
  mapName,
  pageName,
  parseDiskObject,
  parseSegmentName,
  segmentsPrefix,
} from "../format/names.ts";
import type { Store } from "../store.ts";

/** What stands above it in a name is no epoch of a writer: sequence numbers of segments are made of it. */
export const epochMax: number = 2 ** 36;

/** What is there of a disk. */
export interface Traces {
  readonly disk: string;
  /** Manifests, and leaves and roots. */
  readonly objects: DiskObject[];
  /** The highest epoch that any name tells of. */
  epoch: number;
}

/** Every disk that has left anything, by name. Errors: those of the store. */
export async function findTraces(store: Store, signal: AbortSignal | undefined): Promise<readonly Traces[]> {
  const found = new Map<string, Traces>();
  const tracesOf = (encodedDisk: string): Traces | undefined => {
    const disk = decodeDiskName(encodedDisk);
    if (disk === undefined) return undefined;
    const traces = found.get(disk) ?? { disk, objects: [], epoch: 0 };
    found.set(disk, traces);
    return traces;
  };
  for await (const { name } of store.list(disksPrefix, { signal })) {
    const parsed = parseDiskObject(name);
    const traces = parsed === undefined ? undefined : tracesOf(parsed.encodedDisk);
    if (parsed === undefined || traces === undefined || !isSpelledRight(name, parsed, traces.disk)) continue;
    if (parsed.kind === "points" || parsed.kind === "map") traces.objects.push(parsed);
    traces.epoch = Math.max(traces.epoch, parsed.epoch);
  }
  for await (const { name } of store.list(segmentsPrefix, { signal })) {
    const parsed = parseSegmentName(name);
    const traces = parsed === undefined || parsed.epoch > epochMax ? undefined : tracesOf(parsed.encodedDisk);
    if (parsed !== undefined && traces !== undefined) traces.epoch = Math.max(traces.epoch, parsed.epoch);
  }
  return [...found.values()].sort((a, b) => a.disk.localeCompare(b.disk));
}

/** Whether the name is one that a writer gives: others lead nowhere, and an epoch out of reach would be nobody's. */
function isSpelledRight(name: string, { kind, number, epoch }: DiskObject, disk: string): boolean {
  if (kind === "head" || kind === "other") return true;
  const spelled = { points: manifestName(disk, number, epoch), map: mapName(disk, epoch, number), history: pageName(disk, epoch, number) };
  return spelled[kind] === name && epoch <= epochMax;
}
