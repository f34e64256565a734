/**
 * The declarations that ship: what the entry points of package.json export and what its types are made of, one file an entry. The
 * declarations of the 300 modules of the source take twice the room, and describe internals that no consumer can import.
 *
 * Declarations follow from the text of a module alone (`isolatedDeclarations`), so nothing is type-checked for them. What no entry
 * exports has no comments: consumers cannot name it. Members that are marked `@internal`, above all constructors that only the engine
 * calls, are left out with the types that only they name.
 */
import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { isolatedDeclarationSync } from "rolldown/experimental";
import { rollup } from "rollup";
import { dts } from "rollup-plugin-dts";
import ts from "typescript";

const { exports } = JSON.parse(readFileSync("package.json", "utf8"));
const entries = Object.values(exports).flatMap(({ types }) => types ?? []);

/** Stands for a module `x.ts` of the source as `x.d.ts`, which is in no file. */
const declarations = {
  name: "declarations",
  resolveId: (id, importer) =>
    id.startsWith(".")
      ? resolve(importer === undefined ? "." : dirname(importer), id).replace(/(\.d)?\.ts$/, ".d.ts")
      : null,
  load(id) {
    const path = id.replace(/\.d\.ts$/, ".ts");
    const { code, errors } = isolatedDeclarationSync(path, readFileSync(path, "utf8"), { stripInternal: true });
    if (errors.length > 0) this.error(errors.map(({ message }) => `${path}: ${message}`).join("\n"));
    return code;
  },
};

/** A comment with its paragraphs on one line each. Examples and lists stay as they are. */
const unwrapped = (comment) =>
  comment
    .split("```")
    .map((part, index) => (index % 2 === 1 ? part : part.replace(/(?<=\S)\n\s*\* (?=[^\s@*|-])/g, " ")))
    .join("```")
    .replace(/^(.*)\n\s*\*\/$/, "$1 */");

const nameOf = (statement) => statement.name?.text ?? statement.declarationList?.declarations[0]?.name?.text;
const isType = (statement) => ts.isInterfaceDeclaration(statement) || ts.isTypeAliasDeclaration(statement);

/**
 * Removes the comments of declarations that no entry exports, and what a module says of itself. What is exported under its own name says
 * so where it stands, not in a list at the end.
 */
const ownComments = {
  name: "own-comments",
  generateBundle(_, chunks) {
    const doors = Object.values(chunks).filter(({ isEntry }) => isEntry);
    const exported = new Set(doors.flatMap((chunk) => chunk.exports));
    for (const chunk of Object.values(chunks)) {
      const source = ts.createSourceFile(chunk.fileName, chunk.code, ts.ScriptTarget.Latest);
      const { statements } = source;
      const lists = statements.filter((one) => ts.isExportDeclaration(one) && one.moduleSpecifier === undefined);
      const inPlace = new Set();
      for (const { isTypeOnly, exportClause } of lists)
        for (const { name, propertyName } of exportClause.elements) {
          const declared = statements.filter((one) => nameOf(one) === name.text);
          if (propertyName === undefined && declared.length > 0 && (!isTypeOnly || declared.every(isType)))
            inPlace.add(name.text);
        }
      const texts = statements.map((statement) => {
        if (lists.includes(statement)) {
          const rest = statement.exportClause.elements.filter(({ name }) => !inPlace.has(name.text));
          return rest.length === 0
            ? "export {};"
            : `export ${statement.isTypeOnly ? "type " : ""}{ ${rest.map((one) => one.getText(source)).join(", ")} };`;
        }
        const name = nameOf(statement);
        const start = statement.getStart(source);
        const own = ts.getLeadingCommentRanges(chunk.code, statement.pos)?.at(-1)?.pos ?? start;
        const code = chunk.code.slice(start, statement.end);
        const declaration = inPlace.has(name) ? `export ${code.replace(/^declare /, "")}` : code;
        const text = chunk.code.slice(own, start).trimStart() + declaration;
        return name === undefined || exported.has(name) ? text : text.replace(/^[ \t]*\/\*[^]*?\*\/[ \t]*\n/gm, "");
      });
      chunk.code = `${texts.join("\n")}\n`.replace(/\/\*\*[^]*?\*\//g, unwrapped);
    }
  },
};

const bundle = await rollup({
  input: Object.fromEntries(
    entries.map((path) => /^\.\/dist\/(.+)\.d\.ts$/.exec(path)[1]).map((name) => [name, `./${name}.d.ts`]),
  ),
  plugins: [declarations, dts(), ownComments],
  external: (id) => /^[^./]/.test(id),
  // That the types of private objects are not exported is meant.
  onwarn: () => undefined,
});
await bundle.write({
  dir: "dist",
  entryFileNames: "[name].d.ts",
  chunkFileNames: ({ name }) => `types/${name.replace(/\.d$/, "")}.d.ts`,
  // What several entries name lies in one file.
  manualChunks: (id) =>
    /engine\/(errors|volume|sink|store\/format\/vault-document)\.d\.ts$/.test(id) ? "shared" : null,
});
await bundle.close();
