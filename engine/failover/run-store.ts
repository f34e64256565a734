/**
 * Runs in the vault: a run is the object `failover/runs/<run>`, a document that one process at a time
 * works on. So of two operators one works and the other gets an error: see `held-document.ts`.
 */
import { randomBytes } from "node:crypto";
import { forEachAtOnce } from "../concurrency.ts";
import { hasCode, TidemarkError } from "../errors.ts";
import { toHex } from "../store/format/checksum.ts";
import { documentBytesMax } from "../store/format/documents.ts";
import { runObjectName, runsPrefix } from "../store/format/names.ts";
import { decodeRun, encodeRun, type RunDocument, runName8 } from "../store/format/run.ts";
import type { VaultPlace } from "../store/place.ts";
import { HeldDocument, isWorker } from "./held-document.ts";

const readsAtOnce = 8;
/** A random name is drawn again when it is taken; four billion are there. */
const namesMax = 4;

interface StoredRun {
  readonly document: RunDocument;
  readonly etag: string;
}

/** Reads a run. Errors: INVALID_ARGUMENT when there is none, DAMAGED, FORMAT_UNSUPPORTED. */
export async function readRun(place: VaultPlace, run: string): Promise<StoredRun> {
  const found = await findRun(place, run);
  if (found !== undefined) return found;
  throw new TidemarkError("INVALID_ARGUMENT", `the vault holds no failover run ${JSON.stringify(run)}`, {
    remedy:
      "`tidemark failover list` shows the runs; a store that was killed may have forgotten one: " +
      "its targets stay, each with a mark beside it, TARGET.tidemark-run",
  });
}

/** A run; undefined when there is none. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export async function findRun({ store, vault, signal }: VaultPlace, run: string): Promise<StoredRun | undefined> {
  const name = runObjectName(run);
  const there = runName8.test(run) ? await store.find(name, documentBytesMax, { signal }) : undefined;
  return there && { document: decodeRun(there.bytes, name, vault), etag: there.etag };
}

/** All runs, newest first. Errors: DAMAGED, FORMAT_UNSUPPORTED, those of the store. */
export async function listRuns(place: VaultPlace): Promise<RunDocument[]> {
  const { store, vault, signal } = place;
  const names: string[] = [];
  for await (const { name } of store.list(runsPrefix, { signal })) names.push(name);
  const runs: RunDocument[] = [];
  await forEachAtOnce(names, readsAtOnce, async (name) => {
    const there = await store.find(name, documentBytesMax, { signal });
    if (there !== undefined) runs.push(decodeRun(there.bytes, name, vault));
  });
  return runs.sort((a, b) => b.createdMs - a.createdMs || (a.run < b.run ? -1 : 1));
}

/**
 * Puts a new run under `name`, or under one that is free. Returns it with that name. Errors: those of
 * the store.
 */
export async function createRun(
  place: VaultPlace,
  name: string | undefined,
  make: (run: string) => RunDocument,
): Promise<RunDocument> {
  for (let attempt = 1; ; attempt += 1) {
    const document = make(name ?? newRunName());
    try {
      await place.store.putOnce(runObjectName(document.run), encodeRun(document), { signal: place.signal });
      return document;
    } catch (error) {
      if (!hasCode(error, "OBJECT_EXISTS") || name !== undefined || attempt === namesMax) throw error;
    }
  }
}

/** A random name for a run. */
export function newRunName(): string {
  return toHex(randomBytes(4));
}

/** Whether the process that a run names works on it, as far as this machine can tell. */
export async function isWorkedOn({ worker }: RunDocument): Promise<boolean> {
  return await isWorker(worker);
}

/** A run that this process alone works on: see `held-document.ts`. */
export type HeldRun = HeldDocument<RunDocument>;

export const HeldRun = {
  /** Errors: WRITER_ACTIVE when another process works on the run; as `readRun`. */
  async take(place: VaultPlace, run: string): Promise<HeldRun> {
    return await HeldDocument.take({
      store: place.store,
      name: runObjectName(run),
      lease: ["run", place.vault, run],
      signal: place.signal,
      read: async () => await readRun(place, run),
      encode: encodeRun,
      title: `failover run ${run}`,
      detail: { run },
      showCommand: `tidemark failover show ${run}`,
    });
  },
};
