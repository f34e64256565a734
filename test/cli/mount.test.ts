/**
 * `tidemark mount` with the clients that people use: what they read is the point, what they write
 * stays out of the vault.
 */

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, watch, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FileVolume, Vault } from "../../engine/index.ts";
import { DirectorySink } from "../../sink/index.ts";
import { modelEncryption } from "../encrypted.ts";
import { whyMissing } from "../engine/disk/nbd/server-peer.ts";
import { checkFileSystem, whyNotMountable, withMounted } from "../process/mounted-disk.ts";
import { binary } from "../programs.ts";
import { changeImage, resizeImage, sameFiles, writeImage } from "./images.ts";
import { type Ended, Place, parseLines, type Running } from "./tidemark.ts";

const mib = 1024 * 1024;

interface Served {
  readonly running: Running;
  readonly uri: string;
}

/**
 * Made once: two points of disk `web`, of 9 MiB and a hole, in `vault`; `1.img` and `web.img` are
 * what they hold.
 */
let shared: string;
const inShared = (name: string): string => join(shared, name);
const vaultFlag = (): readonly string[] => ["--vault", `dir:${inShared("vault")}`];

beforeAll(async () => {
  shared = mkdtempSync(join(tmpdir(), "tidemark-mount-"));
  writeImage(inShared("web.img"), 6);
  resizeImage(inShared("web.img"), 9 * mib + 512);
  const sink = await DirectorySink.open(inShared("vault"));
  const vault = await Vault.create(sink, { workers: 1, ...modelEncryption });
  const volume = await FileVolume.open(inShared("web.img"));
  await vault.replicate({ disk: "web", volume });
  writeFileSync(inShared("1.img"), readFileSync(inShared("web.img")));
  changeImage(inShared("web.img"), 3 * mib + 100, Buffer.alloc(70_000, 7));
  await vault.replicate({ disk: "web", volume });
  await volume.close();
  await vault.close();
  await sink[Symbol.asyncDispose]();
});
afterAll(() => {
  rmSync(shared, { recursive: true });
});

/** Mounts and waits until it is served. */
async function serve(place: Place, ...words: readonly string[]): Promise<Served> {
  const running = place.start([
    "mount",
    "--disk",
    "web",
    "--listen",
    "unix:nbd.sock",
    ...vaultFlag(),
    ...words,
    "--json",
  ]);
  await running.says('"ready"');
  return { running, uri: `nbd+unix:///web?socket=${place.path("nbd.sock")}` };
}

async function stop({ running }: Served): Promise<Ended & { readonly last: Readonly<Record<string, unknown>> }> {
  running.child.kill("SIGINT");
  const ended = await running.ended;
  const last = parseLines(ended.stdout).at(-1);
  if (last === undefined) throw new Error(`it said nothing: ${ended.stderr}`);
  return { ...ended, last };
}

/** Lets `work` use the export at `uri` as a file. */
async function withFuse(place: Place, uri: string, work: (image: string) => Promise<void>): Promise<void> {
  const folder = place.path("fuse");
  mkdirSync(folder, { recursive: true });
  const watcher = watch(place.folder);
  const nbdfuse = spawn("nbdfuse", ["--pidfile", place.path("fuse.pid"), folder, uri], { stdio: "ignore" });
  const gone = once(nbdfuse, "exit");
  try {
    const ended = gone.then(() => {
      throw new Error("nbdfuse does not show the export");
    });
    ended.catch(() => undefined);
    while (!existsSync(place.path("fuse.pid"))) await Promise.race([once(watcher, "change"), ended]);
    await work(join(folder, "nbd"));
  } finally {
    watcher.close();
    nbdfuse.kill("SIGTERM");
    await gone;
    rmSync(place.path("fuse.pid"), { force: true });
  }
}

