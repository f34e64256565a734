/** Folders of vaults that are read-only, another user's, full, or on a file system that has gone. */

import { spawnSync } from "node:child_process";
import { closeSync, openSync, readFileSync, statfsSync } from "node:fs";
import { chmod, mkdir, rm, rmdir, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { makeFolder } from "../../engine/disk/source/plain-file.ts";
import { TidemarkError } from "../../engine/errors.ts";
import { Vault } from "../../engine/vault.ts";
import { Azurite } from "../../sink/azurite.ts";
import { DirectorySink } from "../../sink/directory.ts";
import { openSink } from "../../sink/open.ts";
import { byDepth } from "../depth.ts";
import { modelEncryption } from "../encrypted.ts";
import { mountSmallDisk } from "../small-disk.ts";
import { repositoryRoot } from "../source-tree.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { expectCode } from "./expectations.ts";

const mebibyte = 1024 * 1024;
let folder: string;

beforeEach(() => {
  folder = createFolder("unusable");
});

afterEach(async () => {
  await removeFolder(folder);
});

/** Both kinds of vaults that lie in a folder; an Azurite must not be reached. */
const kinds = [
  ["dir", async (dir: string) => await (await DirectorySink.open(dir)).createContainer()],
  ["azurite", async (dir: string) => await (await Azurite.start(dir)).stop()],
] as const;

describe.each(kinds)("%s: a folder", (_, make) => {
  test("that cannot be made is named, and the remedy is not the command that was typed", async () => {
    for (const dir of ["/proc/tidemark", "/proc/self/tidemark/vault", "/sys/tidemark"]) {
      const error: unknown = await make(dir).then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      if (!(error instanceof TidemarkError)) throw new Error(`${dir} became a vault`, { cause: error });
      expect(["INVALID_ARGUMENT", "ACCESS_REFUSED"]).toContain(error.code);
      expect(error.message).toContain(dir);
      expect(error.remedy).not.toContain("vault init");
    }
  });

  test("below a file is no folder", async () => {
    await writeFile(join(folder, "file"), "");
    await expectCode(make(join(folder, "file/vault")), "INVALID_ARGUMENT");
  });

  test("that has been removed under its mount ends at once", async () => {
    await mkdir(join(folder, "gone"));
    const handle = openSync(join(folder, "gone"), "r");
    await rmdir(join(folder, "gone"));
    try {
      const stale = `/proc/self/fd/${String(handle)}`;
      expect((await expectCode(make(stale), "INVALID_ARGUMENT")).message).toContain("no folder can be made");
      await expectCode(make(`${stale}/vault`), "INVALID_ARGUMENT");
    } finally {
      closeSync(handle);
    }
  });

  test("on a read-only file system is refused", async ({ skip }) => {
    const dir = join(folder, "disk");
    const disk = mountSmallDisk(dir, mebibyte);
    if ("reason" in disk) return skip(disk.reason);
    try {
      await chmod(dir, 0o700);
      expect(spawnSync("mount", ["-o", "remount,ro", dir]).status).toBe(0);
      for (const place of [dir, join(dir, "vault")]) {
        const error = await expectCode(make(place), "ACCESS_REFUSED");
        expect(error.message).toContain(place);
      }
    } finally {
      disk.unmount();
    }
  });

  test("on a full file system is NO_SPACE", async ({ skip }) => {
    const dir = join(folder, "disk");
    const disk = mountSmallDisk(dir, 9 * mebibyte);
    if ("reason" in disk) return skip(disk.reason);
    try {
      await make(join(dir, "vault"));
      spawnSync("dd", ["if=/dev/zero", `of=${join(dir, "ballast")}`, "bs=64k"]);
      const work =
        _ === "azurite"
          ? make(join(dir, "vault"))
          : DirectorySink.open(join(dir, "vault")).then((sink) =>
              sink.putObject("x", new Uint8Array(mebibyte), { ifAbsent: true }),
            );
      await expectCode(work, "NO_SPACE");
    } finally {
      disk.unmount();
    }
  });
});

test.for(byDepth<("dir" | "azurite")[]>(["dir"], ["dir", "azurite"]))(
  "a full %s: vault keeps room for the objects with which points are dropped",
  async (kind, { skip }) => {
    const dir = join(folder, "disk");
    const disk = mountSmallDisk(dir, 24 * mebibyte);
    if ("reason" in disk) return skip(disk.reason);
    const sink = await openSink(`${kind}:${join(dir, "vault")}`);
    try {
      await sink.createContainer();
      await sink.createPages("segment", 64 * mebibyte, 1);
      const lane = async (from: number): Promise<void> => {
        for (let at = from; ; at += 4 * mebibyte)
          await sink.writePages("segment", at, new Uint8Array(mebibyte).fill(1), { sequenceNumber: 1 });
      };
      const lanes = await Promise.allSettled([0, 1, 2, 3].map((index) => lane(index * mebibyte)));
      const codes = lanes.map((outcome) =>
        outcome.status === "rejected" ? (outcome.reason as TidemarkError).code : "",
      );
      expect(codes).toEqual(Array(4).fill("NO_SPACE"));
      const { bavail, bsize } = statfsSync(dir);
      expect(bavail * bsize).toBeGreaterThan(7 * mebibyte);
      const { etag } = await sink.putObject("head", new Uint8Array(mebibyte), { ifAbsent: true });
      await sink.putObject("head", new Uint8Array(mebibyte), { ifMatch: etag });
      await sink.clearPages("segment", 0, 64 * mebibyte);
      // Azurite frees extents minutes after nothing refers to them.
      if (kind === "dir") await sink.writePages("segment", 0, new Uint8Array(mebibyte), { sequenceNumber: 1 });
      await sink.deleteObject("segment");
    } finally {
      await sink[Symbol.asyncDispose](); // an Azurite that cannot save is an error here
      disk.unmount();
    }
  },
);

test("vault init on a file system that is nearly full creates a vault or none, and its remedy can be followed", async ({
  skip,
}) => {
  const dir = join(folder, "disk");
  const disk = mountSmallDisk(dir, mebibyte);
  if ("reason" in disk) return skip(disk.reason);
  const told: string[] = [];
  try {
    // From no room at all to room for all objects.
    for (let freePages = 0; freePages < 5; freePages += 1) {
      const vault = join(dir, `vault-${String(freePages)}`);
      spawnSync("dd", ["if=/dev/zero", `of=${join(dir, "ballast")}`, "bs=4k"]);
      await truncate(join(dir, "ballast"), (await stat(join(dir, "ballast"))).size - freePages * 4096);
      const create = async (): Promise<string> => {
        await using sink = await DirectorySink.open(vault);
        await using created = await Vault.create(sink, { ...modelEncryption, onNotice: ({ code }) => told.push(code) });
        return created.id;
      };
      const first = await create().catch((error: unknown) => error);
      await rm(join(dir, "ballast"));
      if (first instanceof TidemarkError) {
        expect(first).toMatchObject({ code: "NO_SPACE", remedy: "free some space, then run the command again" });
        await create();
      }
      await using sink = await DirectorySink.open(vault);
      await using opened = await Vault.open(sink, modelEncryption);
      if (typeof first === "string") expect(opened.id).toBe(first);
      await rm(vault, { recursive: true });
    }
    expect(told).toEqual(["VAULT_AT_RISK"]);
  } finally {
    disk.unmount();
  }
});

test("a folder is made with those above it, and one that exists is none the worse", async () => {
  await makeFolder(join(folder, "a/b/c"));
  await makeFolder(join(folder, "a/b/c"));
  await makeFolder("/");
  await writeFile(join(folder, "file"), "");
  await expect(makeFolder(join(folder, "file"))).rejects.toMatchObject({ code: "EEXIST" });
  await expect(makeFolder("/proc/tidemark/x")).rejects.toMatchObject({ code: "ENOENT" });
});

test("no product file uses Node's recursive mkdir, which never ends on such a file system", () => {
  const { stdout } = spawnSync("grep", ["-rlE", "mkdir(Sync)?\\(.*recursive", "engine", "sink", "cli", "bench"], {
    cwd: repositoryRoot,
    encoding: "utf8",
  });
  expect(stdout.split("\n").filter((path) => path.endsWith(".ts"))).toEqual([]);
  expect(readFileSync(join(repositoryRoot, "engine/disk/source/plain-file.ts"), "utf8")).toContain("mkdir(");
});
