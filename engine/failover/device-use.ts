/**
 * Devices that targets of a vault are on. A device bears no mark, so what is on it stands in the vault:
 * in open runs, in runs that have taken a disk there, and in replicas. A device may have several names.
 *
 * Of two that begin at the same moment, both may find the device free. So before the first byte of it
 * changes, the device gets an owner mark in the vault, by compare-and-swap:
 *
 *     no use of the device  →  run or replica  →  mark: its name  →  device
 *
 * A mark counts only while what it names uses the device: it stays when that has ended, and a number
 * that the system gives to another device takes nothing with it.
 *
 * Invariant: of two runs or replicas of one vault, one at most writes a device.
 */
import { stat } from "node:fs/promises";
import { hostname } from "node:os";
import { hasCode, systemCode, TidemarkError } from "../errors.ts";
import { checksum, toHex } from "../store/format/checksum.ts";
import { deviceMarkName } from "../store/format/names.ts";
import type { ReplicaDocument } from "../store/format/replica.ts";
import type { RunDocument } from "../store/format/run.ts";
import { findReplica, listReplicas, type ReplicaVault } from "./replica-store.ts";
import { isMoved } from "./run-facts.ts";
import { whereabouts } from "./run-members.ts";
import { findRun, listRuns } from "./run-store.ts";
import { hasEnded } from "./run-table.ts";

/** A mark holds the name of a run or of a replica. */
const markBytesMax = 64;

/** A device, by the name that a user gave and by the number that the system has given. */
interface Device {
  readonly path: string;
  readonly number: bigint;
}

/** Refuses a block device that a run, a disk or a replica of the vault is on. Errors: TARGET_EXISTS. */
export async function refuseDeviceInUse(place: ReplicaVault, path: string): Promise<void> {
  const device = await deviceAt(path);
  if (device === undefined) return; // opening it tells what is wrong
  for (const document of await listRuns(place)) await refuseRunOn(place, device, document);
  for (const document of await listReplicas(place)) await refuseReplicaOn(device, document);
}

/**
 * Gives a block device to `owner`, a run or a replica that the vault holds. Idempotent. Errors:
 * TARGET_EXISTS when another one has it.
 */
export async function ownDevice(place: ReplicaVault, path: string, owner: string): Promise<void> {
  const { store, signal } = place;
  const device = await deviceAt(path);
  if (device === undefined) return;
  const name = deviceMarkName(
    toHex(checksum(Buffer.from(JSON.stringify([localHost(), String(device.number)])))).slice(0, 16),
  );
  const there = await store.find(name, markBytesMax, { signal });
  const present = there === undefined ? "" : Buffer.from(there.bytes).toString("utf8");
  if (present === owner) return;
  const run = await findRun(place, present);
  if (run !== undefined) await refuseRunOn(place, device, run.document);
  const replica = await findReplica(place, present);
  if (replica !== undefined) await refuseReplicaOn(device, replica.document);
  try {
    await store.replace(name, Buffer.from(owner), there?.etag, { signal });
  } catch (error) {
    if (!hasCode(error, "CONDITION_FAILED")) throw error;
    await ownDevice(place, path, owner); // the other one tells why not
  }
}

async function refuseRunOn(place: ReplicaVault, device: Device, document: RunDocument): Promise<void> {
  const { run, state, members, host } = document;
  if (host !== localHost()) return;
  if (isMoved(document) ? !(await whereabouts(place, document)).isThere : hasEnded(state)) return;
  for (const { disk, target } of members)
    if (await isOn(target, device)) throw inUse(device, `run ${run}`, disk, `see \`tidemark failover show ${run}\``);
}

async function refuseReplicaOn(device: Device, { replica, disk, target, host }: ReplicaDocument): Promise<void> {
  if (host === localHost() && (await isOn(target, device)))
    throw inUse(device, `replica ${replica}`, disk, `run \`tidemark replica remove ${replica}\``);
}

async function isOn(target: { readonly kind: string; readonly path: string }, { number }: Device): Promise<boolean> {
  return target.kind === "device" && (await deviceAt(target.path))?.number === number;
}

/** Undefined: there is no such device. */
async function deviceAt(path: string): Promise<Device | undefined> {
  try {
    const stats = await stat(path, { bigint: true });
    return stats.isBlockDevice() ? { path, number: stats.rdev } : undefined;
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return undefined;
  }
}

/** The host as documents spell it. */
function localHost(): string {
  return hostname().slice(0, 100);
}

function inUse({ path }: Device, what: string, disk: string, otherwise: string): TidemarkError {
  const fact = `the device ${path} is the target of ${what} of disk ${JSON.stringify(disk)}`;
  return new TidemarkError("TARGET_EXISTS", fact, {
    remedy: `name another device, or ${otherwise}`,
    detail: { target: `device:${path}` },
  });
}