/** What `program` prints; it must succeed. */
function run(program: string, ...words: readonly string[]): string {
  return execFileSync(program, words, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}

/** A test with programs that may be missing; then it is skipped and says why. */
function testWith(programs: readonly string[], fact: string, body: () => Promise<void>): void {
  test(fact, { timeout: 60_000 }, async (context) => {
    const missing = programs.map(whyMissing).find((reason) => reason !== undefined);
    if (missing !== undefined) return context.skip(`no peer to test with: ${missing}`);
    await body();
  });
}

describe("a mounted point", () => {
  testWith(
    ["nbdcopy", "nbdinfo"],
    "copied by nbdcopy is what materialize writes, and the end tells what it took",
    async () => {
      const place = new Place();
      for (const point of ["1", "2"]) {
        const served = await serve(place, "--point", point);
        expect(run("nbdinfo", "--size", served.uri).trim()).toBe(String(9 * mib + 512));
        run("nbdcopy", "--connections=4", served.uri, place.path(`copy-${point}.img`));
        const { code, last } = await stop(served);
        expect(code).toBe(0);
        expect(last).toMatchObject({
          type: "summary",
          command: "mount",
          disk: "web",
          sequence: Number(point),
          writable: false,
        });
        expect(last["bytesRead"]).toBeGreaterThanOrEqual(6 * mib);
        expect(last["bytesFetched"]).toBeLessThan(5 * mib);
        expect(last["cacheMisses"]).toBeGreaterThan(0);
      }
      await place.json("materialize", "--disk", "web", "--point", "2", "--to", "back-2.img", ...vaultFlag());
      expect(sameFiles(place.path("copy-2.img"), place.path("back-2.img"))).toBe(true);
      expect(sameFiles(place.path("copy-1.img"), inShared("1.img"))).toBe(true);
      expect(readdirSync(inShared("vault/disks/web/holds"))).toEqual([]);
    },
  );

  testWith(
    ["qemu-img", "qemu-io"],
    "is compared and written by qemu, and its overlay brings back what was written",
    async () => {
      const place = new Place();
      const reading = await serve(place, "--point", "2");
      expect(run("qemu-img", "compare", "-f", "raw", "-F", "raw", inShared("web.img"), reading.uri)).toContain(
        "identical",
      );
      expect(() => run("qemu-io", "-f", "raw", "-c", "write 0 4k", reading.uri)).toThrow(/permission denied/i);
      await stop(reading);

      const overlay = ["--point", "2", "--writable", "--overlay", "web.overlay"];
      const writing = await serve(place, ...overlay);
      const commands = ["write -P 5 100 3M", "write -z 4M 100k", "discard 5M 1M", "write -f -P 6 8M 512", "flush"];
      expect(run("qemu-io", "-f", "raw", ...commands.flatMap((line) => ["-c", line]), writing.uri)).not.toMatch(
        /failed/i,
      );
      // It was flushed: whatever ends the process, it is there.
      writing.running.child.kill("SIGKILL");
      await writing.running.ended;

      const again = await serve(place, ...overlay);
      const checks = ["read -P 5 100 3M", "read -P 0 4M 100k", "read -P 6 8M 512"];
      expect(run("qemu-io", "-f", "raw", ...checks.flatMap((line) => ["-c", line]), again.uri)).not.toMatch(/failed/i);
      const { last } = await stop(again);
      expect(last).toMatchObject({ writable: true, overlay: place.path("web.overlay") });

      const other = await place.json(
        "mount",
        "--disk",
        "web",
        "--listen",
        "unix:nbd.sock",
        "--point",
        "1",
        ...overlay.slice(2),
        ...vaultFlag(),
      );
      expect([other.code, other.last["code"]]).toEqual([2, "INVALID_ARGUMENT"]);
      const verified = await place.json("verify", "--disk", "web", "--source", inShared("web.img"), ...vaultFlag());
      expect(verified).toMatchObject({ code: 0, last: { damaged: [] } });
    },
  );

  testWith(
    ["nbdcopy", "mke2fs", "e2fsck", "debugfs"],
    "with a file system on it is sound, and can be changed without harm to the point",
    async () => {
      const place = new Place();
      const image = place.path("web.img");
      mkdirSync(place.path("files"));
      writeImage(place.path("files/one"), 2);
      execFileSync(binary("mke2fs") ?? "mke2fs", ["-q", "-t", "ext4", "-d", place.path("files"), image, "16M"]);
      await place.json("replicate", image, "--disk", "web");
      const served = await serve(place, "--vault", "dir:vault", "--point", "latest", "--writable");
      const copy = place.path("copy.img");
      run("nbdcopy", served.uri, copy);
      expect(checkFileSystem(copy, "-fn").code).toBe(0);
      writeFileSync(place.path("new"), "written on the mounted point");
      run(binary("debugfs") ?? "debugfs", "-w", "-R", `write ${place.path("new")} new`, copy);
      run("nbdcopy", "--flush", copy, served.uri);
      const back = place.path("back.img");
      run("nbdcopy", served.uri, back);
      expect(checkFileSystem(back, "-fn").code).toBe(0);
      expect(run(binary("debugfs") ?? "debugfs", "-R", "cat new", back)).toBe("written on the mounted point");
      await stop(served);
      const verified = await place.json("verify", "--disk", "web", "--source", "web.img");
      expect(verified).toMatchObject({ code: 0, last: { damaged: [] } });
    },
  );

  test("with a file system on it is sound and mounted by the kernel, and takes what is written there without harm to the point", {
    timeout: 60_000,
  }, async (context) => {
    const reason = whyNotMountable();
    if (reason !== undefined) return context.skip(`no file system can be mounted: ${reason}`);
    const place = new Place();
    mkdirSync(place.path("files"));
    writeImage(place.path("files/one"), 2);
    execFileSync("mke2fs", ["-q", "-t", "ext4", "-d", place.path("files"), place.path("web.img"), "16M"]);
    await place.json("replicate", "web.img", "--disk", "web");
    const reading = await serve(place, "--vault", "dir:vault", "--point", "latest");
    await withFuse(place, reading.uri, async (image) => {
      expect(checkFileSystem(image, "-fn").code).toBe(0);
      const look = async (): Promise<void> => {
        expect(sameFiles(place.path("mnt/one"), place.path("files/one"))).toBe(true);
        expect(() => writeFileSync(place.path("mnt/new"), "")).toThrow("EROFS");
        await Promise.resolve();
      };
      await withMounted(image, place.path("mnt"), look, "ro");
    });
    expect((await stop(reading)).code).toBe(0);
    for (const round of ["first", "second"]) {
      const served = await serve(
        place,
        "--vault",
        "dir:vault",
        "--point",
        "latest",
        "--writable",
        "--overlay",
        "web.overlay",
      );
      await withFuse(place, served.uri, async (image) => {
        await withMounted(image, place.path("mnt"), async () => {
          expect(sameFiles(place.path("mnt/one"), place.path("files/one"))).toBe(true);
          expect(existsSync(place.path("mnt/new"))).toBe(round === "second");
          writeFileSync(place.path("mnt/new"), "written on the mounted point");
        });
        expect(checkFileSystem(image, "-fn").code).toBe(0);
      });
      expect((await stop(served)).code).toBe(0);
    }
    await place.json("materialize", "--disk", "web", "--point", "latest", "--to", "back.img");
    expect(sameFiles(place.path("back.img"), place.path("web.img"))).toBe(true);
  });

  test("is served on TCP at a port that the system chose, and says where", async () => {
    const place = new Place();
    const running = place.start([
      "mount",
      "--disk",
      "web",
      "--point",
      "latest",
      "--listen",
      "tcp:127.0.0.1:0",
      "--cache",
      "8MiB",
      ...vaultFlag(),
      "--json",
    ]);
    await running.says('"ready"');
    running.child.kill("SIGTERM");
    const { code, stdout } = await running.ended;
    expect(code).toBe(0);
    const ready = parseLines(stdout).find(({ type }) => type === "ready");
    expect(ready?.["uri"]).toMatch(/^nbd:\/\/127\.0\.0\.1:[1-9]\d*\/web$/);
    expect(ready).toMatchObject({ disk: "web", sequence: 2 });
  });

  test("is told to people in sentences", async () => {
    const place = new Place();
    const running = place.start([
      "mount",
      "--disk",
      "web",
      "--point",
      "1",
      "--listen",
      "unix:s",
      "--writable",
      ...vaultFlag(),
    ]);
    await running.says("is served at");
    running.child.kill("SIGINT");
    const { code, stdout } = await running.ended;
    expect(code).toBe(0);
    expect(stdout).toContain(`point 1 of disk web is served at nbd+unix:///web?socket=${place.path("s")}`);
    expect(stdout).toMatch(/cache hits +0 of 0 blocks/);
    expect(stdout).toMatch(/written +0 B, not kept/);
    expect(existsSync(place.path("s"))).toBe(false);
  });
});

test("what cannot be mounted ends with the code that says so", async () => {
  const place = new Place();
  const uses = [
    [["--point", "9"], 10, "POINT_NOT_FOUND"],
    [["--point", "1", "--cache", "much"], 2, "INVALID_ARGUMENT"],
    [["--point", "1", "--overlay", "o"], 2, "INVALID_ARGUMENT"],
    [["--point", "1", "--writable", "--overlay", inShared("vault/o")], 2, "INVALID_ARGUMENT"],
    [["--point", "1", "--writable", "--overlay", inShared("web.img")], 2, "INVALID_ARGUMENT"],
  ] as const;
  const outcomes = await Promise.all(
    uses.map(
      async ([words]) =>
        await place.json("mount", "--disk", "web", "--listen", "unix:nbd.sock", ...vaultFlag(), ...words),
    ),
  );
  expect(outcomes.map(({ code, last }) => [code, last["code"]])).toEqual(uses.map(([, exit, code]) => [exit, code]));
  expect(existsSync(place.path("nbd.sock"))).toBe(false);
});
