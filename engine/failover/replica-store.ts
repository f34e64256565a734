/**
 * Replicas in the vault: a replica is the object `failover/replicas/<replica>`, a document that one
 * process at a time works on (see `held-document.ts`).
 *
 * A failover run whose target is a replica puts its name into the document. Until the run gives the
 * replica back, no other process applies a point to it.
 */
import { forEachAtOnce } from "../concurrency.ts";
import { TidemarkError } from "../errors.ts";
import { documentBytesMax } from "../store/format/documents.ts";
import { replicaObjectName, replicasPrefix } from "../store/format/names.ts";
import { decodeReplica, encodeReplica, type ReplicaDocument } from "../store/format/replica.ts";
import { replicaName16 } from "../store/format/run.ts";
import { isSamePlace, readClaim } from "../store/points/failover-claim.ts";
import type { Store } from "../store/store.ts";
import { HeldDocument } from "./held-document.ts";
import { findRun } from "./run-store.ts";
import { hasEnded } from "./run-table.ts";

const readsAtOnce = 8;

export interface ReplicaVault {
  readonly store: Store;
  readonly vault: string;
  readonly signal?: AbortSignal | undefined;
}

export type HeldReplica = HeldDocument<ReplicaDocument>;

/** A replica; undefined when there is none. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export async function findReplica(
  { store, vault, signal }: ReplicaVault,
  replica: string,
): Promise<{ readonly document: ReplicaDocument; readonly etag: string } | undefined> {
  const name = replicaObjectName(replica);
  const there = replicaName16.test(replica) ? await store.find(name, documentBytesMax, { signal }) : undefined;
  return there && { document: decodeReplica(there.bytes, name, vault), etag: there.etag };
}

/** A replica. Errors: INVALID_ARGUMENT when there is none, DAMAGED, FORMAT_UNSUPPORTED. */
export async function readReplica(
  place: ReplicaVault,
  replica: string,
): Promise<{ readonly document: ReplicaDocument; readonly etag: string }> {
  const found = await findReplica(place, replica);
  if (found !== undefined) return found;
  throw new TidemarkError("INVALID_ARGUMENT", `the vault holds no replica ${JSON.stringify(replica)}`, {
    remedy: "`tidemark replica show` shows the replicas",
  });
}

/** All replicas. Errors: DAMAGED, FORMAT_UNSUPPORTED, those of the store. */
export async function listReplicas(place: ReplicaVault): Promise<ReplicaDocument[]> {
  const { store, signal } = place;
  const names: string[] = [];
  for await (const { name } of store.list(replicasPrefix, { signal })) names.push(name.slice(replicasPrefix.length));
  const found: ReplicaDocument[] = [];
  await forEachAtOnce(names, readsAtOnce, async (name) => {
    const there = await findReplica(place, name); // undefined: removed since it was listed
    if (there !== undefined) found.push(there.document);
  });
  return found;
}

/** Takes a replica for this process alone. Errors: WRITER_ACTIVE, as `readReplica`. */
export async function holdReplica(place: ReplicaVault, replica: string): Promise<HeldReplica> {
  const { store, vault, signal } = place;
  return await HeldDocument.take<ReplicaDocument>({
    store,
    name: replicaObjectName(replica),
    lease: ["replica", vault, replica],
    signal,
    read: async () => await readReplica(place, replica),
    encode: encodeReplica,
    title: `replica ${replica}`,
    detail: { replica },
    showCommand: `tidemark replica show ${replica}`,
  });
}

/** The open run whose target the replica is; undefined: none. A store may have lost the run's record. */
export async function runOf(place: ReplicaVault, { run }: ReplicaDocument): Promise<string | undefined> {
  const found = run === undefined ? undefined : await findRun(place, run);
  return found === undefined || hasEnded(found.document.state) ? undefined : run;
}

/** Refuses a replica that is the target of another run than `run`. Errors: WRITER_ACTIVE. */
export async function refuseTaken(place: ReplicaVault, document: ReplicaDocument, run?: string): Promise<void> {
  const holder = await runOf(place, document);
  if (holder === undefined || holder === run) return;
  const { replica } = document;
  throw new TidemarkError("WRITER_ACTIVE", `replica ${replica} is the target of run ${holder}`, {
    remedy: `\`tidemark failover show ${holder}\` says what can be done; \`tidemark failover cancel ${holder}\` gives it back`,
    detail: { replica, run: holder },
  });
}

/** Refuses a target to which a failover or a failback has taken the disk itself. Errors: TARGET_IS_SOURCE. */
export async function refuseSource(place: ReplicaVault, document: ReplicaDocument): Promise<void> {
  const { disk, replica, target } = document;
  const claim = await readClaim({ ...place, disk });
  const isThere = await isWrittenAt(place, document, claim?.place ?? null, claim?.run ?? null);
  if (!isThere) return;
  throw new TidemarkError("TARGET_IS_SOURCE", `disk ${JSON.stringify(disk)} itself is written at ${target.path}`, {
    remedy: `run \`tidemark replica remove ${replica} --keep-target\``,
    detail: { replica },
  });
}

async function isWrittenAt(
  place: ReplicaVault,
  { disk, target, host }: ReplicaDocument,
  settled: { readonly path: string; readonly host: string } | null,
  run: string | null,
): Promise<boolean> {
  if (settled !== null) return settled.host === host && (await isSamePlace(settled.path, target.path));
  if (run === null) return false;
  // A failover that has the disk writes its target, and hands it over with the commit.
  const { document } = (await findRun(place, run)) ?? {};
  if (document === undefined || (host !== null && document.host !== host)) return false;
  const isBlob = target.kind === "blob";
  for (const { disk: other, target: there } of document.members) {
    if (other !== disk || (there.kind === "blob") !== isBlob) continue;
    if (isBlob ? there.path === target.path : await isSamePlace(there.path, target.path)) return true;
  }
  return false;
}
