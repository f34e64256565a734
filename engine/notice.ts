/** Notices: facts that an operation reports while it goes on. */

/**
 * A fact that the user should know although the operation goes on: one sentence for people, and a
 * stable code for programs.
 */
export interface Notice {
  readonly code:
    | "STATE_LOST"
    | "STATE_NOT_SAVED"
    | "SEAT_TAKEN_OVER"
    | "STORE_REGRESSED"
    | "POINTS_DATED_AHEAD"
    | "SEGMENT_DAMAGED"
    | "PARENT_DAMAGED"
    | "HISTORY_DAMAGED"
    | "HOLD_REFUSED"
    | "IMAGE_NOT_FILLED"
    | "HOLD_LOST"
    | "POINT_DAMAGED"
    | "PIN_DAMAGED"
    | "PIN_LEFT"
    | "PIN_REFUSED"
    | "LABEL_DAMAGED"
    | "AGENT_DAMAGED"
    | "LABEL_NOT_SAVED"
    | "PRUNE_FAILED"
    | "DISK_SKIPPED"
    | "DISK_UNFINISHED"
    | "VAULT_SKIPPED"
    | "VAULT_AT_RISK"
    | "SOURCE_CHANGED"
    | "SOURCE_UNREACHED"
    | "RUN_NOT_ENDED"
    | "RUN_FORGOTTEN"
    | "STORE_AWAY"
    | "COLLECTION_ACTIVE"
    | "NO_ANSWER"
    | "REPLICA_TAKEN"
    | "RESUMED";
  readonly message: string;
}

/** Options of an operation that can report notices. */
export interface NoticeOptions {
  /** Gets the notices. Absent: they are dropped. */
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  /** Ends the operation with INTERRUPTED. Nothing is written after its promise has settled. */
  readonly signal?: AbortSignal | undefined;
}
