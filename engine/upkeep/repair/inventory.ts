/**
 * Inventory of a damaged vault: its disks as the names of objects tell them, as lists of points
 * tell them, and as the points' own manifests tell them.
 *
 * A repair begins here when lists of points are lost. Everything is only read; what cannot be read
 * is named.
 */
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode, isUnreadableOrGone, type TidemarkError } from "../../errors.ts";
import type { HeadDocument, PageReference, PointRecord, RunReference } from "../../store/format/documents.ts";
import { decodeHead, decodeManifest, documentBytesMax } from "../../store/format/documents.ts";
import type { DiskObject } from "../../store/format/names.ts";
import {
  decodeDiskName,
  disksPrefix,
  headName,
  manifestName,
  mapName,
  pageName,
  parseDiskObject,
  parseSegmentName,
  segmentsPrefix,
} from "../../store/format/names.ts";
import { claimedId } from "../../store/format/signed-text.ts";
import type { DiskPlace } from "../../store/place.ts";
import { readPoints } from "../../store/points/history.ts";
import type { Store } from "../../store/store.ts";
import type { FoundManifest } from "./rebuilt-points.ts";

/**
 * A higher number in a name is no epoch of a writer: sequence numbers of segments are made of
 * epochs.
 */
const epochMax: number = 2 ** 36;

/** The objects of a disk, by name. */
export interface Inventory {
  readonly disk: string;
  /** Manifests. */
  readonly objects: DiskObject[];
  /** The highest epoch in any name. */
  epoch: number;
}

/** The head and pages that list a disk's points. */
export interface PointLists {
  /** Undefined when the head cannot be read, or is an older one and to be replaced. */
  readonly head: HeadDocument | undefined;
  /** Of the head's object; undefined when there is none. */
  readonly etag: string | undefined;
  /** Records that can be read, in rising order. */
  readonly known: ReadonlyMap<string, PointRecord>;
  /** Pages that cannot be read. */
  readonly lostPages: readonly PageReference[];
  readonly faults: readonly string[];
}

/** A manifest that exists by name or in a list, and cannot be read. */
export interface UnreadManifest {
  readonly sequence: number;
  readonly name: string;
  readonly message: string;
}

export interface ReadManifests {
  /** In rising order, like the others. */
  readonly found: readonly FoundManifest[];
  readonly unread: readonly UnreadManifest[];
}

const manifestsReadAtOnce = 8;

/** Every disk with at least one object, by name. Errors: those of the store. */
export async function takeInventory(store: Store, signal: AbortSignal | undefined): Promise<readonly Inventory[]> {
  const found = new Map<string, Inventory>();
  const inventoryOf = (encodedDisk: string): Inventory | undefined => {
    const disk = decodeDiskName(encodedDisk);
    if (disk === undefined) return undefined;
    const inventory = found.get(disk) ?? { disk, objects: [], epoch: 0 };
    found.set(disk, inventory);
    return inventory;
  };
  for await (const { name } of store.list(disksPrefix, { signal })) {
    const parsed = parseDiskObject(name);
    const inventory = parsed === undefined ? undefined : inventoryOf(parsed.encodedDisk);
    if (parsed === undefined || inventory === undefined || !isSpelledRight(name, parsed, inventory.disk)) continue;
    if (parsed.kind === "points") inventory.objects.push(parsed);
    inventory.epoch = Math.max(inventory.epoch, parsed.epoch);
  }
  for await (const { name } of store.list(segmentsPrefix, { signal })) {
    const parsed = parseSegmentName(name);
    const inventory = parsed === undefined || parsed.epoch > epochMax ? undefined : inventoryOf(parsed.encodedDisk);
    if (parsed !== undefined && inventory !== undefined) inventory.epoch = Math.max(inventory.epoch, parsed.epoch);
  }
  return [...found.values()].sort((a, b) => a.disk.localeCompare(b.disk));
}

/**
 * Whether a writer gives such a name: other names lead nowhere, and no writer has an epoch that
 * high.
 */
function isSpelledRight(name: string, { kind, number, epoch }: DiskObject, disk: string): boolean {
  if (kind === "head" || kind === "other") return true;
  const spelled = {
    points: manifestName(disk, number, epoch),
    map: mapName(disk, epoch, number),
    history: pageName(disk, epoch, number),
  };
  return spelled[kind] === name && epoch <= epochMax;
}

/** Reads the head and its pages. Errors: FORMAT_UNSUPPORTED and those of the store. */
export async function readLists({ store, vault, disk, signal }: DiskPlace): Promise<PointLists> {
  const known = new Map<string, PointRecord>();
  const lostPages: PageReference[] = [];
  const faults: string[] = [];
  const there = await findHead({ store, vault, disk, signal });
  if (there.head === undefined) return { ...there, known, lostPages, faults: [there.fault] };
  const { head, etag } = there;
  let last: PageReference | undefined;
  const onPage = (reference: PageReference): void => {
    last = reference;
  };
  const onDamage = (error: TidemarkError): void => {
    if (error.code !== "DAMAGED") throw error;
    if (last !== undefined) lostPages.push(last);
    faults.push(error.message);
  };
  const newestFirst: PointRecord[] = [];
  for await (const point of readPoints(store, head, { onPage, onDamage, signal })) newestFirst.push(point);
  for (const point of newestFirst.reverse()) known.set(point.id, point);
  return { head, etag, known, lostPages, faults };
}

