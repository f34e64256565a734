/**
 * Every file of examples/ does what the documents say of it. Programs import the package by its
 * name and scripts call the command, both from another folder, as a user's do.
 */

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { text } from "node:stream/consumers";
import ts from "typescript";
import { describe, expect, onTestFinished, test } from "vitest";
import { ConfigFolder } from "../cli/agent/configuration.ts";
import { Place } from "../cli/tidemark.ts";
import { deepTest } from "../deep-test.ts";
import { readText, repositoryRoot } from "../source-tree.ts";
import { blocksOf, exampleOf, readPages } from "./pages.ts";

const mib = 1024 * 1024;
const scriptMsMax = 120_000;

/** A folder in which the package is installed and the command is on the path. */
class Installed extends Place {
  constructor() {
    super();
    mkdirSync(this.path("node_modules"));
    symlinkSync(repositoryRoot, this.path("node_modules/tidemark"));
    mkdirSync(this.path("bin"));
    const main = join(repositoryRoot, "dist", "cli", "main.js");
    writeFileSync(this.path("bin/tidemark"), `#!/bin/sh\nexec '${process.execPath}' '${main}' "$@"\n`);
    chmodSync(this.path("bin/tidemark"), 0o755);
  }

  /** Runs an example as a program and gives what it prints, line by line. */
  async program(name: string): Promise<readonly string[]> {
    const target = { target: ts.ScriptTarget.ES2023, module: ts.ModuleKind.ESNext };
    writeFileSync(this.path("example.mjs"), ts.transpile(readText(`examples/${name}`) ?? "", target));
    return await this.#run(process.execPath, ["example.mjs"]);
  }

  /** Runs an example as a script and gives what it prints, line by line. */
  async script(name: string): Promise<readonly string[]> {
    return await this.shell(readText(`examples/${name}`) ?? "false");
  }

  async shell(source: string): Promise<readonly string[]> {
    return await this.#run("sh", ["-eu", "-c", source]);
  }

  async #run(command: string, words: readonly string[]): Promise<readonly string[]> {
    const child = spawn(command, words, {
      cwd: this.folder,
      env: { PATH: `${this.path("bin")}:${process.env["PATH"] ?? ""}`, HOME: this.folder, TMPDIR: this.folder },
      stdio: ["ignore", "pipe", "pipe"],
      // A group of its own: a script that fails may leave processes behind, which hold its output
      // open.
      detached: true,
    });
    child.on("exit", () => killGroup(child.pid));
    onTestFinished(() => killGroup(child.pid));
    const ended = once(child, "close") as Promise<[code: number | null]>;
    const [output, errors, [code]] = await Promise.all([text(child.stdout), text(child.stderr), ended]);
    expect(code, `${output}${errors}`).toBe(0);
    return output.trimEnd().split("\n");
  }
}

