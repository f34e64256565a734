/**
 * Claims: mutual exclusion between failovers of a disk, and a fence against its former place.
 *
 * A failover that takes a disk to another place puts its name into `disks/<disk>/failover`. A second
 * failover of the disk finds the claim and ends. A writer looks for a claim after it has taken the
 * writer lease, and leaves if there is one:
 *
 *     writer:    take the writer lease  →  look for a claim: none, or for my place → it may write
 *     failover:  put the claim          →  take the writer lease, and give it back: no writer is left
 *
 * Both write before they read (Dekker's pattern), so no writer that began before the claim goes on
 * after a failover that has had the lease. Failovers that do without it say so.
 *
 * When the disk is protected at its new place, the claim names that place: writers there get a
 * session, and those of the former place do not. The next failover of the disk starts from it.
 *
 * A disk whose protection is disabled has a claim that says so: no writer gets a session anywhere. A
 * disk that is renamed has such a claim until it has gone, which tells the next try its new name.
 *
 * Invariant: while a claim stands, no new writer makes a point of the disk at any other place.
 */
import { realpath } from "node:fs/promises";
import { hasCode, systemCode, TidemarkError } from "../../errors.ts";
import { shellWord } from "../../shell-word.ts";
import { documentBytesMax } from "../format/documents.ts";
import { claimName } from "../format/names.ts";
import { type ClaimDocument, type ClaimedPlace, type DisableReason, decodeClaim, encodeClaim } from "../format/run.ts";
import type { DiskPlace } from "../place.ts";
import { identifyProcess } from "./process-identity.ts";

interface StoredClaim {
  readonly claim: ClaimDocument;
  readonly etag: string;
}

/** The claim on a disk; undefined: none. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export async function readClaim(place: DiskPlace): Promise<ClaimDocument | undefined> {
  return (await findClaim(place))?.claim;
}

async function findClaim({ store, vault, disk, signal }: DiskPlace): Promise<StoredClaim | undefined> {
  const name = claimName(disk);
  const there = await store.find(name, documentBytesMax, { signal });
  return there && { claim: decodeClaim(there.bytes, name, { vault, disk }), etag: there.etag };
}

/**
 * Refuses a run of a disk that another run has and has not brought to a new place. Errors:
 * WRITER_ACTIVE, DAMAGED.
 */
export async function refuseOtherRun(place: DiskPlace, run: string): Promise<ClaimDocument | undefined> {
  return (await findUnlessOther(place, run))?.claim;
}

async function findUnlessOther(place: DiskPlace, run: string): Promise<StoredClaim | undefined> {
  const there = await findClaim(place);
  if (there === undefined) return there;
  refuseDisabled(there.claim);
  if (there.claim.run !== run && there.claim.place === null) throw claimed(place.disk, there.claim.run);
  return there;
}

/**
 * Claims a disk for a run. A claim that the run has already stays. Errors: WRITER_ACTIVE when
 * another run has the disk.
 */
export async function putClaim(place: DiskPlace, run: string): Promise<void> {
  const { vault, disk } = place;
  const there = await findUnlessOther(place, run);
  if (there?.claim.run === run && there.claim.place === null) return;
  await swapClaim(place, { vault, disk, run, place: null, former: there?.claim.place ?? null, disabled: null }, there);
}

/**
 * The disk is protected where the run that has it has taken it. Errors: WRITER_ACTIVE when another
 * run has the disk by now, DAMAGED.
 */
export async function settleClaim(place: DiskPlace, settled: ClaimedPlace): Promise<void> {
  const { vault, disk } = place;
  const there = await findClaim(place);
  if (there !== undefined) refuseDisabled(there.claim);
  if (there?.claim.run !== settled.run) throw claimed(disk, there?.claim.run ?? settled.run);
  await swapClaim(place, { vault, disk, run: settled.run, place: settled, former: null, disabled: null }, there);
}

/** Ends the claim that a run has on a disk, and brings back the place before. One of another run stays. */
export async function removeClaim(place: DiskPlace, run: string): Promise<void> {
  const { store, vault, disk, signal } = place;
  const there = await findClaim(place);
  if (there === undefined || there.claim.run !== run || there.claim.place !== null) return;
  const { former, disabled } = there.claim;
  if (former === null && disabled === null) await store.delete(claimName(disk), { signal });
  else await swapClaim(place, { vault, disk, run: former?.run ?? null, place: former, former: null, disabled }, there);
}

/**
 * Keeps all writers off the disk from now on, and says why. `run` ends a failover that has the disk.
 * Idempotent. Errors: WRITER_ACTIVE when another run than `run` has or had the disk, DAMAGED.
 */
export async function disableByClaim(place: DiskPlace, reason: DisableReason, run: string | null): Promise<void> {
  const { vault, disk } = place;
  const there = await findClaim(place);
  if (there !== undefined && there.claim.disabled !== null) return;
  if (there !== undefined && there.claim.run !== run) throw claimed(disk, there.claim.run);
  const { place: settled = null, former = null } = there?.claim ?? {};
  const disabled = { reason, timeMs: Date.now() };
  await swapClaim(place, { vault, disk, run, place: settled, former, disabled }, there);
}

/**
 * Keeps all writers off a disk that is renamed. Gives whether an earlier try had begun it. Errors:
 * INVALID_ARGUMENT when the disk has a claim of any other kind, DAMAGED.
 */
