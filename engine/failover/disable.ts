/**
 * End of a disk's protection: which parts of it are where, and what is left of each.
 *
 *     claim: no writer gets a session  →  writer lease, taken and given back: none is left  →  purge: points, claim, space
 *
 * The source, the vault and the targets of failovers are three places. Only the vault is this
 * operation's to change; what is left at the others is listed.
 *
 * Invariant: no point goes before no writer can make another.
 */
import { watchedStore } from "../disk/source/head-watch.ts";
import { hasCode, TidemarkError } from "../errors.ts";
import type { Notice } from "../notice.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import { shellWord } from "../shell-word.ts";
import { claimName } from "../store/format/names.ts";
import { type DisableReason, type RunDocument } from "../store/format/run.ts";
import { disableByClaim, enableByClaim, readClaim, restoreClaim } from "../store/points/failover-claim.ts";
import { readDisk, readHead } from "../store/points/head.ts";
import { WriterLease } from "../store/points/writer-lease.ts";
import { Store } from "../store/store.ts";
import { collect } from "../upkeep/collection/collection.ts";
import { removeDisk } from "../upkeep/prune/remove-disk.ts";
import { isMoved } from "./run-facts.ts";
import { listRuns } from "./run-store.ts";
import { hasEnded } from "./run-table.ts";
import { leftoversOf } from "./run-target.ts";
import { targetName } from "./target.ts";

/** How the protection of a disk ends. */
export interface DisableOptions {
  readonly disk: string;
  /** Whether the vault keeps the disk's points, or removes the disk and frees its space. Default: `keep`. */
  readonly points?: "keep" | "purge" | undefined;
  /** Also when a writer is active or a failover is open. Default: false. */
  readonly force?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onNotice?: ((notice: Notice) => void) | undefined;
}

/** What was ended, and what is left behind. */
export interface DisableSummary {
  readonly disk: string;
  readonly reason: DisableReason;
  readonly purged: boolean;
  /** Points that were removed. */
  readonly removedPoints: number;
  /** Bytes that the collection freed at the store; null: nothing was purged, or writers did not answer yet. */
  readonly freedBytes: number | null;
  /** What is left, one sentence each. */
  readonly leftBehind: {
    readonly source: readonly string[];
    readonly vault: readonly string[];
    readonly targets: readonly string[];
  };
  readonly elapsedMs: number;
}

/** Errors: DISK_NOT_FOUND, WRITER_ACTIVE, those of `removeDisk` and `Vault.collect`. */
export async function disableDisk(context: VaultContext, options: DisableOptions): Promise<DisableSummary> {
  const startedAt = performance.now();
  const { signal, force = false, onNotice = () => undefined } = options;
  const purges = options.points === "purge";
  const disk = options.disk.normalize("NFC");
  const store = new Store(context.sink);
  const { vault } = context.document;
  const place = { store, vault, disk, signal };
  // Of a purge that died, the disk may be gone, and its claim and its space left.
  const head = purges ? (await readHead(store, vault, disk, signal)).head : await readDisk(store, vault, disk, signal);
  const runs = (await listRuns(place)).filter(({ members }) => members.some((member) => member.disk === disk));
  if (!force) refuseOpenRun(disk, runs);
  const former = await readClaim(place);
  await disableByClaim(place, "NotSpecified", former?.run ?? null);
  const writer = await activeWriter(context, options, disk);
  if (writer !== undefined && !force) {
    if (former?.disabled == null) await restoreClaim(place, former);
    throw writer;
  }
  if (writer !== undefined && purges) throw stillWritten(disk, writer);
  const targets = await targetsOf(context, disk, runs);
  const source = [
    former?.place != null
      ? `${former.place.path} on ${former.place.host}, from which the disk was protected`
      : `the image from which the disk was protected${head.writer === null ? "" : `, on ${head.writer.host}`}`,
    purges
      ? "the disk's entry in the configuration of its agent: without it, the agent protects the disk anew"
      : "the disk's entry in the configuration of its agent, which is refused from now on",
    ...(writer === undefined ? [] : [`a writer that still has the disk: ${writer.message}`]),
  ];
  if (!purges) {
    const reason = (await readClaim(place))?.disabled?.reason ?? "NotSpecified";
    const points = `all points of the disk: \`tidemark disks disable --disk ${shellWord(disk)} --purge\` removes them`;
    const leftBehind = { source, vault: [points], targets };
    return { disk, reason, purged: false, removedPoints: 0, freedBytes: null, leftBehind, elapsedMs: since(startedAt) };
  }
  const reason = former?.disabled?.reason ?? "NotSpecified";
  const removal = await removeDisk(context, { disk, signal, onNotice }).catch((error: unknown) => {
    if (!hasCode(error, "DISK_NOT_FOUND")) throw error;
  });
  await store.delete(claimName(disk), { signal });
  const watched = watchedStore(context, onNotice, "refused");
  const { waitingFor, storedBytesBefore, storedBytesAfter } = await collect(watched, vault, { signal, onNotice });
  const isFreed = waitingFor.length === 0;
  const waiting = `space that the writers of ${waitingFor.join(", ")} may still use: \`tidemark collect\` frees it`;
  return {
    disk,
    reason,
    purged: true,
    removedPoints: removal?.removedPoints ?? 0,
    freedBytes: isFreed ? storedBytesBefore - storedBytesAfter : null,
    leftBehind: { source, vault: isFreed ? [] : [waiting], targets },
    elapsedMs: since(startedAt),
  };
}

