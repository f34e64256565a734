/** What scripts rely on: fields of the last line, exit codes, and that nothing else is printed. */
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { changeImage, resizeImage, sameFiles, writeImage } from "./images.ts";
import { Place, parseLines } from "./tidemark.ts";

const replicateFields =
  "disk point sequence consistency volumeBytes scannedBytes changedBytes zeroBytes dedupedBytes newBytes storedBytes requests elapsedMs".split(
    " ",
  );

describe("with --json", () => {
  it("replicate, the listings, materialize and verify end with the summary that is promised", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 3);
    resizeImage(place.path("a.img"), 5_000_001);
    const first = await place.json("replicate", "a.img", "--disk", "a");
    expect(first.code).toBe(0);
    expect(first.last).toMatchObject({
      type: "summary",
      command: "replicate",
      disk: "a",
      sequence: 1,
      volumeBytes: 5_000_001,
      zeroBytes: 0,
    });
    expect(Object.keys(first.last)).toEqual(expect.arrayContaining(replicateFields));
    changeImage(place.path("a.img"), 4096, Buffer.from("changed"));
    const second = await place.json("replicate", "a.img", "--disk", "a");
    expect(second.last).toMatchObject({ sequence: 2, changedBytes: 4096, newBytes: 4096 });

    const disks = await place.json("disks", "list");
    expect(disks.lines).toMatchObject([
      { type: "disk", disk: "a", points: 2, latest: { sequence: 2, point: second.last["point"] } },
      { type: "summary", command: "disks list", disks: 1 },
    ]);
    const points = await place.json("points", "list", "--disk", "a");
    expect(points.lines).toMatchObject([
      { type: "point", sequence: 1, point: first.last["point"] },
      { type: "point", sequence: 2, changedBytes: 4096 },
      { type: "summary", points: 2 },
    ]);
    const shown = await place.json("points", "show", "--disk", "a", "--point", "2");
    expect(shown.last).toMatchObject({
      type: "summary",
      sequence: 2,
      parent: first.last["point"],
      time: expect.stringMatching(/Z$/) as string,
    });

    const back = await place.json("materialize", "--disk", "a", "--point", "latest", "--to", "back.img");
    expect(back.last).toMatchObject({ type: "summary", command: "materialize", volumeBytes: 5_000_001, format: "raw" });
    expect(Object.keys(back.last)).toEqual(expect.arrayContaining(["bytesWritten", "bytesRead", "elapsedMs"]));
    expect(sameFiles(place.path("a.img"), place.path("back.img"))).toBe(true);

    const verified = await place.json("verify");
    expect(verified.code).toBe(0);
    expect(verified.last).toMatchObject({ type: "summary", command: "verify", checkedPoints: 2, damaged: [] });
    expect(verified.last["checkedChunks"]).toBeGreaterThan(1);
  });

  it("vault init fixes what it is told, and vault show tells it", async () => {
    const place = new Place();
    const made = await place.json("vault", "init", "--block-size", "128KiB", "--digest", "sha256");
    expect(made.last).toMatchObject({
      type: "summary",
      command: "vault init",
      blockBytes: 131_072,
      digest: "sha256",
      disks: 0,
    });
    const shown = await place.json("vault", "show");
    expect(shown.last).toMatchObject({ type: "summary", command: "vault show", vault: made.last["vault"] });
    const again = await place.json("vault", "init");
    expect(again).toMatchObject({ code: 1, last: { type: "error", code: "VAULT_EXISTS" } });
  });

  it("verify lists each damage and exits with 3", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 1);
    await place.json("replicate", "a.img", "--disk", "a");
    const [segment = "none"] = readdirSync(place.path("vault/segments/a"));
    // Well behind the first frame's header and chunk table, well before its end.
    changeImage(place.path(`vault/segments/a/${segment}`), 200_000, Buffer.from("this was not there"));
    const verified = await place.json("verify");
    expect(verified.code).toBe(3);
    const damages = verified.lines.filter(({ type }) => type === "damage");
    expect(damages).not.toHaveLength(0);
    expect(damages[0]).toMatchObject({ disk: "a", sequence: 1, code: "DAMAGED" });
    expect((verified.last["damaged"] as object[]).map((damage) => ({ type: "damage", ...damage }))).toEqual(damages);
    const back = await place.json("materialize", "--disk", "a", "--point", "1", "--to", "b.img");
    expect(back).toMatchObject({ code: 3, last: { type: "error", code: "DAMAGED" } });
    expect(existsSync(place.path("b.img"))).toBe(false);
  });

  it("verify tells a source that differs", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 1);
    await place.json("replicate", "a.img", "--disk", "a");
    expect(await place.json("verify", "--disk", "a", "--source", "a.img")).toMatchObject({ code: 0 });
    changeImage(place.path("a.img"), 70_000, Buffer.from("x"));
    const verified = await place.json("verify", "--disk", "a", "--source", "a.img");
    expect(verified).toMatchObject({ code: 3, last: { damaged: [{ code: "SOURCE_DIFFERS" }] } });
  });
});

