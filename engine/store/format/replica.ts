/**
 * Document of a replica: a disk image that is kept at the newest point of a disk, and what it holds.
 *
 * `next` marks an application that is under way: the target is then a mixture of two points. The
 * signature tells whether the target is still what the document says of it.
 */
import { type PointRecord, readWriter, type WriterRecord } from "./documents.ts";
import { anyText, damaged, type Fields, hex32 } from "./fields.ts";
import { replicaObjectName } from "./names.ts";
import { longText, replicaName16, runName8 } from "./run.ts";
import { decodeOfVault, encode, type Owner } from "./signed-text.ts";

/** `vhd`: a file that is a fixed VHD. */
const replicaKinds = ["file", "vhd", "device", "blob"] as const;

/** A point that a target holds, or is being brought to. */
export type ReplicaPoint = Pick<PointRecord, "sequence" | "id" | "timeMs" | "volumeBytes">;

export interface ReplicaDocument extends Owner {
  /** Name of the replica, which follows from its target: 16 hexadecimal digits. */
  readonly replica: string;
  /** Rises each time that a process begins to work on the replica. */
  readonly epoch: number;
  /** The process that works on the replica, or did when it died; null: it has left in good order. */
  readonly worker: WriterRecord | null;
  readonly target: { readonly kind: (typeof replicaKinds)[number]; readonly path: string };
  /** The host on which the target is; null: it is in the vault's container. */
  readonly host: string | null;
  /** The failover run whose target this is; absent: the target follows the disk. */
  readonly run?: string | undefined;
  /**
   * Without `next`, the point that the target holds. With `next`, the target has the bytes of one of
   * the two wherever they differ, and is equal to both elsewhere. Null: its content is not known.
   */
  readonly point: ReplicaPoint | null;
  /** The point that is being applied; null: none. */
  readonly next: ReplicaPoint | null;
  /** Of the target, when nothing was writing it any more; null: not known. */
  readonly signature: string | null;
}

export function encodeReplica(document: ReplicaDocument): Uint8Array {
  return encode("replica", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeReplica(bytes: Uint8Array, object: string, vault: string): ReplicaDocument {
  const { fields } = decodeOfVault("replica", bytes, object, vault);
  const document: ReplicaDocument = {
    vault,
    disk: fields.text("disk", anyText),
    replica: fields.text("replica", replicaName16),
    epoch: fields.integer("epoch"),
    worker: fields.nestedOrNull("worker", readWriter),
    target: fields.nested("target", (target) => ({
      kind: target.oneOf("kind", replicaKinds),
      path: target.text("path", longText),
    })),
    host: fields.textOrNull("host", anyText),
    ...(fields.has("run") ? { run: fields.text("run", runName8) } : {}),
    point: fields.nestedOrNull("point", readPoint),
    next: fields.nestedOrNull("next", readPoint),
    signature: fields.textOrNull("signature", longText),
  };
  if (object !== replicaObjectName(document.replica)) throw damaged(object, "it is the document of another replica");
  return document;
}

function readPoint(fields: Fields): ReplicaPoint {
  return {
    sequence: fields.sequence("sequence"),
    id: fields.text("id", hex32),
    timeMs: fields.time("timeMs"),
    volumeBytes: fields.integer("volumeBytes"),
  };
}
