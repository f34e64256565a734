/** One module of the engine as JavaScript, for a process that a test starts with its own script. */
import { join } from "node:path";
import { rolldown } from "rolldown";
import { repositoryRoot } from "./source-tree.ts";

/** Bundles `path`, relative to the repository, and gives the bundle as a URL to import. */
export async function builtModule(path: string): Promise<string> {
  await using bundle = await rolldown({
    input: join(repositoryRoot, path),
    platform: "node",
    tsconfig: false,
    transform: { target: "node20.19" },
    external: /^[^./]/,
  });
  const { output } = await bundle.generate();
  return `data:text/javascript;base64,${Buffer.from(output[0].code).toString("base64")}`;
}
