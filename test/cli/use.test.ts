/** Wrong use is told in one line with a remedy; help and version are there. */
import { describe, expect, it } from "vitest";
import { openOutput } from "../../cli/output.ts";
import { createProgram } from "../../cli/program.ts";
import { idleContext } from "./idle-context.ts";
import { Place, parseLines } from "./tidemark.ts";

const wrong: readonly (readonly [fact: string, words: readonly string[], told: RegExp])[] = [
  ["a restore", ["restore", "--disk", "web", "x"], /is called `tidemark materialize`/],
  ["snapshots", ["snapshots"], /is called `tidemark points list`/],
  ["a status", ["status", "--help"], /is called `tidemark agent status`/],
  ["a list", ["list"], /is called `tidemark disks list`/],
  ["a backup", ["backup", "a.img"], /is called `tidemark replicate`/],
  ["a shell without completion", ["completion", "tcsh"], /bash, zsh, fish/],
  ["quiet and verbose at once", ["version", "--quiet", "--verbose"], /cannot be used with/],
  [
    "a time without a zone",
    ["points", "show", "--vault", "dir:v", "--disk", "a", "--point", "2026-05-01T12:00"],
    /as local time, and 2026-05-01T12:00:00Z as UTC/,
  ],
  [
    "an age in an unknown unit",
    ["points", "list", "--vault", "dir:v", "--disk", "a", "--since", "2 moons ago"],
    /unknown unit moons/,
  ],
  [
    "a time range that ends before it begins",
    ["points", "list", "--vault", "dir:v", "--disk", "a", "--since", "1 day ago", "--until", "2 days ago"],
    /--since "1 day ago" is later than --until "2 days ago"/,
  ],
  ["an unknown command", ["replicat"], /unknown command/],
  ["a group without a command", ["points"], /needs a command/],
  ["an unknown flag", ["disks", "list", "--vautl", "x"], /unknown option/],
  ["a missing argument", ["replicate", "--disk", "a"], /missing required argument/],
  ["a missing disk", ["replicate", "a.img", "--vault", "dir:v"], /--disk/],
  ["a missing vault", ["disks", "list"], /no vault is named/],
  ["an empty vault", ["disks", "list", "--vault", ""], /no vault is named/],
  ["a vault of an unknown kind", ["disks", "list", "--vault", "ftp:x"], /not a vault's address/],
  ["a number that is none", ["verify", "--vault", "dir:v", "--workers", "two"], /not a whole number/],
  ["a size that is none", ["vault", "init", "--vault", "dir:v", "--block-size", "big"], /not a size/],
  ["a block that is too small", ["vault", "init", "--vault", "dir:v", "--block-size", "8KiB"], /not a power of two/],
  ["a digest that is not known", ["vault", "init", "--vault", "dir:v", "--digest", "md5"], /blake3/],
  [
    "a format that is not known",
    ["materialize", "--disk", "a", "--point", "1", "--to", "b", "--format", "qcow2"],
    /raw, vhd/,
  ],
  ["words too many", ["disks", "list", "a"], /too many arguments/],
  ["a point without its disk", ["verify", "--vault", "dir:v", "--point", "1"], /belong to one disk/],
  ["stdout as a target", ["materialize", "--vault", "dir:v", "--disk", "a", "--point", "1", "--to", "-"], /stdout/],
  [
    "an NBD export to be protected",
    ["protect", "nbd://localhost/x", "--vault", "dir:v", "--disk", "a", "--listen", "unix:s"],
    /is not an image file or block device of this machine/,
  ],
  ["a bench without its image", ["bench", "initial"], /--image/],
];

describe("wrong use", () => {
  it.each(wrong)("%s exits with 2, one line and a remedy", async (_fact, words, told) => {
    const place = new Place();
    const ended = await place.run(words);
    expect(ended).toMatchObject({ code: 2, stdout: "" });
    const [line, remedy, ...rest] = ended.stderr.trimEnd().split("\n");
    expect(line).toMatch(/^error: /);
    expect(line).toMatch(told);
    expect(remedy).toMatch(/^ {2}\S/);
    // With --verbose the code of the error stands below.
    expect(rest).toEqual(words.includes("--verbose") ? ["  code INVALID_ARGUMENT"] : []);
  });

  it("is an object on stdout with --json", async () => {
    const ended = await new Place().run(["disks", "list", "--vautl", "x", "--json"]);
    expect(ended).toMatchObject({ code: 2, stderr: "" });
    expect(parseLines(ended.stdout)).toMatchObject([
      { type: "error", code: "INVALID_ARGUMENT", remedy: expect.stringContaining("--vault") as string },
    ]);
  });
});

/** One for all helps: each listens for the failures of this process's stdout and stderr. */
const output = openOutput({ json: true, debug: false, quiet: false, verbose: false, utc: false }, {});

/** What `--help` prints after these words, without a process of its own. */
async function helpText(words: readonly string[]): Promise<string> {
  let text = "";
  output.help = (part) => (text += part);
  const program = createProgram(idleContext(output));
  await expect(program.parseAsync([...words, "--help"], { from: "user" })).rejects.toMatchObject({ exitCode: 0 });
  return text;
}

const commands = [
  "demo",
  "vault",
  "vault init",
  "vault show",
  "vault repair",
  "replicate",
  "protect",
  "agent",
  "agent status",
  "agent point",
  "agent pause",
  "agent resume",
  "agent reload",
  "agent stop",
  "agent limit",
  "disks",
  "disks list",
  "points",
  "points list",
  "points show",
  "points pin",
  "points unpin",
  "prune",
  "collect",
  "retention",
  "retention simulate",
  "capacity",
  "capacity profile",
  "capacity report",
  "capacity throughput",
  "mount",
  "materialize",
  "verify",
  "bench",
  "bench suite",
  "bench initial",
  "bench scattered",
  "bench restore",
  "bench pipeline",
  "bench kernels",
  "bench mount",
  "bench prune",
  "bench open",
  "bench collect",
  "version",
  "completion",
  "man",
];

describe("help", () => {
  it.each(["", ...commands])("of `tidemark %s` has an example and fits 80 columns", async (command) => {
    const text = await helpText(command.split(" ").filter((word) => word !== ""));
    expect(text).toMatch(/^Usage: tidemark /);
    expect(text).toMatch(/Examples?:\n {2}\$ /);
    expect(text.split("\n").filter((line) => line.length > 80)).toEqual([]);
  });

  it("is what `tidemark` alone prints, with exit code 0", async () => {
    const ended = await new Place().run([]);
    expect(ended).toMatchObject({ code: 0, stderr: "" });
    expect(ended.stdout).toMatch(/^Usage: tidemark /);
    expect(ended.stdout).toContain("Exit codes:");
    expect(ended.stdout).not.toMatch(/^ {2}restore/m);
  });

  it("marks what is required", async () => {
    const { stdout } = await new Place().run(["materialize", "--help"]);
    expect(stdout).toMatch(
      /^Usage: tidemark materialize --disk <name> --point <point> --to <target>\s+--vault <vault>/,
    );
    expect(stdout).toMatch(/--disk <name> +name of the disk in the vault \(required\)/);
  });

  it("includes the version", async () => {
    const ended = await new Place().run(["--version"]);
    expect(ended.code).toBe(0);
    expect(ended.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    const version = await new Place().run(["version"]);
    expect(version.stdout).toMatch(/^tidemark \d+\.\d+\.\d+ \(Node\.js \d/);
  });
});