/** Lets writers back to a disk whose protection was disabled. Errors: INVALID_ARGUMENT when it was not. */
export async function enableDisk(context: VaultContext, name: string, signal: AbortSignal | undefined): Promise<void> {
  const disk = name.normalize("NFC");
  const place = { store: new Store(context.sink), vault: context.document.vault, disk, signal };
  if (await enableByClaim(place)) return;
  throw new TidemarkError("INVALID_ARGUMENT", `the protection of disk ${JSON.stringify(disk)} is not disabled`, {
    remedy: "`tidemark disks list` shows the disks",
  });
}

function refuseOpenRun(disk: string, runs: readonly RunDocument[]): void {
  const open = runs.find(({ state }) => !hasEnded(state) && state !== "CommitFailoverCompleted");
  if (open === undefined) return;
  throw new TidemarkError(
    "WRITER_ACTIVE",
    `run ${open.run} of disk ${JSON.stringify(disk)} is open: ${open.kind}, ${open.state}`,
    {
      remedy: `end it first: \`tidemark failover show ${open.run}\` says how; or add \`--force\``,
      detail: { disk, run: open.run },
    },
  );
}

/** The error for a purge while a process has the disk: new writers are refused, and points stay. */
function stillWritten(disk: string, cause: TidemarkError): TidemarkError {
  const fact = `the protection of disk ${JSON.stringify(disk)} is disabled, and its points stay: ${cause.message}`;
  return new TidemarkError("WRITER_ACTIVE", fact, {
    remedy: `stop that process, then run \`tidemark disks disable --disk ${shellWord(disk)} --purge\``,
    detail: { disk },
    cause,
  });
}

/** The error that names the process that writes the disk; undefined: no process does. */
export async function activeWriter(
  context: VaultContext,
  { signal, onNotice = () => undefined }: Pick<DisableOptions, "signal" | "onNotice">,
  disk: string,
): Promise<TidemarkError | undefined> {
  const place = { store: new Store(context.sink), vault: context.document.vault, disk, onNotice, signal };
  try {
    const lease = await WriterLease.take(place);
    await lease.leave();
    return undefined;
  } catch (error) {
    if (hasCode(error, "WRITER_ACTIVE")) return error;
    throw error;
  }
}

async function targetsOf(context: VaultContext, disk: string, runs: readonly RunDocument[]): Promise<string[]> {
  const found = new Set<string>();
  for (const document of runs) {
    for (const member of document.members) {
      if (member.disk !== disk) continue;
      const what = document.kind === "failback" ? "to which the disk went back by" : "made by";
      if (isMoved(document)) found.add(`${targetName(member.target)} on ${document.host}, ${what} run ${document.run}`);
      else if (!hasEnded(document.state))
        for (const left of await leftoversOf(context, document)) found.add(`${left}, of run ${document.run}`);
    }
  }
  return [...found];
}

function since(startedAt: number): number {
  return Math.round(performance.now() - startedAt);
}
