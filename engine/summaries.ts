/**
 * What the engine's operations take and give back: plain data, sizes in bytes, times in milliseconds. The command line prints these
 * very objects as JSON, so a name here is a contract.
 */

import type { ApplicationRecord, DigestName, GroupRecord } from "./store/format/documents.ts";
import type { Consistency, Extent, Volume } from "./volume.ts";

/** Where an operation stands. Emitted a few times a second and once at the end. */
export interface Progress {
  readonly phase: "scan" | "commit" | "materialize" | "verify";
  /** Bytes of the volume dealt with so far, holes included. */
  readonly doneBytes: number;
  /** Bytes of the volume to deal with. */
  readonly totalBytes: number;
  /** Bytes sent to the store (replicate) or read from it (materialize, verify). */
  readonly transferredBytes: number;
}

/** Something a user should hear of although the operation goes on: one sentence, with a stable code. */
export interface Notice {
  readonly code:
    | "STATE_LOST"
    | "STATE_NOT_SAVED"
    | "SEAT_TAKEN_OVER"
    | "STORE_REGRESSED"
    | "SEGMENT_DAMAGED"
    | "PARENT_DAMAGED"
    | "HISTORY_DAMAGED"
    | "HOLD_REFUSED"
    | "HOLD_LOST"
    | "POINT_DAMAGED"
    | "PIN_DAMAGED"
    | "PRUNE_FAILED"
    | "DISK_SKIPPED"
    | "VAULT_AT_RISK"
    | "SOURCE_CHANGED"
    | "RESUMED";
  readonly message: string;
}

/** What every long operation takes. */
export interface OperationOptions {
  readonly onProgress?: ((progress: Progress) => void) | undefined;
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  /** Ends the operation with INTERRUPTED; nothing is written after it settles. */
  readonly signal?: AbortSignal | undefined;
}

