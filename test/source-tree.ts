/**
 * The repository as the tidy test sees it: every source file with its syntax tree, what it imports,
 * and what each import resolves to. It asks the TypeScript compiler rather than regular
 * expressions, so that a banned word in a string or a comment is no construct.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, posix, relative, sep } from "node:path";
import ts from "typescript";

/** Where the repository begins. */
export const repositoryRoot: string = dirname(import.meta.dirname);

/** The rooms, and which others each may enter. The way is one way; tests may enter all. */
export const roomsThatMayBeEntered: Readonly<Record<string, readonly string[]>> = {
  engine: [],
  sink: ["engine"],
  bench: ["engine", "sink"],
  cli: ["engine", "sink", "bench"],
  test: ["engine", "sink", "bench", "cli"],
};

/** One source file. Paths are relative to the repository's root and `/`-separated. */
export interface SourceFile {
  readonly path: string;
  /** The top-level folder, or "" for files at the root. */
  readonly room: string;
  readonly text: string;
  readonly lines: readonly string[];
  readonly tree: ts.SourceFile;
  readonly imports: readonly Import[];
}

export interface Import {
  /** As written. */
  readonly specifier: string;
  /** The repository's file that it names, or undefined for a package. The file need not exist. */
  readonly target: string | undefined;
  readonly line: number;
}

/** Every TypeScript file of the rooms and of the root, sorted by path. */
export function readSources(): readonly SourceFile[] {
  const paths = readdirSync(repositoryRoot).filter((name) => name.endsWith(".config.ts"));
  for (const room of Object.keys(roomsThatMayBeEntered)) {
    const folder = join(repositoryRoot, room);
    if (!existsSync(folder)) continue;
    for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
      if (entry.isFile() && entry.name.endsWith(".ts")) paths.push(fromRoot(join(entry.parentPath, entry.name)));
    }
  }
  return paths.sort().map(readSource);
}

/** A file as text, or undefined when there is none. */
export function readText(path: string): string | undefined {
  const full = join(repositoryRoot, path);
  return existsSync(full) ? readFileSync(full, "utf8") : undefined;
}

/** True when the repository has a file or folder of this path. */
export function exists(path: string): boolean {
  return existsSync(join(repositoryRoot, path));
}

/** A source file made of `text`, as if it stood at `path`. */
export function parseSource(path: string, text: string): SourceFile {
  const tree = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const { importedFiles } = ts.preProcessFile(text, true, true);
  return {
    path,
    room: path.includes("/") ? path.slice(0, path.indexOf("/")) : "",
    text,
    lines: text.split("\n"),
    tree,
    imports: importedFiles.map(({ fileName, pos }) => ({
      specifier: fileName,
      target: fileName.startsWith(".") ? posix.join(posix.dirname(path), fileName) : undefined,
      line: lineAt(tree, pos),
    })),
  };
}

/** Calls `visit` for every node of the tree, parents first. */
export function walk(node: ts.Node, visit: (node: ts.Node) => void): void {
  visit(node);
  ts.forEachChild(node, (child) => walk(child, visit));
}

/** The line, counted from 1, on which `position` lies. */
export function lineAt(tree: ts.SourceFile, position: number): number {
  return tree.getLineAndCharacterOfPosition(position).line + 1;
}

/** The files that `entries` reach by imports, the entries included. */
export function reachableFrom(entries: readonly string[], sources: readonly SourceFile[]): ReadonlySet<string> {
  const byPath = new Map(sources.map((source) => [source.path, source]));
  const reached = new Set<string>();
  const pending = entries.filter((path) => byPath.has(path));
  for (let path = pending.pop(); path !== undefined; path = pending.pop()) {
    if (reached.has(path)) continue;
    reached.add(path);
    for (const { target } of byPath.get(path)?.imports ?? []) {
      if (target !== undefined && byPath.has(target)) pending.push(target);
    }
  }
  return reached;
}

function readSource(path: string): SourceFile {
  return parseSource(path, readFileSync(join(repositoryRoot, path), "utf8"));
}

function fromRoot(path: string): string {
  return relative(repositoryRoot, path).split(sep).join("/");
}