function killGroup(pid: number | undefined): void {
  try {
    if (pid !== undefined) process.kill(-pid, "SIGKILL");
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}

test("every example is shown by a page and run here", () => {
  const shown = readPages().flatMap(blocksOf).map(exampleOf);
  const run = readFileSync(import.meta.filename, "utf8");
  const files = readdirSync(join(repositoryRoot, "examples"), { withFileTypes: true }).filter((entry) =>
    entry.isFile(),
  );
  expect(files.length).toBeGreaterThan(5);
  expect(
    files.map(({ name }) => name).filter((name) => !shown.includes(`examples/${name}`) || !run.includes(`"${name}"`)),
  ).toEqual([]);
});

describe("the program", () => {
  test("replicate.ts replicates a volume of its own and restores it, and mount.ts reads its point", async () => {
    const place = new Installed();
    const lines = await place.program("replicate.ts");
    expect(lines).toContainEqual(expect.stringMatching(/^8388608 of 8388608$/));
    expect(lines).toContainEqual(expect.stringMatching(/^point 1: 65536 new bytes, stored as \d{3,4}$/));
    expect(lines).toContainEqual(expect.stringMatching(/^1 \d{4}-\d\d-\d\dT.*Z crash$/));
    expect(readFileSync(place.path("back.img")).equals(Buffer.alloc(8 * mib, 7))).toBe(true);
    const sha256 = createHash("sha256")
      .update(Buffer.alloc(8 * 1024 * 1024, 7))
      .digest("hex");
    const [read, stored] = await place.program("mount.ts");
    expect(read).toBe(`8388608 bytes, at 1 MiB stands 7, SHA-256 ${sha256}`);
    expect(stored).toMatch(/^65536 unique bytes, stored in \d+$/);
  });

  test("protect.ts takes points of what is written", async () => {
    const place = new Installed();
    writeFileSync(place.path("web.img"), "content");
    truncateSync(place.path("web.img"), 8 * mib);
    const lines = await place.program("protect.ts");
    expect(lines).toContainEqual(expect.stringMatching(/^point \d, crash: 4096 bytes changed$/));
    expect(readFileSync(place.path("web.img")).subarray(4096, 4103).toString()).toBe("written");
  });

  test("changes.ts has only what it lists read", async () => {
    const place = new Installed();
    writeFileSync(place.path("web.img"), Buffer.alloc(8 * mib, 1));
    expect(await place.program("changes.ts")).toEqual(["point 1: 8388608 bytes read", "point 2: 4096 bytes read"]);
  });
});

describe("the script", () => {
  deepTest(
    "live-disk.sh protects a disk, serves it and restores its newest point",
    { timeout: scriptMsMax },
    async () => {
      const place = new Installed();
      await place.script("live-disk.sh");
      expect(readFileSync(place.path("back.img")).subarray(0, 19).toString()).toBe("content of the disk");
    },
  );

  deepTest(
    "retention.sh leaves the pinned point and the newest, and proves them",
    { timeout: scriptMsMax },
    async () => {
      const place = new Installed();
      const lines = await place.script("retention.sh");
      const listed = lines
        .slice(lines.findLastIndex((line) => line.startsWith("POINT")))
        .flatMap((line) => /^ +(\d+) /.exec(line)?.[1] ?? []);
      expect(listed).toEqual(["1", "3"]);
      expect(
        readFileSync(place.path("back.img"))
          .subarray(mib, mib + 5)
          .toString(),
      ).toBe("day 1");
    },
  );

  deepTest(
    "encryption.sh restores what a server wrote that cannot read it, also after its key was replaced",
    { timeout: scriptMsMax },
    async () => {
      const place = new Installed();
      const lines = await place.script("encryption.sh");
      expect(lines.join("\n")).toMatch(/aes-256-gcm[^]*can write to vault[^]*generation 2[^]*no damage: 2 points/);
      expect(readFileSync(place.path("back.img")).equals(readFileSync(place.path("web.img")))).toBe(true);
    },
  );

  deepTest(
    "registration.sh registers a machine, gives its agent new credentials, and removes it",
    { timeout: scriptMsMax },
    async () => {
      const place = new Installed();
      const lines = await place.script("registration.sh");
      expect(lines.join("\n")).toMatch(/is registered as web01[^]*web01 +Normal[^]*removed agent web01[^]*\d points/);
    },
  );

  deepTest(
    "capacity.sh plans from a profile, writes a page, and leaves nothing in the store",
    {
      timeout: scriptMsMax,
    },
    async () => {
      const place = new Installed();
      copyFileSync(join(repositoryRoot, "examples", "prices.yaml"), place.path("prices.yaml"));
      const text = (await place.script("capacity.sh")).join("\n");
      expect(text).toMatch(/RPO ALWAYS[^]*100 Mbit\/s[^]*binds first[^]*days:7 +[\d,]+ [^]* USD\n[^]*put, 4 MiB × 5/);
      expect(readFileSync(place.path("plan.html"), "utf8")).toContain("<polyline");
      expect(readdirSync(place.path("vault")).filter((name) => name.startsWith("capacity"))).toEqual([]);
    },
  );

  deepTest(
    "failover.sh leaves the moved disk with what was written last, and nothing of the drill",
    {
      timeout: scriptMsMax,
    },
    async () => {
      const place = new Installed();
      const lines = await place.script("failover.sh");
      expect(lines.join("\n")).toMatch(
        /TestFailoverCompleted[^]*exit code 0\n +day 1[^]*: None[^]*CommitFailoverCompleted[^]*: Protected[^]*3 points/,
      );
      expect(readFileSync(place.path("moved.img")).subarray(0, 5).toString()).toBe("day 2");
      expect(readdirSync(place.folder).filter((name) => /drill|tidemark-/.test(name))).toEqual([]);
    },
  );

  deepTest("instant.sh leaves a disk that is protected where it ran at once", { timeout: scriptMsMax }, async () => {
    const place = new Installed();
    const lines = await place.script("instant.sh");
    expect(lines.join("\n")).toMatch(/CommitFailoverCompleted[^]*: Protected[^]*written at +Recovery/);
    expect(readFileSync(place.path("run.img")).equals(readFileSync(place.path("web.img")))).toBe(true);
  });

  deepTest(
    "failback.sh brings the moved disk back with what was written last, and leaves nothing beside it",
    {
      timeout: scriptMsMax,
    },
    async () => {
      const place = new Installed();
      const lines = await place.script("failback.sh");
      expect(lines.join("\n")).toMatch(/CommitFailoverCompleted[^]*kind +failback[^]*: Protected/);
      expect(lines.at(-1)).toMatch(/^5 points/);
      expect(readFileSync(place.path("web.img")).subarray(0, 5).toString()).toBe("day 3");
      expect(readdirSync(place.folder).filter((name) => /tidemark-/.test(name))).toEqual([]);
    },
  );

  deepTest("seeding.sh sends only what differs after the seed has arrived", { timeout: scriptMsMax }, async () => {
    const place = new Installed();
    const lines = await place.script("seeding.sh");
    const summary = lines.find((line) => line.includes('"command":"replicate"')) ?? "";
    expect(JSON.parse(summary)).toMatchObject({ sequence: 2, newBytes: 4096 });
    expect(lines.filter((line) => /^ +[12] +[0-9a-f]{8} /.test(line))).toHaveLength(2);
  });

  deepTest("check.sh finds nothing that keeps a vault from a folder", { timeout: scriptMsMax }, async () => {
    const lines = await new Installed().script("check.sh");
    expect(lines.at(-1)).toBe("a vault can be there");
    expect(lines.filter((line) => /^(advice|failed|skipped)/.test(line))).toEqual([]);
  });

  deepTest(
    "plan.sh drills the plan of shop.yaml, waits for a person, and writes a report",
    {
      timeout: scriptMsMax,
    },
    async () => {
      const place = new Installed();
      copyFileSync(join(repositoryRoot, "examples", "shop.yaml"), place.path("shop.yaml"));
      const lines = await place.script("plan.sh");
      expect(lines.join("\n")).toMatch(
        /no fault: 2 machines, 3 disks, 2 groups[^]*waits +DNS points here[^]*successful +yes/,
      );
      expect(lines.at(-1)).toBe("1 run");
      expect(readdirSync(place.path("drill"))).toEqual([]);
      expect(readFileSync(place.path("drill.html"), "utf8")).toContain("quarterly drill");
    },
  );

  deepTest(
    "replica.sh leaves an image that is the newest point, and no replica",
    { timeout: scriptMsMax },
    async () => {
      const place = new Installed();
      const lines = await place.script("replica.sh");
      expect(lines.join("\n")).toMatch(
        /compared whole[^]*by differences[^]*: current[^]*equals its point[^]*stays as it is/,
      );
      expect(readFileSync(place.path("copy.img")).equals(readFileSync(place.path("web.img")))).toBe(true);
    },
  );

  deepTest(
    "agent.sh runs the agent of agent.yaml and takes a point of both disks at one barrier",
    {
      timeout: scriptMsMax,
    },
    async () => {
      const place = new Installed();
      // Any free ports, so that this machine may serve metrics and a dashboard already.
      const configuration = (readText("examples/agent.yaml") ?? "").replaceAll(/127\.0\.0\.1:\d+/g, "127.0.0.1:0");
      writeFileSync(place.path("agent.yaml"), configuration);
      mkdirSync(place.path("hooks"));
      for (const name of readdirSync(join(repositoryRoot, "examples/hooks"))) {
        copyFileSync(join(repositoryRoot, "examples/hooks", name), place.path(`hooks/${name}`));
      }
      const lines = await place.script("agent.sh");
      expect(lines).toContainEqual(expect.stringMatching(/^point \d+ of disk pg-data is committed/));
      expect(lines).toContainEqual(expect.stringMatching(/^point \d+ of disk pg-log is committed/));
      expect(lines.some((line) => /^ +\d+ .* gold /.test(line))).toBe(true);
    },
  );

  test("of the README replicates twice, lists the points and restores one", { timeout: scriptMsMax }, async () => {
    const [readme] = readPages();
    const scripts = (readme === undefined ? [] : blocksOf(readme)).filter(({ text: source }) =>
      source.includes("export TIDEMARK_VAULT"),
    );
    expect(scripts).toHaveLength(1);
    const place = new Installed();
    writeFileSync(place.path("web.img"), Buffer.alloc(mib, 3));
    // A folder for the Azurite, which takes seconds to start for each command.
    await place.shell((scripts[0]?.text ?? "").replace("azurite:/srv/vault", "dir:vault"));
    expect(readFileSync(place.path("back.img")).equals(Buffer.alloc(mib, 3))).toBe(true);
  });
});

test("the configuration agent.yaml has no fault but that this machine lacks what it names", async () => {
  const faults = await new ConfigFolder().faults(readText("examples/agent.yaml") ?? "");
  expect(faults).toEqual([
    expect.stringContaining(": copies does not exist"),
    expect.stringContaining(": pg-data.img does not exist"),
    expect.stringContaining(": pg-log.img does not exist"),
  ]);
});
