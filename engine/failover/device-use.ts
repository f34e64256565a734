/**
 * Devices that targets of a vault are on. A device bears no mark, so what is on it stands in the vault:
 * in open runs, in runs that have taken a disk there, and in replicas. A device may have several names.
 */
import { stat } from "node:fs/promises";
import { hostname } from "node:os";
import { systemCode, TidemarkError } from "../errors.ts";
import { listReplicas, type ReplicaVault } from "./replica-store.ts";
import { isMoved } from "./run-facts.ts";
import { whereabouts } from "./run-members.ts";
import { listRuns } from "./run-store.ts";
import { hasEnded } from "./run-table.ts";

/** Refuses a block device that a run, a disk or a replica of the vault is on. Errors: TARGET_EXISTS. */
export async function refuseDeviceInUse(place: ReplicaVault, path: string): Promise<void> {
  const number = await deviceNumber(path);
  if (number === undefined) return; // opening it tells what is wrong
  const host = hostname().slice(0, 100);
  const isOn = async (there: { readonly kind: string; readonly path: string }): Promise<boolean> =>
    there.kind === "device" && (await deviceNumber(there.path)) === number;
  for (const document of await listRuns(place)) {
    const { run, state, members } = document;
    if (document.host !== host) continue;
    if (isMoved(document) ? !(await whereabouts(place, document)).isThere : hasEnded(state)) continue;
    for (const { disk, target } of members)
      if (await isOn(target)) throw inUse(path, `run ${run}`, disk, `see \`tidemark failover show ${run}\``);
  }
  for (const { replica, disk, target, host: there } of await listReplicas(place))
    if (there === host && (await isOn(target)))
      throw inUse(path, `replica ${replica}`, disk, `run \`tidemark replica remove ${replica}\``);
}

/** Undefined: there is no such device. */
async function deviceNumber(path: string): Promise<bigint | undefined> {
  try {
    const stats = await stat(path, { bigint: true });
    return stats.isBlockDevice() ? stats.rdev : undefined;
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return undefined;
  }
}

function inUse(path: string, what: string, disk: string, otherwise: string): TidemarkError {
  const fact = `the device ${path} is the target of ${what} of disk ${JSON.stringify(disk)}`;
  return new TidemarkError("TARGET_EXISTS", fact, {
    remedy: `name another device, or ${otherwise}`,
    detail: { target: `device:${path}` },
  });
}
