/**
 * The port through which the engine reaches a store. The engine owns it; `sink/` holds the adapters and `test/` the one conformance
 * suite that every adapter passes. An adapter holds exactly one container (Azure) or folder, the vault's.
 *
 * What every adapter guarantees:
 *
 * 1. Read after write. Once a write's promise has resolved, every later read by anyone sees it, and it survives the death of
 *    the writing process. (An Azurite that is killed breaks this for up to five seconds; the engine detects it by ETag.)
 * 2. Atomic objects. `putObject` replaces a whole object or nothing; a reader never sees a part.
 * 3. Server-side conditions. `ifAbsent`, `ifMatch`, leases and the page fence are decided where the data lies, atomically with the
 *    write they guard, never by a check that the client makes first.
 * 4. ETags change with every write of content or sequence number and never repeat for one name. Lease operations do not change them.
 * 5. Absence is only ever reported as OBJECT_NOT_FOUND (VAULT_NOT_FOUND when the container itself is absent); no other failure
 *    is turned into absence or emptiness.
 * 6. Outcomes are honest. A write that failed for certain throws what failed; a write that may or may not have been executed, now or
 *    later, throws OUTCOME_UNKNOWN and was not sent twice by the adapter. Failures that certainly did nothing (a refused
 *    connection, 503, 429) are retried inside with back-off and jitter until the outage tolerance is used up: STORE_UNREACHABLE.
 *    Reads, lists, stats, lease calls, the clearing and the restoring of pages are idempotent and retried inside in every transient case.
 * 7. Every call has a deadline of its own, ends soon after `signal` aborts (INTERRUPTED), and keeps no reference to the caller's bytes
 *    after it settles. The bytes given to a write must not change until then.
 *
 * Errors common to all calls: ACCESS_REFUSED, VAULT_NOT_FOUND, STORE_UNREACHABLE, STORE_REFUSED, NO_SPACE, INTERRUPTED.
 */

/** Largest body of one `writePages`: Azure refuses more than 4 MiB with 413, so every adapter does (INVALID_ARGUMENT). */
export const pageWriteBytesMax: number = 4 * 1024 * 1024;

/** Page offsets, lengths and sizes are multiples of this; every adapter refuses others (INVALID_ARGUMENT). */
export const pageAlignmentBytes = 512;

/** Finite leases last between these, as in Azure. */
export const leaseSecondsMin = 15;
export const leaseSecondsMax = 60;

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

export interface StoredObject {
  readonly bytes: Uint8Array;
  readonly etag: string;
}

export interface ObjectStat {
  readonly etag: string;
  readonly sizeBytes: number;
}

export interface ListedObject extends ObjectStat {
  readonly name: string;
}

export interface PagesStat extends ObjectStat {
  readonly sequenceNumber: number;
  /** End of the last page ever written, 0 when none was. Pages that have been cleared since may or may not count. */
  readonly writtenBytes: number;
}

/** When a put may take effect. `leaseId` is needed while the object is leased. */
export type PutCondition = { readonly ifAbsent: true } | { readonly ifMatch: string; readonly leaseId?: string };

/** What a page write must find at the server, or CONDITION_FAILED and nothing is changed. */
export interface PageFence {
  /** Must equal the blob's sequence number. */
  readonly sequenceNumber: number;
  /** Must equal the blob's ETag, when given. */
  readonly etag?: string;
}

/**
 * Names are relative, `/`-separated, of characters [a-z0-9._~-], at most 512 long and 240 between slashes, no empty, `.` or `..`
 * part. No name is the folder of another (`a` and `a/b`): a file system cannot hold both.
 */
export interface Sink extends AsyncDisposable {
  /** Where this store is, for messages and logs. Holds no secret. */
  readonly description: string;

  /** What the adapter can do beyond the common contract. */
  readonly capabilities: {
    /** Page objects of this store are page blobs that Azure can attach as a disk. */
    readonly attachablePages: boolean;
    /** What was acknowledged this long ago, in ms, is never forgotten, not even by a store that is killed: 0, but for an Azurite. */
    readonly settlingMs: number;
  };

  /** How often a connection to the store has failed or been lost so far. When it rises, the store may have gone back in time. */
  readonly interruptions: number;

  /** Creates the container. Returns false when it already exists. */
  createContainer(options?: CallOptions): Promise<boolean>;

  // ---- Objects: small, whole, versioned by ETag ----

