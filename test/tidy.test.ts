/**
 * What no compiler checks: the walls between the rooms, constructs that we do without, the size of
 * files, modules that nothing uses, and documents that say what is no longer so. A finding reads
 * `path:line: fact`, and every test shows all of its findings at once.
 */
import ts from "typescript";
import { describe, expect, it } from "vitest";
import {
  exists,
  lineAt,
  parseSource,
  reachableFrom,
  readSources,
  readText,
  roomsThatMayBeEntered,
  type SourceFile,
  walk,
} from "./source-tree.ts";

/** A file is one idea. Tests hold many small cases of one. */
const fileLinesMax = { product: 500, test: 600 };
const lineCharactersMax = 160;

/**
 * The order of the engine's rooms, lowest first: a file imports from its own room and from rooms
 * before it. Rooms of one wing stand together, so wings are ordered too. A file that is named
 * stands alone; the root's other files know nothing but one another.
 */
const engineLayers: readonly string[] = [
  "engine",
  "engine/store/format",
  "engine/store/keys",
  "engine/store/store.ts",
  "engine/store/place.ts",
  "engine/store/held-lease.ts",
  "engine/store/shared-document.ts",
  "engine/store/map",
  "engine/store/segments",
  "engine/store/points",
  "engine/disk/source",
  "engine/disk/tracking",
  "engine/disk/nbd",
  "engine/pipeline",
  "engine/recovery/restore",
  "engine/recovery/mount",
  "engine/upkeep/retention",
  "engine/upkeep/collection",
  "engine/upkeep/keys",
  "engine/upkeep/registration",
  "engine/upkeep/prune",
  "engine/upkeep/scrub",
  "engine/upkeep/repair",
  "engine/replication",
  "engine/replication/protection",
  "engine/failover",
  "engine/failover/plans",
  "engine/internal.ts",
  "engine/vault-options.ts",
  "engine/vault-opening.ts",
  "engine/vault.ts",
  "engine/index.ts",
];

const sources = readSources();
const shipped = sources.filter(({ room }) => room !== "" && room !== "test");
const declarations = (source: SourceFile): boolean => source.path.endsWith(".d.ts");

describe("the rooms", () => {
  it("import one way and enter one another through index.ts", () => {
    expect(findings(sources, wallFindings)).toEqual([]);
  });

  it("of the engine import downward only", () => {
    expect(findings(sources, layerFindings)).toEqual([]);
  });

  it("hold no circle of imports", () => {
    expect(circlesOf(sources)).toEqual([]);
  });

  it("hold no module that no entry point reaches", () => {
    const product = reachableFrom(entryPoints(), sources);
    // The configuration of the tests names its set-up files as text.
    const setUp = readText("vitest.config.ts") ?? "";
    const tests = reachableFrom(
      sources
        .map(({ path }) => path)
        .filter((path) => /\.(test|config)\.ts$/.test(path) || setUp.includes(`"${path}"`)),
      sources,
    );
    const idle = sources.filter(
      (source) =>
        !declarations(source) && !(source.room === "test" || source.room === "" ? tests : product).has(source.path),
    );
    expect(idle.map(({ path }) => `${path}: no entry point reaches it`)).toEqual([]);
  });

  it("have the entry points that package.json names", () => {
    expect(entryPoints().filter((path) => !exists(path))).toEqual([]);
  });

  it("hold no file whose name says nothing", () => {
    const nothing = /(^|\/|-)(utils?|helpers?|misc|common)(-|\.|\/)/;
    expect(sources.map(({ path }) => path).filter((path) => nothing.test(path))).toEqual([]);
  });
});

