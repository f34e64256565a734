/**
 * Repair of a vault: rebuilds the lists of points from the points' manifests, and names what is
 * lost.
 *
 *     vault.json and its copy ─► records of collections ─► each disk ─► local dedup index
 *     each disk:  manifests ─► leaves and roots checked ─► head or pages unreadable? ─► which points there are ─► pages ─► head
 *
 * A disk that can be read in full is not touched, and its writer lease is not taken. How a list is
 * replaced depends on the head:
 *
 * - It can be read, but not all of its pages: points are read and the head is swapped under the
 *   writer lease, so no point comes back that was dropped meanwhile.
 * - It is damaged, or an older one that was put back: it is replaced under the lease of its object,
 *   so no writer can take over meanwhile. Of an older one all points stay listed.
 * - It is gone: it is put only if there still is none.
 *
 * The new head's epoch is above every epoch in any name, and the segments of the last writer are
 * locked first.
 *
 * Invariant: the head comes last and in one write; until then the vault is as damaged as before,
 * and no more. No collection runs meanwhile. A disk that is being written does not keep the others
 * from being repaired.
 *
 * Not here: manifests, leaves and roots cannot be rebuilt. Chunks are healed by `verify --heal` and
 * scrub.
 */
import { newestSeen, watchedStore } from "../../disk/source/head-watch.ts";
import { hasCode, type TidemarkError, throwIfAborted } from "../../errors.ts";
import type { NoticeOptions } from "../../notice.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { fromHex } from "../../store/format/checksum.ts";
import type { HeadDocument, PointRecord } from "../../store/format/documents.ts";
import { condemnedName, headName } from "../../store/format/names.ts";
import type { HeldLease } from "../../store/held-lease.ts";
import type { DiskPlace } from "../../store/place.ts";
import { layOutPoints } from "../../store/points/history.ts";
import { identityFaults, mendIdentity } from "../../store/points/identity.ts";
import { proveObjects, proveVault } from "../../store/points/manifest.ts";
import { putCondemned, readCondemned } from "../../store/points/prune-fence.ts";
import { WriterLease } from "../../store/points/writer-lease.ts";
import { takeCollectorLease } from "../../store/segments/collector-lease.ts";
import type { PageSet } from "../../store/segments/page-set.ts";
import { Store } from "../../store/store.ts";
import type { Extent } from "../../volume.ts";
import { countUp, replaceHead } from "./head-replacement.ts";
import { dedupIndexName, dropWrongIndex } from "./index-check.ts";
import type { Inventory, PointLists, UnreadManifest } from "./inventory.ts";
import { ageOfHead, questionOf, readLists, readManifests, takeInventory, withoutHead } from "./inventory.ts";
import type { UnreadTable } from "./map-check.ts";
import { unreadTables } from "./map-check.ts";
import type { ChosenPoints } from "./rebuilt-points.ts";
import { choosePoints } from "./rebuilt-points.ts";
import { repairRecords } from "./record-repair.ts";

/** How `Vault.repair` works. */
export interface RepairOptions extends NoticeOptions {
  /** Report what would be rebuilt, and change nothing. */
  readonly dryRun?: boolean | undefined;
  /** Called with each rebuilt object at once. */
  readonly onRepaired?: ((object: RepairedObject) => void) | undefined;
  /** Called with each lost object at once. */
  readonly onLost?: ((object: LostObject) => void) | undefined;
}

/** An object that was rebuilt, or would be in a dry run. */
export interface RepairedObject {
  /** Null: of the vault as a whole. */
  readonly disk: string | null;
  /** Its name in the store; `dedup-index` for the local index. */
  readonly object: string;
  readonly kind: "vault" | "record" | "head" | "pages" | "condemned" | "index";
  readonly message: string;
}

