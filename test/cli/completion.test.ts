/** Completion scripts in the shells that this machine has, and the manual page. */
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { completionScript } from "../../cli/reference/completion.ts";
import { manPage } from "../../cli/reference/man.ts";
import { programReference } from "../docs/reference.ts";
import { Place } from "./tidemark.ts";

const program = programReference();

function has(command: string): boolean {
  return spawnSync(command, ["--version"]).error === undefined;
}

/** What bash offers after these words. */
function bashOffers(place: Place, ...words: readonly string[]): readonly string[] {
  writeFileSync(place.path("completion.bash"), completionScript("bash", program));
  const list = ["tidemark", ...words].map((word) => `'${word}'`).join(" ");
  const script = `source ./completion.bash; COMP_WORDS=(${list}); COMP_CWORD=${words.length}; _tidemark; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const { stdout, stderr } = spawnSync("bash", ["--norc", "-c", script], { cwd: place.folder, encoding: "utf8" });
  expect(stderr).toBe("");
  return stdout.split("\n").filter((line) => line !== "");
}

describe("completion", () => {
  it("in bash offers commands, flags, choices and files", (context) => {
    context.skip(!has("bash"), "bash is not installed");
    const place = new Place();
    writeFileSync(place.path("web.img"), "");
    expect(bashOffers(place, "po")).toEqual(["points"]);
    expect(bashOffers(place, "points", "")).toEqual(expect.arrayContaining(["list", "show", "pin", "unpin"]));
    expect(bashOffers(place, "points", "list", "--si")).toEqual(["--since"]);
    expect(bashOffers(place, "points", "list", "--disk", "list", "--la")).toEqual(["--last"]);
    expect(bashOffers(place, "materialize", "--format", "")).toEqual(["raw", "vhd"]);
    expect(bashOffers(place, "verify", "--source", "w")).toEqual(["web.img"]);
    expect(bashOffers(place, "replicate", "w")).toEqual(["web.img"]);
    expect(bashOffers(place, "verify", "--disk", "")).toEqual([]);
    expect(bashOffers(place, "completion", "z")).toEqual(["zsh"]);
  });

  it("in zsh offers commands, flags, choices and files", (context) => {
    context.skip(!has("zsh"), "zsh is not installed");
    const place = new Place();
    writeFileSync(place.path("completion.zsh"), completionScript("zsh", program));
    // The shell itself keeps what begins with the word at the cursor.
    const offers = (...words: readonly string[]): readonly string[] => {
      const list = ["tidemark", ...words].map((word) => `'${word}'`).join(" ");
      const script = `compdef() { :; }; compadd() { shift; print -l -- "$@"; }; _files() { print FILES; }
        source ./completion.zsh; words=(${list}); CURRENT=$#words; _tidemark`;
      const { stdout, stderr } = spawnSync("zsh", ["-f", "-c", script], { cwd: place.folder, encoding: "utf8" });
      expect(stderr).toBe("");
      return stdout.split("\n").filter((line) => line !== "");
    };
    expect(offers("po")).toContain("points");
    expect(offers("points", "")).toEqual(expect.arrayContaining(["list", "show", "pin", "unpin"]));
    expect(offers("points", "list", "--si")).toContain("--since");
    expect(offers("points", "list", "--disk", "list", "--la")).toContain("--last");
    expect(offers("materialize", "--format", "")).toEqual(["raw", "vhd"]);
    expect(offers("verify", "--source", "w")).toEqual(["FILES"]);
    expect(offers("replicate", "w")).toContain("FILES");
    expect(offers("replicate", "--")).not.toContain("FILES");
    expect(offers("completion", "")).toEqual(expect.arrayContaining(["bash", "zsh", "fish"]));
    expect(offers("verify", "--disk", "")).toEqual([]);
  });

  it("in fish offers commands, flags and choices", (context) => {
    context.skip(!has("fish"), "fish is not installed");
    const place = new Place();
    writeFileSync(place.path("completion.fish"), completionScript("fish", program));
    const offers = (line: string): readonly string[] => {
      const script = `source ./completion.fish; complete -C ${JSON.stringify(line)}`;
      const { stdout } = spawnSync("fish", ["--no-config", "-c", script], {
        cwd: place.folder,
        encoding: "utf8",
        env: { ...process.env, HOME: place.folder },
      });
      return stdout.split("\n").map((text) => text.split("\t")[0] ?? "");
    };
    expect(offers("tidemark po")).toContain("points");
    expect(offers("tidemark points ")).toEqual(expect.arrayContaining(["list", "show", "pin", "unpin"]));
    expect(offers("tidemark points list --si")).toContain("--since");
    expect(offers("tidemark materialize --format ")).toEqual(expect.arrayContaining(["raw", "vhd"]));
    expect(offers("tidemark completion ")).toEqual(expect.arrayContaining(["bash", "zsh", "fish"]));
  });
});

describe("the manual page", () => {
  it("is roff without a warning, and has a section for each command", (context) => {
    const page = manPage(program);
    expect(page).toMatch(/^\.TH TIDEMARK 1 /);
    expect(page).toContain("\n.SS tidemark points list\n");
    context.skip(!has("groff"), "groff is not installed");
    const { stderr } = spawnSync("groff", ["-man", "-Tutf8", "-ww", "-z"], { input: page, encoding: "utf8" });
    expect(stderr).toBe("");
  });
});
