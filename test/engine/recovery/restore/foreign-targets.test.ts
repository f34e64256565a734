/** Targets in folders that other users can write, the permissions of restored images, and names below /dev. */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { chmod, chown, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { RestoreTarget } from "../../../../engine/recovery/restore/target.ts";
import { type OpenTargetOptions, openTarget } from "../../../../engine/recovery/restore/targets.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";

const bytes = Buffer.alloc(8192, 7);
const nobody = 65_534;
let folder: string;
let image: string;
let partial: string;
let outside: string;
let nowMs: number;

beforeEach(async () => {
  folder = createFolder("foreign-target");
  image = join(folder, "disk.img");
  partial = `${image}.tidemark-partial`;
  outside = join(folder, "outside");
  nowMs = 0;
  await writeFile(outside, "not ours");
});

afterEach(async () => {
  expect(await readFile(outside, "utf8")).toBe("not ours");
  await removeFolder(folder);
});

function open(given: Partial<OpenTargetOptions> = {}): Promise<RestoreTarget> {
  return openTarget({
    to: image,
    format: "raw",
    mode: "create",
    volumeBytes: bytes.length,
    vaultId: "v".repeat(32),
    point: "0123456789abcdef0123456789abcdef",
    sink: new MemorySink(),
    overwriteSource: false,
    clock: () => nowMs,
    ...given,
  });
}

async function finish(target: RestoreTarget): Promise<void> {
  await target.write(target.resumeAt, bytes.subarray(target.resumeAt));
  await target.finish();
  expect((await readFile(image)).equals(bytes)).toBe(true);
  expect((await readdir(folder)).sort()).toEqual(["disk.img", "outside"]);
}

/** A run that ended after 4096 bytes, which are not those of the point. */
async function interrupted(): Promise<void> {
  const target = await open();
  await target.write(0, Buffer.alloc(4096, 0xee));
  nowMs += 1000;
  await target.checkpoint(4096);
  await target.abandon();
}

describe("what an interrupted run has left", () => {
  test("is this user's alone, whatever the umask", async () => {
    const before = process.umask(0);
    try {
      await interrupted();
    } finally {
      process.umask(before);
    }
    for (const name of [partial, `${partial}.json`]) expect((await stat(name)).mode & 0o777).toBe(0o600);
    const again = await open();
    expect(again.resumeAt).toBe(4096);
    await again.abandon();
  });

  test.each(["", ".json"])("is begun anew when other users can write the file that ends in %j", async (suffix) => {
    await interrupted();
    await chmod(partial + suffix, 0o666);
    await finish(await open());
  });

  test.for(["", ".json"])("is begun anew when the file that ends in %j is another user's", async (suffix, { skip }) => {
    await interrupted();
    if (process.geteuid?.() !== 0) skip("only root can give a file to another user");
    await chown(partial + suffix, nobody, nobody);
    const target = await open();
    expect(target.resumeAt).toBe(0);
    await finish(target);
    expect((await stat(image)).uid).toBe(process.geteuid?.());
  });

  test.each(["", ".json"])("is begun anew when the file that ends in %j is a link", async (suffix) => {
    await interrupted();
    await rm(partial + suffix);
    await symlink(outside, partial + suffix);
    await finish(await open());
  });

  test.each(["", ".json"])("is begun anew when the file that ends in %j is a FIFO", async (suffix) => {
    await interrupted();
    await rm(partial + suffix);
    execFileSync("mkfifo", [partial + suffix]);
    await finish(await open());
  });
});

test("no name that can be foreseen is written through", async () => {
  await symlink(outside, `${partial}.json.new`);
  await interrupted();
  await rm(`${partial}.json.new`);
});

test("a partial that is exchanged while it is written does not get the target's name", async () => {
  const target = await open();
  await target.write(0, bytes);
  await rm(partial);
  await writeFile(partial, "another's");
  await expectCode(target.finish(), "TARGET_FAILED");
  expect(existsSync(image)).toBe(false);
  await target.abandon();
});

describe("a restored image", () => {
  test.each([
    ["of a source of unknown permissions", undefined, 0o600],
    ["of a source for its owner", 0o400, 0o400],
    ["of a source for its group", 0o640, 0o640],
  ])("%s has its permissions, else none for others", async (_, sourceMode, expected) => {
    const before = process.umask(0);
    try {
      await finish(await open({ sourceMode }));
    } finally {
      process.umask(before);
    }
    expect((await stat(image)).mode & 0o777).toBe(expected);
  });

  test("that replaces another keeps that one's permissions", async () => {
    await writeFile(image, "old", { mode: 0o604 });
    await finish(await open({ mode: "replace", sourceMode: 0o640 }));
    expect((await stat(image)).mode & 0o777).toBe(0o604);
  });
});

describe("a target", () => {
  test("that does not exist is not changed in place", async () => {
    const error = await expectCode(open({ mode: "in-place" }), "TARGET_FAILED");
    expect(error.remedy).toContain("--in-place");
    expect(await readdir(folder)).toEqual(["outside"]);
  });

  test.runIf(process.platform === "linux").each(["create", "replace"] as const)(
    "below /dev that is no device is not made (%s)",
    async (mode) => {
      const name = `/dev/tidemark-test-${String(process.pid)}`;
      const error = await expectCode(open({ to: name, mode }), "TARGET_FAILED");
      expect(error.message).toContain(name);
      expect(existsSync(name) || existsSync(`${name}.tidemark-partial`)).toBe(false);
    },
  );

  test("that is a block device is only written in place", async ({ skip }) => {
    const device = join(folder, "device");
    try {
      // No driver has the number, so nothing could be overwritten.
      execFileSync("mknod", [device, "b", "240", "255"], { stdio: "pipe" });
    } catch {
      skip("no block device can be made here: mknod is refused");
      return;
    }
    const error = await expectCode(open({ to: device, mode: "replace", overwriteSource: true }), "TARGET_EXISTS");
    expect(error.remedy).toContain("--in-place");
  });
});
