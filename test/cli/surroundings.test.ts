/** What surrounds a process: a current folder that is gone, few open files, a state folder that is read-only. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, rmdirSync } from "node:fs";
import process from "node:process";
import { describe, expect, it } from "vitest";
import { byDepth } from "../depth.ts";
import { mountSmallDisk } from "../small-disk.ts";
import { writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

const isLinux = process.platform === "linux";
/** One line that says what is wrong, and one that says what to do. */
const errorAndRemedy = /^error: .*\n {2}\S.*\n$/;
/** A line of Node's report of an uncaught error. */
const stack = /^\s+at |Node\.js v/m;

describe.runIf(isLinux)("a current folder that has been deleted", () => {
  it("is named where a path leads from it, and is no matter elsewhere", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 1);
    expect(await place.json("replicate", "a.img", "--disk", "a")).toMatchObject({ code: 0 });
    mkdirSync(place.path("gone"));
    const inDeleted = ["sh", "-c", 'cd gone && rmdir ../gone && exec "$@"', "sh"];
    const list = ["points", "list", "--disk", "a", "--vault"];
    const words = byDepth([`dir:vault`], [`dir:vault`, `dir:${place.path("vault")}`]);
    for (const vault of words) {
      if (!existsSync(place.path("gone"))) mkdirSync(place.path("gone"));
      const { code, stderr } = await place.start([...list, vault], {}, inDeleted).ended;
      if (vault !== "dir:vault") expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
      else {
        expect(code).toBe(2);
        expect(stderr).toMatch(errorAndRemedy);
        expect(stderr).toContain("the current folder does not exist any more");
      }
    }
    if (existsSync(place.path("gone"))) rmdirSync(place.path("gone"));
  });
});

describe.runIf(isLinux)("few open files", () => {
  it.each(byDepth([64], [20, 24, 28, 29, 30, 31, 32, 33, 34, 36, 40, 48, 64, 128]))(
    "%i let a command succeed, or end with one line and its remedy",
    async (limit) => {
      const place = new Place();
      writeImage(place.path("a.img"), 1);
      const limited = ["sh", "-c", `ulimit -n ${String(limit)} && exec "$@"`, "sh"];
      for (const kind of byDepth(["dir"], ["dir", "azurite"])) {
        const words = ["replicate", "a.img", "--disk", "a", "--vault", `${kind}:${kind}`, "--quiet"];
        const { code, stderr } = await place.start(words, {}, limited).ended;
        expect(stderr).not.toMatch(stack);
        if (code === 0) expect(stderr).toBe("");
        else expect(stderr).toMatch(errorAndRemedy);
        if (code !== 0) expect(stderr).toContain("ulimit -n");
      }
    },
  );
});

describe.runIf(isLinux)("a state folder on a read-only file system", () => {
  it("costs the local caches, or is named with what to do", async ({ skip }) => {
    const place = new Place();
    writeImage(place.path("a.img"), 1);
    const disk = mountSmallDisk(place.path("disk"), 1024 * 1024);
    if ("reason" in disk) return skip(disk.reason);
    try {
      expect(spawnSync("mount", ["-o", "remount,ro", place.path("disk")]).status).toBe(0);
      const state = ["--vault", "dir:vault", "--state", place.path("disk/state")];
      const replicated = await place.run(["replicate", "a.img", "--disk", "a", ...state]);
      expect(replicated.code).toBe(0);
      for (const words of [["points", "list", "--disk", "a"], ["verify"], ["collect"]])
        expect(await place.run([...words, ...state])).toMatchObject({ code: 0 });
      // A live disk cannot be tracked without a place for its marks.
      const protecting = await place.run(["protect", "a.img", "--disk", "a", "--listen", "unix:s", ...state]);
      expect(protecting.code).not.toBe(0);
      expect(protecting.stderr).toMatch(errorAndRemedy);
      expect(protecting.stderr).toContain(place.path("disk"));
      expect(protecting.stderr).toContain("--state");
    } finally {
      disk.unmount();
    }
  });
});
