/**
 * The declarations that ship: what the entry points of package.json export and what its types are made of, one file an entry. The
 * declarations of the 300 modules of the source take twice the room, and describe internals that no consumer can import.
 */
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { rollup } from "rollup";
import { dts } from "rollup-plugin-dts";

const { exports } = JSON.parse(readFileSync("package.json", "utf8"));
const entries = Object.values(exports).flatMap(({ types }) => types ?? []);

const bundle = await rollup({
  input: Object.fromEntries(entries.map((path) => [/^\.\/dist\/(.+)\.d\.ts$/.exec(path)[1], path])),
  plugins: [dts()],
  external: (id) => /^[^./]/.test(id),
  // That the types of private objects are not exported is meant.
  onwarn: () => undefined,
});
for (const path of readdirSync("dist", { recursive: true })) {
  if (path.endsWith(".d.ts")) rmSync(join("dist", path));
}
await bundle.write({
  dir: "dist",
  entryFileNames: "[name].d.ts",
  chunkFileNames: ({ name }) => `types/${name.replace(/\.d$/, "")}.d.ts`,
});
await bundle.close();
