/** The folder in which a vault keeps its data: nothing else belongs there. */
import { realpath } from "node:fs/promises";
import { dirname, resolve, sep } from "node:path";
import { systemCode, TidemarkError } from "../engine/index.ts";
import { parseVaultSpec } from "../sink/index.ts";
import { type VaultFlags, vaultAddress } from "./settings.ts";

/**
 * Refuses an image in the very folder in which the vault keeps its data. `what` names it in the
 * error. Errors: INVALID_ARGUMENT.
 */
export async function refuseInsideVault(flags: VaultFlags, path: string, what: string): Promise<void> {
  const spec = parseVaultSpec(vaultAddress(flags));
  if (spec.kind !== "directory" && spec.kind !== "azurite") return;
  const [folder, image] = await Promise.all([withoutLinks(spec.dir), withoutLinks(path)]);
  if (image !== folder && !image.startsWith(folder.endsWith(sep) ? folder : folder + sep)) return;
  throw new TidemarkError("INVALID_ARGUMENT", `the ${what} ${path} lies inside the vault's own folder ${spec.dir}`, {
    remedy: `keep vault and ${what} apart`,
    detail: { path, folder },
  });
}

/** The path with the links of its existing part resolved. */
async function withoutLinks(path: string): Promise<string> {
  const absolute = resolve(path);
  try {
    return await realpath(absolute);
  } catch (error) {
    const folder = dirname(absolute);
    if (systemCode(error) !== "ENOENT" || folder === absolute) return absolute;
    return resolve(await withoutLinks(folder), absolute.slice(folder.length).replace(/^[\\/]+/, ""));
  }
}
