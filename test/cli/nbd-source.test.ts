/**
 * `tidemark replicate nbd://…`: exports of our own server and of qemu-nbd as sources, whole and by
 * their dirty bitmaps.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, rmSync, watch } from "node:fs";
import { describe, expect, onTestFinished, test } from "vitest";
import { whyMissing } from "../engine/disk/nbd/server-peer.ts";
import { MemoryDisk, serve } from "../engine/disk/nbd/server-rig.ts";
import { writeImage } from "./images.ts";
import { type Line, Place } from "./tidemark.ts";

const kib = 1024;
const mib = 1024 * kib;

/** The export "disk" of our own server over `disk`, as an address. */
async function addressOf(disk: MemoryDisk): Promise<string> {
  const { address } = await serve(disk);
  return address.kind === "unix" ? `nbd+unix:///disk?socket=${address.path}` : "";
}

function notices(lines: readonly Line[]): readonly unknown[] {
  return lines.filter(({ type }) => type === "notice").map((line) => line["code"]);
}

describe("an export of our own server", () => {
  test("becomes a point that holds its bytes, crash-consistent when it is read-only and fuzzy when it is not", async () => {
    const place = new Place();
    const disk = new MemoryDisk(3 * mib, { readOnly: true });
    disk.bytes.fill(7, mib, mib + 300 * kib);
    const first = await place.json("replicate", await addressOf(disk), "--disk", "a");
    expect(first.code).toBe(0);
    expect(first.last).toMatchObject({
      sequence: 1,
      consistency: "crash",
      volumeBytes: 3 * mib,
      changedBytes: 300 * kib,
    });
    expect(notices(first.lines)).toEqual([]);
    // What has to be read, and not where in the export the reading is.
    const progress = first.lines.filter(({ type }) => type === "progress").at(-1);
    expect(progress).toMatchObject({ doneBytes: 300 * kib, totalBytes: 300 * kib });

    const writable = new MemoryDisk(3 * mib);
    writable.bytes.fill(9, 0, 4 * kib);
    const second = await place.json("replicate", await addressOf(writable), "--disk", "a");
    expect(second.last).toMatchObject({
      sequence: 2,
      consistency: "fuzzy",
      changedBytes: 304 * kib,
      zeroBytes: 300 * kib,
    });
    expect(notices(second.lines)).toEqual(["SOURCE_CHANGED"]);

    await place.json("materialize", "--disk", "a", "--point", "1", "--to", "1.img");
    expect(readFileSync(place.path("1.img")).equals(disk.bytes)).toBe(true);
    await place.json("materialize", "--disk", "a", "--point", "2", "--to", "2.img");
    expect(readFileSync(place.path("2.img")).equals(writable.bytes)).toBe(true);
  });

  test("that has no such bitmap, no such name or no server ends in SOURCE_NOT_FOUND before a vault is made", async () => {
    const place = new Place();
    const address = await addressOf(new MemoryDisk());
    const sources = [
      [address, "--bitmap", "b0", "--since", "1"],
      [address.replace("/disk?", "/other?")],
      [`nbd+unix:///?socket=${place.path("nobody")}`],
    ];
    for (const words of sources) {
      const { code, last } = await place.json("replicate", ...words, "--disk", "a");
      expect([code, last["code"]]).toEqual([1, "SOURCE_NOT_FOUND"]);
    }
    expect(existsSync(place.path("vault"))).toBe(false);
  });
});

test("a bitmap without its point, a point without a bitmap, either with a file, and an address that is none are wrong use", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  const address = `nbd+unix:///?socket=${place.path("nobody")}`;
  const uses = [
    [[address, "--bitmap", "b0"], "--since POINT"],
    [[address, "--since", "1"], "--bitmap NAME"],
    [["a.img", "--bitmap", "b0", "--since", "1"], "nbd+unix:"],
    [["nbd+vsock:///disk"], "nbd+unix:"],
  ] as const;
  for (const [words, remedy] of uses) {
    const { code, last } = await place.json("replicate", ...words, "--disk", "a");
    expect([code, last["code"]]).toEqual([2, "INVALID_ARGUMENT"]);
    expect(last["remedy"]).toContain(remedy);
  }
  expect(existsSync(place.path("vault"))).toBe(false);
});

