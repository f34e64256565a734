/**
 * What the documents say of the repository holds: links lead somewhere, pages keep their length,
 * shown commands and flags exist, and every test that docs/guarantees.md names is there.
 */
import { posix } from "node:path";
import process from "node:process";
import ts from "typescript";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { runCommandLine } from "../../cli/program.ts";
import { exists, parseSource, readText } from "../source-tree.ts";
import {
  blocksOf,
  codeSpans,
  exampleOf,
  type Page,
  readPages,
  relativeLinks,
  type ShownCommand,
  shownCommands,
  toldCommands,
} from "./pages.ts";

const pages = readPages();

/**
 * Lines that a page may have. Pages that are generated or list figures are as long as what they
 * list.
 */
const linesMax: Readonly<Record<string, number>> = {
  "README.md": 150,
  "ARCHITECTURE.md": 200,
  "docs/live-disks.md": 200,
  "docs/agent.md": 200,
  "docs/retention.md": 200,
  "docs/failover.md": 200,
  "docs/failback.md": 200,
  "docs/plans.md": 200,
  "docs/replicas.md": 200,
  "docs/embedding.md": 200,
  "docs/encryption.md": 200,
  "docs/capacity.md": 200,
  "docs/site-recovery.md": 200,
};

function pageAt(path: string): Page {
  return { path, text: readText(path) ?? "" };
}

describe("a page", () => {
  test.each(Object.entries(linesMax))("%s has at most %i lines", (path, max) => {
    const lines = pageAt(path).text.trimEnd().split("\n").length;
    expect(lines).toBeGreaterThan(1);
    expect(lines).toBeLessThanOrEqual(max);
  });

  test("of docs stands in their list", () => {
    const listed = relativeLinks(pageAt("docs/README.md")).map((target) => `docs/${target}`);
    const there = pages.map(({ path }) => path).filter((path) => /^docs\/(?!README)/.test(path));
    expect(listed.sort()).toEqual(there);
  });

  test("links only to files that exist", () => {
    const dead = pages.flatMap((page) =>
      relativeLinks(page)
        .map((target) => posix.join(posix.dirname(page.path), target))
        .filter((target) => !exists(target))
        .map((target) => `${page.path}: ${target} does not exist`),
    );
    expect(dead).toEqual([]);
  });

  test("about the agent names every metric of the agent, and no other", () => {
    const metricsIn = (path: string): readonly string[] => [
      ...new Set(readText(path)?.match(/\btidemark_[a-z_]+\b/g) ?? []),
    ];
    expect([...metricsIn("docs/agent.md")].sort()).toEqual([...metricsIn("cli/agent/metrics.ts")].sort());
  });

  test("of one subject has a complete example, which is a file of examples/ word for word", () => {
    const blocks = pages.flatMap(blocksOf);
    const shown = blocks.flatMap((block) => {
      const path = exampleOf(block);
      return path === undefined ? [] : [{ page: block.page, path, text: block.text }];
    });
    expect(
      shown
        .filter(({ path, text }) => readText(path) !== text)
        .map(({ page, path }) => `${page} shows another ${path}`),
    ).toEqual([]);
    const subjects = Object.keys(linesMax).filter((path) => path.startsWith("docs/"));
    expect(subjects.filter((path) => !shown.some(({ page }) => page === path))).toEqual([]);
  });
});

describe("a command", () => {
  beforeAll(() => {
    for (const stream of [process.stdout, process.stderr]) stream.setMaxListeners(0);
  });

  test.each([
    ["a page", pages.flatMap(shownCommands)],
    ["a message", toldCommands()],
  ])("in %s is one of the program's, and so are its flags", async (_where, commands) => {
    const helps = new Map<string, string>();
    const wrong: string[] = [];
    for (const command of commands) {
      const name = command.words.join(" ");
      const help = helps.get(name) ?? (await helpOf(command.words));
      helps.set(name, help);
      wrong.push(...faultsOf(command, help));
    }
    expect(helps.size).toBeGreaterThan(15);
    expect(wrong).toEqual([]);
  });

  test("that does not exist is found", async () => {
    const page = pageAt("docs/agent.md");
    const shown = shownCommands({
      ...page,
      text: "`tidemark points nosuch` `tidemark nosuch` `tidemark points list --nosuch`",
    });
    const faults = await Promise.all(shown.map(async (command) => faultsOf(command, await helpOf(command.words))));
    expect(faults).toEqual([
      ["docs/agent.md: there is no command tidemark points nosuch"],
      ["docs/agent.md: there is no command tidemark nosuch"],
      ["docs/agent.md: tidemark points list has no flag --nosuch"],
    ]);
  });
});