/** An object that is lost for good. */
export interface LostObject {
  /** Null: of the vault as a whole. */
  readonly disk: string | null;
  /** Its name in the store. */
  readonly object: string;
  /** Sequence numbers of the points that need it; of a point that is left out, its own. */
  readonly points: readonly number[];
  /** Bytes of the disk that it maps; null: the whole disk, or the point as such. */
  readonly extent: Extent | null;
  readonly message: string;
}

/** The outcome of a repair. */
export interface RepairSummary {
  readonly dryRun: boolean;
  /** Disks of the vault. */
  readonly disks: number;
  /** Points that are listed. */
  readonly points: number;
  readonly repaired: readonly RepairedObject[];
  readonly lost: readonly LostObject[];
  readonly requests: number;
  readonly elapsedMs: number;
}

const gapsToldMax = 10;
const lostPointRemedy =
  "run `tidemark prune` to drop the point, and if it is the newest, first `tidemark replicate` to make a newer one";
const lostTableRemedy =
  "what it maps of these points is lost. Run `tidemark replicate` to make a point that does not need it, and `tidemark prune` to drop those that do";

/**
 * Repairs a vault. What is lost for good is in the summary and is no error.
 *
 * @throws `WRITER_ACTIVE` and `SEAT_LOST`, after everything else has been repaired;
 * `COLLECTION_ACTIVE`, `STORE_REGRESSED`, `INTERRUPTED`, and the errors of the store.
 */
export async function repair(context: VaultContext, options: RepairOptions = {}): Promise<RepairSummary> {
  const work = new Repair(context, options);
  try {
    return await work.run();
  } finally {
    await work.end();
  }
}

