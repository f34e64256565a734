/**
 * typescript-eslint's strictest typed rules, and the walls between the rooms: cli, bench → sink → engine, each entered through its
 * `index.ts`, `internal.ts` or `testing.ts`. Comments cannot switch a rule off; a rule that does not fit us is changed here, with its reason.
 */
import { defineConfig, globalIgnores } from "eslint/config";
import tseslint from "typescript-eslint";

/** Imports that leave a room for `rooms`, whatever the depth of the importing file. */
const into = (rooms) => `^(\\.\\./)+(${rooms})/`;

/** The same, except through the room's doors: what it promises, what it lends to the other rooms, what it offers to tests. */
const besidesDoorsOf = (rooms) => `^(\\.\\./)+(${rooms})/(?!(index|internal|testing)\\.ts$)`;

/** `no-restricted-imports` with one pattern per sentence. */
const wall = (...patterns) => ({
  "no-restricted-imports": ["error", { patterns: patterns.map(([regex, message]) => ({ regex, message })) }],
});

export default defineConfig(
  // AssemblyScript (*.as.ts) has types of its own, which only its compiler knows.
  globalIgnores(["dist/", "coverage/", "**/*.as.ts"]),
  {
    files: ["**/*.ts"],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    linterOptions: { noInlineConfig: true, reportUnusedDisableDirectives: "error" },
    rules: {
      "no-restricted-exports": [
        "error",
        { restrictDefaultExports: { direct: true, named: true, defaultFrom: true, namedFrom: true } },
      ],
      "@typescript-eslint/switch-exhaustiveness-check": ["error", { considerDefaultExhaustiveForUnions: true }],
      // Numbers are what most messages are about.
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      "@typescript-eslint/no-confusing-void-expression": ["error", { ignoreArrowShorthand: true }],
      // An `async` method without `await` turns what it throws into a rejection, which is what an interface of promises promises.
      "@typescript-eslint/require-await": "off",
    },
  },
  {
    files: ["*.config.ts", "**/*.d.ts"],
    rules: { "no-restricted-exports": "off" },
  },
  {
    files: ["engine/**/*.ts", "sink/**/*.ts"],
    // The process that holds an Azurite is its own master, and clears what it must not inherit.
    ignores: ["sink/azurite-host.ts"],
    rules: {
      "no-console": "error",
      "no-restricted-properties": [
        "error",
        { object: "process", property: "env", message: "The caller reads the environment and passes options." },
      ],
    },
  },
  {
    files: ["engine/**/*.ts"],
    rules: wall(
      [into("sink|cli|bench|test"), "The engine knows no other room."],
      ["^(@azure/|azurite($|/))", "The engine knows no store; it owns the port `Sink`."],
    ),
  },
  {
    files: ["sink/**/*.ts"],
    rules: wall(
      [into("cli|bench|test"), "A sink knows the engine only."],
      [besidesDoorsOf("engine"), "Enter a room through its index.ts, internal.ts or testing.ts."],
    ),
  },
  {
    files: ["bench/**/*.ts"],
    rules: wall(
      [into("cli|test"), "Benchmarks stand beside the command line."],
      [besidesDoorsOf("engine|sink"), "Enter a room through its index.ts, internal.ts or testing.ts."],
    ),
  },
  {
    files: ["cli/**/*.ts"],
    rules: wall(
      [into("test"), "Nothing that ships imports a test."],
      [besidesDoorsOf("engine|sink|bench"), "Enter a room through its index.ts, internal.ts or testing.ts."],
    ),
  },
);
