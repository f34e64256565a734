/**
 * The JavaScript that ships: a few files instead of the 300 modules of the source, because a command
 * that loads one file starts twice as fast. Every file that package.json names is an entry; what
 * several entries need lies in `dist/shared`. Dependencies stay imports. The page of the dashboard is
 * one file for browsers, with what stands beside its source.
 */
import { cpSync, readdirSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import { rolldown } from "rolldown";

const { exports, imports, bin } = JSON.parse(readFileSync("package.json", "utf8"));
const doors = Object.values(exports).map((entry) => entry.default);
const entries = [...doors, ...Object.values(imports), ...Object.values(bin)]
  .map((path) => /^(?:\.\/)?dist\/(.+)\.js$/.exec(path ?? "")?.[1])
  .filter((name) => name !== undefined);

const isPage = (name) => name.endsWith("/page");

const bundle = await rolldown({
  input: Object.fromEntries(entries.filter((name) => !isPage(name)).map((name) => [name, `${name}.ts`])),
  platform: "node",
  tsconfig: false,
  transform: { target: "node20.19" },
  // The helpers of `await using`, which Node 20 does not have, are the only foreign code inside.
  external: (id) => /^[^./]/.test(id) && !id.startsWith("@oxc-project/runtime"),
});
await bundle.write({
  dir: "dist",
  entryFileNames: "[name].js",
  chunkFileNames: "shared/[name].js",
  // Classes keep their names, and with them the methods in a stack trace. A build with `sourcemap: true` tells functions and lines.
  minify: {
    compress: { keepNames: { function: false, class: true } },
    mangle: { keepNames: { function: false, class: true } },
    codegen: { removeWhitespace: true },
  },
  comments: { jsdoc: false, annotation: false, legal: false },
});
await bundle.close();

for (const name of entries.filter(isPage)) {
  const page = await rolldown({ input: `${name}.ts`, platform: "browser", tsconfig: false });
  await page.write({ file: `dist/${name}.js`, minify: true });
  await page.close();
  const folder = dirname(name);
  for (const file of readdirSync(folder).filter((other) => /\.(html|css|svg)$/.test(other)))
    cpSync(`${folder}/${file}`, `dist/${folder}/${file}`);
}