describe("a test that docs/guarantees.md names", () => {
  const named = codeSpans(pageAt("docs/guarantees.md")).filter((code) => code.startsWith("test/"));

  test("exists under that name", () => {
    expect(named.length).toBeGreaterThan(40);
    expect(named.filter((citation) => !isTest(citation))).toEqual([]);
  });

  test("that does not exist is found", () => {
    expect(isTest("test/docs/pages.test.ts › exists under that name")).toBe(true);
    expect(isTest("test/docs/pages.test.ts › a test that docs/guarantees.md names › exists under that name")).toBe(
      true,
    );
    expect(isTest("test/docs/pages.test.ts › a page › exists under that name")).toBe(false);
    expect(isTest("test/docs/pages.test.ts › exists")).toBe(false);
    expect(isTest("test/docs/nosuch.test.ts › exists")).toBe(false);
  });
});

/**
 * What is wrong with a command, by the help that its words lead to: help names the command that it
 * is about.
 */
function faultsOf({ page, words, flags }: ShownCommand, help: string): readonly string[] {
  const usage = /Usage: (tidemark(?: [a-z][a-z-]*(?:\|[a-z-]+)?)*)([^\n]*)/.exec(help);
  const found = (usage?.[1] ?? "").split(" ").slice(1);
  const name = ["tidemark", ...words].join(" ");
  const takesWords = /[<[](?!options\]|command\])/.test(usage?.[2] ?? "");
  if (found.length < words.length && !takesWords) return [`${page}: there is no command ${name}`];
  return flags
    .filter((flag) => !new RegExp(`${flag}(?![a-z-])`).test(help))
    .map((flag) => `${page}: ${name} has no flag ${flag}`);
}

/**
 * The help that the program prints for the words of a command. Each run of it listens for errors of
 * its streams.
 */
async function helpOf(words: readonly string[]): Promise<string> {
  const written: string[] = [];
  const write = vi.spyOn(process.stdout, "write").mockImplementation((text, ...rest) => {
    written.push(String(text));
    for (const after of rest) if (typeof after === "function") after();
    return true;
  });
  try {
    expect(await runCommandLine([...words, "--help"], {})).toBe(0);
  } finally {
    write.mockRestore();
  }
  return written.join("");
}

const knownTests = new Map<string, readonly (readonly string[])[]>();

/**
 * Whether `file › … › test` names a test: the words behind the file are the last of the test's own
 * names.
 */
function isTest(citation: string): boolean {
  const [path = "", ...names] = citation.split(" › ");
  const tests = knownTests.get(path) ?? testNames(path);
  knownTests.set(path, tests);
  return (
    names.length > 0 && tests.some((own) => names.every((name, at) => own[own.length - names.length + at] === name))
  );
}

/**
 * The names of each test of a file, from its outermost group to its own, as they stand in the
 * source.
 */
function testNames(path: string): readonly (readonly string[])[] {
  const text = readText(path);
  if (text === undefined) return [];
  const { tree } = parseSource(path, text);
  const found: string[][] = [];
  const visit = (node: ts.Node, groups: readonly string[]): void => {
    const name = ts.isCallExpression(node) ? registeredName(node, tree) : undefined;
    if (name?.kind === "test") found.push([...groups, name.text]);
    const inner = name?.kind === "group" ? [...groups, name.text] : groups;
    ts.forEachChild(node, (child) => visit(child, inner));
  };
  visit(tree, []);
  return found;
}

function registeredName(
  call: ts.CallExpression,
  tree: ts.SourceFile,
): { readonly kind: "group" | "test"; readonly text: string } | undefined {
  const [first] = call.arguments;
  if (first === undefined || !(ts.isStringLiteralLike(first) || ts.isTemplateExpression(first))) return undefined;
  const registrar = /^(?:describe|suite|it|test|deepTest)\b/.exec(call.expression.getText(tree))?.[0];
  if (registrar === undefined) return undefined;
  const text = ts.isStringLiteralLike(first) ? first.text : first.getText(tree).slice(1, -1);
  return { kind: ["describe", "suite"].includes(registrar) ? "group" : "test", text };
}
