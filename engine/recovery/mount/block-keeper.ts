/** Write-through of fetched blocks: what an image that is being filled tells the fetcher of a mounted point. */

/** Keeps what is fetched elsewhere than in the cache, so that it is never fetched again. */
export interface BlockKeeper {
  /** False while no more may be fetched than what reads wait for. */
  readonly wantsNeighbours: boolean;
  /** False when nothing of the range has to be fetched ahead. */
  isNeeded(offset: number, length: number): boolean;
  /**
   * Takes whole blocks that have been fetched and proved. `bytes` may be read until the promise
   * settles. True: they are kept, and are not asked for again. Never rejects.
   */
  keep(offset: number, bytes: Uint8Array): Promise<boolean>;
}
