/**
 * The JavaScript that ships: a few files instead of the 300 modules of the source, because a command
 * that loads one file starts twice as fast. Every file that package.json names is an entry; all else
 * lies in `dist/shared`. Dependencies stay imports. The page of the dashboard is one file for
 * browsers, with what stands beside its source.
 *
 * A module lies in the first chunk that needs it from its beginning. What is loaded on demand lies
 * together by wing. Every chunk names what it takes from others and gives them, so fewer chunks
 * are a smaller package.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, relative, resolve } from "node:path";
import { minify } from "@swc/core";
import { rolldown } from "rolldown";

const { exports, imports, bin } = JSON.parse(readFileSync("package.json", "utf8"));
const doors = Object.values(exports).map((entry) => entry.default);
const entries = [...doors, ...Object.values(imports), ...Object.values(bin)]
  .map((path) => /^(?:\.\/)?dist\/(.+)\.js$/.exec(path ?? "")?.[1])
  .filter((name) => name !== undefined);

const isPage = (name) => name.endsWith("/page");

/** Chunks by the modules that load them, the most frugal first: a thread, a program that embeds the engine, a command. */
const chunks = {
  thread: ["engine/pipeline/worker.ts"],
  library: ["engine/index.ts", "engine/internal.ts", "sink/index.ts"],
  kit: ["sink/testing.ts"],
  program: ["cli/program.ts"],
};

/** Whether a file works when it is loaded, so that no other chunk may contain it. */
const isStarted = (path) => entries.some((name) => path === `${name}.ts` && !doors.includes(`./dist/${name}.js`));

/** Per chunk: all modules that its own import, directly and not on demand. */
const loaded = new Map();

function loadedBy(paths, graph) {
  const found = new Set(paths.map((path) => resolve(path)));
  for (const id of found) for (const next of graph.getModuleInfo(id)?.importedIds ?? []) found.add(next);
  return found;
}

function chunkOf(id, graph) {
  const path = relative("", id);
  if (isStarted(path)) return null;
  for (const [name, paths] of Object.entries(chunks)) {
    if (!loaded.has(name)) loaded.set(name, loadedBy(paths, graph));
    if (loaded.get(name).has(id)) return name;
  }
  const [wing] = path.split("/");
  return wing === "cli" ? "commands" : wing;
}

const bundle = await rolldown({
  input: Object.fromEntries(entries.filter((name) => !isPage(name)).map((name) => [name, `${name}.ts`])),
  platform: "node",
  tsconfig: false,
  transform: { target: "node20.19" },
  preserveEntrySignatures: "allow-extension",
  // The helpers of `await using`, which Node 20 does not have, are the only foreign code inside.
  external: (id) => /^[^./]/.test(id) && !id.startsWith("@oxc-project/runtime"),
});
const { output } = await bundle.generate({
  entryFileNames: "[name].js",
  chunkFileNames: "shared/[name].js",
  codeSplitting: { groups: [{ name: chunkOf, debugName: "chunks", includeDependenciesRecursively: false }] },
  minify: true,
  comments: { jsdoc: false, annotation: false, legal: false },
});
await bundle.close();

/** Chunks that only give what another has the names of a module that is loaded on demand, by their file. */
const aliases = new Map(
  output
    .filter(({ isDynamicEntry, modules }) => isDynamicEntry && Object.keys(modules).length === 0)
    .map(({ fileName, code }) => [fileName, code]),
);

/** Loads from a chunk itself what the code would load through an alias. */
const direct = (code) =>
  code.replace(/import\(`[./]+(?:shared\/)?([^`/]+)`\)/g, (load, file) => {
    const [, names, chunk] = /^export\{(.+)\}from"\.\/(.+)";/.exec(aliases.get(`shared/${file}`) ?? "") ?? [];
    if (names === undefined) return load;
    return `${load.replace(file, chunk)}.then((own)=>({${names.replace(/(\w+) as (\w+)/g, "$2:own.$1")}}))`;
  });

/**
 * Writes a script, minified once more: properties of constant objects become variables. What makes
 * code shorter and the package larger is turned off. Without this pass and `minify: true` a stack
 * trace has the names of the source.
 */
async function write(file, text) {
  const { code } = await minify(text, {
    module: true,
    ecma: 2022,
    compress: { passes: 5, sequences: false, collapse_vars: false },
    mangle: { topLevel: true },
    format: { inline_script: false }, // it would break `(?<!--`
  });
  mkdirSync(`dist/${dirname(file)}`, { recursive: true });
  writeFileSync(`dist/${file}`, code);
}

const chunksToWrite = output.filter(({ fileName }) => !aliases.has(fileName));
await Promise.all(chunksToWrite.map(async ({ fileName, code }) => await write(fileName, direct(code))));

/** A style sheet or a page without its comments and indentation. */
const packed = (text) =>
  text
    .replace(/\/\*[^]*?\*\/|<!--[^]*?-->/g, "")
    .replace(/\s*\n\s*/g, "\n")
    .replace(/(?<=[;{},])\n|\n(?=})/g, "");
/** A style sheet without spaces that say nothing. */
const packedStyle = (text) => packed(text).replace(/(?<=:) | (?=\{)|;(?=})/g, "");

for (const name of entries.filter(isPage)) {
  const page = await rolldown({ input: `${name}.ts`, platform: "browser", tsconfig: false });
  const [{ code }] = (await page.generate({ minify: true })).output;
  await page.close();
  const folder = dirname(name);
  await write(`${name}.js`, code);
  for (const file of readdirSync(folder).filter((other) => /\.(html|css|svg)$/.test(other)))
    writeFileSync(
      `dist/${folder}/${file}`,
      (file.endsWith(".css") ? packedStyle : packed)(readFileSync(`${folder}/${file}`, "utf8")),
    );
}
