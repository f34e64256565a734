/**
 * Table of bad places: commands with a source, target or vault that is absent, a loop of links, below a file,
 * stale, read-only or another user's.
 *
 * Whatever the outside did is told as such: an error with its code that names the place, within its
 * time, and with a remedy that is not the command just typed. A quick run takes a sample.
 */
import { spawnSync } from "node:child_process";
import { closeSync, mkdirSync, openSync, rmdirSync, symlinkSync, writeFileSync } from "node:fs";
import process from "node:process";
import { expect, onTestFinished, test } from "vitest";
import { sampleOf } from "../depth.ts";
import { mountSmallDisk } from "../small-disk.ts";
import { writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

const endsMsMax = 20_000;
const mebibyte = 1024 * 1024;
const strangerId = "65534";
const asStranger = ["setpriv", `--reuid=${strangerId}`, `--regid=${strangerId}`, "--clear-groups"];

/** What is wrong with a place. `make` gives its path, or why this machine cannot have it. */
interface Bad {
  readonly what: string;
  readonly asStranger?: true;
  readonly make: (place: Place) => string | { readonly reason: string };
}

const isRoot = process.getuid?.() === 0;

function smallDisk(
  place: Place,
  sizeBytes: number,
  then: (folder: string) => void,
): string | { readonly reason: string } {
  const folder = place.path("disk");
  const disk = mountSmallDisk(folder, sizeBytes);
  if ("reason" in disk) return disk;
  onTestFinished(() => disk.unmount());
  then(folder);
  return `${folder}/x`;
}

const absent: Bad = { what: "absent", make: (place) => place.path("none/x") };
const looping: Bad = {
  what: "a loop of links",
  make: (place) => {
    symlinkSync("loop", place.path("loop"));
    return place.path("loop");
  },
};
const belowFile: Bad = {
  what: "below a file",
  make: (place) => {
    writeFileSync(place.path("file"), "");
    return place.path("file/x");
  },
};
const stale: Bad = {
  what: "stale",
  make: (place) => {
    mkdirSync(place.path("gone"));
    const handle = openSync(place.path("gone"), "r");
    onTestFinished(() => closeSync(handle));
    rmdirSync(place.path("gone"));
    return `/proc/${String(process.pid)}/fd/${String(handle)}/x`;
  },
};
const readOnly: Bad = {
  what: "read-only",
  make: (place) =>
    smallDisk(place, mebibyte, (folder) => {
      expect(spawnSync("mount", ["-o", "remount,ro", folder]).status).toBe(0);
    }),
};
const foreign: Bad = {
  what: "another user's",
  asStranger: true,
  make: (place) => {
    if (!isRoot) return { reason: "only root can run a command as another user" };
    // All but what is foreign belongs to the user that runs the command.
    spawnSync("chown", ["-R", strangerId, place.folder]);
    mkdirSync(place.path("foreign"), { mode: 0o700 });
    writeFileSync(place.path("foreign/x"), "content");
    return place.path("foreign/x");
  },
};

interface Use {
  readonly role: string;
  readonly bad: readonly Bad[];
  readonly words: (path: string) => readonly string[];
  /** Codes that fit. */
  readonly codes: readonly string[];
}

const vaultUse = (role: string, words: readonly string[], bad: readonly Bad[]): Use => ({
  role: `vault of ${role}`,
  bad,
  words: (path) => [...words, "--vault", `dir:${path}`],
  codes: ["VAULT_NOT_FOUND", "ACCESS_REFUSED", "INVALID_ARGUMENT", "NO_SPACE", "DAMAGED", "STORE_REFUSED"],
});

const everywhere = [looping, belowFile, stale, foreign];
const sourceCodes = ["SOURCE_NOT_FOUND", "SOURCE_UNREADABLE", "ACCESS_REFUSED"];
const targetCodes = ["TARGET_FAILED", "ACCESS_REFUSED", "NO_SPACE", "INVALID_ARGUMENT", "TARGET_EXISTS"];
const uses: readonly Use[] = [
  ...[["points", "list", "--disk", "a"], ["verify"]].map((words) =>
    vaultUse(words.slice(0, 2).join(" "), words, [absent, ...everywhere]),
  ),
  vaultUse("vault init", ["vault", "init"], [...everywhere, readOnly]),
  {
    role: "source of replicate",
    bad: [absent, ...everywhere],
    words: (path) => ["replicate", path, "--disk", "b", "--vault", "dir:vault"],
    codes: sourceCodes,
  },
  {
    role: "source of verify",
    bad: [absent, ...everywhere],
    words: (path) => ["verify", "--disk", "a", "--source", path, "--vault", "dir:vault"],
    codes: sourceCodes,
  },
  {
    role: "target of materialize",
    bad: [looping, belowFile, stale],
    words: (path) => ["materialize", "--disk", "a", "--point", "latest", "--to", path, "--vault", "dir:vault"],
    codes: targetCodes,
  },
];

const cells = uses.flatMap((use) => use.bad.map((bad) => ({ name: `${use.role}: ${bad.what}`, use, bad })));

test.for(sampleOf(cells, 4))("$name", { timeout: 60_000 }, async ({ use, bad, name }, { skip }) => {
  const place = new Place();
  writeImage(place.path("a.img"), 2);
  const vault = { TIDEMARK_STATE: place.path("state") };
  const prepared = await place.run(["replicate", "a.img", "--disk", "a", "--vault", "dir:vault"], vault);
  expect(prepared).toMatchObject({ code: 0 });
  const path = bad.make(place);
  if (typeof path !== "string") return skip(path.reason);
  const words = [...use.words(path), "--json"];
  const started = performance.now();
  const { code, stdout, stderr } = await (bad.asStranger === true
    ? place.start(words, vault, asStranger).ended
    : place.run(words, vault));
  expect(performance.now() - started).toBeLessThan(endsMsMax);
  expect({ name, stderr }).toEqual({ name, stderr: "" });
  const last = JSON.parse(stdout.trim().split("\n").at(-1) ?? "") as Record<string, string>;
  const told = { name, ...last };
  expect(told).toMatchObject({ type: "error" });
  expect(use.codes, JSON.stringify(told)).toContain(last["code"]);
  expect(code).not.toBe(0);
  expect(last["message"]).not.toContain("internal error");
  expect(JSON.stringify(told)).toContain(path.slice(0, -2));
  const typed = words.slice(0, words[0] === "vault" ? 2 : 1).join(" ");
  expect(last["remedy"]).not.toContain(`\`tidemark ${typed}\``);
});
