/** A state folder in which another user has put links and FIFOs in the place of our files. */
import { execFileSync } from "node:child_process";
import { statSync } from "node:fs";
import { mkdir, readdir, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { FileVolume } from "../../../engine/disk/source/file-volume.ts";
import { openTrackingStorage } from "../../../engine/disk/tracking/tracking-storage.ts";
import type { Notice } from "../../../engine/notice.ts";
import type { Vault } from "../../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../../sink/memory.ts";
import { closeModelVaults, contentOf, openModelVault } from "../../model-disk.ts";
import { expectCode } from "../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";

let folder: string;
let state: string;
let image: string;
let outside: string;
let vault: Vault;

beforeEach(async () => {
  folder = createFolder("foreign-state");
  state = join(folder, "state");
  image = join(folder, "disk.img");
  outside = join(folder, "outside");
  await writeFile(image, contentOf(65_536, 3));
  await writeFile(outside, "not ours");
  vault = await openModelVault(new MemorySink({ store: new MemoryStore() }), { stateFolder: state });
  await replicate();
});

afterEach(async () => {
  await closeModelVaults();
  await removeFolder(folder);
});

async function replicate(): Promise<readonly Notice[]> {
  const notices: Notice[] = [];
  const volume = await FileVolume.open(image);
  try {
    await vault.replicate({ disk: "d", volume, onNotice: (notice) => notices.push(notice) });
  } finally {
    await volume.close();
  }
  return notices;
}

/** Files of the state folder, below it. */
async function files(): Promise<readonly string[]> {
  const names = await readdir(state, { recursive: true });
  return names.filter((name) => statSync(join(state, name)).isFile());
}

test.each(["a link", "a FIFO"])(
  "a cycle goes on when every file there has become %s, and follows none",
  async (kind) => {
    const names = await files();
    expect(names.length).toBeGreaterThan(3);
    for (const name of names) {
      await rm(join(state, name));
      if (kind === "a link") await symlink(outside, join(state, name));
      else execFileSync("mkfifo", [join(state, name)]);
    }
    const codes = (await replicate()).map(({ code }) => code);
    expect(codes).toContain("STATE_LOST");
    expect(await readFile(outside, "utf8")).toBe("not ours");
    // What was replaced is a regular file again, so the next cycle is as fast as ever.
    expect(await replicate()).toEqual([]);
  },
);

test("no file there is written through a name that can be foreseen", async () => {
  for (const name of await files()) await symlink(outside, join(state, `${name}.new`));
  await replicate();
  expect(await readFile(outside, "utf8")).toBe("not ours");
});

test("nothing is written through a folder that has become a link", async () => {
  const elsewhere = join(folder, "elsewhere");
  for (const name of (await readdir(state)).filter((entry) => entry !== "vaults")) {
    await rename(join(state, name), elsewhere);
    await symlink(elsewhere, join(state, name));
  }
  const before = await readdir(elsewhere, { recursive: true });
  const notices = await replicate();
  expect(notices.map(({ code }) => code)).toContain("STATE_NOT_SAVED");
  expect((await readdir(elsewhere, { recursive: true })).filter((name) => !before.includes(name))).toEqual([]);
});

test("a tracking file that is a link or a FIFO is DAMAGED", async () => {
  await mkdir(join(folder, "tracking"));
  await symlink(outside, join(folder, "tracking/link"));
  execFileSync("mkfifo", [join(folder, "tracking/fifo")]);
  for (const name of ["link", "fifo"]) {
    const error = await expectCode(openTrackingStorage(join(folder, "tracking", name)), "DAMAGED");
    expect(error.message).toContain(name);
  }
  expect(await readFile(outside, "utf8")).toBe("not ours");
});

test("other users can read nothing there, whatever the umask", async () => {
  const before = process.umask(0);
  try {
    await rm(state, { recursive: true });
    await replicate();
    const names = await readdir(state, { recursive: true });
    expect(["", ...names].filter((name) => (statSync(join(state, name)).mode & 0o077) !== 0)).toEqual([]);
  } finally {
    process.umask(before);
  }
});