describe("a source that is not what it should be", () => {
  it("is refused when it is empty, before a vault is created", async () => {
    const place = new Place();
    writeFileSync(place.path("empty.img"), "");
    for (const words of [["replicate"], ["protect", "--listen", "unix:s"]]) {
      const [command = "", ...flags] = words;
      expect(await place.json(command, "empty.img", "--disk", "e", ...flags)).toMatchObject({
        code: 1,
        last: { code: "SOURCE_UNREADABLE", remedy: expect.stringContaining("--allow-empty") as string },
      });
    }
    expect(existsSync(place.path("vault"))).toBe(false);
  });

  it("is named as a loop of links", async () => {
    const place = new Place();
    symlinkSync("loop", place.path("loop"));
    expect(await place.json("replicate", "loop", "--disk", "l")).toMatchObject({
      code: 1,
      last: { code: "SOURCE_NOT_FOUND", message: expect.stringContaining("leads back to itself") as string },
    });
  });
});

describe("a user without a home", () => {
  it("replicates without local state, and is asked for it where it is needed", async ({ skip }) => {
    const place = new Place();
    const under = ["env", "-u", "HOME", "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"];
    const tried = await place.start(["version"], {}, under).ended;
    if (tried.code !== 0) skip(`no other user can run the program here: ${tried.stderr}`);
    const replicate = ["replicate", "/etc/passwd", "--disk", "a", "--vault", "memory:", "--json"];
    expect(await place.start(replicate, {}, under).ended).toMatchObject({ code: 0, stderr: "" });
    const protect = ["protect", "/etc/passwd", "--disk", "a", "--vault", "memory:", "--listen", "unix:s"];
    const refused = await place.start(protect, {}, under).ended;
    expect(refused.stderr).toContain("--state DIR");
  });

  it("leaves no local state in the current folder", async () => {
    const place = new Place();
    writeFileSync(place.path("a.img"), "content");
    expect(await place.run(["replicate", "a.img", "--disk", "a", "--vault", "dir:vault"], { HOME: "" })).toMatchObject({
      code: 0,
    });
    expect(existsSync(place.path(".local"))).toBe(false);
  });
});

describe("a point", () => {
  it("is found by sequence number, id, latest and time", async () => {
    const place = new Place();
    writeFileSync(place.path("a.img"), "one");
    const { last: first } = await place.json("replicate", "a.img", "--disk", "a");
    writeFileSync(place.path("a.img"), "two");
    await place.json("replicate", "a.img", "--disk", "a");
    const { lines } = await place.json("points", "list", "--disk", "a");
    for (const selector of ["1", String(first["point"]), String(lines[0]?.["time"])]) {
      expect(await place.json("points", "show", "--disk", "a", "--point", selector)).toMatchObject({
        code: 0,
        last: { sequence: 1 },
      });
    }
    for (const selector of ["latest", "2", "2999-01-01T00:00:00Z", "0 seconds ago"]) {
      expect(await place.json("points", "show", "--disk", "a", "--point", selector)).toMatchObject({
        code: 0,
        last: { sequence: 2 },
      });
    }
    for (const selector of ["3", "0".repeat(32), "1999-01-01T00:00:00Z", "520 weeks ago"]) {
      expect(await place.json("points", "show", "--disk", "a", "--point", selector)).toMatchObject({
        code: 10,
        last: { code: "POINT_NOT_FOUND" },
      });
    }
    expect(await place.json("points", "show", "--disk", "a", "--point", "noon")).toMatchObject({
      code: 2,
      last: { code: "INVALID_ARGUMENT" },
    });
  });

  it("of an empty source comes back empty", async () => {
    const place = new Place();
    writeFileSync(place.path("empty.img"), "");
    expect(await place.json("replicate", "empty.img", "--disk", "e", "--allow-empty")).toMatchObject({
      code: 0,
      last: { volumeBytes: 0, storedBytes: 0 },
    });
    expect(await place.json("materialize", "--disk", "e", "--point", "1", "--to", "back.img")).toMatchObject({
      code: 0,
    });
    expect(readFileSync(place.path("back.img"))).toHaveLength(0);
  });

  it.each(["a/b", "..", "Web 1", "café 🌊", "-x", "a\\b", "$(date)"])("of a disk named %j comes back", async (disk) => {
    const place = new Place();
    writeFileSync(place.path("a.img"), "content");
    expect(await place.json("replicate", "a.img", `--disk=${disk}`)).toMatchObject({ code: 0, last: { disk } });
    expect(await place.json("materialize", `--disk=${disk}`, "--point", "1", "--to", "b.img")).toMatchObject({
      code: 0,
    });
    expect(readFileSync(place.path("b.img"), "utf8")).toBe("content");
    expect(readdirSync(place.folder).sort()).toEqual([".local", "a.img", "b.img", "vault"]);
  });

  it("is written to no target that exists, unless that is said", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 1);
    await place.json("replicate", "a.img", "--disk", "a");
    writeFileSync(place.path("b.img"), "mine");
    const materialize = ["materialize", "--disk", "a", "--point", "1", "--to"];
    expect(await place.json(...materialize, "b.img")).toMatchObject({ code: 1, last: { code: "TARGET_EXISTS" } });
    expect(readFileSync(place.path("b.img"), "utf8")).toBe("mine");
    expect(await place.json(...materialize, "b.img", "--force")).toMatchObject({ code: 0 });
    expect(sameFiles(place.path("a.img"), place.path("b.img"))).toBe(true);
    changeImage(place.path("b.img"), 9_000, Buffer.from("other"));
    expect(await place.json(...materialize, "b.img", "--in-place")).toMatchObject({
      code: 0,
      last: { bytesWritten: 4096 },
    });
    expect(sameFiles(place.path("a.img"), place.path("b.img"))).toBe(true);
    expect(await place.json(...materialize, "a.img", "--in-place")).toMatchObject({
      code: 1,
      last: { code: "TARGET_IS_SOURCE" },
    });
    changeImage(place.path("a.img"), 9_000, Buffer.from("other"));
    expect(await place.json(...materialize, "a.img", "--in-place", "--force")).toMatchObject({
      code: 0,
      last: { bytesWritten: 4096 },
    });
  });
});