/** What of a disk's points cannot be read. */
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
  /**
   * By segment: freed pages of which the record was rebuilt, whether or not it has been written.
   */
  readonly #rebuiltRecords = new Map<string, PageSet>();
  /** Why a disk could not be repaired now. */
  #refused: TidemarkError | undefined;
  #points = 0;

  constructor(context: VaultContext, options: RepairOptions) {
    this.#context = context;
    this.#options = options;
    this.#store = watchedStore(context, options.onNotice);
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
    if (areRecordsSound && (await dropWrongIndex(this.#context, this.#store, this.#options))) {
      const message =
        "the local dedup index named chunks that the vault does not hold; the next replication builds it anew";
      this.#tellRepaired({ disk: null, object: dedupIndexName, kind: "index", message });
    }
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

  /** First of all: everything that is written next belongs to the vault with this identity. */
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
      const said = `rewritten with the identity of vault ${document.vault}`;
      this.#tellRepaired({ disk: null, object, kind: "vault", message: `${message}; ${said}` });
    }
    if (!this.#isDry) await proveVault(this.#store, document.vault, signal);
  }

  /**
   * Before the disks: records tell what of their points has been freed. Returns whether all records
   * can be read now.
   */
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
      const age = lists.head === undefined ? "gone" : await this.#ageOf(lists.head, inventory);
      if (age === "gone") await this.#mend(await this.#lookAgain(inventory), lists, undefined);
      else if (age === "older") await this.#mend(await this.#lookAgain(inventory), withoutHead(lists), undefined);
      else if (lists.lostPages.length === 0 || this.#isDry) await this.#mend(inventory, lists, undefined);
      else await this.#mendUnderLease(inventory);
      await this.#mendCondemned(disk);
    } catch (error) {
      if (hasCode(error, "FORMAT_UNSUPPORTED")) {
        this.#tellLost({
          disk,
          object: headName(disk),
          points: [],
          extent: null,
          message: `${error.message}, so the disk is left alone`,
        });
      } else if (hasCode(error, "WRITER_ACTIVE", "SEAT_LOST")) {
        this.#refused ??= error;
      } else {
        throw error;
      }
    }
  }

  async #ageOf(head: HeadDocument, inventory: Inventory): Promise<ReturnType<typeof ageOfHead>> {
    const { disk } = inventory;
    const age = ageOfHead(inventory, head, await newestSeen(this.#context, disk));
    if (age === "anew") {
      const fact = `${headName(disk)} is from before the disk was removed and begun anew, and hides the points since`;
      const remedy =
        "put the newer head back if there is a copy of it; otherwise run `tidemark replicate SOURCE --disk NAME` to go on without them";
      this.#tellLost({ disk, object: headName(disk), points: [], extent: null, message: `${fact}: ${remedy}` });
    }
    return age;
  }

  /**
   * Points may have been committed, and collected, before the head was lost, while other disks were
   * looked at.
   */
  async #lookAgain(inventory: Inventory): Promise<Inventory> {
    await this.#stopCollections();
    const again = await takeInventory(this.#store, this.#options.signal);
    return again.find(({ disk }) => disk === inventory.disk) ?? inventory;
  }

  /**
   * The head can be read, but not all of its pages. Under the writer lease no other process adds or
   * drops a point.
   */
  async #mendUnderLease(inventory: Inventory): Promise<void> {
    const { signal, onNotice = () => undefined } = this.#options;
    const { vault } = this.#context.document;
    const { disk } = inventory;
    await this.#stopCollections();
    await using writerLease = await WriterLease.take({ store: this.#store, vault, disk, onNotice, signal });
    await this.#mend(inventory, await readLists(this.#place(disk)), writerLease);
  }

  /**
   * While the condemned list cannot be read, no reader may open a point. The holder of the writer
   * lease knows that it is empty.
   */
  async #mendCondemned(disk: string): Promise<void> {
    const { signal, onNotice = () => undefined } = this.#options;
    const { vault } = this.#context.document;
    try {
      await readCondemned(this.#store, vault, disk, signal);
    } catch (error) {
      if (!hasCode(error, "DAMAGED")) throw error;
      if (!this.#isDry) {
        if ((await readLists(this.#place(disk))).head === undefined) return; // without a head there is no writer lease
        await using writerLease = await WriterLease.take({ store: this.#store, vault, disk, onNotice, signal });
        await putCondemned(this.#store, { vault, disk, epoch: writerLease.epoch, ranges: [] }, signal);
      }
      const message = `${error.message}; it is replaced by an empty list`;
      this.#tellRepaired({ disk, object: condemnedName(disk), kind: "condemned", message });
    }
  }

  async #mend(inventory: Inventory, lists: PointLists, writerLease: WriterLease | undefined): Promise<void> {
    const { disk } = inventory;
    const { signal } = this.#options;
    const vaultId = fromHex(this.#context.document.vault);
    const areListsWhole = lists.head !== undefined && lists.lostPages.length === 0;
    if (!areListsWhole) await this.#stopCollections();
    const { found: manifests, unread } = await readManifests(
      this.#place(disk),
      inventory.objects,
      areListsWhole ? lists.known : undefined,
    );
    const store = this.#store;
    const tables = await unreadTables({
      store,
      vaultId,
      disk,
      manifests: manifests.map(({ manifest }) => manifest),
      signal,
    });
    let chosen: ChosenPoints = { points: [...lists.known.values()], damaged: [], left: [] };
    if (!areListsWhole) {
      const isInQuestion = questionOf(lists);
      const inQuestion = manifests.filter(({ id, manifest }) => lists.known.has(id) || isInQuestion(manifest));
      const options = {
        store,
        vaultId,
        manifests: inQuestion,
        known: lists.known,
        rebuiltRecords: this.#rebuiltRecords,
        signal,
      };
      chosen = withUnread(await choosePoints(options), lists);
      await this.#relist(inventory, lists, writerLease, chosen);
    }
    this.#points += chosen.points.length;
    const isLacking = unread.length + tables.length > 0;
    // Points may have been dropped and collected since they were listed.
    const listed =
      areListsWhole && isLacking ? [...(await readLists(this.#place(disk))).known.values()] : chosen.points;
    this.#tellParts(disk, areListsWhole, listed, { unread, tables, damaged: chosen.damaged });
  }

  #place(disk: string): DiskPlace {
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

  /**
   * Replaces the lost list of points. `writerLease`: of a head that can be read, unless nothing is
   * to be written.
   */
  async #relist(
    inventory: Inventory,
    lists: PointLists,
    writerLease: WriterLease | undefined,
    { points, left }: ChosenPoints,
  ): Promise<void> {
    const { disk } = inventory;
    for (const { sequence, id, why } of left) {
      const message = `point ${String(sequence)} (${id}) is left out: ${why}`;
      this.#tellLost({ disk, object: headName(disk), points: [sequence], extent: null, message });
    }
    // Without a manifest there is no point, as after the removal of a disk: an empty list hides none.
    const isRemoved = lists.etag !== undefined && inventory.objects.length === 0;
    if (points.length === 0 && lists.head === undefined && !isRemoved) {
      const message = `the head of disk ${JSON.stringify(disk)} cannot be rebuilt: ${lists.faults.join("; ")}, and no point of it is left`;
      this.#tellLost({ disk, object: headName(disk), points: [], extent: null, message });
      return;
    }
    if (lists.head === undefined && !this.#isDry) {
      const prove = async (written: ReadonlyMap<string, string>): Promise<void> => await this.#prove(written);
      await replaceHead({
        ...this.#place(disk),
        seenEpoch: inventory.epoch,
        brokenEtag: lists.etag,
        points,
        prove,
      });
    } else if (writerLease !== undefined) await this.#replacePages(writerLease, points);
    const kind = lists.head === undefined ? "head" : "pages";
    const message = `${lists.faults.join("; ")}; ${String(points.length)} points are listed again${unknownNumbers(points, left)}`;
    this.#tellRepaired({ disk, object: headName(disk), kind, message });
  }

  async #replacePages(writerLease: WriterLease, points: readonly PointRecord[]): Promise<void> {
    const { signal } = this.#options;
    const { head } = writerLease;
    const room = await layOutPoints(
      { store: this.#store, head, epoch: writerLease.epoch, takeOrdinal: countUp(), signal },
      points,
    );
    await writerLease.relist(room, async (written) => {
      await this.#prove(written);
    });
  }

  async #prove(written: ReadonlyMap<string, string>): Promise<void> {
    const { signal } = this.#options;
    await proveObjects(this.#store, written, signal);
    await proveVault(this.#store, this.#context.document.vault, signal);
    throwIfAborted(this.#collector?.signal);
  }

  // ---- What is told ----

  /** What cannot be read of points that are listed, and of those that might have been. */
  #tellParts(
    disk: string,
    areListsWhole: boolean,
    listed: readonly PointRecord[],
    { unread, tables, damaged }: UnreadParts,
  ): void {
    const isListed = new Set(listed.map(({ sequence }) => sequence));
    for (const { sequence, name, message: why } of unread) {
      if (areListsWhole && !isListed.has(sequence)) continue;
      const remedy = isListed.has(sequence) ? `; ${lostPointRemedy}` : "";
      const message = `point ${String(sequence)} is lost, because its manifest cannot be rebuilt: ${why}${remedy}`;
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
}

/**
 * Listed points stay listed, also when their manifests cannot be read: those have been named as
 * lost.
 */
function withUnread({ points, damaged, left }: ChosenPoints, { known }: PointLists): ChosenPoints {
  const chosen = new Set(points.map(({ id }) => id));
  const unread = [...known.values()].filter(({ id }) => !chosen.has(id));
  const bySequence = (a: PointRecord, b: PointRecord): number => a.sequence - b.sequence;
  return { points: unread.length === 0 ? points : [...points, ...unread].sort(bySequence), damaged, left };
}

/** Sequence numbers of which no object is left: pruned or lost, which cannot be told. */
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
  return `; of sequence numbers ${gaps.slice(0, gapsToldMax).join(", ")}${gaps.length > gapsToldMax ? ", …" : ""} no object is left: pruned or lost`;
}
