/**
 * Volume: the port through which the engine reads a disk. An image file, a block device, an NBD
 * export, or what an embedder implements. A volume has a size and bytes; what it can tell of holes
 * and of its consistency is optional.
 */

/**
 * Half-open range [offset, offset + length), in bytes. Lists of extents are sorted and disjoint.
 */
export interface Extent {
  readonly offset: number;
  readonly length: number;
}

/**
 * Consistency of a point. `crash`: exactly what a power failure at the cut would have left. `app`:
 * the same, and hooks had frozen the application. `fuzzy`: the source changed, or may have changed,
 * while it was read.
 */
export type Consistency = "crash" | "app" | "fuzzy";

/**
 * A source of bytes. Calls of `read` overlap; all other calls come one at a time.
 *
 * @example
 * ```ts
 * const volume: Volume = {
 *   description: "zeros",
 *   sizeBytes: () => Promise.resolve(4096),
 *   read: (_offset, into) => Promise.resolve(void into.fill(0)),
 * };
 * ```
 */
export interface Volume {
  /** A path or a name, for messages. */
  readonly description: string;
  /**
   * Size in bytes, 0 or more, of any alignment. Asked at each cycle's cut, so a volume may grow
   * between cycles.
   */
  sizeBytes(): Promise<number>;
  /**
   * Fills `into` from byte `offset`; the range lies inside the volume. `into` is a view of shared
   * memory and the caller's. Errors: SOURCE_UNREADABLE, SOURCE_SHRUNK.
   */
  read(offset: number, into: Uint8Array): Promise<void>;
  /**
   * File descriptor at which pread(2) reads what `read` reads, if there is one. Worker threads then
   * read for themselves.
   */
  readonly descriptor?: number | undefined;
  /** Given each read that a thread makes at `descriptor`, and gives it back. */
  reading?<Result>(work: Promise<Result>): Promise<Result>;
  /**
   * Called once for each range that was read at `descriptor`: corrects it to what `read` returns.
   * Returns whether it changed anything.
   */
  amend?(offset: number, into: Uint8Array): boolean | Promise<boolean>;
  /**
   * The extents that may hold data, sorted and disjoint, of any alignment. Everything else must
   * read as zeros. Absent: the whole volume may hold data.
   */
  allocated?(sizeBytes: number): AsyncIterable<Extent>;
  /** Called once before the first read of a scan. */
  beginScan?(): Promise<void>;
  /**
   * Called once after the last read of a scan. Returns the consistency of what was read since
   * `beginScan`. Absent: `fuzzy`.
   */
  endScan?(): Promise<Consistency>;
  /**
   * Releases what the volume holds. The engine does not call it: the volume belongs to the caller.
   */
  close?(): Promise<void>;
}

/** A list of the changes since a point. `ChangeTracker` implements it. */
export interface ChangeSource {
  /**
   * Id of the point since which the list holds all changes. Not used while another point is newest.
   */
  readonly since: string | undefined;
  /** The extents that may have changed, sorted and disjoint. Called when a cycle begins. */
  begin(): Iterable<Extent> | AsyncIterable<Extent>;
  /** The cycle has committed the point with this id. */
  committed(point: string): void;
  /** The cycle has ended without a point: its changes belong to the next list again. */
  abandoned(): void;
}
