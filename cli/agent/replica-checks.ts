/** Checks of a policy's `replica` against the disks that have the policy, and against their vaults. */
import { constants } from "node:fs";
import { access } from "node:fs/promises";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import { parseVaultSpec } from "../../sink/index.ts";
import { refuseInsideVault } from "../vault-folder.ts";
import type { DiskConfig, PolicyConfig, VaultConfig } from "./config.ts";

/** The policy with the place of its replicas absolute. */
export function resolveReplica(policy: PolicyConfig, absolute: (path: string) => string): PolicyConfig {
  const { replica } = policy;
  if (replica === undefined || replica.kind === "blob") return policy;
  return { ...policy, replica: { ...replica, place: absolute(replica.place) } };
}

/** Reports what is wrong with where a policy keeps the replicas of `disks`, which have the policy. */
export async function judgeReplicas(
  { name, replica }: PolicyConfig,
  disks: readonly DiskConfig[],
  vaults: ReadonlyMap<string, VaultConfig>,
  report: (what: string, remedy: string) => void,
): Promise<void> {
  if (replica === undefined) return;
  const { kind, place } = replica;
  const isForOne = kind === "file" || kind === "device";
  if (isForOne && disks.length > 1)
    report(`${kind}: names one replica, and the policy ${name} has ${disks.length} disks`, "write dir:FOLDER");
  for (const vault of new Set(disks.map((disk) => vaults.get(disk.vault)))) {
    if (vault === undefined) continue;
    const isOfBlobs = ["azure", "azurite"].includes(parseVaultSpec(vault.address).kind);
    if (kind === "blob" && !isOfBlobs) {
      report(`the vault ${vault.name} does not hold page blobs that can be attached`, "write dir:FOLDER");
      continue;
    }
    try {
      if (kind !== "blob") await refuseInsideVault({ vault: vault.address }, place, "replica");
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      report(error.message, error.remedy ?? "keep them apart");
    }
  }
  if (kind !== "dir" && kind !== "device") return;
  try {
    await access(place, constants.R_OK + constants.W_OK);
  } catch (error) {
    const code = systemCode(error) ?? "unknown";
    if (code === "ENOENT" || code === "ENOTDIR") report(`${place} does not exist`, "make it, or correct the path");
    else report(`${place} cannot be read and written (${code})`, "give this user the right to it");
  }
}
