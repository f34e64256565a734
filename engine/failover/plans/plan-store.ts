/** Plan runs in the vault: objects `failover/plans/<run>`, which one process at a time works on. */
import { forEachAtOnce } from "../../concurrency.ts";
import { TidemarkError } from "../../errors.ts";
import { documentBytesMax } from "../../store/format/documents.ts";
import { planRunObjectName, planRunsPrefix } from "../../store/format/names.ts";
import { decodePlanRun, encodePlanRun, type PlanRunDocument } from "../../store/format/plan-run.ts";
import { runName8 } from "../../store/format/run.ts";
import type { Store } from "../../store/store.ts";
import { HeldDocument } from "../held-document.ts";

const readsAtOnce = 8;

export interface PlanPlace {
  readonly store: Store;
  readonly vault: string;
  readonly signal?: AbortSignal | undefined;
}

interface StoredPlanRun {
  readonly document: PlanRunDocument;
  readonly etag: string;
}

/** Undefined when there is none. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export async function findPlanRun(place: PlanPlace, run: string): Promise<StoredPlanRun | undefined> {
  const { store, vault, signal } = place;
  const name = planRunObjectName(run);
  const there = runName8.test(run) ? await store.find(name, documentBytesMax, { signal }) : undefined;
  return there && { document: decodePlanRun(there.bytes, name, vault), etag: there.etag };
}

/** Errors: INVALID_ARGUMENT when there is none, DAMAGED, FORMAT_UNSUPPORTED. */
export async function readPlanRun(place: PlanPlace, run: string): Promise<StoredPlanRun> {
  const found = await findPlanRun(place, run);
  if (found !== undefined) return found;
  throw new TidemarkError("INVALID_ARGUMENT", `the vault holds no run ${JSON.stringify(run)} of a recovery plan`, {
    remedy: "`tidemark plan list` shows the runs",
  });
}

/** All of them, newest first. Errors: DAMAGED, FORMAT_UNSUPPORTED, those of the store. */
export async function listPlanRuns({ store, vault, signal }: PlanPlace): Promise<PlanRunDocument[]> {
  const names: string[] = [];
  for await (const { name } of store.list(planRunsPrefix, { signal })) names.push(name);
  const runs: PlanRunDocument[] = [];
  await forEachAtOnce(names, readsAtOnce, async (name) => {
    const there = await store.find(name, documentBytesMax, { signal });
    if (there !== undefined) runs.push(decodePlanRun(there.bytes, name, vault));
  });
  return runs.sort((a, b) => b.createdMs - a.createdMs || (a.run < b.run ? -1 : 1));
}

/** A plan's run that this process alone works on. */
export type HeldPlanRun = HeldDocument<PlanRunDocument>;

/** Errors: WRITER_ACTIVE when another process works on it; as `readPlanRun`. */
export async function takePlanRun(place: PlanPlace, run: string): Promise<HeldPlanRun> {
  return await HeldDocument.take({
    store: place.store,
    name: planRunObjectName(run),
    lease: ["plan", place.vault, run],
    signal: place.signal,
    read: async () => await readPlanRun(place, run),
    encode: encodePlanRun,
    title: `run ${run} of a recovery plan`,
    detail: { run },
    showCommand: `tidemark failover show ${run}`,
  });
}
