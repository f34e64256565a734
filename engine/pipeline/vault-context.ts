/** The vault context: what an open vault lends to its operations. */

import type { Notice } from "../notice.ts";
import type { Sink } from "../sink.ts";
import type { VaultDocument } from "../store/format/documents.ts";
import { Store } from "../store/store.ts";
import type { Catalog } from "./catalog.ts";
import type { WorkerPool } from "./worker-pool.ts";

/** Passed to every operation; `Vault` makes one when it opens. */
export interface VaultContext {
  readonly sink: Sink;
  readonly document: VaultDocument;
  readonly stateFolder: string | undefined;
  readonly workers: number;
  readonly lanes: number;
  readonly indexBytesMax: number;
  /** The vault's threads and slabs, started by the first call. */
  readonly workerPool: () => WorkerPool;
  /** The catalog that protected disks of this vault share, loaded by the first call. */
  readonly sharedCatalog: (store: Store, onNotice: (notice: Notice) => void) => Promise<Catalog>;
  /**
   * Called when a catalog tells of data that the store does not hold: it is not handed out again.
   */
  readonly dropCatalog: (catalog: Catalog) => void;
  /**
   * Disks whose protections are to end their sessions after the present cycle, so that what these
   * have open is closed. Each takes its own out.
   */
  readonly renewals: Set<string>;
  /** The newest epoch that a session of this vault has had, by disk: a store may go back behind it. */
  readonly epochs: Map<string, number>;
}