export async function renameByClaim(place: DiskPlace, renamedTo: string): Promise<boolean> {
  const { vault, disk } = place;
  const there = await findClaim(place);
  if (there === undefined) {
    const disabled = { reason: "NotSpecified", timeMs: Date.now(), renamedTo } as const;
    await swapClaim(place, { vault, disk, run: null, place: null, former: null, disabled }, there);
    return false;
  }
  const { run, disabled } = there.claim;
  if (disabled?.renamedTo === renamedTo) return true;
  if (disabled !== null) refuseDisabled(there.claim);
  throw new TidemarkError("INVALID_ARGUMENT", `disk ${JSON.stringify(disk)} was failed over by run ${run}`, {
    remedy: "keep its name: the run and its places know the disk by it",
    detail: { disk },
  });
}

/** Takes a disable back that has just been done: the claim is again what it was before. */
export async function restoreClaim(place: DiskPlace, former: ClaimDocument | undefined): Promise<void> {
  const there = await findClaim(place);
  if (there === undefined || there.claim.disabled === null) return;
  if (former === undefined) await place.store.delete(claimName(place.disk), { signal: place.signal });
  else await swapClaim(place, former, there);
}

/**
 * Lets writers back to where they were let when the disk was disabled; after a migration, everywhere.
 * Gives whether it was disabled.
 */
export async function enableByClaim(place: DiskPlace): Promise<boolean> {
  const there = await findClaim(place);
  if (there === undefined || there.claim.disabled === null) return false;
  const { run, disabled, place: settled } = there.claim;
  if (settled !== null || (run !== null && disabled.reason === "NotSpecified"))
    await swapClaim(place, { ...there.claim, disabled: null }, there);
  else await place.store.delete(claimName(place.disk), { signal: place.signal });
  return true;
}

async function swapClaim(place: DiskPlace, next: ClaimDocument, there: StoredClaim | undefined): Promise<void> {
  try {
    await place.store.replace(claimName(next.disk), encodeClaim(next), there?.etag, { signal: place.signal });
  } catch (error) {
    if (!hasCode(error, "CONDITION_FAILED")) throw error;
    throw claimed(next.disk, (await readClaim(place))?.run ?? next.run, error);
  }
}

/**
 * Refuses a writer of a disk that a failover has, or has taken to another place than `path`. Errors:
 * WRITER_ACTIVE, DAMAGED.
 */
export async function refuseClaimed(place: DiskPlace, path: string): Promise<void> {
  const claim = await readClaim(place);
  if (claim === undefined) return;
  refuseDisabled(claim);
  const { run, place: settled } = claim;
  if (settled === null) throw claimed(place.disk, run);
  if (settled.host === (await identifyProcess()).host && (await isSamePlace(settled.path, path))) return;
  throw new TidemarkError(
    "WRITER_ACTIVE",
    `disk ${JSON.stringify(place.disk)} was failed over to ${settled.path} on ${settled.host} by run ${settled.run}`,
    { remedy: "replicate it from there, or fail it over again", detail: { disk: place.disk, run: settled.run } },
  );
}

/** Whether two paths name one place. The link that names a device outlives the device's number. */
export async function isSamePlace(one: string, other: string): Promise<boolean> {
  return one === other || (await resolved(one)) === (await resolved(other));
}

async function resolved(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return path;
  }
}

/**
 * Refuses to serve a disk at a place from which it has moved: what is written there would be lost. A
 * store that does not answer within `waitMs` is no reason. A disk whose protection was only ended goes
 * on where it is. Errors: WRITER_ACTIVE.
 */
export async function refuseMoved(place: Omit<DiskPlace, "signal">, path: string, waitMs: number): Promise<void> {
  const waiting = { ...place, signal: AbortSignal.timeout(waitMs) };
  try {
    if ((await readClaim(waiting))?.disabled?.reason !== "NotSpecified") await refuseClaimed(waiting, path);
  } catch (error) {
    if (!(error instanceof TidemarkError) || error.code === "WRITER_ACTIVE") throw error;
    // The first session tells what is wrong.
  }
}

function refuseDisabled({ disk, disabled }: ClaimDocument): void {
  if (disabled === null) return;
  if (disabled.renamedTo !== undefined) {
    const to = disabled.renamedTo;
    throw new TidemarkError("WRITER_ACTIVE", `disk ${JSON.stringify(disk)} is being renamed to ${JSON.stringify(to)}`, {
      remedy:
        `go on with \`tidemark disks rename --disk ${shellWord(disk)} --to ${shellWord(to)}\`, ` +
        `or keep the name with \`tidemark disks enable --disk ${shellWord(disk)}\``,
      detail: { disk },
    });
  }
  throw new TidemarkError(
    "WRITER_ACTIVE",
    `the protection of disk ${JSON.stringify(disk)} was disabled (${disabled.reason})`,
    { remedy: `protect it again with \`tidemark disks enable --disk ${shellWord(disk)}\``, detail: { disk } },
  );
}

function claimed(disk: string, run: string | null, cause?: unknown): TidemarkError {
  return new TidemarkError("WRITER_ACTIVE", `disk ${JSON.stringify(disk)} is failed over: run ${run} has it`, {
    remedy: `\`tidemark failover show ${run}\` says what can be done`,
    detail: { disk, ...(run === null ? {} : { run }) },
    cause,
  });
}
