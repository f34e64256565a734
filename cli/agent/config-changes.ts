/** What a changed configuration means for disks and vaults that are at work: pure comparisons. */
import { TidemarkError } from "../../engine/index.ts";
import type { AgentConfig, DiskConfig, PolicyConfig, VaultConfig } from "./config.ts";
import { listenKey } from "./disk-runner.ts";

export function policyOf(disk: DiskConfig, config: AgentConfig): PolicyConfig {
  const policy = config.policies.get(disk.policy);
  if (policy === undefined) throw new TidemarkError("INTERNAL", `the policy ${disk.policy} is not there`, {});
  return policy;
}

/** True when the vault is no longer needed, or has to be opened anew for the change. */
export function isReopened(before: VaultConfig, after: VaultConfig | undefined): boolean {
  const place = ({ address, stateFolder, proxy }: VaultConfig): string => JSON.stringify([address, stateFolder, proxy]);
  return after === undefined || place(before) !== place(after);
}

/** What a protection is made of, and cannot change while it runs. */
export function needsRestart(before: DiskConfig, after: DiskConfig): boolean {
  const fixed = ({ image, vault, hooks, group, readOnly }: DiskConfig): string =>
    JSON.stringify([image, vault, hooks, group, readOnly]);
  return fixed(before) !== fixed(after);
}

export function isChanged(before: DiskConfig, after: DiskConfig, from: AgentConfig, to: AgentConfig): boolean {
  const policyChanged = JSON.stringify(policyOf(before, from)) !== JSON.stringify(policyOf(after, to));
  return policyChanged || listenKey(before) !== listenKey(after);
}

export function sameLimits(a: VaultConfig, b: VaultConfig): boolean {
  const limits = ({ limit, bandwidth, timeZone, scrub, collect }: VaultConfig): string =>
    JSON.stringify([limit, bandwidth, timeZone, scrub, collect]);
  return limits(a) === limits(b);
}

export function settingsAtNextStart(before: AgentConfig, next: AgentConfig): readonly string[] {
  const settings = ({ control, metrics, dashboard, logging }: AgentConfig): Record<string, string> => ({
    "control.socket": control.socket,
    "metrics.listen": JSON.stringify(metrics ?? null),
    dashboard: JSON.stringify(dashboard ?? null),
    "logging.format": logging.format,
    "logging.file": logging.file ?? "",
  });
  const [old, now] = [settings(before), settings(next)];
  return Object.keys(old).filter((name) => old[name] !== now[name]);
}
