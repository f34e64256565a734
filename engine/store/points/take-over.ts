/**
 * Taking a disk's writer lease: the lease on its head first, then the epoch in it.
 *
 *     lease on the head  →  raise the sequence numbers of the former writer's segments  →  swap the head: our name, epoch + 1
 *
 * The lease id is derived from vault, disk, machine and epoch. So a successor on the same machine
 * can take the lease of a dead process at once, also when that process died between taking the
 * lease and writing its name into the head. A dead process of another machine is waited for: its
 * lease ends by the store's clock.
 *
 * Invariant: of several processes that take a disk at once, at most one swaps the head, and what it
 * swapped out can change nothing any more. A process that dies on the way leaves the head as it
 * was, and the next one fences the same former writer again.
 */
import { publish } from "../../diagnostics.ts";
import { hasCode, TidemarkError } from "../../errors.ts";
import { leaseTiming } from "../../timing.ts";
import type { HeadDocument, WriterRecord } from "../format/documents.ts";
import { encodeHead } from "../format/documents.ts";
import { firstSequenceNumber, headName, segmentEpochPrefix } from "../format/names.ts";
import { HeldLease, type LeasePlace, leaseIdOf, releaseSoon } from "../held-lease.ts";
import type { NoticedDisk } from "../place.ts";
import { readHead, type StoredHead } from "./head.ts";
import { isAlive, liveSessions } from "./process-identity.ts";

export interface WriterLeaseOptions extends NoticedDisk {
  /** An epoch that is known to have been in use: the writer's is above it. */
  readonly epochAbove?: number | undefined;
}

/** The head's object and the lease id of a writer of this machine and epoch. */
export function leasePlaceOf(vault: string, disk: string, machine: string, epoch: number): LeasePlace {
  return { name: headName(disk), leaseId: leaseIdOf("lease", vault, disk, machine, epoch) };
}

/**
 * Takes the lease on a head if it is free, or if a dead process of this machine has it. False:
 * another process is taking or leaving the disk at this moment.
 *
 * @throws WRITER_ACTIVE when a process has the lease that lives, or may live, on another machine.
 */
export async function takeHeadLease(
  options: WriterLeaseOptions,
  head: HeadDocument,
  machine: string,
  place: LeasePlace,
): Promise<boolean> {
  const { store, vault, disk, onNotice, signal } = options;
  try {
    await HeldLease.acquire(store, place, signal);
    return true;
  } catch (error) {
    if (!hasCode(error, "LEASE_HELD")) throw error;
  }
  const { writer } = head;
  // Without a writer in the head the last one has left; the lease may be that of a successor which
  // died before it swapped the head.
  if (writer !== null && (writer.machine !== machine || (await isAlive(writer)))) throw writerActive(disk, writer);
  try {
    await store.changeLease(place.name, leasePlaceOf(vault, disk, machine, head.epoch).leaseId, place.leaseId, {
      signal,
    });
  } catch (error) {
    if (hasCode(error, "LEASE_LOST")) return false;
    throw error;
  }
  // A lease of this very process, which it could not release during an outage, tells of no death.
  if (writer !== null && writer.pid !== process.pid) {
    onNotice({
      code: "SEAT_TAKEN_OVER",
      message: `process ${String(writer.pid)}, the former writer, has died; its lease is taken over`,
    });
  }
  return true;
}

/**
 * With the lease in hand: fences the former writer and swaps the head for one with `epoch`, which is
 * higher, and `writer`. Undefined: another process was faster.
 */
export async function takeOver(
  options: WriterLeaseOptions,
  { head, etag }: StoredHead,
  epoch: number,
  writer: WriterRecord,
  place: LeasePlace,
): Promise<StoredHead | undefined> {
  const fencedSegments = await fenceFormerWriter(options, head, epoch);
  liveSessions().add(writer.session);
  let taken: StoredHead | undefined;
  try {
    taken = await swapHead(options, { ...head, epoch, writer }, etag, place);
  } finally {
    if (taken === undefined) liveSessions().delete(writer.session);
  }
  if (taken !== undefined && head.writer !== null) {
    const { pid: formerPid, host: formerHost } = head.writer;
    publish("lease.taken-over", {
      disk: head.disk,
      epoch,
      formerEpoch: head.epoch,
      formerPid,
      formerHost,
      fencedSegments,
    });
  }
  return taken;
}

/**
 * Raises the sequence numbers of the segments of the writer that the head names. Returns how many
 * segments there are.
 */
async function fenceFormerWriter(
  { store, disk, signal }: WriterLeaseOptions,
  head: HeadDocument,
  epoch: number,
): Promise<number> {
  if (head.writer === null) return 0;
  let segments = 0;
  for await (const { name } of store.list(segmentEpochPrefix(disk, head.epoch), { signal })) {
    await store.raiseSequenceNumber(name, firstSequenceNumber(epoch), { signal });
    segments += 1;
  }
  return segments;
}

/** Undefined: the head is another one than was read, and not ours. */
async function swapHead(
  { store, vault, disk, signal }: WriterLeaseOptions,
  next: HeadDocument,
  etag: string,
  { name, leaseId }: LeasePlace,
): Promise<StoredHead | undefined> {
  try {
    return { head: next, etag: await store.put(name, encodeHead(next), { ifMatch: etag, leaseId }, { signal }) };
  } catch (error) {
    if (!hasCode(error, "CONDITION_FAILED", "LEASE_LOST", "OUTCOME_UNKNOWN")) throw error;
  }
  const there = await readHead(store, vault, disk, signal);
  return there.head.writer?.session === next.writer?.session ? there : undefined;
}

/**
 * Gives up a lease that did not lead to the disk. While another process of this machine writes the
 * disk with this epoch the lease is that one's, because its id is the same: then it stays.
 */
export async function handBack(
  { store, vault, disk }: WriterLeaseOptions,
  epoch: number,
  writer: WriterRecord,
  place: LeasePlace,
): Promise<void> {
  try {
    const { head } = await readHead(store, vault, disk, AbortSignal.timeout(leaseTiming.releaseMsMax));
    const isTheirs =
      head.epoch === epoch && head.writer?.machine === writer.machine && head.writer.session !== writer.session;
    if (!isTheirs) await releaseSoon(store, place);
  } catch (error) {
    // A lease that cannot be given up ends by itself.
    if (!(error instanceof TidemarkError)) throw error;
  }
}

/** The error for a disk that another process writes; `writer`: what the head says of it. */
export function writerActive(disk: string, writer: WriterRecord | null): TidemarkError {
  const process = writer === null ? "another process" : `process ${String(writer.pid)} on ${writer.host}`;
  return new TidemarkError("WRITER_ACTIVE", `${process} is writing disk ${JSON.stringify(disk)}`, {
    remedy: `wait until it is done; if it died on another machine, its writer lease ends after ${String(leaseTiming.seconds)} s`,
    detail: { disk, pid: writer?.pid, host: writer?.host },
  });
}

/**
 * The error for a writer whose disk another writer has taken over; `fact`: what else that one does.
 */
export function writerLeaseLost(disk: string, fact: string, cause?: unknown): TidemarkError {
  return new TidemarkError("SEAT_LOST", `another writer has taken over disk ${JSON.stringify(disk)}${fact}`, {
    remedy: "let the other writer work, or stop it and run the command again",
    detail: { disk },
    cause,
  });
}
