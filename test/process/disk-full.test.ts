/** Disks that are full: under the local state, under a target, under the vault itself. */
import { execFileSync } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, type TestContext, test } from "vitest";
import { sameFiles, writeImage } from "../cli/images.ts";
import { byDepth } from "../depth.ts";
import { mountSmallDisk } from "../small-disk.ts";
import { Client, notices } from "./client.ts";

const mebibyte = 1024 * 1024;
const imageMebibytes = 24;

/**
 * Mounts a small file system in the client's folder for as long as the test runs. Skips the test
 * where that cannot be done.
 */
function mounted(context: Pick<TestContext, "skip">, client: Client, name: string, sizeBytes: number): string {
  const disk = mountSmallDisk(client.path(name), sizeBytes);
  if ("reason" in disk) context.skip(`no disk can be full here: ${disk.reason}`);
  onTestFinished(() => disk.unmount());
  return disk.path;
}

test("a full disk under the local state costs a notice, not the point", async (context) => {
  const client = new Client("dir:vault");
  const state = mounted(context, client, "state", 256 * 1024);
  writeFileSync(join(state, "ballast"), Buffer.alloc(240 * 1024));
  writeImage(client.path("disk.img"), imageMebibytes);
  for (const sequence of [1, 2]) {
    const point = await client.replicate("disk.img", "--state", "state");
    expect(point).toMatchObject({ code: 0, last: { type: "summary", sequence } });
    expect(notices(point)).toContain("STATE_NOT_SAVED");
  }
  expect(await client.verified()).toEqual([1, 2]);
});

test("a full disk under the target ends a materialization with NO_SPACE, and nothing bears the target's name", async (context) => {
  const client = new Client("dir:vault");
  const small = mounted(context, client, "small", 8 * mebibyte);
  writeImage(client.path("disk.img"), imageMebibytes);
  await client.replicate("disk.img");
  const words = ["materialize", "--disk", "d", "--point", "latest", "--to", "small/back.img"];
  expect(await client.run(...words)).toMatchObject({ code: 1, last: { type: "error", code: "NO_SPACE" } });
  expect(existsSync(join(small, "back.img"))).toBe(false);
  enlarge(small, 2 * imageMebibytes * mebibyte);
  expect(await client.run(...words)).toMatchObject({ code: 0 });
  expect(sameFiles(client.path("disk.img"), join(small, "back.img"))).toBe(true);
});

test.for(byDepth(["dir"], ["dir", "azurite"]))(
  "a full disk under a %s: vault ends a replication with NO_SPACE; with room the next one succeeds",
  async (kind, context) => {
    const client = new Client(`${kind}:small/vault`);
    const small = mounted(context, client, "small", 8 * mebibyte);
    writeImage(client.path("disk.img"), imageMebibytes);
    expect(await client.replicate("disk.img")).toMatchObject({ code: 1, last: { type: "error", code: "NO_SPACE" } });
    enlarge(small, 2 * imageMebibytes * mebibyte);
    expect(await client.replicate("disk.img")).toMatchObject({ code: 0, last: { sequence: 1 } });
    expect(await client.run("verify", "--disk", "d", "--source", "disk.img")).toMatchObject({
      code: 0,
      last: { damaged: [] },
    });
  },
);

/** Gives the file system at `path` more room. */
function enlarge(path: string, sizeBytes: number): void {
  execFileSync("mount", ["-o", `remount,size=${sizeBytes}`, path], { stdio: "pipe" });
}