describe("qemu-nbd with a qcow2 image", () => {
  const missing = ["qemu-nbd", "qemu-img", "qemu-io"].map(whyMissing).find((reason) => reason !== undefined);

  test("has only what its bitmap marks read, and gives the same bytes as qemu-img does", async (context) => {
    if (missing !== undefined) return context.skip(`no peer to test with: ${missing}`);
    const vm = new VirtualDisk();
    vm.write("write -P 1 0 8M");
    vm.qemuImg("bitmap", "--add", "--enable", "-g", "64K", "vm.qcow2", "b0");
    const first = await vm.replicate();
    expect(first.last).toMatchObject({
      sequence: 1,
      consistency: "crash",
      volumeBytes: 64 * mib,
      changedBytes: 8 * mib,
    });
    const point = String(first.last["point"]);

    vm.write("write -P 2 1M 4k", "write -z -u 4M 128k", "write -P 3 32M 64k");
    const second = await vm.replicate("--bitmap", "b0", "--since", point);
    expect(second.last).toMatchObject({
      sequence: 2,
      consistency: "crash",
      scannedBytes: 256 * kib,
      changedBytes: 256 * kib,
      zeroBytes: 128 * kib,
    });
    expect(notices(second.lines)).toEqual([]);
    await vm.expectPointToHoldIt();

    // The bitmap goes on: it still marks all that changed since any later point.
    vm.write("write -P 4 48M 4k");
    const third = await vm.replicate("--bitmap", "b0", "--since", "latest");
    expect(third.last).toMatchObject({ sequence: 3, scannedBytes: 320 * kib });
    await vm.expectPointToHoldIt();
  });

  test.for([
    ["older than the newest", "1"],
    ["one that the vault does not know", "0".repeat(32)],
  ] as const)("is compared whole, and says so, when the point of its bitmap is %s", async ([, since], context) => {
    if (missing !== undefined) return context.skip(`no peer to test with: ${missing}`);
    const vm = new VirtualDisk();
    vm.write("write -P 1 0 1M");
    await vm.replicate();
    // Written before the bitmap is begun: a cycle that believed the bitmap would miss it.
    vm.write("write -P 2 0 64k");
    await vm.replicate();
    vm.write("write -P 3 512k 64k");
    vm.qemuImg("bitmap", "--add", "--enable", "-g", "64K", "vm.qcow2", "b0");
    vm.write("write -P 4 2M 64k");
    const { code, lines, last } = await vm.replicate("--bitmap", "b0", "--since", since);
    expect(code).toBe(0);
    expect(notices(lines)).toEqual(["STATE_LOST"]);
    expect(last).toMatchObject({ sequence: 3, changedBytes: 128 * kib });
    await vm.expectPointToHoldIt();
  });

  test("cannot go on from a point that was never taken", async (context) => {
    if (missing !== undefined) return context.skip(`no peer to test with: ${missing}`);
    const vm = new VirtualDisk();
    vm.qemuImg("bitmap", "--add", "--enable", "vm.qcow2", "b0");
    const absent = await vm.replicate("--bitmap", "b0", "--since", "1");
    expect([absent.code, absent.last["code"]]).toEqual([10, "VAULT_NOT_FOUND"]);
    await vm.replicate();
    const early = await vm.replicate("--bitmap", "b0", "--since", "7");
    expect([early.code, early.last["code"]]).toEqual([10, "POINT_NOT_FOUND"]);
  });
});

/**
 * A qcow2 image of 64 MiB that a virtual machine writes, and that is exported read-only while it
 * rests.
 */
class VirtualDisk {
  readonly #place = new Place();
  readonly #socket: string = this.#place.path("nbd");
  #hasBitmap = false;

  constructor() {
    this.qemuImg("create", "-f", "qcow2", "vm.qcow2", "64M");
  }

  write(...commands: readonly string[]): void {
    this.#run("qemu-io", "-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), "vm.qcow2");
  }

  qemuImg(...words: readonly string[]): void {
    this.#hasBitmap ||= words[0] === "bitmap";
    this.#run("qemu-img", ...words);
  }

  async replicate(...words: readonly string[]): Promise<Awaited<ReturnType<Place["json"]>>> {
    const server = await this.#export();
    try {
      return await this.#place.json("replicate", `nbd+unix:///?socket=${this.#socket}`, "--disk", "vm", ...words);
    } finally {
      await ended(server);
    }
  }

  async expectPointToHoldIt(): Promise<void> {
    const place = this.#place;
    this.qemuImg("convert", "-O", "raw", "vm.qcow2", "wanted.img");
    await place.json("materialize", "--disk", "vm", "--point", "latest", "--to", "back.img", "--force");
    expect(readFileSync(place.path("back.img")).equals(readFileSync(place.path("wanted.img")))).toBe(true);
  }

  /** Starts qemu-nbd and waits until it says, by its pid file, that it listens. */
  async #export(): Promise<ChildProcess> {
    const { folder } = this.#place;
    const pidFile = this.#place.path("pid");
    rmSync(pidFile, { force: true });
    const watcher = watch(folder);
    try {
      const words = [
        "-f",
        "qcow2",
        "-r",
        "-t",
        "-k",
        this.#socket,
        "--pid-file",
        pidFile,
        ...(this.#hasBitmap ? ["-B", "b0"] : []),
      ];
      const child = spawn("qemu-nbd", [...words, "vm.qcow2"], { cwd: folder, stdio: "ignore" });
      onTestFinished(async () => await ended(child));
      const failed = once(child, "exit").then(() => {
        throw new Error("qemu-nbd ended before it listened");
      });
      failed.catch(() => undefined);
      while (!existsSync(pidFile)) await Promise.race([once(watcher, "change"), failed]);
      return child;
    } finally {
      watcher.close();
    }
  }

  #run(program: string, ...words: readonly string[]): void {
    execFileSync(program, words, { cwd: this.#place.folder, stdio: ["ignore", "ignore", "pipe"] });
  }
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, "exit");
  child.kill("SIGTERM");
  await exit;
}
