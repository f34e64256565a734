/** A `dir:` vault in a folder that other users of the machine can write, or read. */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { statSync } from "node:fs";
import { chmod, link, mkdir, readdir, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { DirectorySink } from "../../sink/directory.ts";
import { FileLock } from "../../sink/file-lock.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { expectCode, namesIn } from "./expectations.ts";

let folder: string;
let root: string;
let outside: string;
let etag: string;

beforeEach(async () => {
  folder = createFolder("foreign");
  root = join(folder, "vault");
  outside = join(folder, "outside");
  await writeFile(outside, "not the vault's");
  await using sink = await DirectorySink.open(root);
  await sink.createContainer();
  ({ etag } = await sink.putObject("disks/d/head", new Uint8Array(8), { ifAbsent: true }));
  await sink.acquireLease("disks/d/head", leaseId, 60);
  await sink.createPages("segments/s", 4096, 1);
});

afterEach(async () => {
  await removeFolder(folder);
});

const leaseId = "00000000-0000-4000-8000-000000000001";

/** The calls of a client that has seen nothing yet, and the file of the vault that each of them opens. */
const calls: readonly (readonly [file: string, what: string, call: (sink: DirectorySink) => Promise<unknown>])[] = [
  ["disks/d/head", "getObject", (sink) => sink.getObject("disks/d/head", 100)],
  ["disks/d/head", "statObject", (sink) => sink.statObject("disks/d/head")],
  [
    "disks/d/head",
    "putObject",
    (sink) => sink.putObject("disks/d/head", new Uint8Array(1), { ifMatch: etag, leaseId }),
  ],
  ["disks/d/head", "deleteObject", (sink) => sink.deleteObject("disks/d/head")],
  ["disks/d/head@lease", "renewLease", (sink) => sink.renewLease("disks/d/head", leaseId)],
  ["segments/s@pages", "readPages", (sink) => sink.readPages("segments/s", 0, new Uint8Array(512))],
  [
    "segments/s@pages",
    "writePages",
    (sink) => sink.writePages("segments/s", 0, new Uint8Array(512), { sequenceNumber: 1 }),
  ],
  ["segments/s@pages", "restorePages", (sink) => sink.restorePages("segments/s", 4096, 1)],
  ["segments/s@pages", "clearPages", (sink) => sink.clearPages("segments/s", 0, 512)],
  ["@tidemark/clock", "putObject", (sink) => sink.putObject("new", new Uint8Array(1), { ifAbsent: true })],
  ["@tidemark/lock", "putObject", (sink) => sink.putObject("new", new Uint8Array(1), { ifAbsent: true })],
];

describe("a name that has become", () => {
  test.each(calls)("a link: %s is DAMAGED for %s, and what the link leads to stays as it is", async (file, _, call) => {
    await rename(join(root, file), join(folder, "original"));
    await symlink(outside, join(root, file));
    await using sink = await DirectorySink.open(root);
    expect((await expectCode(call(sink), "DAMAGED")).message).toContain(file);
    expect(await readFile(outside, "utf8")).toBe("not the vault's");
  });

  test.each(calls)("a FIFO: %s is DAMAGED for %s at once", async (file, _, call) => {
    await rm(join(root, file));
    execFileSync("mkfifo", [join(root, file)]);
    await using sink = await DirectorySink.open(root);
    expect((await expectCode(call(sink), "DAMAGED")).message).toContain(file);
  });

  test.each(["disks/d", "disks", "segments", "@tidemark"])("a folder behind a link: %s is DAMAGED", async (name) => {
    await rename(join(root, name), join(folder, "elsewhere"));
    await symlink(join(folder, "elsewhere"), join(root, name));
    const before = await readdir(join(folder, "elsewhere"), { recursive: true });
    await using sink = await DirectorySink.open(root);
    const inside = name === "segments" ? "segments/new" : name === "@tidemark" ? "new" : "disks/d/new";
    await expectCode(sink.putObject(inside, new Uint8Array(1), { ifAbsent: true }), "DAMAGED");
    await expectCode(sink.createPages(inside, 512, 1), "DAMAGED");
    await expectCode(namesIn(sink, ""), "DAMAGED");
    expect(await readdir(join(folder, "elsewhere"), { recursive: true })).toEqual(before);
  });

  test("a link, a FIFO or a link to nothing does not hide the other objects", async () => {
    await symlink(outside, join(root, "link"));
    await symlink("circle", join(root, "circle"));
    execFileSync("mkfifo", [join(root, "fifo"), join(root, "fifo2@pages")]);
    await using sink = await DirectorySink.open(root);
    expect((await namesIn(sink, "")).sort()).toEqual(["circle", "disks/d/head", "fifo", "fifo2", "link", "segments/s"]);
    await expectCode(sink.readPages("fifo2", 0, new Uint8Array(1)), "DAMAGED");
  });

  test("a second name of another file is not written", async () => {
    await rm(join(root, "@tidemark/clock"));
    await link(outside, join(root, "@tidemark/clock"));
    await link(join(root, "segments/s@pages"), join(folder, "second"));
    await using sink = await DirectorySink.open(root);
    await expectCode(sink.putObject("new", new Uint8Array(1), { ifAbsent: true }), "DAMAGED");
    await expectCode(sink.writePages("segments/s", 0, new Uint8Array(512), { sequenceNumber: 1 }), "DAMAGED");
    await sink.readPages("segments/s", 0, new Uint8Array(512));
    expect(await readFile(outside, "utf8")).toBe("not the vault's");
  });
});

test("the vault's folder itself may be reached through a link, and the link may be moved", async () => {
  const way = join(folder, "way");
  await symlink(root, way);
  await using sink = await DirectorySink.open(way);
  await sink.getObject("disks/d/head", 100);
  await rename(root, join(folder, "moved"));
  await rm(way);
  await symlink(join(folder, "moved"), way);
  await sink.getObject("disks/d/head", 100);
});

test("other users can read nothing in a vault, whatever the umask", async () => {
  const before = process.umask(0);
  try {
    const vault = join(folder, "made/vault");
    await using sink = await DirectorySink.open(vault);
    await sink.createContainer();
    await sink.putObject("disks/d/head", new Uint8Array(8), { ifAbsent: true });
    await sink.acquireLease("disks/d/head", leaseId, 60);
    await sink.createPages("segments/s", 4096, 1);
    const names = await readdir(vault, { recursive: true });
    expect(names.length).toBeGreaterThan(6);
    expect(["", ...names].filter((name) => (statSync(join(vault, name)).mode & 0o077) !== 0)).toEqual([]);
  } finally {
    process.umask(before);
  }
});

// flock(1) and /proc/locks are Linux's.
test.runIf(process.platform === "linux")("a lock that another user holds is named with its holder", async (context) => {
  if (process.geteuid?.() !== 0) context.skip("only root can start a process of another user");
  const lock = join(folder, "lock");
  await writeFile(lock, "");
  await Promise.all([chmod(lock, 0o644), chmod(folder, 0o755)]);
  const holder = spawn("flock", ["-s", lock, "sh", "-c", "echo held; exec sleep 60"], {
    uid: 65_534,
    stdio: ["ignore", "pipe", "ignore"],
  });
  try {
    await once(holder.stdout, "data");
    const error = await expectCode(FileLock.acquire(lock, "exclusive", { waitMsMax: 1 }), "STORE_UNREACHABLE");
    expect(error.message).toContain(lock);
    expect(error.message).toMatch(/process \d+ of user 65534/);
  } finally {
    holder.kill();
    holder.stdout.destroy();
  }
});

test("a folder that the user has made becomes a vault for its owner only", async () => {
  await mkdir(join(folder, "empty"));
  await using sink = await DirectorySink.open(join(folder, "empty"));
  await sink.createContainer();
  expect(statSync(join(folder, "empty/@tidemark")).mode & 0o777).toBe(0o700);
});
