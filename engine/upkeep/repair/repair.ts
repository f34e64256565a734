/**
 * Repairs a vault: what lists points is rebuilt from what the points say of themselves, and what maps are made of from whatever has their checksum.
 *
 *     each disk:  manifests ─► leaves and roots ─► head or pages unreadable? ─► which points there are ─► pages ─► head
 *
 * Before the disks comes what holds for all of them: what the vault is, and what collections have written down. After them the local index of chunks.
 *
 * A disk of which everything can be read is not touched, nor is its seat taken. A head that is there is swapped with its seat in hand, and its points are
 * read with the seat in hand, too, so that none comes back that was dropped meanwhile; one that is damaged is replaced under its lease, so nobody else comes to
 * the seat meanwhile; one that is gone has no lease, and is put only if there still is none. In each case the head comes last and in one piece: until then the
 * vault is as lost as before, and no more. The new head's epoch lies above every epoch that any name or what is left of the old head tells of, and the
 * segments of former writers are locked against them first.
 *
 * No collection works meanwhile. A disk that cannot be repaired now, because somebody writes it, does not keep the others from it. Manifests cannot be rebuilt;
 * chunks are healed by whoever proves points.
 */
import { randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import path from "node:path";
import { hasCode, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import { loadCatalog } from "../../pipeline/catalog.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { fromHex } from "../../store/format/checksum.ts";
import type { HeadDocument, PointRecord } from "../../store/format/documents.ts";
import { decodeHead, documentBytesMax, encodeHead } from "../../store/format/documents.ts";
import {
  condemnedName,
  decodeDiskName,
  firstSequenceNumber,
  headName,
  parseSegmentName,
  segmentsPrefix,
} from "../../store/format/names.ts";
import type { HeldLease } from "../../store/held-lease.ts";
import type { Room } from "../../store/points/history.ts";
import { layOutPoints } from "../../store/points/history.ts";
import { identityFaults, mendIdentity } from "../../store/points/identity.ts";
import { proveObjects, proveVault } from "../../store/points/manifest.ts";
import { putCondemned, readCondemned } from "../../store/points/prune-fence.ts";
import { WriterLease } from "../../store/points/writer-lease.ts";
import { takeCollectorLease } from "../../store/segments/collector-lease.ts";
import type { PageSet } from "../../store/segments/page-set.ts";
import { Store } from "../../store/store.ts";
import { leaseTiming } from "../../timing.ts";
import type { Extent } from "../../volume.ts";
import type { Inventory, Lists, Place, UnreadManifest } from "./inventory.ts";
import { readLists, readManifests, takeInventory } from "./inventory.ts";
import type { UnreadTable } from "./map-check.ts";
import { unreadTables } from "./map-check.ts";
import type { ChosenPoints, FoundManifest } from "./rebuilt-points.ts";
import { choosePoints } from "./rebuilt-points.ts";
import { repairRecords } from "./record-repair.ts";

export interface RepairOptions {
  /** Say what would be done, and change nothing. */
  readonly dryRun?: boolean | undefined;
  /** Told at once of each object that ends in the summary's lists: a repair may end in an error after it has done much. */
  readonly onRepaired?: ((object: RepairedObject) => void) | undefined;
  readonly onLost?: ((object: LostObject) => void) | undefined;
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Something that was rebuilt, or would be. */
export interface RepairedObject {
  /** Null: of the vault as a whole. */
  readonly disk: string | null;
  readonly object: string;
  readonly kind: "vault" | "record" | "head" | "pages" | "condemned" | "index";
  readonly message: string;
}

/** Something that cannot be saved. */
export interface LostObject {
  /** Null: of the vault as a whole. */
  readonly disk: string | null;
  readonly object: string;
  /** Sequence numbers of the points that need it; of a point that is left out, its own. */
  readonly points: readonly number[];
  /** What it speaks of; null: the whole disk, or the point as such. */
  readonly extent: Extent | null;
  readonly message: string;
}

export interface RepairSummary {
  readonly dryRun: boolean;
  readonly disks: number;
  readonly points: number;
  readonly repaired: readonly RepairedObject[];
  readonly lost: readonly LostObject[];
  readonly requests: number;
  readonly elapsedMs: number;
}

/** Writers may have taken the lease, each with a higher epoch, and named nothing: how often, only the lost head said. */
const epochsSpared = 65_536;
const gapsToldMax = 10;
const lostTableRemedy =
  "what it maps of these points is lost. Run `tidemark replicate` to make a point that does not need it, and `tidemark prune` to drop those that do";

/**
 * Errors: WRITER_ACTIVE and SEAT_LOST, after everything else has been repaired; COLLECTION_ACTIVE, STORE_REGRESSED, INTERRUPTED and those of the store.
 */
export async function repair(context: VaultContext, options: RepairOptions = {}): Promise<RepairSummary> {
  const work = new Repair(context, options);
  try {
    return await work.run();
  } finally {
    await work.end();
  }
}

/** What is missing of points. */
interface UnreadParts {
  readonly unread: readonly UnreadManifest[];
  readonly tables: readonly UnreadTable[];
  readonly damaged: ChosenPoints["damaged"];
}

class Repair {
  readonly #context: VaultContext;
  readonly #options: RepairOptions;
  readonly #store: Store;
  readonly #repaired: RepairedObject[] = [];
  readonly #lost: LostObject[] = [];
  #collector: HeldLease | undefined;
  /** By segment: freed pages of which the record was rebuilt, whether or not it has been written. */
  readonly #rebuiltRecords = new Map<string, PageSet>();
  /** Why a disk could not be repaired now. */
  #refused: TidemarkError | undefined;
  #points = 0;

  constructor(context: VaultContext, options: RepairOptions) {
    this.#context = context;
    this.#options = options;
    this.#store = new Store(context.sink);
  }

  async run(): Promise<RepairSummary> {
    const startedAt = performance.now();
    await this.#repairIdentity();
    const areRecordsSound = await this.#repairRecords();
    const all = await takeInventory(this.#store, this.#options.signal);
    for (const inventory of all) {
      throwIfAborted(this.#options.signal);
      await this.#repairDisk(inventory);
    }
    if (areRecordsSound) await this.#checkIndex();
    if (this.#refused !== undefined) throw this.#refused;
    return {
      dryRun: this.#options.dryRun === true,
      disks: all.length,
      points: this.#points,
      repaired: this.#repaired,
      lost: this.#lost,
      requests: this.#store.requests,
      elapsedMs: Math.round(performance.now() - startedAt),
    };
  }

  /** Lets collections work again. */
  async end(): Promise<void> {
    await this.#collector?.[Symbol.asyncDispose]();
  }

  get #isDry(): boolean {
    return this.#options.dryRun === true;
  }

  /** First of all, because whatever is written next is written into this very vault. */
  async #repairIdentity(): Promise<void> {
    const { signal } = this.#options;
    const { document } = this.#context;
    for (const fault of await identityFaults(this.#store, document, signal)) {
      const { name: object, isForeign, message } = fault;
      if (isForeign) {
        this.#tellLost({ disk: null, object, points: [], extent: null, message });
        continue;
      }
      if (!this.#isDry) await mendIdentity(this.#store, document, fault, signal);
      const said = `it says again that this is vault ${document.vault}, with its block size, digest and key`;
      this.#tellRepaired({ disk: null, object, kind: "vault", message: `${message}; ${said}` });
    }
    if (!this.#isDry) await proveVault(this.#store, document.vault, signal);
  }

  /** Before the disks, because it tells what of their points has been given back. Returns whether all records can be read now. */
  async #repairRecords(): Promise<boolean> {
    const put = async (name: string, bytes: Uint8Array): Promise<void> => {
      await this.#put(name, bytes);
    };
    const { document } = this.#context;
    const damaged = await repairRecords({ store: this.#store, document, put, signal: this.#options.signal });
    for (const { name: object, isRebuilt, dead, message } of damaged) {
      if (dead !== undefined) this.#rebuiltRecords.set(dead.segment, dead.pages);
      if (isRebuilt) this.#tellRepaired({ disk: null, object, kind: "record", message });
      else this.#tellLost({ disk: null, object, points: [], extent: null, message });
    }
    return this.#isDry ? damaged.length === 0 : damaged.every(({ isRebuilt }) => isRebuilt);
  }

  async #repairDisk(inventory: Inventory): Promise<void> {
    const { disk } = inventory;
    try {
      const lists = await readLists(this.#place(disk));
      if (lists.head === undefined) await this.#mend(await this.#lookAgain(inventory), lists, undefined);
      else if (lists.lostPages.length === 0 || this.#isDry) await this.#mend(inventory, lists, undefined);
      else await this.#mendUnderLease(inventory);
      await this.#mendCondemned(disk);
    } catch (error) {
      if (hasCode(error, "FORMAT_UNSUPPORTED")) {
        this.#tellLost({ disk, object: headName(disk), points: [], extent: null, message: `${error.message}, so the disk is left alone` });
      } else if (hasCode(error, "WRITER_ACTIVE", "SEAT_LOST")) {
        this.#refused ??= error;
      } else {
        throw error;
      }
    }
  }

  /** Points may have been committed, and collected, before the head was lost, while other disks were looked at. */
  async #lookAgain(inventory: Inventory): Promise<Inventory> {
    await this.#stopCollections();
    const again = await takeInventory(this.#store, this.#options.signal);
    return again.find(({ disk }) => disk === inventory.disk) ?? inventory;
  }

  /** The head can be read, not all of its pages: whoever has the seat knows that nobody drops or adds a point. */
  async #mendUnderLease(inventory: Inventory): Promise<void> {
    const { signal, onNotice = () => undefined } = this.#options;
    const { vault } = this.#context.document;
    const { disk } = inventory;
    await this.#stopCollections();
    await using writerLease = await WriterLease.take({ store: this.#store, vault, disk, onNotice, signal });
    await this.#mend(inventory, await readLists(this.#place(disk)), writerLease);
  }

  /** While a list of what is about to be dropped cannot be read, nobody may read any point. Whoever has the seat knows that nothing is. */
  async #mendCondemned(disk: string): Promise<void> {
    const { signal, onNotice = () => undefined } = this.#options;
    const { vault } = this.#context.document;
    try {
      await readCondemned(this.#store, vault, disk, signal);
    } catch (error) {
      if (!hasCode(error, "DAMAGED")) throw error;
      if (!this.#isDry) {
        if ((await readLists(this.#place(disk))).head === undefined) return; // and no seat
        await using writerLease = await WriterLease.take({ store: this.#store, vault, disk, onNotice, signal });
        await putCondemned(this.#store, { vault, disk, epoch: writerLease.epoch, ranges: [] }, signal);
      }
      const message = `${error.message}; it says again that no point is about to be dropped`;
      this.#tellRepaired({ disk, object: condemnedName(disk), kind: "condemned", message });
    }
  }

  async #mend(inventory: Inventory, lists: Lists, writerLease: WriterLease | undefined): Promise<void> {
    const { disk } = inventory;
    const { signal } = this.#options;
    const vaultId = fromHex(this.#context.document.vault);
    const areListsWhole = lists.head !== undefined && lists.lostPages.length === 0;
    if (!areListsWhole) await this.#stopCollections();
    const { found: manifests, unread } = await readManifests(this.#place(disk), inventory.objects, areListsWhole ? lists.known : undefined);
    const store = this.#store;
    const tables = await unreadTables({ store, vaultId, disk, manifests: manifests.map(({ manifest }) => manifest), signal });
    let chosen: ChosenPoints = { points: [...lists.known.values()], damaged: [], left: [] };
    if (!areListsWhole) {
      const inQuestion = manifests.filter((found) => lists.known.has(found.id) || isInQuestion(found, lists));
      const options = { store, vaultId, manifests: inQuestion, known: lists.known, rebuiltRecords: this.#rebuiltRecords, signal };
      chosen = withUnread(await choosePoints(options), lists);
      await this.#relist(inventory, lists, writerLease, chosen);
    }
    this.#points += chosen.points.length;
    const isLacking = unread.length + tables.length > 0;
    // Nobody kept points from being dropped and collected since they were listed.
    const listed = areListsWhole && isLacking ? [...(await readLists(this.#place(disk))).known.values()] : chosen.points;
    this.#tellParts(disk, areListsWhole, listed, { unread, tables, damaged: chosen.damaged });
  }

  #place(disk: string): Place {
    return { store: this.#store, vault: this.#context.document.vault, disk, signal: this.#options.signal };
  }

  // ---- What is written ----

  async #stopCollections(): Promise<void> {
    if (!this.#isDry) this.#collector ??= await takeCollectorLease(this.#store, this.#options.signal);
  }

  async #put(name: string, bytes: Uint8Array): Promise<void> {
    if (this.#isDry) return;
    const { signal } = this.#options;
    await this.#stopCollections();
    await this.#store.replace(name, bytes, await this.#store.etagOf(name, { signal }), { signal });
  }

  /** Puts a list of points in the place of the one that is lost. `seat`: of a head that can be read, unless nothing is to be written. */
  async #relist(inventory: Inventory, lists: Lists, writerLease: WriterLease | undefined, { points, left }: ChosenPoints): Promise<void> {
    const { disk } = inventory;
    for (const { sequence, id, why } of left) {
      const message = `point ${String(sequence)} (${id}) is left out: ${why}`;
      this.#tellLost({ disk, object: headName(disk), points: [sequence], extent: null, message });
    }
    if (points.length === 0 && lists.head === undefined) {
      const message = `the head of disk ${JSON.stringify(disk)} cannot be rebuilt: ${lists.faults.join("; ")}, and no point of it is left`;
      this.#tellLost({ disk, object: headName(disk), points: [], extent: null, message });
      return;
    }
    if (lists.head === undefined) await this.#replaceHead(inventory, lists, points);
    else if (writerLease !== undefined) await this.#replacePages(writerLease, points);
    const kind = lists.head === undefined ? "head" : "pages";
    const message = `${lists.faults.join("; ")}; ${String(points.length)} points are listed again${unknownNumbers(points, left)}`;
    this.#tellRepaired({ disk, object: headName(disk), kind, message });
  }

  async #replacePages(writerLease: WriterLease, points: readonly PointRecord[]): Promise<void> {
    const { signal } = this.#options;
    const { head } = writerLease;
    const room = await layOutPoints({ store: this.#store, head, epoch: writerLease.epoch, takeOrdinal: ordinals(), signal }, points);
    await writerLease.relist(room, async (written) => {
      await this.#prove(written);
    });
  }

  async #replaceHead({ disk, epoch: seen }: Inventory, { broken }: Lists, points: readonly PointRecord[]): Promise<void> {
    if (this.#isDry) return;
    const { signal } = this.#options;
    const { vault } = this.#context.document;
    const epoch = seen + epochsSpared;
    const empty: HeadDocument = { vault, disk, epoch, writer: null, collection: null, pages: [], points: [] };
    const name = headName(disk);
    const leaseId = randomUUID();
    if (broken !== undefined) await this.#lease(disk, leaseId);
    try {
      const room: Room = await layOutPoints({ store: this.#store, head: empty, epoch, takeOrdinal: ordinals(), signal }, points);
      const head = { ...empty, pages: room.pages, points: room.points };
      const bytes = encodeHead(head);
      decodeHead(bytes, name, head); // a head that nobody can read would hide every point
      await this.#lockOut(disk, seen, epoch);
      await this.#prove(room.written);
      throwIfAborted(signal);
      if (broken !== undefined) await this.#lease(disk, leaseId); // pages may have taken longer than a lease lasts
      if (broken === undefined) await this.#store.putOnce(name, bytes, { signal });
      else await this.#swap(name, bytes, broken.etag, leaseId);
    } catch (error) {
      if (hasCode(error, "OBJECT_EXISTS", "CONDITION_FAILED", "LEASE_LOST")) throw writerActive(disk, error);
      throw error;
    } finally {
      if (broken !== undefined) await this.#store.releaseLease(name, leaseId);
    }
  }

  /** Whoever writes the disk has the lease of its head, even when the head is damaged. Errors: WRITER_ACTIVE. */
  async #lease(disk: string, leaseId: string): Promise<void> {
    try {
      await this.#store.acquireLease(headName(disk), leaseId, leaseTiming.seconds, { signal: this.#options.signal });
    } catch (error) {
      throw hasCode(error, "LEASE_HELD") ? writerActive(disk, error) : error;
    }
  }

  async #swap(name: string, bytes: Uint8Array, etag: string, leaseId: string): Promise<void> {
    try {
      await this.#store.put(name, bytes, { ifMatch: etag, leaseId });
    } catch (error) {
      if (!hasCode(error, "OUTCOME_UNKNOWN")) throw error;
      // With the lease in hand, what is there is what was there or ours; a late original finds another ETag, once a later one has been answered.
      const there = await this.#store.get(name, documentBytesMax);
      if (Buffer.compare(there.bytes, bytes) !== 0) await this.#store.put(name, bytes, { ifMatch: there.etag, leaseId });
    }
  }

  /** Locks former writers out of the segments that they might still append to. */
  async #lockOut(disk: string, seen: number, epoch: number): Promise<void> {
    const { signal } = this.#options;
    for await (const { name } of this.#store.list(segmentsPrefix, { signal })) {
      const parsed = parseSegmentName(name);
      if (parsed?.epoch !== seen || decodeDiskName(parsed.encodedDisk) !== disk) continue;
      await this.#store.raiseSequenceNumber(name, firstSequenceNumber(epoch), { signal });
    }
  }

  async #prove(written: ReadonlyMap<string, string>): Promise<void> {
    const { signal } = this.#options;
    await proveObjects(this.#store, written, signal);
    await proveVault(this.#store, this.#context.document.vault, signal);
    throwIfAborted(this.#collector?.signal);
  }

  // ---- What is told ----

  /** What cannot be read of points that are listed, and of those that might have been. */
  #tellParts(disk: string, areListsWhole: boolean, listed: readonly PointRecord[], { unread, tables, damaged }: UnreadParts): void {
    const isListed = new Set(listed.map(({ sequence }) => sequence));
    for (const { sequence, name, message: why } of unread) {
      if (areListsWhole && !isListed.has(sequence)) continue;
      const message = `point ${String(sequence)} is lost, because its manifest cannot be rebuilt: ${why}`;
      this.#tellLost({ disk, object: name, points: [sequence], extent: null, message });
    }
    const told = new Set<number>();
    for (const { name, points: needing, extent, message } of tables) {
      // Points that are left out have been told of.
      const points = needing.filter((sequence) => isListed.has(sequence));
      if (points.length === 0) continue;
      for (const sequence of points) told.add(sequence);
      this.#tellLost({ disk, object: name, points, extent, message: `${message}; ${lostTableRemedy}` });
    }
    for (const { sequence, id, why } of damaged) {
      if (told.has(sequence)) continue;
      const message = `point ${String(sequence)} (${id}) is listed, but cannot be read in full: ${why}`;
      this.#tellLost({ disk, object: headName(disk), points: [sequence], extent: null, message });
    }
  }

  #tellRepaired(object: RepairedObject): void {
    this.#repaired.push(object);
    this.#options.onRepaired?.(object);
  }

  #tellLost(object: LostObject): void {
    this.#lost.push(object);
    this.#options.onLost?.(object);
  }

  // ---- The dedup index ----

  /** The index is a cache on this machine: where it tells of anything that the frames do not, it goes. */
  async #checkIndex(): Promise<void> {
    const { stateFolder, document } = this.#context;
    if (stateFolder === undefined) return;
    const folder = path.join(stateFolder, document.vault);
    const onNotice = this.#options.onNotice ?? (() => undefined);
    const { signal } = this.#options;
    const cached = await loadCatalog(this.#context, this.#store, { folder, onNotice: () => undefined, signal });
    const read = await loadCatalog(this.#context, this.#store, { folder: undefined, onNotice, signal });
    let wrong = 0;
    const there = { segment: 0, offset: 0, storedWord: 0 };
    // What is missing in it only costs space, and a writer may have added to the vault meanwhile. An index that is full has forgotten some.
    cached.index.forEach((words, at, _segment, _offset, storedWord) => {
      // A digest may lie in several places, of which either may be known; but its payload has one length.
      if (!read.index.find(words, at, there) || there.storedWord !== storedWord) wrong += 1;
    });
    if (wrong === 0 || read.index.forgotten > 0) return;
    if (!this.#isDry) await rm(path.join(folder, "dedup-index"), { force: true });
    const message = "the local index of chunks told of what the vault does not hold: it is built anew by the next replication";
    this.#tellRepaired({ disk: null, object: "dedup-index", kind: "index", message });
  }
}

/** Whether a manifest may be one of those that a lost list named. */
function isInQuestion({ manifest: { sequence } }: FoundManifest, { head, lostPages }: Lists): boolean {
  return head === undefined || lostPages.some(({ firstSequence, lastSequence }) => firstSequence <= sequence && sequence <= lastSequence);
}

/** Points that are listed stay listed, also when their manifests cannot be read: that they are lost has been told. */
function withUnread({ points, damaged, left }: ChosenPoints, { known }: Lists): ChosenPoints {
  const chosen = new Set(points.map(({ id }) => id));
  const unread = [...known.values()].filter(({ id }) => !chosen.has(id));
  const bySequence = (a: PointRecord, b: PointRecord): number => a.sequence - b.sequence;
  return { points: unread.length === 0 ? points : [...points, ...unread].sort(bySequence), damaged, left };
}

/** Of numbers that nothing is there of, nobody can tell whether their points were pruned or lost. */
function unknownNumbers(points: readonly PointRecord[], left: ChosenPoints["left"]): string {
  const told = new Set([...points, ...left].map(({ sequence }) => sequence));
  const last = points.at(-1)?.sequence ?? 0;
  const gaps: string[] = [];
  for (let from = 1; from <= last; from += 1) {
    if (told.has(from)) continue;
    let end = from;
    while (end < last && !told.has(end + 1)) end += 1;
    gaps.push(from === end ? String(from) : `${String(from)} to ${String(end)}`);
    from = end;
  }
  if (gaps.length === 0) return "";
  return `; of numbers ${gaps.slice(0, gapsToldMax).join(", ")}${gaps.length > gapsToldMax ? ", …" : ""} nothing is there: pruned, or lost`;
}

function ordinals(): () => number {
  let next = 0;
  return () => {
    next += 1;
    return next - 1;
  };
}

function writerActive(disk: string, cause: unknown): TidemarkError {
  return new TidemarkError("WRITER_ACTIVE", `somebody is writing disk ${JSON.stringify(disk)}`, {
    remedy: "stop its writer, wait for a minute, and run the command again",
    detail: { disk },
    cause,
  });
}
