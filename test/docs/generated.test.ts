/**
 * The generated documents say what the code does. `npm run docs:generate` writes them; without it,
 * a difference fails here.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { wanted } from "../../bench/report.ts";
import { readTargets } from "../../bench/targets.ts";
import { allCommands } from "../../cli/reference/definitions.ts";
import { repositoryRoot } from "../source-tree.ts";
import { jsonContract } from "./json-contract.ts";
import { cliDocument, errorsDocument, programReference } from "./reference.ts";

const inDocs = (name: string): string => join(repositoryRoot, "docs", name);

describe("the generated documents", () => {
  it("docs/cli.md is what the command definitions say", async () => {
    await expect(cliDocument()).toMatchFileSnapshot(inDocs("cli.md"));
  });

  it("docs/errors.md is what the table of errors says", async () => {
    await expect(errorsDocument()).toMatchFileSnapshot(inDocs("errors.md"));
  });

  it("docs/json.md is what the types of cli/json.ts say, and every command that prints a summary is in it", async () => {
    const { commands, document } = jsonContract();
    await expect(document).toMatchFileSnapshot(inDocs("json.md"));
    const scripts = ["completion", "man", "plan schema"];
    const runnable = allCommands(programReference())
      .filter((command) => command.commands.length === 0)
      .map(({ name }) => name.replace(/^tidemark /, ""));
    expect(runnable.filter((name) => !commands.includes(name) && !scripts.includes(name))).toEqual([]);
    expect(commands.filter((name) => !["agent", "stress"].includes(name) && !runnable.includes(name))).toEqual([]);
  }, 60_000);

  it("docs/benchmarks.md has the marks of bench/targets.yaml", async () => {
    const rows = Object.entries(await readTargets()).flatMap(([kind, marks]) =>
      Object.entries(marks).map(([name, target]) => {
        const values = [target.wanted, target.quick].map((value) =>
          wanted({ ...target, name, value: 0, wanted: value }),
        );
        return `| ${kind} | ${name} | ${values.join(" | ")} | ${target.yardstick} |`;
      }),
    );
    const table = ["| case | mark | wanted | quick suite | yardstick |", "|---|---|---|---|---|", ...rows].join("\n");
    const text = await readFile(inDocs("benchmarks.md"), "utf8");
    const [before = "", after = ""] = text.split(/<!-- marks -->[^]*<!-- end of marks -->/);
    const page = `${before}<!-- marks -->\n${table}\n<!-- end of marks -->${after}`;
    await expect(page).toMatchFileSnapshot(inDocs("benchmarks.md"));
  });

  it("every command has a description, an example, and a description of every flag", () => {
    const commands = allCommands(programReference());
    expect(
      commands.filter(({ description, examples }) => description === "" || examples === "").map(({ name }) => name),
    ).toEqual([]);
    expect(commands.flatMap(({ options }) => options.filter(({ description }) => description === ""))).toEqual([]);
  });
});
