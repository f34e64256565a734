/**
 * Verify: proves chosen points on demand, newest first, each by a `PointProver`.
 *
 * Damage does not end the work: it is collected. With `heal` it is healed from a source or from
 * another chunk of the vault with the same content. Points that turn out to be whole are noted as
 * proved.
 */

import { watchedStore } from "../../disk/source/head-watch.ts";
import { hasCode, interrupted, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { OperationOptions } from "../../progress.ts";
import type { HeadDocument, PointRecord } from "../../store/format/documents.ts";
import { decodeDiskName, parseSegmentName, segmentsPrefix } from "../../store/format/names.ts";
import { readDisk, readHead } from "../../store/points/head.ts";
import { readPoints } from "../../store/points/history.ts";
import { diskNames, selectPoint } from "../../store/points/points.ts";
import { noteProved } from "../../store/points/proved.ts";
import { Store } from "../../store/store.ts";
import type { Volume } from "../../volume.ts";
import { type Damage, type DamageError, type DamageFinding, damageOf, isDamage, listFinding } from "./damage.ts";
import { Healer } from "./heal.ts";
import { damagesMax, PointProver } from "./point-prover.ts";
import { proveSegment } from "./segment-prover.ts";

/**
 * Proves points. Damage is no error: it is in the summary.
 *
 * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `INVALID_ARGUMENT`, the `SOURCE_…` codes,
 * `INTERRUPTED`, and the errors of the store.
 */
export async function verify(context: VaultContext, options: VerifyOptions): Promise<VerifySummary> {
  return await new Verification(context, options).run();
}

class Verification {
  readonly #context: VaultContext;
  readonly #options: VerifyOptions;
  readonly #store: Store;
  readonly #prover: PointProver;
  readonly #damaged: Damage[] = [];
  #checkedPoints = 0;

  constructor(context: VaultContext, options: VerifyOptions) {
    const { disk, source, heal = false, onProgress, onNotice = () => undefined, signal } = options;
    const store = watchedStore(context, onNotice);
    const sources = new Map<string, Volume>(
      source === undefined || disk === undefined ? [] : [[disk.normalize("NFC"), source]],
    );
    const healer = heal ? new Healer({ context, store, sources, onNotice, signal }) : undefined;
    this.#context = context;
    this.#options = options;
    this.#store = store;
    this.#prover = new PointProver({ context, store, purpose: "verify", healer, onProgress, onNotice, signal });
  }

  async run(): Promise<VerifySummary> {
    const startedAt = performance.now();
    const { disk, source } = this.#options;
    if (source !== undefined && disk === undefined) {
      throw new TidemarkError("INVALID_ARGUMENT", "a source can be compared with one disk only", {
        remedy: "name the disk",
      });
    }
    const disks = disk === undefined ? await diskNames(this.#store, this.#options.signal) : [disk.normalize("NFC")];
    for (const name of disks) await this.#verifyDisk(name);
    if (this.#options.heal === true && this.#options.point === undefined) await this.#mendSegments(new Set(disks));
    return {
      checkedPoints: this.#checkedPoints,
      checkedChunks: this.#prover.checkedChunks,
      checkedBytes: this.#prover.checkedBytes,
      damaged: this.#damaged,
      elapsedMs: Math.round(performance.now() - startedAt),
    };
  }

  async #verifyDisk(disk: string): Promise<void> {
    const { signal } = this.#options;
    const head = await this.#readHead(disk);
    if (head === undefined || head.points.length === 0) return;
    const whole = new Set<number>();
    // Newest first: a user needs the newest point first.
    for await (const point of this.#choosePoints(head)) {
      throwIfAborted(signal);
      if (await this.#verifyPoint(disk, point)) whole.add(point.sequence);
    }
    if (whole.size > 0) await this.#noteWhole(head, whole);
  }

  /** Whether the point is whole. A point that was pruned since it was listed is skipped. */
  async #verifyPoint(disk: string, point: PointRecord): Promise<boolean> {
    const isOnly = this.#options.point !== undefined;
    try {
      const { source, heal = false } = this.#options;
      const { found, lost } = await this.#prover.prove(disk, point, heal ? undefined : source);
      if (lost !== undefined && isOnly) throw interrupted(lost);
      if (lost !== undefined) return false; // what was missing in it was missing because it was pruned
      this.#checkedPoints += 1;
      for (const finding of found) this.#note(finding);
      return found.every(({ code, healed }) => healed || code === "SOURCE_DIFFERS");
    } catch (error) {
      if (isOnly || !hasCode(error, "POINT_NOT_FOUND")) throw error;
      return false;
    }
  }

  async #noteWhole(head: HeadDocument, whole: ReadonlySet<number>): Promise<void> {
    const { signal } = this.#options;
    const place = { vault: this.#context.document.vault, disk: head.disk };
    const points: PointRecord[] = [];
    // Points whose page cannot be read are not known, and not noted.
    for await (const point of readPoints(this.#store, head, { onDamage: () => undefined, signal })) points.push(point);
    try {
      await noteProved(this.#store, place, points.reverse(), whole, Date.now(), signal);
    } catch (error) {
      if (!hasCode(error, "ACCESS_REFUSED")) throw error; // read access is enough to prove points
    }
  }

  /**
   * Segments that the disks' writers made, as wholes. Points do not need their frames, so only a
   * healing looks at them.
   */
  async #mendSegments(disks: ReadonlySet<string>): Promise<void> {
    const { onNotice = () => undefined, signal } = this.#options;
    const { vault } = this.#context.document;
    for (const segment of await this.#store.names(segmentsPrefix, { signal })) {
      const disk = decodeDiskName(parseSegmentName(segment)?.encodedDisk ?? "");
      if (disk === undefined || !disks.has(disk)) continue;
      for (const finding of await proveSegment({ store: this.#store, vault, onNotice, signal }, segment))
        this.#note(finding);
    }
  }

  async *#choosePoints(head: HeadDocument): AsyncGenerator<PointRecord> {
    const { signal, source, heal = false } = this.#options;
    const selector = this.#options.point ?? (source === undefined || heal ? undefined : "latest");
    if (selector !== undefined) {
      yield await selectPoint(this.#store, head, selector, signal);
      return;
    }
    const onDamage = (error: TidemarkError): void => {
      if (!isDamage(error)) throw error;
      this.#noteObject(head.disk, error);
    };
    yield* readPoints(this.#store, head, { onDamage, signal });
  }

  /** Undefined, and noted, when it is damaged and one of many. */
  async #readHead(disk: string): Promise<HeadDocument | undefined> {
    const { vault } = this.#context.document;
    const { signal } = this.#options;
    try {
      const isNamed = this.#options.disk !== undefined;
      return isNamed
        ? await readDisk(this.#store, vault, disk, signal)
        : (await readHead(this.#store, vault, disk, signal)).head;
    } catch (error) {
      if (!isDamage(error) || this.#options.disk !== undefined) throw error;
      this.#noteObject(disk, error);
      return undefined;
    }
  }

  #noteObject(disk: string, error: DamageError): void {
    this.#note(listFinding(disk, error));
  }

  #note(finding: DamageFinding): void {
    if (this.#damaged.length < damagesMax) this.#damaged.push(damageOf(finding));
  }
}

/** How `Vault.verify` works. */
export interface VerifyOptions extends OperationOptions {
  /** Absent: every disk. */
  readonly disk?: string | undefined;
  /** Absent: every point. */
  readonly point?: string | undefined;
  /** Compare the point (default `latest`) with this volume too. */
  readonly source?: Volume | undefined;
  /**
   * Heal damaged chunks whose content the source, or another chunk of the vault, still holds.
   * Default: report damage only.
   */
  readonly heal?: boolean | undefined;
}

/** The outcome of a verification. */
export interface VerifySummary {
  readonly checkedPoints: number;
  readonly checkedChunks: number;
  /** Plain bytes that were proved. */
  readonly checkedBytes: number;
  readonly damaged: readonly Damage[];
  readonly elapsedMs: number;
}
