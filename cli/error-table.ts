/**
 * Reference of error codes: what each code means and what to do. `docs/errors.md` is generated from
 * this table.
 *
 * An error that brings no remedy of its own is printed with the remedy of its code.
 */
import type { ErrorCode } from "../engine/index.ts";

export interface ErrorEntry {
  /** A statement about the object that failed. */
  readonly meaning: string;
  /** An imperative, with the command to type where there is one. */
  readonly remedy: string;
}

export const errorTable: Readonly<Record<ErrorCode, ErrorEntry>> = {
  INVALID_ARGUMENT: { meaning: "the call or the command is wrong", remedy: "change what the message names" },
  UNSUPPORTED: {
    meaning: "this store, platform or size does not have the feature",
    remedy: "use what the message names instead",
  },
  INTERRUPTED: {
    meaning: "^C, a signal or the caller ended the work",
    remedy: "run the command again; what was shipped is reused",
  },
  VAULT_NOT_FOUND: {
    meaning: "the container does not exist, or holds no vault",
    remedy: "check the address, or create a vault with `tidemark vault init`",
  },
  VAULT_EXISTS: { meaning: "the place holds a vault already", remedy: "use that vault, or name another place" },
  DISK_NOT_FOUND: {
    meaning: "the vault has no disk of that name",
    remedy: "list the disks with `tidemark disks list`",
  },
  POINT_NOT_FOUND: {
    meaning: "the disk has no such point, or the point is being pruned",
    remedy: "list the points with `tidemark points list --disk NAME`",
  },
  POINT_HELD: {
    meaning: "a pin, or a process that reads it, keeps a point of the disk",
    remedy: "remove the pin with `tidemark points unpin --disk NAME --point POINT`, or end the reader",
  },
  WRITER_ACTIVE: { meaning: "another process writes this disk", remedy: "wait until it ends, or stop it" },
  SEAT_LOST: {
    meaning: "another process took over the writer lease of this disk",
    remedy: "let that process work, or stop it and run the command again",
  },
  COLLECTION_ACTIVE: { meaning: "another process collects garbage in this vault", remedy: "wait until it ends" },
  ACCESS_REFUSED: {
    meaning: "a key is wrong, a SAS has expired, or a right or file permission is missing",
    remedy: "grant what the message names",
  },
  KEY_ALTERED: {
    meaning: "a registration key is not as it was made",
    remedy: "copy the file again, byte for byte, or make a key with `tidemark vault key`",
  },
  KEY_EXPIRED: {
    meaning: "the time is over in which a machine can register with the key",
    remedy: "make another key with `tidemark vault key`",
  },
  KEY_FOREIGN: {
    meaning: "a registration key is of another vault, or of a registration secret that the vault has no more",
    remedy: "make a key of this vault with `tidemark vault key`",
  },
  KEY_USED: {
    meaning: "another machine is registered under the name of the key",
    remedy: "make a key with another name with `tidemark vault key`, or run `tidemark agents remove NAME` first",
  },
  AGENT_REMOVED: {
    meaning: "the vault does not list the agent of this machine any more",
    remedy: "make a new key with `tidemark vault key`, and run `tidemark agent register --key FILE` on the machine",
  },
  OBJECT_NOT_FOUND: {
    meaning: "an object of the vault is gone from the store",
    remedy: "list the points that need it with `tidemark verify`",
  },
  OBJECT_EXISTS: {
    meaning: "an object stands where only Tidemark writes",
    remedy: "look at the object that the message names",
  },
  CONDITION_FAILED: { meaning: "the object changed under a conditional write", remedy: "run the command again" },
  LEASE_HELD: { meaning: "another process holds the lease of the object", remedy: "wait until that lease ends" },
  LEASE_LOST: { meaning: "this process lost the lease of the object", remedy: "run the command again" },
  OUTCOME_UNKNOWN: {
    meaning: "the store gave no answer to a write, which may still take effect",
    remedy: "run the command again; writes are fenced, so nothing is written twice",
  },
  STORE_UNREACHABLE: {
    meaning: "the store gave no answer for longer than the limit",
    remedy: "check network and store, then run the command again",
  },
  STORE_REFUSED: {
    meaning: "the store refused the request for a reason of its own",
    remedy: "act on the reason that the message repeats",
  },
  STORE_REGRESSED: {
    meaning: "the store lost writes that it had acknowledged",
    remedy: "run the command again; what the store lost is shipped again",
  },
  DAMAGED: {
    meaning: "stored bytes fail their check, or are gone",
    remedy: "find the points with `tidemark verify`; restore their data from the disk with `tidemark verify --heal`",
  },
  FORMAT_UNSUPPORTED: {
    meaning: "the object has a format that this version does not read",
    remedy: "use the version that wrote it",
  },
  SOURCE_NOT_FOUND: { meaning: "the source does not exist", remedy: "check the path" },
  SOURCE_UNREADABLE: {
    meaning: "the source cannot be read",
    remedy: "check the device at the offset that the message names",
  },
  SOURCE_SHRUNK: {
    meaning: "the source is smaller than its newest point",
    remedy: "use another disk name for a disk that was made smaller",
  },
  TARGET_EXISTS: { meaning: "the target exists", remedy: "add `--in-place` or `--force`, or name another target" },
  TARGET_TOO_SMALL: { meaning: "the target device is smaller than the disk", remedy: "name a larger device" },
  TARGET_IS_SOURCE: {
    meaning: "the target is the source that the disk is replicated from",
    remedy: "add `--force` to overwrite the source",
  },
  TARGET_FAILED: { meaning: "the target cannot be written", remedy: "remove the cause that the message names" },
  NO_SPACE: { meaning: "a file system is full", remedy: "make room, then run the command again" },
  DEVICE_FAILED: {
    meaning: "the image of a protected disk cannot be read or written",
    remedy: "check the disk that holds the image; the message names the cause",
  },
  CUT_TIMED_OUT: {
    meaning: "writes under way did not finish within the barrier's limit, so no point was taken",
    remedy: "wait, the next cycle tries again; a slow disk needs a longer `barrierTimeout`",
  },
  CUT_ABANDONED: {
    meaning: "the copy-before-write area is full, so the next point is fuzzy",
    remedy: "give the state folder more room",
  },
  HOOK_FAILED: {
    meaning: "a hook could not be run, or ended with an error",
    remedy: "read what it printed with `tidemark points show --disk NAME`",
  },
  AGENT_UNREACHABLE: {
    meaning: "no agent answers at the control socket",
    remedy: "start it with `tidemark agent --config FILE`, or name its socket with `--socket PATH`",
  },
  INTERNAL: {
    meaning: "a fault in Tidemark",
    remedy: "run the command again with `--debug` and report what it prints",
  },
};
