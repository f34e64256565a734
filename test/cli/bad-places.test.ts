/**
 * Table of bad places: commands with a source, target, vault, state folder, socket, configuration or log that is
 * absent, a loop of links, below a file, stale, read-only, full, slow or another user's.
 *
 * What the place caused is told as such: an error with its code that names the place, within its
 * time, and with a remedy that is not the command just typed. A quick run takes a sample.
 */
import { spawnSync } from "node:child_process";
import { closeSync, cpSync, existsSync, mkdirSync, openSync, rmdirSync, symlinkSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { dirname } from "node:path";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, expect, onTestFinished, test, vi } from "vitest";
import { byDepth, sampleOf } from "../depth.ts";
import { MemoryDisk, serve } from "../engine/disk/nbd/server-rig.ts";
import { mountSmallDisk } from "../small-disk.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { writeImage } from "./images.ts";
import { type Line, Place, parseLines } from "./tidemark.ts";

const endsMsMax = 20_000;
/** Longer than what a command waits in silence. */
const waitsMs = 9_000;
const mebibyte = 1024 * 1024;
const strangerId = "65534";
const asStranger = ["setpriv", `--reuid=${strangerId}`, `--regid=${strangerId}`, "--clear-groups"];

/** What is wrong with a place. `make` gives its path, or why this machine cannot have it. */
interface Bad {
  readonly what: string;
  readonly asStranger?: true;
  /** The command is to say meanwhile that it waits. */
  readonly isWaitedFor?: true;
  readonly make: (place: Place) => string | { readonly reason: string } | Promise<string>;
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

const full: Bad = {
  what: "full",
  make: (place) =>
    smallDisk(place, mebibyte, (folder) => {
      spawnSync("dd", ["if=/dev/zero", `of=${folder}/ballast`, "bs=4k"]);
    }),
};
const slow: Bad = {
  what: "slow",
  make: (place) => {
    const server = createServer(() => undefined).listen(place.path("silent"));
    onTestFinished(() => {
      server.close();
    });
    return place.path("silent");
  },
};

/** Gives the port of a server that takes connections, and closes them after a while without a word. */
async function silentServer(closesAfterMs: number): Promise<number> {
  const server = createServer((socket) => {
    socket.on("error", () => undefined).setTimeout(closesAfterMs, () => socket.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

const slowStore: Bad = {
  what: "slow",
  isWaitedFor: true,
  make: async () => `http://127.0.0.1:${String(await silentServer(60_000))}/devstoreaccount1/vault`,
};
const slowSource: Bad = {
  what: "slow",
  isWaitedFor: true,
  make: async () => `nbd://127.0.0.1:${String(await silentServer(waitsMs))}/x`,
};

interface Use {
  readonly role: string;
  readonly bad: readonly Bad[];
  readonly words: (path: string, place: Place) => readonly string[];
  /** Codes that fit. */
  readonly codes: readonly string[];
  /** A secret may have been given in place of its path, which is not told therefore. */
  readonly isSecret?: true;
}

const vaultCodes = [
  "STORE_UNREACHABLE",
  "VAULT_NOT_FOUND",
  "ACCESS_REFUSED",
  "INVALID_ARGUMENT",
  "NO_SPACE",
  "DAMAGED",
  "STORE_REFUSED",
];
const vaultUse = (role: string, words: readonly string[], bad: readonly Bad[]): Use => ({
  role: `vault of ${role}`,
  bad,
  words: (path) => [...words, "--vault", path.includes("://") ? path : `dir:${path}`],
  codes: vaultCodes,
});

const everywhere = [looping, belowFile, stale, foreign];
const sourceCodes = ["SOURCE_NOT_FOUND", "SOURCE_UNREADABLE", "ACCESS_REFUSED"];
const targetCodes = ["TARGET_FAILED", "ACCESS_REFUSED", "NO_SPACE", "INVALID_ARGUMENT", "TARGET_EXISTS"];
const protectA = ["protect", "a.img", "--disk", "b", "--vault", "dir:vault"];
const uses: readonly Use[] = [
  ...[["points", "list", "--disk", "a"], ["verify"]].map((words) =>
    vaultUse(words.slice(0, 2).join(" "), words, [absent, ...everywhere, slowStore]),
  ),
  vaultUse("vault init", ["vault", "init"], [...everywhere, readOnly, slowStore]),
  {
    role: "source of replicate",
    bad: [absent, ...everywhere, slowSource],
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
    bad: [looping, belowFile, stale, readOnly, full, foreign],
    words: (path) => ["materialize", "--disk", "a", "--point", "latest", "--to", path, "--vault", "dir:vault"],
    codes: targetCodes,
  },
  {
    role: "vault to copy",
    bad: [absent, ...everywhere],
    words: (path) => ["copy", "--from", `dir:${path}`, "--to", "dir:other"],
    codes: vaultCodes,
  },
  {
    role: "vault to copy to",
    bad: [...everywhere, readOnly, full],
    words: (path) => ["copy", "--from", "dir:vault", "--to", `dir:${path}`],
    codes: vaultCodes,
  },
  {
    role: "key of verify",
    bad: [absent, ...everywhere],
    words: (path) => ["verify", "--vault", "dir:vault", "--key", path],
    codes: ["INVALID_ARGUMENT"],
    isSecret: true,
  },
  {
    role: "output of vault key",
    bad: [...everywhere, readOnly],
    words: (path) => ["vault", "key", "--name", "m", "--disks", "*", "--out", path, "--vault", "dir:vault"],
    codes: [...targetCodes, "TARGET_EXISTS"],
  },
  {
    role: "key of agent register",
    bad: [absent, ...everywhere],
    words: (path) => ["agent", "register", "--key", path],
    codes: ["INVALID_ARGUMENT", "ACCESS_REFUSED", "KEY_ALTERED"],
  },
  {
    role: "plan",
    bad: [absent, ...everywhere],
    words: (path) => ["plan", "check", "--plan", path, "--vault", "dir:vault"],
    codes: ["INVALID_ARGUMENT", "ACCESS_REFUSED"],
  },
  {
    role: "disk of capacity profile",
    bad: [absent, ...everywhere],
    words: (path) => ["capacity", "profile", "--disk", path, "--for", "30s", "--out", "profile"],
    codes: sourceCodes,
  },
  {
    role: "output of capacity profile",
    bad: [looping, belowFile, stale, readOnly],
    words: (path) => ["capacity", "profile", "--disk", "a.img", "--for", "30s", "--out", path],
    codes: [...targetCodes, "DAMAGED"],
  },
  {
    role: "profile of capacity report",
    bad: [absent, ...everywhere],
    words: (path) => ["capacity", "report", path],
    codes: sourceCodes,
  },
  {
    role: "source of protect",
    bad: [absent, ...everywhere],
    words: (path) => ["protect", path, "--disk", "b", "--listen", "unix:socket", "--vault", "dir:vault"],
    codes: [...sourceCodes, "INVALID_ARGUMENT"],
  },
  vaultUse(
    "protect",
    ["protect", "a.img", "--disk", "b", "--listen", "unix:socket"],
    [...everywhere, readOnly, full, slowStore],
  ),
  {
    role: "state folder of protect",
    // A live disk goes on without room for its marks, with a finding: a full one is no error.
    bad: [...everywhere, readOnly],
    words: (path) => [...protectA, "--listen", "unix:socket", "--state", path],
    codes: ["ACCESS_REFUSED", "NO_SPACE", "DEVICE_FAILED", "INVALID_ARGUMENT"],
  },
  {
    role: "NBD socket of protect",
    bad: [absent, ...everywhere, readOnly],
    words: (path) => [...protectA, "--listen", `unix:${path}`],
    codes: ["ACCESS_REFUSED", "INVALID_ARGUMENT", "NO_SPACE"],
  },
  {
    role: "control socket",
    bad: [absent, ...everywhere, slow],
    words: (path) => ["agent", "status", "--socket", path],
    codes: ["AGENT_UNREACHABLE", "ACCESS_REFUSED"],
  },
  {
    role: "configuration of agent",
    bad: [absent, ...everywhere],
    words: (path) => ["agent", "--config", path],
    codes: ["INVALID_ARGUMENT", "ACCESS_REFUSED"],
  },
  {
    role: "log of agent",
    bad: [...everywhere, readOnly],
    words: (path, place) => {
      const lines = [
        `vaults: {main: {address: "dir:${place.path("vault")}", stateFolder: "${place.path("state")}"}}`,
        "policies: {gold: {crashConsistentFrequency: 1m}}",
        `disks: [{name: c, image: "${place.path("a.img")}", vault: main, policy: gold, listen: "unix:${place.path("socket")}"}]`,
        `logging: {file: "${path}"}`,
        `control: {socket: "${place.path("control")}"}`,
      ];
      writeFileSync(place.path("agent.yaml"), `${lines.join("\n")}\n`);
      return ["agent", "--config", place.path("agent.yaml")];
    },
    codes: ["INVALID_ARGUMENT", "ACCESS_REFUSED", "NO_SPACE"],
  },
];

const cells = uses.flatMap((use) => use.bad.map((bad) => ({ name: `${use.role}: ${bad.what}`, use, bad })));

/** An image and a vault with a point of it, as each cell begins. */
const prepared = `${createFolder("prepared")}/place`;

afterAll(async () => {
  await removeFolder(dirname(prepared));
});

test.for(sampleOf(cells, 4))("$name", { timeout: 60_000 }, async ({ use, bad, name }, { skip }) => {
  const place = new Place();
  const vault = { TIDEMARK_STATE: place.path("state") };
  if (!existsSync(prepared)) {
    writeImage(place.path("a.img"), 2);
    const made = await place.run(["replicate", "a.img", "--disk", "a", "--vault", "dir:vault"], vault);
    expect(made).toMatchObject({ code: 0 });
    cpSync(place.folder, prepared, { recursive: true });
  } else cpSync(prepared, place.folder, { recursive: true });
  const path = await bad.make(place);
  if (typeof path !== "string") return skip(path.reason);
  const words = [...use.words(path, place), "--json"];
  const started = performance.now();
  const { code, stdout, stderr } = await (bad.asStranger === true
    ? place.start(words, vault, asStranger).ended
    : place.run(words, vault));
  expect(performance.now() - started).toBeLessThan(endsMsMax);
  expect({ name, stderr }).toEqual({ name, stderr: "" });
  const lines = parseLines(stdout);
  const last: Line = lines.at(-1) ?? { type: "nothing" };
  const told = { name, ...last };
  expect(told).toMatchObject({ type: "error" });
  expect(use.codes, JSON.stringify(told)).toContain(last["code"]);
  if (bad.isWaitedFor) expect(lines.map((line) => line["code"])).toContain("NO_ANSWER");
  expect(code).not.toBe(0);
  expect(last["message"]).not.toContain("internal error");
  expect(JSON.stringify(told).includes(path.slice(0, -2))).toBe(use.isSecret !== true);
  const typed = words.slice(0, words[0] === "vault" ? 2 : 1).join(" ");
  expect(last["remedy"]).not.toContain(`\`tidemark ${typed}\``);
});

const lateMs: number = byDepth(50, waitsMs);

test(`a source that takes ${lateMs} ms to answer is waited for`, { timeout: 60_000 }, async () => {
  const place = new Place();
  const disk = new MemoryDisk(mebibyte, { readOnly: true });
  disk.bytes.fill("late");
  disk.answersAtOnce = false;
  const release = disk.hold();
  const { address } = await serve(disk);
  const source = `nbd+unix:///disk?socket=${address.kind === "unix" ? address.path : ""}`;
  const replicated = place.json("replicate", source, "--disk", "a");
  await vi.waitUntil(() => disk.underWay > 0, { timeout: 30_000 });
  await delay(lateMs);
  release();
  const { code, lines } = await replicated;
  expect({ code, lines }).toMatchObject({ code: 0 });
  expect(lines.some((line) => line["code"] === "NO_ANSWER")).toBe(lateMs === waitsMs);
});
