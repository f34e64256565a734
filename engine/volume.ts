/**
 * What the engine can read: an image file, a block device, or anything an embedder implements. A volume knows its size and its
 * bytes; what it can tell of holes and of its own stillness is optional.
 */

/** Half-open byte range [offset, offset + length). Lists of extents are sorted and disjoint. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
}

/**
 * How far a point can be trusted to be one instant of the disk. `crash`: exactly what a power failure at the cut would have left.
 * `app`: the application had come to rest. `fuzzy`: the source changed, or may have changed, while it was read.
 */
export type Consistency = "crash" | "app" | "fuzzy";

/** A source of bytes. Calls to `read` overlap; everything else is called by one caller at a time. */
export interface Volume {
  /** For messages: a path or a name. */
  readonly description: string;
  /** Size in bytes, any number from 0 up. Read again at each cycle's cut, so a volume may grow between cycles. */
  sizeBytes(): Promise<number>;
  /** Fills `into` (a view of shared memory) from `offset`; the range lies inside the volume. Errors: SOURCE_UNREADABLE, SOURCE_SHRUNK. */
  read(offset: number, into: Uint8Array): Promise<void>;
  /**
   * Descriptor at which pread(2) reads what `read` reads, if there is one: worker threads then read for themselves, which spares
   * two hand-overs a slab, and `read` is asked only for what they could not get.
   */
  readonly descriptor?: number | undefined;
  /**
   * Called for each range that was read at `descriptor`, once: puts right what `read` would have given otherwise. True when it
   * changed anything.
   */
  amend?(offset: number, into: Uint8Array): boolean | Promise<boolean>;
  /**
   * The extents that may hold anything but zeros, sorted and disjoint, of any alignment. Absent: the whole volume may. What it
   * leaves out must read as zeros.
   */
  allocated?(sizeBytes: number): AsyncIterable<Extent>;
  /** Called once before the first read of a scan. */
  beginScan?(): Promise<void>;
  /** Called once after the last read: how consistent was what has been read since `beginScan`? Absent: `fuzzy`. */
  endScan?(): Promise<Consistency>;
  close?(): Promise<void>;
}

/** A list of changes since a point; `ChangeTracker` is one. */
export interface ChangeSource {
  /** Id of the point that the list begins at. While the disk's newest point is another, the list is not used. */
  readonly since: string | undefined;
  /**
   * What may have changed, sorted and disjoint. Called when a cycle begins, whether it uses the list or not: what changes from then
   * on belongs to the next list.
   */
  begin(): Iterable<Extent> | AsyncIterable<Extent>;
  /** The cycle's point is committed. */
  committed(point: string): void;
  /** No point came of it. */
  abandoned(): void;
}
