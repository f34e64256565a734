/** Places in a store, as operations hand them on. */
import type { Notice } from "../notice.ts";
import type { Store } from "./store.ts";

export interface VaultPlace {
  readonly store: Store;
  /** Id of the vault. */
  readonly vault: string;
  readonly signal?: AbortSignal | undefined;
}

export interface DiskPlace extends VaultPlace {
  /** Name of the disk, in Unicode NFC. */
  readonly disk: string;
}

/** A place, and what gets the notices of an operation there. */
export interface NoticedDisk extends DiskPlace {
  readonly onNotice: (notice: Notice) => void;
}
