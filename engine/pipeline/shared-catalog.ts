/**
 * Shared catalog: one catalog for all protected disks of a vault in this process, loaded once.
 *
 * Invariant: a catalog that failed to load, or that tells of data that the store does not hold, is
 * not handed out again.
 */
import path from "node:path";
import type { Notice } from "../notice.ts";
import type { Store } from "../store/store.ts";
import { type Catalog, loadCatalog } from "./catalog.ts";
import type { VaultContext } from "./vault-context.ts";

interface Sharing {
  readonly loading: Promise<Catalog>;
  loaded: Catalog | undefined;
}

export class SharedCatalog {
  #sharing: Sharing | undefined;

  /** The catalog; the first call loads it. Errors: as `Catalog.load`. */
  async open(
    context: Pick<VaultContext, "document" | "indexBytesMax" | "stateFolder">,
    store: Store,
    onNotice: (notice: Notice) => void,
  ): Promise<Catalog> {
    const { document, stateFolder } = context;
    const folder = stateFolder === undefined ? undefined : path.join(stateFolder, document.vault);
    const sharing = (this.#sharing ??= {
      loading: loadCatalog(context, store, { folder, onNotice }),
      loaded: undefined,
    });
    try {
      sharing.loaded = await sharing.loading;
      return sharing.loaded;
    } catch (error) {
      if (this.#sharing === sharing) this.#sharing = undefined;
      throw error;
    }
  }

  /** Stops handing out `catalog`. */
  drop(catalog: Catalog): void {
    if (this.#sharing?.loaded === catalog) this.#sharing = undefined;
  }
}