  /** Reads a whole object. An object larger than `sizeBytesMax` is refused unread with DAMAGED. Errors: OBJECT_NOT_FOUND. */
  getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject>;

  /**
   * Writes a whole object. Errors: OBJECT_EXISTS (`ifAbsent`), CONDITION_FAILED (`ifMatch`), LEASE_LOST (lease missing, expired or
   * another's), OUTCOME_UNKNOWN.
   */
  putObject(name: string, bytes: Uint8Array, condition: PutCondition, options?: CallOptions): Promise<{ readonly etag: string }>;

  /** ETag and size. Errors: OBJECT_NOT_FOUND. */
  statObject(name: string, options?: CallOptions): Promise<ObjectStat>;

  /** Deletes an object or page object; one that is absent is no error. Errors: LEASE_HELD. */
  deleteObject(name: string, options?: CallOptions): Promise<void>;

  /** Every object and page object whose name starts with `prefix`, in no promised order. */
  list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject>;

  // ---- Leases on an existing object ----

  /**
   * Takes the lease, or extends it when `leaseId` (a UUID) already holds it. Errors: LEASE_HELD (another id holds it),
   * OBJECT_NOT_FOUND.
   */
  acquireLease(name: string, leaseId: string, durationSeconds: number, options?: CallOptions): Promise<void>;

  /** Extends the lease by its full duration. Errors: LEASE_LOST. */
  renewLease(name: string, leaseId: string, options?: CallOptions): Promise<void>;

  /**
   * Hands a held lease from one id to another atomically, with its full duration again. Idempotent. Errors: LEASE_LOST (`fromId`
   * does not hold it).
   */
  changeLease(name: string, fromId: string, toId: string, options?: CallOptions): Promise<void>;

  /** Gives the lease up. One that is not held any more is no error. */
  releaseLease(name: string, leaseId: string, options?: CallOptions): Promise<void>;

  // ---- Page objects: fixed size, sparse, written at offsets under a fence ----

  /** Creates a page object of zeros. Errors: OBJECT_EXISTS, OUTCOME_UNKNOWN. */
  createPages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<{ readonly etag: string }>;

  /**
   * Writes `bytes` at `offset`, atomically and durably. Errors: CONDITION_FAILED, OBJECT_NOT_FOUND, OUTCOME_UNKNOWN,
   * INVALID_ARGUMENT (alignment, size, beyond the end).
   */
  writePages(name: string, offset: number, bytes: Uint8Array, fence: PageFence, options?: CallOptions): Promise<{ readonly etag: string }>;

  /**
   * Fills `into` from `offset`, any alignment. Bytes never written are zero. Errors: OBJECT_NOT_FOUND, DAMAGED (the object ends
   * before the range does).
   */
  readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void>;

  /**
   * Gives [offset, offset + length) back, in whole pages and at most the whole object: it reads as zeros from then on, durably, and the
   * store need not keep room for it. Idempotent and retried inside: repeating it, late or twice, changes nothing more. There is no
   * fence, so it is for whoever knows that nobody writes there any more; and as the ETag changes, a writer whose fence names an earlier
   * one is refused. A call that fails may have cleared a part. What was clear already is no error. Errors: OBJECT_NOT_FOUND,
   * INVALID_ARGUMENT (alignment, no length, beyond the end).
   */
  clearPages(name: string, offset: number, length: number, options?: CallOptions): Promise<void>;

  /**
   * Makes a page object that has been spoiled one that can be read and written in full again: one that is absent is created, one that was cut short is given
   * its length back, and where the store keeps facts of its own beside the pages that cannot be read any more, they are made anew. It then has `sizeBytes`,
   * or what it had if that is more, and a sequence number of `sequenceNumber` at least; what is left of its pages stays, all else is zeros. When anything
   * was wrong the ETag changes. Idempotent and retried inside; there is no fence, so it is for whoever knows that nobody writes there any more. Errors:
   * DAMAGED (the name is another kind of object's), INVALID_ARGUMENT.
   */
  restorePages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<void>;

  /** Errors: OBJECT_NOT_FOUND. */
  statPages(name: string, options?: CallOptions): Promise<PagesStat>;

  /**
   * Raises the sequence number to `atLeast` if it is lower (never lowers it): from then on writes fenced below fail. Idempotent,
   * retried inside.
   */
  raiseSequenceNumber(
    name: string,
    atLeast: number,
    options?: CallOptions,
  ): Promise<{ readonly etag: string; readonly sequenceNumber: number }>;
}
