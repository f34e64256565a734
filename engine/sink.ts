/**
 * Sink: the port through which the engine reaches an object store.
 *
 * The engine owns the port. `sink/` holds the adapters, and one conformance suite tests all of
 * them. An adapter serves exactly one container (Azure) or folder: the vault's.
 *
 * Every adapter guarantees:
 *
 * 1. Read after write. Once the promise of a write has resolved, every later read by any client
 *    sees the write, and it survives the death of the writing process. (An Azurite that is killed
 *    breaks this for up to five seconds; the engine detects that by ETag.)
 * 2. Atomic objects. `putObject` replaces a whole object or nothing; no reader sees a part.
 * 3. Conditions at the server. `ifAbsent`, `ifMatch`, leases and the page fence are decided where
 *    the data lies, atomically with the write that they guard, never by a check that the client
 *    makes first.
 * 4. ETags. An ETag changes with every write of content or sequence number and never repeats for
 *    one name. Lease operations do not change it.
 * 5. Absence. Only OBJECT_NOT_FOUND means that an object is absent, and VAULT_NOT_FOUND that the
 *    container is. No other failure is turned into absence or emptiness.
 * 6. Honest outcomes. A write that failed for certain throws why. A write that may or may not be
 *    executed, now or later, throws OUTCOME_UNKNOWN, and the adapter does not send it twice.
 *    Failures that certainly did nothing (a refused connection, 503, 429) are retried with back-off
 *    and jitter until the outage tolerance is used up: STORE_UNREACHABLE. Reads, lists, stats,
 *    lease calls, `clearPages` and `restorePages` are idempotent and are retried after every
 *    transient failure.
 * 7. Deadlines and buffers. Every call has a deadline of its own, ends soon after `signal` aborts
 *    (INTERRUPTED), and keeps no reference to the caller's bytes after it settles. The caller does
 *    not change the bytes of a write until then.
 *
 * Errors of every call: ACCESS_REFUSED, VAULT_NOT_FOUND, STORE_UNREACHABLE, STORE_REFUSED,
 * NO_SPACE, INTERRUPTED.
 */

/**
 * Most bytes of one `writePages`. Azure refuses more with 413; every adapter refuses more with
 * INVALID_ARGUMENT.
 */
export const pageWriteBytesMax: number = 4 * 1024 * 1024;

/**
 * Page offsets, lengths and sizes are multiples of this many bytes; every adapter refuses others
 * with INVALID_ARGUMENT.
 */
export const pageAlignmentBytes = 512;

/** Shortest term of a lease, as in Azure. */
export const leaseSecondsMin = 15;
/** Longest term of a lease, as in Azure. */
export const leaseSecondsMax = 60;

/** Options of every call. */
export interface CallOptions {
  /** Ends the call with INTERRUPTED. */
  readonly signal?: AbortSignal | undefined;
}

/** A whole object. */
export interface StoredObject {
  /** The caller owns these bytes. */
  readonly bytes: Uint8Array;
  readonly etag: string;
}

/** What can be told of an object without reading it. */
export interface ObjectStat {
  readonly etag: string;
  readonly sizeBytes: number;
}

/** An object or page object of a listing. */
export interface ListedObject extends ObjectStat {
  readonly name: string;
}

/** What can be told of a page object without reading it. */
export interface PagesStat extends ObjectStat {
  /** Fences writes: see `PageFence`. */
  readonly sequenceNumber: number;
  /**
   * End of the last page ever written, in bytes; 0 when none was. Pages that were cleared since may
   * or may not count.
   */
  readonly writtenBytes: number;
}

/** What a write leaves: the new ETag. */
export interface Written {
  readonly etag: string;
}

/** What `raiseSequenceNumber` leaves. */
export interface Raised extends Written {
  readonly sequenceNumber: number;
}

/**
 * The condition of a put: the name is free, or the object has this ETag. While the object is
 * leased, `leaseId` is needed; without it, and with one that does not hold the lease, the put fails
 * with LEASE_LOST.
 */
export type PutCondition = { readonly ifAbsent: true } | { readonly ifMatch: string; readonly leaseId?: string };

/**
 * The condition of a page write. Where it does not hold, the write fails with CONDITION_FAILED and
 * changes nothing.
 */
export interface PageFence {
  /** The sequence number that the page object must have. */
  readonly sequenceNumber: number;
  /** The ETag that the page object must have, when given. */
  readonly etag?: string;
}

/**
 * An object store. Names are relative, `/`-separated, of characters [a-z0-9._~-], at most 512 long
 * and 240 between slashes, no empty, `.` or `..` part; every call refuses other names with
 * INVALID_ARGUMENT. No name is the folder of another (`a` and `a/b`): a file system cannot hold
 * both.
 */
export interface Sink extends AsyncDisposable {
  /** Address of the store, for messages and logs. Holds no secret. */
  readonly description: string;

