/**
 * Bookkeeping of a fetch job: which blocks of a mounted point are wanted, by which reads, and how far
 * each block of a job has come. `BlockFetcher` changes it; nothing here decides anything.
 */
import type { TidemarkError } from "../../errors.ts";
import type { PendingRead } from "./pending-read.ts";
import type { QueuedRange } from "./range-queue.ts";

interface BlockWaiter {
  readonly read: PendingRead;
  /** Where in the block its bytes begin. */
  readonly from: number;
  readonly into: Uint8Array;
}

/** A block that is wanted. `alone`: queued, and not to be fetched together with others. */
export interface WantedBlock {
  state: "queued" | "alone" | "running";
  readonly waiters: BlockWaiter[];
  /** What it holds, while a keeper takes it. Reads that come then are answered at once. */
  bytes: Buffer | undefined;
  /** The ranges that bring it, once they are known. */
  ranges: QueuedRange[];
}

export interface FetchJob {
  /**
   * Blocks [from, end). Those from `coreEnd` on are fetched only if they lie behind others of the
   * job in a segment.
   */
  readonly from: number;
  readonly coreEnd: number;
  readonly end: number;
  /**
   * Of each block: its buffer, once it needs one; granules of data and pieces to come; what of it
   * is damaged.
   */
  readonly buffers: (Buffer | undefined)[];
  readonly granules: Uint32Array;
  readonly piecesLeft: Uint32Array;
  readonly damage: (BlockDamage[] | undefined)[];
  /** 1 where the block is to be fetched by this job, and has not been handed on yet. */
  readonly isOwed: Uint8Array;
  /** Blocks that it counts for in `ahead`; 0 for a job that a read waited for from the start. */
  reservedBlocks: number;
  /** Why no further range of it is fetched. */
  failure: TidemarkError | undefined;
}

/** Bytes [from, end) of a block, and what is wrong with them. */
export interface BlockDamage {
  readonly from: number;
  readonly end: number;
  readonly error: TidemarkError;
}

export function newJob(from: number, coreEnd: number, end: number): FetchJob {
  const count = end - from;
  return {
    from,
    coreEnd,
    end,
    buffers: Array.from({ length: count }, () => undefined),
    granules: new Uint32Array(count),
    piecesLeft: new Uint32Array(count),
    damage: Array.from({ length: count }, () => undefined),
    isOwed: new Uint8Array(count),
    reservedBlocks: 0,
    failure: undefined,
  };
}
