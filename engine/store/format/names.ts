/**
 * Names of the objects in a store, and the encoding of disk names in them. FORMAT.md shows the
 * layout.
 *
 * Invariant: every name that a cycle writes holds the writer's epoch. So what a dead writer left
 * behind, or what still arrives from it, never has the name of a living writer's object.
 */
import { TidemarkError } from "../../errors.ts";
import { sealBytes } from "./sealed.ts";

export const vaultName = "vault.json";
/** The copy of `vault.json`, byte for byte. */
export const vaultCopyName = "copy/vault.json";
export const disksPrefix = "disks/";
export const segmentsPrefix = "segments/";

/**
 * Longest disk name in bytes of UTF-8: encoded it stays below the 255 bytes that file systems give
 * a name.
 */
export const diskNameBytesMax = 80;

/**
 * Spells a disk's name with [a-z0-9._-] and `~xx` for every other byte of its UTF-8, so that it is
 * safe in URLs, on file systems that fold case, and as a path component. A leading or trailing dot
 * is spelled `~2e`. Names are compared after Unicode normalization (NFC). Errors: INVALID_ARGUMENT.
 */
export function encodeDiskName(disk: string): string {
  const normal = disk.normalize("NFC");
  const bytes = Buffer.from(normal, "utf8");
  // Control characters would garble terminals and logs; a lone surrogate would not survive UTF-8.
  const wellFormed = bytes.toString("utf8") === normal && !/\p{Cc}/u.test(normal);
  if (bytes.length === 0 || bytes.length > diskNameBytesMax || !wellFormed) {
    throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(disk)} is no valid name of a disk`, {
      remedy: `use 1 to ${String(diskNameBytesMax)} bytes of UTF-8 without control characters`,
    });
  }
  let encoded = "";
  for (const [index, byte] of bytes.entries()) {
    const character = String.fromCharCode(byte);
    const plain = /[a-z0-9_-]/.test(character) || (character === "." && index > 0 && index < bytes.length - 1);
    encoded += plain ? character : `~${byte.toString(16).padStart(2, "0")}`;
  }
  return encoded;
}

/** Whether `encodeDiskName` spells it, and spells it back. */
export function isDiskName(disk: string): boolean {
  // Pages of points hold a million names of group members: the usual ones are told quickly.
  if (/^[ -~]{1,80}$/.test(disk)) return true;
  try {
    return decodeDiskName(encodeDiskName(disk)) === disk;
  } catch (error) {
    if (error instanceof TidemarkError) return false;
    throw error;
  }
}

/**
 * The disk's name that `encodeDiskName` spelled, or undefined when `encoded` is none of its
 * spellings.
 */
export function decodeDiskName(encoded: string): string | undefined {
  if (!/^(?:[a-z0-9._-]|~[0-9a-f]{2})+$/.test(encoded)) return undefined;
  const bytes: number[] = [];
  for (let at = 0; at < encoded.length; at += 1) {
    if (encoded[at] === "~") {
      bytes.push(Number.parseInt(encoded.slice(at + 1, at + 3), 16));
      at += 2;
    } else {
      bytes.push(encoded.charCodeAt(at));
    }
  }
  const disk = Buffer.from(bytes).toString("utf8");
  try {
    return encodeDiskName(disk) === encoded ? disk : undefined;
  } catch (error) {
    if (error instanceof TidemarkError) return undefined;
    throw error;
  }
}

/** Zero-padded, so that listings sort. */
function padded(value: number): string {
  return value.toString().padStart(8, "0");
}

export function headName(disk: string): string {
  return `${disksPrefix}${encodeDiskName(disk)}/head`;
}

/** Every manifest of the disk's points begins with it. */
export function manifestsPrefix(disk: string): string {
  return `${disksPrefix}${encodeDiskName(disk)}/points/`;
}

export function manifestName(disk: string, sequence: number, epoch: number): string {
  return `${manifestsPrefix(disk)}${padded(sequence)}-${padded(epoch)}`;
}

export function mapName(disk: string, epoch: number, ordinal: number): string {
  return `${disksPrefix}${encodeDiskName(disk)}/map/${padded(epoch)}-${padded(ordinal)}`;
}

/** A page of the disk's older points. */
export function pageName(disk: string, epoch: number, ordinal: number): string {
  return `${disksPrefix}${encodeDiskName(disk)}/history/${padded(epoch)}-${padded(ordinal)}`;
}

/**
 * The parts of a name below `disks/`: the disk's encoded name, the kind of object, and, where the
 * kind has one, the writer's epoch.
 */
export interface DiskObject {
  readonly encodedDisk: string;
  readonly kind: "head" | "points" | "map" | "history" | "other";
  /** Sequence number of a manifest, ordinal of a part of the map or of a page. */
  readonly number: number;
  readonly epoch: number;
}

export function parseDiskObject(name: string): DiskObject | undefined {
  const match = /^disks\/([a-z0-9._~-]+)\/(?:(head)|(points|map|history)\/(\d{8,16})-(\d{8,16})|.+)$/.exec(name);
  if (match === null) return undefined;
  const [, encodedDisk = "", head, kind, first, second] = match;
  if (head !== undefined) return { encodedDisk, kind: "head", number: 0, epoch: 0 };
  // Manifests are named by sequence and epoch, map objects and pages by epoch and ordinal.
  if (kind === "points") return { encodedDisk, kind, number: Number(first), epoch: Number(second) };
  if (kind === "map" || kind === "history") return { encodedDisk, kind, number: Number(second), epoch: Number(first) };
  return { encodedDisk, kind: "other", number: 0, epoch: 0 };
}

/** The condemned list: sequence numbers of points that a prune is about to drop. */
export function condemnedName(disk: string): string {
  return `${disksPrefix}${encodeDiskName(disk)}/condemned`;
}

/** The scrub log: when the disk's points were last proved. */
export function provedName(disk: string): string {
  return `${disksPrefix}${encodeDiskName(disk)}/proved`;
}

/** Every run of a failover or test begins with it. */
export const runsPrefix = "failover/runs/";

/** `run`: 8 hexadecimal digits. */
export function runObjectName(run: string): string {
  return `${runsPrefix}${run}`;
}

/** Every run of a recovery plan begins with it. */
export const planRunsPrefix = "failover/plans/";

/** `run`: 8 hexadecimal digits. */
export function planRunObjectName(run: string): string {
  return `${planRunsPrefix}${run}`;
}

/** What asks the process that works on a run, or on a replica, to stop. */
export function runRequestName(run: string): string {
  return `failover/requests/${run}`;
}

/** Every replica begins with it. */
export const replicasPrefix = "failover/replicas/";

/** `replica`: 16 hexadecimal digits. */
export function replicaObjectName(replica: string): string {
  return `${replicasPrefix}${replica}`;
}

/** What a block device of a host is given to. `device`: 16 hexadecimal digits. */
export function deviceMarkName(device: string): string {
  return `failover/devices/${device}`;
}

/** The public half of the vault's registration secret. */
export const registrationName = "registration";

/** Every record of a registered agent begins with it. */
export const agentsPrefix = "agents/";

/** `agent`: its friendly name, spelled as names of disks are. Errors: INVALID_ARGUMENT. */
export function agentObjectName(agent: string): string {
  return `${agentsPrefix}${encodeDiskName(agent)}`;
}

/** The claim of a disk: which failover has it. */
export function claimName(disk: string): string {
  return `${disksPrefix}${encodeDiskName(disk)}/failover`;
}

/**
 * Sidecar objects of a point: reader holds and pins, which keep the point from being pruned, and
 * labels.
 */
export type SidecarKind = "holds" | "pins" | "labels";

export function sidecarPrefix(kind: SidecarKind, disk: string): string {
  return `${disksPrefix}${encodeDiskName(disk)}/${kind}/`;
}

/** `unique`: 32 random hexadecimal digits. */
export function sidecarName(kind: SidecarKind, disk: string, sequence: number, unique: string): string {
  return `${sidecarPrefix(kind, disk)}${padded(sequence)}-${unique}`;
}

/**
 * Sequence number of the point to which the sidecar `name` belongs, or undefined for another
 * object.
 */
export function sidecarSequence(name: string): number | undefined {
  const match = /^disks\/[a-z0-9._~-]+\/(?:holds|pins|labels)\/(\d{8,16})-[0-9a-f]{32}$/.exec(name);
  return match === null ? undefined : Number(match[1]);
}

/** All segments that writers of `disk` made share this prefix. */
export function segmentDiskPrefix(disk: string): string {
  return `${segmentsPrefix}${encodeDiskName(disk)}/`;
}

/** All segments that a writer of `disk` with this epoch made share this prefix. */
export function segmentEpochPrefix(disk: string, epoch: number): string {
  return `${segmentDiskPrefix(disk)}${padded(epoch)}-`;
}

export function segmentName(disk: string, epoch: number, lane: number, ordinal: number): string {
  return `${segmentEpochPrefix(disk, epoch)}${lane.toString()}-${padded(ordinal)}`;
}

/** The name of a segment of an encrypted vault: `name` and its key, see `parseSegmentName`. */
export function sealedSegmentName(name: string, generation: number, encapsulated: Uint8Array): string {
  return `${name}-${generation.toString(16).padStart(4, "0")}${Buffer.from(encapsulated).toString("hex")}`;
}

export interface SegmentIdentity {
  readonly encodedDisk: string;
  readonly epoch: number;
  readonly lane: number;
  readonly ordinal: number;
  /**
   * Of a segment of an encrypted vault: the name without this, the generation of the vault key, and
   * what the key of the payloads is encapsulated in.
   */
  readonly key?: { readonly base: string; readonly generation: number; readonly encapsulated: Uint8Array };
}

export function isSegmentName(name: string): boolean {
  return parseSegmentName(name) !== undefined;
}

/** Parts of a segment's name, or undefined when `name` is not one that a writer gives. */
export function parseSegmentName(name: string): SegmentIdentity | undefined {
  const match =
    /^(segments\/([a-z0-9._~-]{1,240})\/(\d{8,16})-(\d{1,3})-(\d{8,16}))(?:-([0-9a-f]{4})([0-9a-f]{64}))?$/.exec(name);
  if (match === null || Number(match[3]) > epochMax) return undefined;
  const [, base = "", encodedDisk = "", epoch, lane, ordinal, generation, encapsulated = ""] = match;
  const identity = { encodedDisk, epoch: Number(epoch), lane: Number(lane), ordinal: Number(ordinal) };
  if (generation === undefined) return identity;
  const key = { base, generation: Number.parseInt(generation, 16), encapsulated: Buffer.from(encapsulated, "hex") };
  return { ...identity, key };
}

/** By how much the payloads of a segment are longer than what they hold, in bytes. */
export function payloadSealBytes(segment: string): number {
  return parseSegmentName(segment)?.key === undefined ? 0 : sealBytes;
}

/**
 * Sequence numbers of one epoch: the epoch in the high digits, resolved unknown outcomes in the low
 * ones.
 */
const sequenceNumbersPerEpoch = 65_536;

/**
 * No epoch is higher: the first sequence number of each, and of the one after it, is a safe integer.
 */
export const epochMax: number = 2 ** 36;

/**
 * The sequence number that a writer of this epoch starts its segments with; raising a segment to it
 * fences the writers of all earlier epochs.
 */
export function firstSequenceNumber(epoch: number): number {
  return epoch * sequenceNumbersPerEpoch;
}