  /** What holds for this store beyond the common contract. */
  readonly capabilities: {
    /** Whether page objects are page blobs, which Azure can attach as disks. */
    readonly attachablePages: boolean;
    /**
     * After this many ms a killed store has not forgotten what it acknowledged. 0 for all stores
     * but an Azurite.
     */
    readonly settlingMs: number;
  };

  /**
   * How far the clock of this machine was ahead of the store's at its last answer, in ms. 0 where
   * the store has none, and before its first answer.
   */
  readonly clockAheadMs: number;

  /** Creates the container. Returns false when it already exists. */
  createContainer(options?: CallOptions): Promise<boolean>;

  // ---- Objects: small, whole, versioned by ETag ----

  /**
   * Reads a whole object. An object larger than `sizeBytesMax` is refused unread with DAMAGED.
   * Errors: OBJECT_NOT_FOUND.
   */
  getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject>;

  /**
   * Writes a whole object. Errors: OBJECT_EXISTS (`ifAbsent`), CONDITION_FAILED (`ifMatch`),
   * LEASE_LOST (lease missing, expired or another's), OUTCOME_UNKNOWN.
   */
  putObject(name: string, bytes: Uint8Array, condition: PutCondition, options?: CallOptions): Promise<Written>;

  /** ETag and size of an object or a page object. Errors: OBJECT_NOT_FOUND. */
  statObject(name: string, options?: CallOptions): Promise<ObjectStat>;

  /** Deletes an object or page object. An absent one is no error. Errors: LEASE_HELD. */
  deleteObject(name: string, options?: CallOptions): Promise<void>;

  /** Every object and page object whose name starts with `prefix`, in any order. */
  list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject>;

  // ---- Leases on an existing object ----

  /**
   * Takes the lease, or extends it when `leaseId` (a UUID) already holds it. Errors: LEASE_HELD
   * (another id holds it), OBJECT_NOT_FOUND, INVALID_ARGUMENT (no UUID, or a term that is not
   * `leaseSecondsMin` to `leaseSecondsMax`).
   */
  acquireLease(name: string, leaseId: string, durationSeconds: number, options?: CallOptions): Promise<void>;

  /**
   * Extends the lease by its full duration. An expired one is held again, unless the object was
   * written or leased since it expired. Errors: LEASE_LOST.
   */
  renewLease(name: string, leaseId: string, options?: CallOptions): Promise<void>;

  /**
   * Hands a held lease from one id to another atomically, with its full duration again. Idempotent.
   * Errors: LEASE_LOST (`fromId` does not hold it).
   */
  changeLease(name: string, fromId: string, toId: string, options?: CallOptions): Promise<void>;

  /** Releases the lease. One that is not held any more is no error, nor is an absent object. */
  releaseLease(name: string, leaseId: string, options?: CallOptions): Promise<void>;

  // ---- Page objects: fixed size, sparse, written at offsets under a fence ----

  /** Creates a page object of zeros. Errors: OBJECT_EXISTS, OUTCOME_UNKNOWN. */
  createPages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<Written>;

  /**
   * Writes `bytes` at `offset`, atomically and durably. Errors: CONDITION_FAILED, OBJECT_NOT_FOUND,
   * OUTCOME_UNKNOWN, INVALID_ARGUMENT (alignment, size, beyond the end).
   */
  writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options?: CallOptions,
  ): Promise<Written>;

  /**
   * Fills `into` from `offset`, any alignment. Bytes never written are zero. Errors:
   * OBJECT_NOT_FOUND, DAMAGED (the object ends before the range does).
   */
  readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void>;

  /**
   * Frees [offset, offset + length), in whole pages: it reads as zeros from then on, durably.
   * Idempotent and retried inside. There is no fence: no client may write there. The ETag changes.
   * A call that fails may have cleared a part. Errors: OBJECT_NOT_FOUND, INVALID_ARGUMENT
   * (alignment, no length, beyond the end).
   */
  clearPages(name: string, offset: number, length: number, options?: CallOptions): Promise<void>;

  /**
   * Repairs a damaged page object, so that it can be read and written in full again, or creates it.
   * Afterwards it has at least `sizeBytes` and `sequenceNumber`; what is left of its pages stays,
   * all others are zeros. If anything was changed, the ETag changes. Idempotent and retried inside.
   * There is no fence: no client may write there. Errors: DAMAGED (the name belongs to another kind
   * of object), INVALID_ARGUMENT.
   */
  restorePages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<void>;

  /** Size, ETag, sequence number and end of what was written. Errors: OBJECT_NOT_FOUND. */
  statPages(name: string, options?: CallOptions): Promise<PagesStat>;

  /**
   * Raises the sequence number to `atLeast` if it is lower; never lowers it. From then on every
   * write with a lower fence fails. Idempotent, retried inside. Errors: OBJECT_NOT_FOUND.
   */
  raiseSequenceNumber(name: string, atLeast: number, options?: CallOptions): Promise<Raised>;
}