export interface ReplicateOptions extends OperationOptions {
  readonly disk: string;
  readonly volume: Volume;
  /** What has changed, if somebody knows: only that is read. Absent: the whole volume is looked at. */
  readonly changes?: ChangeSource | undefined;
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

export interface ReplicateSummary {
  readonly disk: string;
  /** The new point's id: 32 hexadecimal digits that name its exact content. */
  readonly point: string;
  readonly sequence: number;
  readonly consistency: Consistency;
  readonly volumeBytes: number;
  /** Bytes read from the source. */
  readonly scannedBytes: number;
  /** Bytes of the granules that differ from the parent point; granules that became zero count. */
  readonly changedBytes: number;
  /** Bytes of the granules that became zero. */
  readonly zeroBytes: number;
  /** Plain bytes of chunks that the vault already held. */
  readonly dedupedBytes: number;
  /** Plain bytes of chunks that were new. */
  readonly newBytes: number;
  /** Bytes written to segments: compressed payloads, tables and padding. */
  readonly storedBytes: number;
  /** Bytes written as map, manifest and head. */
  readonly metadataBytes: number;
  /** Calls made to the store. */
  readonly requests: number;
  readonly elapsedMs: number;
}

export interface DiskSummary {
  readonly disk: string;
  readonly points: number;
  /** Newest point, absent while the disk has none. */
  readonly latest?: PointSummary;
}

/** What lists points. */
export interface PointsOptions {
  /** Only the newest so many. Default: all. */
  readonly limit?: number | undefined;
  /** Told of pages of points that cannot be read, whose points are then left out. Absent, one ends the listing with DAMAGED. */
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface PointSummary {
  readonly disk: string;
  readonly sequence: number;
  readonly point: string;
  /** Time of the cut, ISO 8601 in UTC. */
  readonly time: string;
  readonly consistency: Consistency;
  /** The multi-disk point that this one is a part of; null also while a disk of the group has no point with this id. */
  readonly group: { readonly id: string; readonly name: string } | null;
  /** From the cut to the commit; null where it was not measured. */
  readonly lagMs: number | null;
  readonly volumeBytes: number;
  readonly changedBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
}

/** A point of a list, and what keeps it from being pruned: what keeps one disk's part of a group's point keeps all of them. */
export interface ListedPoint extends PointSummary {
  /** By a pin that has not expired. */
  readonly pinned: boolean;
  /** Somebody reads it, or did so until lately: a hold is cleared away by the first prune that finds its reader dead. */
  readonly held: boolean;
  /** When all of it was last read back and proved, ISO 8601 in UTC; null: never, as far as is known. */
  readonly proved: string | null;
}

/** A user's wish that a point stays. */
export interface PinSummary {
  readonly name: string | null;
  /** ISO 8601 in UTC; null: for good. */
  readonly until: string | null;
}

export interface PinOptions {
  readonly disk: string;
  /** Sequence number, id, `latest`, or an ISO time (the newest point not younger). */
  readonly point: string;
  /** What the pin is called. A point may have several, of different names. */
  readonly name?: string | undefined;
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface PointDetail extends PointSummary {
  /** What keeps it from being pruned. */
  readonly pins: readonly PinSummary[];
  /** When all of it was last read back and proved, ISO 8601 in UTC; null: never, as far as is known. */
  readonly proved: string | null;
  /** Null for a point that was not cut together with others. */
  readonly group: GroupRecord | null;
  /** True when a disk of `group` has no point that bears its id: then this is a point of its own. */
  readonly groupIncomplete: boolean;
  /** How the application was brought to rest; null when none was asked to. */
  readonly application: ApplicationRecord | null;
  /** Id of the point it was made from, null for the first. */
  readonly parent: string | null;
  readonly zeroBytes: number;
  readonly dedupedBytes: number;
  /** Sorted tables whose overlay is the point's map, newest first. */
  readonly runs: readonly { readonly entries: number; readonly leaves: number; readonly bytes: number }[];
  /** The version of Tidemark that wrote it. */
  readonly writtenBy: string;
}

export interface VaultSummary {
  readonly vault: string;
  readonly description: string;
  readonly formatVersion: number;
  readonly blockBytes: number;
  readonly granuleBytes: number;
  readonly digest: DigestName;
  readonly codec: "lz4";
  readonly encryption: "none";
  readonly created: string;
  readonly disks: number;
}

export type ImageFormat = "raw" | "vhd";

/**
 * How a point is written out. `create`: the target must not exist. `replace`: a file that exists is replaced once the image is
 * whole. `in-place`: an existing image is changed where it differs; it bears a half state meanwhile.
 */
export type MaterializeMode = "create" | "replace" | "in-place";

export interface MaterializeOptions extends OperationOptions {
  readonly disk: string;
  /** Sequence number, id, `latest`, or an ISO time (the newest point not younger). */
  readonly point: string;
  /** Path of a file or block device, or `blob:NAME` for a page blob in the vault's container. */
  readonly to: string;
  /** Default: `vhd` for `blob:`, else `raw`. */
  readonly format?: ImageFormat | undefined;
  /** Default: `create`. A block device needs `in-place` or `replace`, which mean the same there. */
  readonly mode?: MaterializeMode | undefined;
  /** Needed to write over the very file or device that this disk was last replicated from. Default: false, TARGET_IS_SOURCE. */
  readonly overwriteSource?: boolean | undefined;
}

export interface MaterializeSummary {
  readonly disk: string;
  readonly point: string;
  readonly sequence: number;
  readonly target: string;
  readonly format: ImageFormat;
  readonly volumeBytes: number;
  /** Bytes written to the target; zeros left as holes and unchanged ranges do not count. */
  readonly bytesWritten: number;
  /** Bytes read from the store. */
  readonly bytesRead: number;
  readonly elapsedMs: number;
}

export interface MountOptions {
  readonly disk: string;
  /** Sequence number, id, `latest`, or an ISO time (the newest point not younger). */
  readonly point: string;
  /** Take writes, into an overlay. The vault is never changed. Default: false. */
  readonly writable?: boolean | undefined;
  /** File that keeps what is written; it is made, or goes on where it was left. Absent: what is written is gone with the mount. */
  readonly overlay?: string | undefined;
  /** Memory for blocks, at least 16 of the vault's. Default: 256 MiB. */
  readonly cacheBytes?: number | undefined;
  /** Where an overlay without a name lies. Default: the system's folder for temporary files. */
  readonly temporaryFolder?: string | undefined;
  /** Told while it is mounted, too: POINT_DAMAGED once for each range that cannot be read back, HOLD_LOST. */
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  /** Ends the mounting, not what has been mounted. */
  readonly signal?: AbortSignal | undefined;
}

/** What has been read and written of a mounted point so far. */
export interface MountSummary {
  readonly disk: string;
  readonly point: string;
  readonly sequence: number;
  readonly volumeBytes: number;
  readonly writable: boolean;
  /** The overlay that is kept; null when there is none, or none that is kept. */
  readonly overlay: string | null;
  /** Bytes handed to readers, from wherever they came. */
  readonly bytesRead: number;
  /** Bytes that writers brought, zeros and trims included. */
  readonly bytesWritten: number;
  /** Bytes read from the store's segments, those read ahead included. */
  readonly bytesFetched: number;
  /** Blocks of the point that readers found in memory, and blocks that they waited for. */
  readonly cacheHits: number;
  readonly cacheMisses: number;
  /** Memory that blocks take now. */
  readonly cachedBytes: number;
  readonly elapsedMs: number;
}

export interface VerifyOptions extends OperationOptions {
  /** Absent: every disk. */
  readonly disk?: string | undefined;
  /** Absent: every point. */
  readonly point?: string | undefined;
  /** Compare the point (default `latest`) with this volume too. */
  readonly source?: Volume | undefined;
  /**
   * Heal damaged chunks whose content the source, or another chunk of the vault, still holds. Points are then not compared with the source. Default: only tell
   * of them.
   */
  readonly heal?: boolean | undefined;
}

/** One thing that is wrong, and where: with a point's extent when data is damaged, without when a whole object is. */
export interface Damage {
  readonly disk: string;
  readonly sequence: number | null;
  readonly point: string | null;
  readonly extent: Extent | null;
  /** Name of the damaged object in the store; for `SOURCE_DIFFERS` the source's description. */
  readonly object: string;
  readonly code: "DAMAGED" | "OBJECT_NOT_FOUND" | "FORMAT_UNSUPPORTED" | "SOURCE_DIFFERS";
  readonly message: string;
  /** It has been healed since: every point that needs it can be read again. */
  readonly healed: boolean;
}

export interface VerifySummary {
  readonly checkedPoints: number;
  readonly checkedChunks: number;
  /** Plain bytes that were proved. */
  readonly checkedBytes: number;
  readonly damaged: readonly Damage[];
  readonly elapsedMs: number;
}