describe("the sources", () => {
  it("do without the constructs that hide faults", () => {
    expect(findings(sources, constructFindings)).toEqual([]);
  });

  it("hold no note to come back later and no comment that silences a check", () => {
    expect(findings(sources, markFindings)).toEqual([]);
  });

  it("quote names and paths in the commands that they tell to type", () => {
    expect(findings(shipped, unquotedFindings)).toEqual([]);
  });

  it("hold no test that is switched off without a reason", () => {
    expect(findings(sources, switchedOffFindings)).toEqual([]);
  });

  it("take randomness from node:crypto or as an argument", () => {
    expect(findings(shipped, randomFindings)).toEqual([]);
  });

  it("leave the environment and the console to the command line", () => {
    // The process that holds an Azurite is its own master, and clears what it must not inherit.
    const quiet = shipped.filter(
      ({ room, path }) => (room === "engine" || room === "sink") && path !== "sink/azurite-host.ts",
    );
    expect(findings(quiet, ambientFindings)).toEqual([]);
  });

  it(`have at most ${fileLinesMax.product} lines of at most ${lineCharactersMax} characters`, () => {
    expect(findings(sources, lengthFindings)).toEqual([]);
  });

  it("open with their idea", () => {
    const bare = shipped.filter(({ text }) => !/^(#!.*\n)?\/\*\*?\s/.test(text));
    expect(bare.map(({ path }) => `${path}: does not begin with a comment`)).toEqual([]);
  });
});

describe("the documents", () => {
  it.each(["README.md", "ARCHITECTURE.md", "FORMAT.md", "CHANGELOG.md", "LICENSE"])("include %s", (path) => {
    expect(exists(path)).toBe(true);
  });

  it("explain every error code in docs/errors.md", () => {
    const document = readText("docs/errors.md") ?? "";
    const codes = errorCodes();
    expect(codes.length).toBeGreaterThan(20);
    expect(codes.filter((code) => !document.includes(`\n| \`${code}\` |`))).toEqual([]);
  });

  it("name in ARCHITECTURE.md only files that exist", () => {
    const architecture = readText("ARCHITECTURE.md") ?? "";
    const named = [...architecture.matchAll(/`([^`\s]+)`/g)].map(([, name]) => name ?? "").filter(isPathOfRepository);
    expect(
      [...new Set(named)].filter((name) => !exists(name) && !sources.some(({ path }) => path.endsWith(`/${name}`))),
    ).toEqual([]);
  });
});

describe("the checks themselves", () => {
  const faults: readonly (readonly [
    fact: string,
    path: string,
    text: string,
    check: (source: SourceFile) => readonly Finding[],
  ])[] = [
    ["engine imports sink", "engine/a/b.ts", 'import { x } from "../../sink/index.ts";', wallFindings],
    ["engine loads the SDK lazily", "engine/a.ts", 'await import("@azure/storage-blob");', wallFindings],
    ["cli passes by the front door", "cli/a.ts", 'import type { X } from "../engine/errors.ts";', wallFindings],
    ...engineLayers.slice(0, -1).map((layer, index) => {
      const above = engineLayers[index + 1] ?? "";
      const fileOf = (place: string): string => (place.endsWith(".ts") ? place : `${place}/a.ts`);
      const path = fileOf(layer);
      const text = `import { x } from "${"../".repeat(path.split("/").length - 1)}${fileOf(above)}";`;
      return [`${layer} imports ${above}`, path, text, layerFindings] as const;
    }),
    ["a room that has no place in the order", "engine/attic/a.ts", "", layerFindings],
    ["a suffix is missing", "engine/a.ts", 'export { x } from "./b";', wallFindings],
    ["an enum", "engine/a.ts", "enum A { B }", constructFindings],
    ["a namespace", "engine/a.ts", "namespace A { export const b = 1; }", constructFindings],
    ["an empty catch", "cli/a.ts", "try { f(); } catch { /* never mind */ }", constructFindings],
    ["a default export", "sink/a.ts", "export default function f() {}", constructFindings],
    ["a shifted offset", "engine/a.ts", "const sector = byteOffset >>> 9;", constructFindings],
    ["a masked size", "engine/a.ts", "const rest = frame.sizeBytes & 511;", constructFindings],
    ["a note for later", "engine/a.ts", "// TO" + "DO: later", markFindings],
    ["one test alone", "test/a.test.ts", "it.only" + '("a", () => {});', switchedOffFindings],
    ["a test that never runs", "test/a.test.ts", "it.skip" + '("a", () => {});', switchedOffFindings],
    ["a skip without reason", "test/a.test.ts", "context.skip" + "();", switchedOffFindings],
    ["ambient randomness", "engine/a.ts", "const jitter = Math.random();", randomFindings],
    ["the environment", "sink/a.ts", 'const { env } = process; env["HOME"];', ambientFindings],
    ["the console", "engine/a.ts", 'console.log("hello");', ambientFindings],
    ["a long line", "engine/a.ts", "x".repeat(lineCharactersMax + 1), lengthFindings],
    ["a long file", "engine/a.ts", "\n".repeat(fileLinesMax.product + 1), lengthFindings],
  ];

  it.each(faults)("find %s", (_fact, path, text, check) => {
    expect(check(parseSource(path, text))).toHaveLength(1);
  });

  it("find a circle of imports", () => {
    const files = [
      parseSource("engine/a.ts", 'import type { B } from "./b.ts";'),
      parseSource("engine/b.ts", 'export { c } from "./c.ts";'),
      parseSource("engine/c.ts", 'import { a } from "./a.ts";'),
      parseSource("engine/d.ts", 'import { a } from "./a.ts";'),
    ];
    expect(circlesOf(files)).toEqual(["engine/a.ts → engine/b.ts → engine/c.ts → engine/a.ts"]);
  });

  it("accept what is allowed", () => {
    const text =
      'import { x } from "../engine/index.ts";\nconst bits = flags >>> 9;\ntry { x(bits); } catch (error) { throw wrap(error); }\n';
    const source = parseSource("sink/a.ts", text);
    const checks = [
      wallFindings,
      constructFindings,
      markFindings,
      switchedOffFindings,
      randomFindings,
      ambientFindings,
      lengthFindings,
    ];
    expect(checks.flatMap((check) => check(source))).toEqual([]);
  });
});

/** One fact about one line. */
interface Finding {
  readonly line: number;
  readonly fact: string;
}

function findings(among: readonly SourceFile[], check: (source: SourceFile) => readonly Finding[]): readonly string[] {
  return among.flatMap((source) => check(source).map(({ line, fact }) => `${source.path}:${line}: ${fact}`));
}

function wallFindings(source: SourceFile): readonly Finding[] {
  const found: Finding[] = [];
  const mayEnter = roomsThatMayBeEntered[source.room] ?? Object.keys(roomsThatMayBeEntered);
  for (const { specifier, target, line } of source.imports) {
    if (target === undefined) {
      if (source.room === "engine" && /^(@azure\/|azurite(\/|$))/.test(specifier))
        found.push({ line, fact: `engine imports ${specifier}` });
      continue;
    }
    if (!target.endsWith(".ts")) found.push({ line, fact: `the import of ${specifier} does not end in .ts` });
    const room = target.slice(0, target.indexOf("/"));
    if (room === source.room) continue;
    if (!mayEnter.includes(room)) found.push({ line, fact: `${source.room} imports ${room}` });
    else if (source.room !== "test" && source.room !== "" && !isDoor(target, room)) {
      found.push({ line, fact: `${target} is not the front door of ${room}` });
    }
  }
  return found;
}

/** A name may hold spaces, quotes and what a shell carries out. */
function unquotedFindings({ text }: SourceFile): readonly Finding[] {
  const argument =
    /(?:--(?:disk|group|to|config|plan|machine|out)|fuser|rm|chmod \S+|ls -l) \$\{(?!shellWord\(|diskName)/;
  return text.split("\n").flatMap((line, index) => {
    return line.includes("\\`") && argument.test(line)
      ? [{ line: index + 1, fact: "a word of the command is not quoted: shellWord()" }]
      : [];
  });
}

function layerOf(path: string): number {
  const folder = path.slice(0, path.lastIndexOf("/"));
  const alone = engineLayers.indexOf(path);
  if (alone >= 0) return alone;
  return engineLayers.indexOf(folder);
}

function layerFindings({ path, imports }: SourceFile): readonly Finding[] {
  if (!path.startsWith("engine/")) return [];
  const layer = layerOf(path);
  if (layer < 0) return [{ line: 1, fact: "its folder is no room of the engine" }];
  return imports.flatMap(({ target, line }) => {
    if (target?.startsWith("engine/") !== true || layerOf(target) <= layer) return [];
    return [{ line, fact: `imports ${target}, which stands above it` }];
  });
}

/** Files that import one another in a circle, each circle once. */
function circlesOf(files: readonly Pick<SourceFile, "path" | "imports">[]): readonly string[] {
  const targets = new Map(files.map(({ path, imports }) => [path, imports.flatMap(({ target }) => target ?? [])]));
  const circles: string[] = [];
  const done = new Set<string>();
  const follow = (path: string, way: readonly string[]): void => {
    const start = way.indexOf(path);
    if (start >= 0) circles.push([...way.slice(start), path].join(" → "));
    if (start >= 0 || done.has(path)) return;
    for (const target of targets.get(path) ?? []) follow(target, [...way, path]);
    done.add(path);
  };
  for (const path of targets.keys()) follow(path, []);
  return circles;
}

/** True for the files through which the other rooms enter `room`. */
function isDoor(target: string, room: string): boolean {
  return ["index", "internal", "testing"].some((name) => target === `${room}/${name}.ts`);
}

const bitwiseOperators: ReadonlySet<ts.SyntaxKind> = new Set([
  ts.SyntaxKind.AmpersandToken,
  ts.SyntaxKind.BarToken,
  ts.SyntaxKind.CaretToken,
  ts.SyntaxKind.LessThanLessThanToken,
  ts.SyntaxKind.GreaterThanGreaterThanToken,
  ts.SyntaxKind.GreaterThanGreaterThanGreaterThanToken,
]);

function constructFindings({ path, tree }: SourceFile): readonly Finding[] {
  const found: Finding[] = [];
  // A .d.ts file describes modules that others wrote.
  const mayExportDefault = path.endsWith(".config.ts") || tree.isDeclarationFile;
  const note = (node: ts.Node, fact: string): void => {
    found.push({ line: lineAt(tree, node.getStart(tree)), fact });
  };
  walk(tree, (node) => {
    if (ts.isEnumDeclaration(node)) note(node, "an enum; write a union of literals");
    if (ts.isModuleDeclaration(node) && !tree.isDeclarationFile) note(node, "a namespace; write a module");
    if (ts.isCatchClause(node) && node.block.statements.length === 0)
      note(node, "an empty catch; handle the error or let it go on");
    if (isDefaultExport(node) && !mayExportDefault) note(node, "a default export; name what is exported");
    if (ts.isBinaryExpression(node) && bitwiseOperators.has(node.operatorToken.kind)) {
      const name = [node.left, node.right].map(lastName).find((word) => /(^o|O)ffset$|(^b|B)ytes$/.test(word));
      if (name !== undefined) note(node, `a bitwise operator on ${name}, which is wrong above 4 GiB; divide or use %`);
    }
  });
  return found;
}

function isDefaultExport(node: ts.Node): boolean {
  if (ts.isExportAssignment(node)) return true;
  if (ts.isExportSpecifier(node)) return node.name.text === "default";
  return (
    ts.canHaveModifiers(node) && (ts.getModifiers(node) ?? []).some(({ kind }) => kind === ts.SyntaxKind.DefaultKeyword)
  );
}

/** The last word of an expression such as `frame.sizeBytes`, or "". */
function lastName(node: ts.Expression): string {
  if (ts.isParenthesizedExpression(node)) return lastName(node.expression);
  if (ts.isIdentifier(node)) return node.text;
  return ts.isPropertyAccessExpression(node) ? node.name.text : "";
}

/** Written in halves, so that this file does not hold what it looks for. */
const marks = new RegExp(
  [
    "TO" + "DO",
    "FIX" + "ME",
    "XX" + "X",
    "HA" + "CK",
    "@ts-" + "(ignore|expect-error|nocheck)",
    "eslint-" + "disable",
  ].join("|"),
);

function markFindings({ lines }: SourceFile): readonly Finding[] {
  return lines.flatMap((text, index) => {
    const mark = marks.exec(text)?.[0];
    return mark === undefined ? [] : [{ line: index + 1, fact: mark }];
  });
}

function switchedOffFindings({ tree, room }: SourceFile): readonly Finding[] {
  const found: Finding[] = [];
  if (room !== "test") return found;
  walk(tree, (node) => {
    if (!ts.isCallExpression(node) || !ts.isPropertyAccessExpression(node.expression)) return;
    const { name, expression } = node.expression;
    const isRegistration =
      ts.isIdentifier(expression) && ["it", "test", "deepTest", "describe", "suite"].includes(expression.text);
    const says = (fact: string): void => {
      found.push({ line: lineAt(tree, node.getStart(tree)), fact });
    };
    if (isRegistration && ["only", "skip", "todo", "fails"].includes(name.text))
      says(`${expression.text}.${name.text}`);
    // A skip with a condition and a reason decides while the test runs, and prints why.
    else if (name.text === "skip" && !node.arguments.some(isText)) says("a skip that gives no reason");
  });
  return found;
}

function isText(node: ts.Expression): boolean {
  return ts.isStringLiteralLike(node) || ts.isTemplateExpression(node);
}

function randomFindings({ tree }: SourceFile): readonly Finding[] {
  return propertyFindings(tree, (object, property) => object === "Math" && property === "random");
}

function ambientFindings({ tree, room }: SourceFile): readonly Finding[] {
  // A process that the sink starts may talk to its starter; the engine has no process to talk to.
  const ofProcess = room === "engine" ? ["env", "stdout", "stderr"] : ["env"];
  const found = [
    ...propertyFindings(
      tree,
      (object, property) => object === "console" || (object === "process" && ofProcess.includes(property)),
    ),
  ];
  walk(tree, (node) => {
    if (!ts.isVariableDeclaration(node) || node.initializer === undefined) return;
    if (!ts.isIdentifier(node.initializer) || node.initializer.text !== "process") return;
    found.push({ line: lineAt(tree, node.getStart(tree)), fact: "process is taken apart" });
  });
  return found;
}

function propertyFindings(
  tree: ts.SourceFile,
  isBanned: (object: string, property: string) => boolean,
): readonly Finding[] {
  const found: Finding[] = [];
  walk(tree, (node) => {
    if (!ts.isPropertyAccessExpression(node)) return;
    const [object, property] = [lastName(node.expression), node.name.text];
    if (isBanned(object, property))
      found.push({ line: lineAt(tree, node.getStart(tree)), fact: `${object}.${property}` });
  });
  return found;
}

function lengthFindings({ lines, room }: SourceFile): readonly Finding[] {
  const lineCount = lines.at(-1) === "" ? lines.length - 1 : lines.length;
  const linesMax = room === "test" ? fileLinesMax.test : fileLinesMax.product;
  const long = lineCount > linesMax ? [{ line: lineCount, fact: `${lineCount} lines; one idea a file` }] : [];
  return [
    ...long,
    ...lines.flatMap((text, index) =>
      text.length > lineCharactersMax ? [{ line: index + 1, fact: `${text.length} characters` }] : [],
    ),
  ];
}

/**
 * The sources of what package.json exports, runs and resolves: `./dist/a/b.js` is made from
 * `a/b.ts`.
 */
function entryPoints(): readonly string[] {
  const { exports, imports, bin } = JSON.parse(readText("package.json") ?? "{}") as Record<string, unknown>;
  const built = JSON.stringify([exports, imports, bin]).matchAll(/"(?:\.\/)?dist\/([^"]+?)(?:\.d)?\.[jt]s"/g);
  // AssemblyScript is named by the script that compiles it.
  const assembled = (readText("scripts/build.js") ?? "").match(/[^\s"]+\.as\.ts/g) ?? [];
  return [...new Set([...[...built].map(([, stem]) => `${stem ?? ""}.ts`), ...assembled])];
}

/** The members of the union `ErrorCode`. */
function errorCodes(): readonly string[] {
  const codes: string[] = [];
  for (const statement of sources.find(({ path }) => path === "engine/errors.ts")?.tree.statements ?? []) {
    if (!ts.isTypeAliasDeclaration(statement) || statement.name.text !== "ErrorCode") continue;
    walk(statement, (node) => {
      if (ts.isStringLiteral(node)) codes.push(node.text);
    });
  }
  return codes;
}

/**
 * True for a word that claims to be a file or folder of ours, rather than a name in the store, a
 * command or a package.
 */
function isPathOfRepository(word: string): boolean {
  return /^(engine|sink|cli|bench|test|\.ci)\/[\w./-]*$/.test(word) || /^[\w./-]+\.(ts|md)$/.test(word);
}