describe("exit codes", () => {
  it("tell vaults, disks and points that are not there", async () => {
    const place = new Place();
    expect(await place.json("disks", "list")).toMatchObject({ code: 10, last: { code: "VAULT_NOT_FOUND" } });
    const azurite = await place.run(["disks", "list", "--vault", "azurite:absent", "--json"]);
    expect(azurite.code).toBe(10);
    expect(readdirSync(place.folder)).toEqual([]);
    await place.json("vault", "init");
    expect(await place.json("points", "list", "--disk", "nobody")).toMatchObject({
      code: 10,
      last: { code: "DISK_NOT_FOUND" },
    });
  });

  it("tell a source that is not there, and no vault is made for it", async () => {
    const place = new Place();
    expect(await place.json("replicate", "absent.img", "--disk", "a")).toMatchObject({
      code: 1,
      last: { code: "SOURCE_NOT_FOUND" },
    });
    expect(readdirSync(place.folder)).toEqual([]);
  });

  it("refuse images inside the vault's own folder", async () => {
    const place = new Place();
    mkdirSync(place.path("vault/sub"), { recursive: true });
    writeImage(place.path("vault/sub/a.img"), 1);
    expect(await place.json("replicate", "vault/sub/a.img", "--disk", "a")).toMatchObject({
      code: 2,
      last: { code: "INVALID_ARGUMENT" },
    });
    const target = await place.json("materialize", "--disk", "a", "--point", "1", "--to", "vault/new/b.img");
    expect(target).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
  });
});

