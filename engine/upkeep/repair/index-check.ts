/**
 * Check of the local dedup index against the vault's frames.
 *
 * The index is a cache on this machine. If it names a chunk that frames do not, a new point could
 * refer to nothing, so the index is deleted.
 *
 * Cost: the headers and tables of all frames are read. Memory: two dedup indexes.
 */
import { rm } from "node:fs/promises";
import path from "node:path";
import type { NoticeOptions } from "../../notice.ts";
import { loadCatalog } from "../../pipeline/catalog.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { Store } from "../../store/store.ts";

/** Name of the index in the vault's state folder. */
export const dedupIndexName = "dedup-index";

export interface IndexCheckOptions extends NoticeOptions {
  /** Delete nothing. */
  readonly dryRun?: boolean | undefined;
}

/** Deletes the index if it names a chunk that the vault does not hold. Returns whether it does. */
export async function dropWrongIndex(
  context: VaultContext,
  store: Store,
  { dryRun = false, onNotice = () => undefined, signal }: IndexCheckOptions,
): Promise<boolean> {
  const { stateFolder, document } = context;
  if (stateFolder === undefined) return false;
  const folder = path.join(stateFolder, document.vault);
  const cached = await loadCatalog(context, store, { folder, onNotice: () => undefined, signal });
  const read = await loadCatalog(context, store, { folder: undefined, onNotice, signal });
  let wrong = 0;
  const there = { segment: 0, offset: 0, storedWord: 0 };
  // A missing entry only costs space, and a writer may have added chunks meanwhile. A full index
  // has forgotten some.
  cached.index.forEach((words, at, _segment, _offset, storedWord) => {
    // A digest may lie in several places, any of which may be known; its payload has one length.
    if (!read.index.find(words, at, there) || there.storedWord !== storedWord) wrong += 1;
  });
  if (wrong === 0 || read.index.forgotten > 0) return false;
  if (!dryRun) await rm(path.join(folder, dedupIndexName), { force: true });
  return true;
}
