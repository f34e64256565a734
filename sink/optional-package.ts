/**
 * Optional peer dependencies: packages that only some vaults need, loaded at their first use.
 *
 * `dir:` and `memory:` need none of them. A package that is missing becomes UNSUPPORTED, with the
 * command that installs it.
 */
import { createRequire } from "node:module";
import { systemCode, TidemarkError } from "../engine/index.ts";

/** A package of `peerDependencies` in package.json. */
export type OptionalPackage = "@azure/identity" | "@azure/storage-blob" | "azurite";

/**
 * Throws UNSUPPORTED when one of `names` is not installed. `purpose` is the subject of the message,
 * such as `azurite:DIR`.
 */
export function checkInstalled(purpose: string, names: readonly OptionalPackage[]): void {
  const require = createRequire(import.meta.url);
  const missing = names.filter((name) => {
    try {
      require.resolve(`${name}/package.json`);
      return false;
    } catch (error) {
      // A package that hides its package.json is there.
      return systemCode(error) === "MODULE_NOT_FOUND";
    }
  });
  if (missing.length === 0) return;
  throw new TidemarkError(
    "UNSUPPORTED",
    `${purpose} needs the package ${missing.join(" and the package ")}, which is not installed`,
    {
      remedy: `run \`npm install ${missing.join(" ")}\` where tidemark is installed (\`npm install -g …\` if tidemark is global)`,
      detail: { packages: missing.join(" ") },
    },
  );
}