/** The head, or the ETag of one that cannot be read. */
async function findHead({
  store,
  vault,
  disk,
  signal,
}: DiskPlace): Promise<
  | { readonly head: HeadDocument; readonly etag: string }
  | { readonly head: undefined; readonly etag: string | undefined; readonly fault: string }
> {
  const name = headName(disk);
  const there = await store.find(name, documentBytesMax, { signal });
  if (there === undefined) return { head: undefined, etag: undefined, fault: `${name} is gone` };
  try {
    const head = decodeHead(there.bytes, name, { vault, disk });
    await store.onHead(head);
    return { head, etag: there.etag };
  } catch (error) {
    if (!hasCode(error, "DAMAGED")) throw error;
    return { head: undefined, etag: there.etag, fault: error.message };
  }
}

/**
 * Whether an older head has been put in the place of a newer one. The manifests tell: a writer puts
 * one after it has swapped its epoch into the head, and a second one of its epoch after the commit
 * of the first. `seen` is a point that the head has listed once. `anew`: the disk was removed later,
 * and its numbers began again.
 *
 * The names of the manifests have to be listed before the head is read.
 */
export function ageOfHead(
  { objects }: Inventory,
  head: HeadDocument,
  seen: Pick<PointRecord, "sequence" | "epoch"> | undefined,
): "newest" | "older" | "anew" {
  const newest = head.points.at(-1)?.sequence ?? 0;
  const later = objects.filter(({ epoch }) => epoch > head.epoch);
  if (later.some(({ number }) => number <= newest)) return "anew";
  const isOlder = objects.some(
    ({ number, epoch }) =>
      epoch === head.epoch &&
      (number > newest + 1 || (number > newest && seen?.epoch === epoch && seen.sequence >= number)),
  );
  return later.length > 0 || isOlder ? "older" : "newest";
}

/** The lists of an older head, as of one that is to be replaced. */
export function withoutHead(lists: PointLists): PointLists {
  const newest = newestOf(lists);
  const ends = newest === undefined ? "lists none" : `ends with point ${String(newest.sequence)}`;
  const fact = `the head is older than the points of the disk: it ${ends}`;
  return { ...lists, head: undefined, faults: [fact, ...lists.faults] };
}

/**
 * Tells whether the point of a manifest may be one that a lost list named. Only a list that is to
 * be replaced may have missed points after the newest one that is known.
 */
export function questionOf(lists: PointLists): (point: Pick<PointRecord, "sequence">) => boolean {
  const { head, lostPages } = lists;
  const newest = head === undefined ? (newestOf(lists)?.sequence ?? 0) : Infinity;
  return ({ sequence }) =>
    sequence > newest ||
    lostPages.some(({ firstSequence, lastSequence }) => firstSequence <= sequence && sequence <= lastSequence);
}

function newestOf({ known }: PointLists): PointRecord | undefined {
  return [...known.values()].at(-1);
}

/**
 * The manifests of the known points, or all manifests. One that cannot be read is lost, and its
 * point with it.
 */
export async function readManifests(
  { store, vault, disk, signal }: DiskPlace,
  objects: readonly DiskObject[],
  known: ReadonlyMap<string, PointRecord> | undefined,
): Promise<ReadManifests> {
  const wanted: readonly { readonly sequence: number; readonly epoch: number; readonly id?: string }[] =
    known !== undefined
      ? [...known.values()]
      : objects.filter(({ kind }) => kind === "points").map(({ number, epoch }) => ({ sequence: number, epoch }));
  const found: FoundManifest[] = [];
  const unread: UnreadManifest[] = [];
  // Neighbouring points name the same runs: each is kept in memory once.
  const runs = new Map<string, RunReference>();
  const once = (run: RunReference): RunReference => {
    const kept = runs.get(run.checksum) ?? run;
    runs.set(run.checksum, kept);
    return kept;
  };
  await forEachAtOnce(wanted, manifestsReadAtOnce, async ({ sequence, epoch, id: expected }) => {
    const name = manifestName(disk, sequence, epoch);
    try {
      const { bytes } = await store.get(name, documentBytesMax, { signal });
      const id = expected ?? claimedId(bytes) ?? "";
      const manifest = decodeManifest(bytes, name, { vault, disk, id });
      if (manifest.sequence === sequence && manifest.epoch === epoch)
        found.push({ id, manifest: { ...manifest, runs: manifest.runs.map(once) } });
    } catch (error) {
      if (!isUnreadableOrGone(error)) throw error;
      if (error.code === "OBJECT_NOT_FOUND" && known === undefined) return; // collected since its name was listed
      unread.push({ sequence, name, message: error.message });
    }
  });
  unread.sort((a, b) => a.sequence - b.sequence);
  return { found: found.sort((a, b) => a.manifest.sequence - b.manifest.sequence), unread };
}
