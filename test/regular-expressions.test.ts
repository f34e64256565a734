/**
 * Every regular expression of the product takes steps in proportion to its input.
 *
 * A backtracking matcher, as V8's is one, may need a number of steps that grows with the square of
 * the input, or worse: a text from a store or a client then blocks the event loop. Times are no
 * proof on a shared machine, so a matcher of our own counts steps. Its inputs are made from the
 * expression: what its loops accept, pumped, with endings that make a match fail.
 */

import { readdirSync } from "node:fs";
import { join } from "node:path";
import { type AST, RegExpParser } from "@eslint-community/regexpp";
import ts from "typescript";
import { expect, test } from "vitest";
import { readText, repositoryRoot } from "./source-tree.ts";

/** Pumped lengths. Linear: four times the steps; quadratic: sixteen times. */
const [short, long] = [32, 128] as const;
const growthMax = 6;
/** No linear search of our expressions takes more steps for a pumped character. */
const stepsMax = 30_000;

interface Expression {
  readonly where: string;
  readonly source: string;
  readonly flags: string;
}

function expressions(): readonly Expression[] {
  return ["engine", "sink", "cli", "bench"].flatMap(sourcesOf).flatMap(expressionsIn);
}

/** After these a slash divides. */
const operandEnds: ReadonlySet<ts.SyntaxKind> = new Set([
  ts.SyntaxKind.Identifier,
  ts.SyntaxKind.PrivateIdentifier,
  ts.SyntaxKind.NumericLiteral,
  ts.SyntaxKind.BigIntLiteral,
  ts.SyntaxKind.CloseParenToken,
  ts.SyntaxKind.CloseBracketToken,
  ts.SyntaxKind.ThisKeyword,
  ts.SyntaxKind.NoSubstitutionTemplateLiteral,
  ts.SyntaxKind.TemplateTail,
]);

