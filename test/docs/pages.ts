/**
 * The documents as tests read them: Markdown pages, their fenced blocks, links and inline code. It
 * knows only what our pages use of Markdown.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { readText, repositoryRoot } from "../source-tree.ts";

export interface Page {
  /** Relative to the repository's root. */
  readonly path: string;
  readonly text: string;
}

export interface Block {
  readonly page: string;
  /** What stands behind the fence: `sh`, `ts`, `yaml`, or "". */
  readonly language: string;
  readonly text: string;
}

/** README, the other documents of the root, and every page of `docs/`. */
export function readPages(): readonly Page[] {
  const folder = readdirSync(join(repositoryRoot, "docs")).filter((name) => name.endsWith(".md"));
  const paths = [
    "README.md",
    "ARCHITECTURE.md",
    "FORMAT.md",
    "CHANGELOG.md",
    ...folder.sort().map((name) => `docs/${name}`),
  ];
  return paths.map((path) => ({ path, text: readText(path) ?? "" }));
}

export function blocksOf({ path, text }: Page): readonly Block[] {
  return [...text.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)].map(([, language = "", block = ""]) => ({
    page: path,
    language,
    text: block,
  }));
}

/**
 * The file that a block shows in full, which its first line names; undefined for a block that is an
 * excerpt.
 */
export function exampleOf({ text }: Block): string | undefined {
  return /^(?:#|\/\/) (examples\/[\w./-]+): /.exec(text)?.[1];
}

/** Inline code, each span on one line. */
export function codeSpans({ text }: Page): readonly string[] {
  const prose = text.replace(/^```[\s\S]*?^```$/gm, "");
  return [...prose.matchAll(/`([^`]+)`/g)].map(([, code = ""]) => code.replace(/\s+/g, " "));
}

/** Targets of links that lead into the repository, without their anchors. */
export function relativeLinks({ text }: Page): readonly string[] {
  const prose = text.replace(/^```[\s\S]*?^```$/gm, "");
  return [...prose.matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target = ""]) => target.replace(/#.*$/, ""))
    .filter((target) => /^[^:]+$/.test(target));
}

/** A use of the command line: the words up to the first argument, and the long flags. */
export interface ShownCommand {
  readonly page: string;
  readonly words: readonly string[];
  readonly flags: readonly string[];
}

/** Every `tidemark …` that a page shows, in shell blocks and in inline code. */
export function shownCommands(page: Page): readonly ShownCommand[] {
  const scripts = blocksOf(page)
    .filter(({ language }) => language === "sh")
    .flatMap(({ text }) => text.replace(/\\\n/g, " ").split("\n"))
    .map((line) => line.replace(/(^|\s)#.*$/, ""));
  return commandsIn(page, [...scripts, ...codeSpans(page)]);
}

/** Every `tidemark …` that the program's sources tell a user to type. */
export function toldCommands(): readonly ShownCommand[] {
  return ["engine", "sink", "cli"].flatMap((room) =>
    readdirSync(join(repositoryRoot, room), { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".ts"))
      .flatMap((name) => {
        const path = `${room}/${name}`;
        const text = readText(path) ?? "";
        const told = [...text.matchAll(/`(tidemark [a-z][^`\\]*)/g)].map(([, command = ""]) => command);
        return commandsIn({ path, text }, told);
      }),
  );
}

function commandsIn({ path }: Page, lines: readonly string[]): readonly ShownCommand[] {
  const commands = lines.flatMap((line) => line.split(/&&|\|\||[;|&]/));
  return commands.flatMap((command) => {
    const [program, ...rest] = command.trim().split(/\s+/);
    if (program !== "tidemark" || rest.length === 0) return [];
    const end = rest.findIndex((word) => !/^[a-z][a-z-]*$/.test(word));
    const flags = rest.flatMap((word) => /^--[a-z][a-z-]*/.exec(word) ?? []);
    return [{ page: path, words: end === -1 ? rest : rest.slice(0, end), flags }];
  });
}