describe("without --json", () => {
  it("results go to stdout, errors to stderr as one line and a remedy, and nothing is coloured", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 1);
    const done = await place.run(["replicate", "a.img", "--disk", "a", "--vault", "dir:vault"]);
    expect(done).toMatchObject({ code: 0, stderr: "" });
    expect(done.stdout).toMatch(/^point 1 of disk a is committed \(crash\)\n/);
    const failed = await place.run(["points", "list", "--disk", "b", "--vault", "dir:vault"]);
    expect(failed).toMatchObject({ code: 10, stdout: "" });
    expect(failed.stderr).toMatch(/^error: the vault holds no disk "b"\n {2}.*`tidemark disks list`.*\n$/);
    const debug = await place.run(["points", "list", "--disk", "b", "--vault", "dir:vault", "--debug"]);
    expect(debug.stderr).toMatch(/\n\s+at /);
  });

  it("--quiet prints answers and errors only, --verbose codes and what the command works with", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 1);
    const quiet = await place.run(["replicate", "a.img", "--disk", "a", "--vault", "dir:vault", "--quiet"]);
    expect(quiet).toMatchObject({ code: 0, stdout: "", stderr: "" });
    const listed = await place.run(["points", "list", "--disk", "a", "--vault", "dir:vault", "-q"]);
    expect(listed.stdout).toMatch(/^POINT .*\n +1 .*\n1 point, 1 MiB changed, .* stored\n$/);
    const verbose = await place.run(["points", "list", "--disk", "b", "--vault", "dir:vault", "-v"]);
    expect(verbose.stderr).toMatch(/^vault dir:vault, local caches in /);
    expect(verbose.stderr).toContain("\n  code DISK_NOT_FOUND\n");
  });

  it("TIDEMARK_PROGRESS_FPS prints lines of progress into a pipe, whose share counts what is read", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 4);
    resizeImage(place.path("a.img"), 1024 ** 3);
    const words = ["replicate", "a.img", "--disk", "a", "--vault", "dir:vault"];
    const { code, stderr } = await place.run(words, { TIDEMARK_PROGRESS_FPS: "60" });
    expect(code).toBe(0);
    expect(stderr).toMatch(/^scan +\[#* *\] +\d+ % {2}\S+ MiB of \S+ MiB/);
    expect(stderr).not.toContain("GiB");
    const wrong = await place.run(words, { TIDEMARK_PROGRESS_FPS: "often" });
    expect(wrong).toMatchObject({ code: 2, stdout: "" });
  });

  it("points list filters by time and kind, and adds up what it lists", async () => {
    const place = new Place();
    for (const content of ["one", "two", "three"]) {
      writeFileSync(place.path("a.img"), content);
      await place.json("replicate", "a.img", "--disk", "a");
    }
    await place.json("points", "pin", "--disk", "a", "--point", "2");
    const list = async (...flags: readonly string[]): Promise<readonly unknown[]> =>
      (await place.json("points", "list", "--disk", "a", ...flags)).lines.slice(0, -1).map((line) => line["sequence"]);
    const second = (await place.json("points", "show", "--disk", "a", "--point", "2")).last["time"] as string;
    expect(await list()).toEqual([1, 2, 3]);
    expect(await list("--since", second)).toEqual([2, 3]);
    expect(await list("--until", second, "--last", "1")).toEqual([2]);
    expect(await list("--pinned")).toEqual([2]);
    expect(await list("--app")).toEqual([]);
    expect((await place.json("points", "list", "--disk", "a")).last).toMatchObject({ points: 3, pinnedPoints: 1 });
  });

  it("a reader that goes away ends nothing", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 1);
    const running = place.start(["replicate", "a.img", "--disk", "a", "--vault", "dir:vault"]);
    running.child.stdout?.destroy();
    expect(await running.ended).toMatchObject({ code: 0, stderr: "" });
    expect(await place.json("points", "list", "--disk", "a")).toMatchObject({ last: { points: 1 } });
  });
});

describe("the environment", () => {
  it("mirrors the flags, and a flag goes before it", async () => {
    const place = new Place();
    writeFileSync(place.path("a.img"), "content");
    const environment = {
      TIDEMARK_LANES: "",
      TIDEMARK_VAULT: "dir:one",
      TIDEMARK_STATE: place.path("state"),
      TIDEMARK_JSON: "1",
      TIDEMARK_WORKERS: "1",
    };
    const done = await place.run(["replicate", "a.img", "--disk", "a"], environment);
    expect(parseLines(done.stdout).at(-1)).toMatchObject({ type: "summary", sequence: 1 });
    expect(readdirSync(place.folder).sort()).toEqual(["a.img", "one", "state"]);
    const other = await place.run(["disks", "list", "--vault", "dir:two"], environment);
    expect(parseLines(other.stdout)).toMatchObject([
      { type: "error", code: "VAULT_NOT_FOUND", message: expect.stringContaining("two") as string },
    ]);
    const refused = await place.run(["replicate", "a.img", "--disk", "a"], {
      ...environment,
      TIDEMARK_WORKERS: "many",
    });
    expect(refused.code).toBe(2);
  });

  it("never shows a secret", async () => {
    const place = new Place();
    const key = Buffer.from("a key that must not be seen, ever!").toString("base64");
    const vault = "http://127.0.0.1:9/devstoreaccount1/vault?sv=2025-01-05&sr=c&sig=NobodyMaySeeThis%3D";
    for (const words of [
      ["vault", "show", "--vault", vault.replace("/vault?", "/a/b/c?")],
      ["disks", "list", "--vault", "ftp://x?sig=NobodyMaySeeThis"],
      ["vault", "show", "--vault", "http://user:NobodyMaySeeThis@127.0.0.1:9/devstoreaccount1/vault"],
      ["vault", "show", "--vault", "https://x.blob.core.windows.net/vault"],
    ]) {
      const ended = await place.run([...words, "--json", "--debug"], {
        AZURE_STORAGE_CONNECTION_STRING: `AccountName=other;AccountKey=${key}`,
        HTTPS_PROXY: "http://user:NobodyMaySeeThis@127.0.0.1:9",
      });
      expect(ended.code).not.toBe(0);
      expect(ended.stdout).toContain('"type":"error"');
      expect(ended.stderr).toContain("at ");
      expect(ended.stdout + ended.stderr).not.toContain("NobodyMaySeeThis");
      expect(ended.stdout + ended.stderr).not.toContain(key);
    }
  });
});