/** Scans the tokens of a file: to parse all files would take most of the test's time. */
function expressionsIn(path: string): readonly Expression[] {
  const text = readText(path) ?? "";
  const found: Expression[] = [];
  // Only these files are scanned: outside comments a slash that may begin an expression, or its constructor.
  if (!/^(?!\s*(?:\*|\/[/*])).*(?:(?:[=(,:?&|![>]|return)\s*\/[^/*]|RegExp\()|^\s+\/[^/*]/m.test(text)) return found;
  const scanner = ts.createScanner(ts.ScriptTarget.Latest, true, ts.LanguageVariant.Standard, text);
  const note = (source: string, flags: string): void => {
    const line = text.slice(0, scanner.getTokenStart()).split("\n").length;
    found.push({ where: `${path}:${String(line)}`, source, flags });
  };
  /** For each template that is open: how many braces are open in its part. */
  const templates: number[] = [];
  let before: readonly string[] = [];
  let last = ts.SyntaxKind.Unknown;
  for (let kind = scanner.scan(); kind !== ts.SyntaxKind.EndOfFileToken; kind = scanner.scan()) {
    const depth = templates.pop();
    if (kind === ts.SyntaxKind.CloseBraceToken && depth === 0) kind = scanner.reScanTemplateToken(false);
    const opened = kind === ts.SyntaxKind.OpenBraceToken ? 1 : kind === ts.SyntaxKind.CloseBraceToken ? -1 : 0;
    if (depth !== undefined && kind !== ts.SyntaxKind.TemplateTail) templates.push(depth + opened);
    if (kind === ts.SyntaxKind.TemplateHead) templates.push(0);
    const isSlash = kind === ts.SyntaxKind.SlashToken || kind === ts.SyntaxKind.SlashEqualsToken;
    if (isSlash && !operandEnds.has(last)) kind = scanner.reScanSlashToken();
    const token = scanner.getTokenText();
    if (kind === ts.SyntaxKind.RegularExpressionLiteral) {
      const end = token.lastIndexOf("/");
      note(token.slice(1, end), token.slice(end + 1));
    } else if (before.join(" ") === "new RegExp (") {
      // A part that is filled in is a number in all of ours.
      const literal = /^(["'`])(.*?)\1/.exec(text.slice(scanner.getTokenStart()).split("\n", 1)[0] ?? "");
      if (literal !== null) note(literal[2]?.replaceAll(/\$\{[^}]*\}/g, "64") ?? "", "");
    }
    before = [...before, token].slice(-3);
    last = kind;
  }
  return found;
}

function sourcesOf(room: string): readonly string[] {
  return readdirSync(join(repositoryRoot, room), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts") && !name.endsWith(".as.ts"))
    .map((name) => `${room}/${name}`);
}

/** Counts the steps of a backtracking search for all matches. */
class Matcher {
  steps = 0;
  readonly pattern: AST.Pattern;
  readonly #flags: string;
  /** By the text of a node, and a character. */
  readonly #accepts = new Map<string, Map<string, boolean>>();

  constructor({ source, flags }: Pick<Expression, "source" | "flags">) {
    this.pattern = new RegExpParser().parsePattern(source, 0, source.length, { unicode: flags.includes("u") });
    this.#flags = flags.replace(/[gy]/g, "");
  }

  /** The steps of a search for all matches in `text`, or `stepsMax`. */
  search(text: string): number {
    this.steps = 0;
    for (let at = 0; at <= text.length && this.steps < stepsMax; ) {
      let end = -1;
      this.#either(this.pattern.alternatives, text, at, (stop) => {
        end = stop;
        return true;
      });
      at = Math.max(end, at + 1);
    }
    return this.steps;
  }

  /** Whether one character is what the node accepts. */
  accepts(node: AST.Element, char: string): boolean {
    let known = this.#accepts.get(node.raw);
    if (known === undefined) this.#accepts.set(node.raw, (known = new Map<string, boolean>()));
    let accepted = known.get(char);
    if (accepted === undefined) {
      accepted = new RegExp(`^(?:${node.raw})$`, this.#flags.replace("m", "")).test(char);
      known.set(char, accepted);
    }
    return accepted;
  }

  #either(among: readonly AST.Alternative[], text: string, at: number, then: (end: number) => boolean): boolean {
    return among.some(({ elements }) => this.#sequence(elements, 0, text, at, then));
  }

  #sequence(
    elements: readonly AST.Element[],
    index: number,
    text: string,
    at: number,
    then: (end: number) => boolean,
  ): boolean {
    const element = elements[index];
    if (element === undefined) return then(at);
    return this.#one(element, text, at, (end) => this.#sequence(elements, index + 1, text, end, then));
  }

  #one(node: AST.Element, text: string, at: number, then: (end: number) => boolean): boolean {
    this.steps += 1;
    // Beyond the limit the search ends: every further try "matches".
    if (this.steps >= stepsMax) return true;
    switch (node.type) {
      case "Group":
      case "CapturingGroup":
        return this.#either(node.alternatives, text, at, then);
      case "Quantifier":
        return this.#repeat(node, 0, text, at, then);
      case "Assertion":
        return this.#holds(node, text, at) && then(at);
      case "Character":
      case "CharacterClass":
      case "CharacterSet":
        return at < text.length && this.accepts(node, text[at] ?? "") && then(at + 1);
      default:
        throw new Error(`the test knows no ${node.type}`);
    }
  }

  #repeat(node: AST.Quantifier, done: number, text: string, at: number, then: (end: number) => boolean): boolean {
    const more = (): boolean =>
      done < node.max &&
      this.#one(node.element, text, at, (end) => end > at && this.#repeat(node, done + 1, text, end, then));
    if (done < node.min) return more() || (done >= node.min && then(at));
    return node.greedy ? more() || then(at) : then(at) || more();
  }

  #holds(node: AST.Assertion, text: string, at: number): boolean {
    const isWord = (char: string | undefined): boolean => char !== undefined && /\w/.test(char);
    switch (node.kind) {
      case "start":
        return at === 0;
      case "end":
        return at === text.length;
      case "word":
        return (isWord(text[at - 1]) !== isWord(text[at])) !== node.negate;
      case "lookahead":
        return this.#either(node.alternatives, text, at, () => true) !== node.negate;
      default:
        throw new Error(`the test knows no ${node.kind}`);
    }
  }
}

const alphabet = Array.from("aZ0 .,:;-_/\\?&=*+@#%<>[]{}()|'\"~\t\n\u0000é");

/** The characters of `node` in order, one for each place that takes any, and its loops. */
function walk(node: AST.Node, onLeaf: (leaf: AST.Element) => void, onLoop: (loop: AST.Quantifier) => void): void {
  switch (node.type) {
    case "Pattern":
    case "Group":
    case "CapturingGroup":
      for (const alternative of node.alternatives) walk(alternative, onLeaf, onLoop);
      return;
    case "Alternative":
      for (const element of node.elements) walk(element, onLeaf, onLoop);
      return;
    case "Quantifier":
      // A loop with an end multiplies the steps by a constant.
      if (node.max === Number.POSITIVE_INFINITY) onLoop(node);
      walk(node.element, onLeaf, onLoop);
      return;
    case "Character":
    case "CharacterClass":
    case "CharacterSet":
      onLeaf(node);
      return;
    default:
  }
}

/** Texts to pump, with what goes before and behind. */
function attacks(matcher: Matcher): readonly (readonly [before: string, pump: string, behind: string])[] {
  const sampleOf = (leaf: AST.Element): string =>
    leaf.type === "Character"
      ? String.fromCodePoint(leaf.value)
      : (alphabet.find((char) => matcher.accepts(leaf, char)) ?? "");
  /** What the leaves of `node` that begin in [from, end) accept. */
  const textOf = (node: AST.Node, from = 0, end = Number.POSITIVE_INFINITY): string => {
    let text = "";
    walk(
      node,
      (leaf) => {
        if (leaf.start >= from && leaf.start < end) text += sampleOf(leaf);
      },
      () => undefined,
    );
    return text;
  };
  const all = textOf(matcher.pattern);
  const found: (readonly [string, string, string])[] = [];
  walk(
    matcher.pattern,
    () => undefined,
    (loop) => {
      const leaves: AST.Element[] = [];
      walk(
        loop,
        (leaf) => leaves.push(leaf),
        () => undefined,
      );
      const before = textOf(matcher.pattern, 0, loop.start);
      const behind = textOf(matcher.pattern, loop.start);
      const chars = [...new Set([...Array.from(all), ...alphabet])].filter((char) =>
        leaves.some((leaf) => matcher.accepts(leaf, char)),
      );
      const pumps = new Set([...chars.slice(0, 6), textOf(loop), before + textOf(loop), all]);
      for (const pump of pumps)
        for (const start of new Set(["", before]))
          for (const end of new Set(["\u0000", behind])) found.push([start, pump, end]);
    },
  );
  return found.filter(([, pump]) => pump !== "");
}

/** The worst growth, or the first that is too much, of the steps from a short input to one of four times its length. */
function growth(expression: Pick<Expression, "source" | "flags">): number {
  const matcher = new Matcher(expression);
  let worst = 0;
  for (const [before, pump, behind] of attacks(matcher)) {
    const [few, many] = [short, long].map((length) =>
      matcher.search(before + pump.repeat(Math.ceil(length / pump.length)) + behind),
    ) as [number, number];
    worst = Math.max(worst, many >= stepsMax ? Number.POSITIVE_INFINITY : many / few);
    if (worst > growthMax) return worst;
  }
  return worst;
}

test("every regular expression takes steps in proportion to its input", () => {
  const found = expressions();
  expect(found.length).toBeGreaterThan(130);
  expect(found.find(({ source }) => source === "")).toBe(undefined);
  const seen = new Map(found.map((expression) => [`${expression.source}/${expression.flags}`, expression]));
  const slow = [...seen.values()].flatMap((expression) => {
    const factor = growth(expression);
    return factor > growthMax ? [`${expression.where}: /${expression.source}/ grows ${factor.toFixed(1)}-fold`] : [];
  });
  expect(slow).toEqual([]);
});

test.each([
  ["a loop before what is missing", "(https?:\\/\\/[^\\s]+)\\?[^\\s]*"],
  ["two loops over the same characters", "^\\s*(.*)\\s*;$"],
  ["a loop in a loop", "^(\\w+\\s?)*$"],
  ["alternatives that overlap in a loop", "^(a|a)*b"],
  ["a loop that may begin anywhere", "\\s+$"],
])("the test finds %s", (_, source) => {
  expect(growth({ source, flags: "" })).toBeGreaterThan(growthMax);
});

test.each(["^[a-z0-9](?:-?[a-z0-9]){2,62}$", "^\\d{1,9}$", "\\bsig=[^&\\s]+", "^(a|b)*c$", "^[^?]*\\?"])(
  "the test accepts %s",
  (source) => {
    expect(growth({ source, flags: "g" })).toBeLessThanOrEqual(growthMax);
  },
);
