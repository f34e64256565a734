/**
 * Shipping a cut: makes a recovery point of a cut of a protected disk, in the disk's session.
 *
 * What is known of the vault's newest point (see `Knowledge`) decides what is read: the marked
 * granules, the marked regions compared with the vault's map, or the whole disk.
 *
 * Invariant: a cut is either committed or abandoned when `shipCut` settles.
 */
import { noPrints } from "../../disk/source/local-state.ts";
import { cutVolume } from "../../disk/tracking/cut.ts";
import type { ProtectedDisk } from "../../disk/tracking/protected-disk.ts";
import { changedBaseline, emptyBaseline, namedOnly } from "../../pipeline/baseline.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { PointRecord } from "../../store/format/documents.ts";
import { capturedInto, checkSize, mapBaseline, randomSeed } from "../replicate.ts";
import type { Session } from "../session.ts";
import { DrainPace } from "./drain-pace.ts";
import type { MadeCut } from "./groups.ts";
import type { Measures } from "./measures.ts";
import type { ProtectedSource } from "./protected-image.ts";
import type { Knowledge } from "./protection-state.ts";

export interface ShipCutOptions {
  readonly context: VaultContext;
  readonly session: Session;
  readonly disk: string;
  readonly source: ProtectedSource;
  readonly protectedDisk: ProtectedDisk;
  readonly measures: Measures;
  readonly known: Knowledge;
  /** False: the newest point's map is damaged, and the new point lists everything anew. */
  readonly isParentSound: boolean;
  readonly made: MadeCut;
  /** See `drainTimeMs`. */
  readonly intervalMs: number;
  /** Whether the cycle is to be done as fast as it can be. */
  readonly isHurried: () => boolean;
  /** Called before the commit is tried, with the id that the point will have. */
  readonly onCommitting: (id: string) => void;
  readonly signal: AbortSignal;
}

/** Errors: those of `Session.ship`, UNSUPPORTED, SOURCE_SHRUNK, CUT_ABANDONED. */
export async function shipCut(options: ShipCutOptions): Promise<PointRecord> {
  const { context, session, disk, source, protectedDisk, measures, known, isParentSound, made, signal } = options;
  const { intervalMs, isHurried } = options;
  const { cut, cutAtMs, group, application } = made;
  const isScan = known === "scan";
  let uploaded = 0;
  const noteUpload = (storedBytes: number): void => {
    measures.uploaded(storedBytes - uploaded);
    uploaded = storedBytes;
  };
  try {
    checkSize(source.description, disk, cut.sizeBytes, session.newest);
    const parent = isParentSound ? await session.manifest() : undefined;
    const seed = randomSeed();
    const map = parent === undefined ? emptyBaseline : mapBaseline(context, session, parent, seed);
    const shipped = await session.ship({
      content: capturedInto(context, {
        volume: isScan ? source.volume("whole") : cutVolume(cut, source.volume("scattered")),
        volumeBytes: cut.sizeBytes,
        baseline: known === "changed" ? changedBaseline : known === "compare" ? namedOnly(map) : map,
        scope: isScan ? "whole" : "named",
        seed,
        prints: noPrints,
        pace: new DrainPace({ cut, cutAtMs, intervalMs, disk: protectedDisk, isHurried, now: () => performance.now() }),
      }),
      timeMs: cut.timeMs,
      parent,
      // The captured content is the disk at the cut if old content was kept, or if nothing has been
      // written since.
      consistency: () => {
        const isStill = cut.exact || !protectedDisk.isWrittenSinceCut;
        return Promise.resolve(!isStill ? "fuzzy" : application?.outcome === "frozen" ? "app" : "crash");
      },
      application,
      group,
      leave: false,
      beforeHead: async ({ id }) => {
        options.onCommitting(id);
        await protectedDisk.expectPoint(id);
      },
      onProgress: (_doneBytes, storedBytes) => noteUpload(storedBytes),
      onCaptured: () => measures.reached("captured", cutAtMs),
      onShipped: () => measures.reached("shipped", cutAtMs),
      signal: AbortSignal.any([cut.signal, signal]),
    });
    noteUpload(shipped.storedBytes + shipped.metadataBytes);
    cut.committed(shipped.point.id);
    return shipped.point;
  } catch (error) {
    cut.abandon();
    throw error;
  }
}
