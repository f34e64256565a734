/**
 * Where a policy keeps the replicas of its disks: `dir:FOLDER` or `blob:PREFIX`, with one target for
 * each disk; or, of a policy with one disk, `file:PATH` or `device:PATH`.
 */
import { encodeDiskName } from "../../engine/internal.ts";
import { fault } from "./fields.ts";

export interface ReplicaPolicy {
  readonly kind: "dir" | "blob" | "file" | "device";
  /** A path, or the beginning of the names of page blobs. */
  readonly place: string;
}

/** What a field must be, for a fault. */
export const replicaRemedy: string = "write dir:FOLDER or blob:PREFIX; for one disk also file:PATH or device:PATH";

export function parseReplicaPolicy(text: string): ReplicaPolicy | typeof fault {
  const [, kind = "", place = ""] = /^([a-z]+):(.+)$/s.exec(text) ?? [];
  if (kind === "dir" || kind === "file" || kind === "device") return { kind, place };
  return kind === "blob" ? { kind, place: place.replace(/(?<!\/)\/{1,64}$/, "") } : fault;
}

/** The replica's target of a disk, as `tidemark replica run --to` names it. */
export function replicaOf({ kind, place }: ReplicaPolicy, disk: string): string {
  if (kind === "dir") return `file:${place}/${encodeDiskName(disk)}.img`;
  return kind === "blob" ? `blob:${place}/${encodeDiskName(disk)}.vhd` : `${kind}:${place}`;
}
