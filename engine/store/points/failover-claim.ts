/**
 * Claims: mutual exclusion between failovers of a disk, and a fence against its source.
 *
 * A failover that takes a disk to another place puts its name into `disks/<disk>/failover`. A second
 * failover of the disk finds the claim and ends. A writer looks for a claim after it has taken the
 * writer lease, and leaves if there is one:
 *
 *     writer:    take the writer lease  →  look for a claim: none → it may write
 *     failover:  put the claim          →  take the writer lease, and give it back: no writer is left
 *
 * Both write before they read (Dekker's pattern), so no writer that began before the claim goes on
 * after a failover that has had the lease. Failovers that do without it say so.
 *
 * Invariant: while a claim stands, no new writer makes a point of the disk.
 */
import { hasCode, TidemarkError } from "../../errors.ts";
import { documentBytesMax } from "../format/documents.ts";
import { claimName } from "../format/names.ts";
import { decodeClaim, encodeClaim } from "../format/run.ts";
import type { Store } from "../store.ts";

/** Which disk, and in which vault. */
export interface ClaimPlace {
  readonly store: Store;
  readonly vault: string;
  readonly disk: string;
  readonly signal?: AbortSignal | undefined;
}

/** The run that has the disk; undefined: none. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export async function readClaim({ store, vault, disk, signal }: ClaimPlace): Promise<string | undefined> {
  const name = claimName(disk);
  const there = await store.find(name, documentBytesMax, { signal });
  return there === undefined ? undefined : decodeClaim(there.bytes, name, { vault, disk }).run;
}

/**
 * Claims a disk for a run. A claim that the run has already stays. Errors: WRITER_ACTIVE when
 * another run has the disk.
 */
export async function putClaim(place: ClaimPlace, run: string): Promise<void> {
  const { store, vault, disk, signal } = place;
  try {
    await store.putOnce(claimName(disk), encodeClaim({ vault, disk, run }), { signal });
  } catch (error) {
    if (!hasCode(error, "OBJECT_EXISTS")) throw error;
    const other = await readClaim(place);
    if (other !== run) throw claimed(disk, other ?? "unknown", error);
  }
}

/** Ends the claim that a run has on a disk. One of another run stays. */
export async function removeClaim(place: ClaimPlace, run: string): Promise<void> {
  const { store, disk, signal } = place;
  if ((await readClaim(place)) === run) await store.delete(claimName(disk), { signal });
}

/** Refuses a writer of a disk that a failover has. Errors: WRITER_ACTIVE, DAMAGED. */
export async function refuseClaimed(place: ClaimPlace): Promise<void> {
  const run = await readClaim(place);
  if (run !== undefined) throw claimed(place.disk, run);
}

function claimed(disk: string, run: string, cause?: unknown): TidemarkError {
  return new TidemarkError("WRITER_ACTIVE", `disk ${JSON.stringify(disk)} is failed over: run ${run} has it`, {
    remedy: `\`tidemark failover show ${run}\` says what can be done; \`tidemark failover cancel ${run}\` brings back the state before`,
    detail: { disk, run },
    cause,
  });
}
