/**
 * Clients that others wrote, against a disk that is a file: what they write is what they and the
 * file hold.
 */
import { spawn } from "node:child_process";
import fs, { closeSync, ftruncateSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import type { BlockDevice, DeviceExtent } from "../../../../engine/device.ts";
import type { NbdEndpoint } from "../../../../engine/disk/nbd/protocol.ts";
import { allocatedExtents } from "../../../../engine/disk/source/holes.ts";
import { byDepth } from "../../../depth.ts";
import { whyMissing } from "./server-peer.ts";
import { serve, temporaryFolder } from "./server-rig.ts";

const mib = 1024 * 1024;

/** The least that serves a file. */
class PlainFile implements BlockDevice {
  readonly description: string;
  readonly readOnly = false;
  readonly sizeBytes: number;
  readonly #fd: number;

  constructor(path: string, sizeBytes: number) {
    this.description = path;
    this.sizeBytes = sizeBytes;
    this.#fd = openSync(path, "w+");
    ftruncateSync(this.#fd, sizeBytes);
  }

  tryRead(offset: number, into: Uint8Array): boolean {
    expect(fs.readSync(this.#fd, into, 0, into.byteLength, offset)).toBe(into.byteLength);
    return true;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.tryRead(offset, into);
  }

  tryWrite(offset: number, bytes: Uint8Array): boolean {
    expect(fs.writeSync(this.#fd, bytes, 0, bytes.byteLength, offset)).toBe(bytes.byteLength);
    return true;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    this.tryWrite(offset, bytes);
  }

  async zero(offset: number, length: number): Promise<void> {
    const zeroes = Buffer.alloc(mib);
    for (let done = 0; done < length; done += mib)
      this.tryWrite(offset + done, zeroes.subarray(0, Math.min(mib, length - done)));
  }

  async trim(): Promise<void> {
    // A trim may do nothing.
  }

  async flush(): Promise<void> {
    fs.fdatasyncSync(this.#fd);
  }

  extents(offset: number, length: number, countMax: number): DeviceExtent[] {
    const end = offset + length;
    const found: DeviceExtent[] = [];
    let at = offset;
    for (const data of allocatedExtents(this.#fd, end, offset) ?? [{ offset, length }]) {
      if (data.offset > at) found.push({ offset: at, length: data.offset - at, kind: "hole" });
      found.push({ ...data, kind: "data" });
      at = data.offset + data.length;
      if (found.length >= countMax) break;
    }
    if (at < end && found.length < countMax) found.push({ offset: at, length: end - at, kind: "hole" });
    return found.slice(0, countMax);
  }

  async close(): Promise<void> {
    closeSync(this.#fd);
  }
}

async function rig(sizeBytes = 32 * mib): Promise<{ folder: string; image: string; uri: string }> {
  const folder = temporaryFolder();
  const image = join(folder, "image");
  const disk = new PlainFile(image, sizeBytes);
  onTestFinished(() => disk.close());
  const { address } = await serve(disk);
  return { folder, image, uri: uriOf(address) };
}

function uriOf(address: NbdEndpoint): string {
  return address.kind === "unix"
    ? `nbd+unix:///disk?socket=${address.path}`
    : `nbd://${address.host}:${address.port}/disk`;
}

/**
 * What `program` prints; it must succeed. The server lives in this very process, so it must not be
 * waited for synchronously.
 */
async function run(program: string, ...args: readonly string[]): Promise<string> {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding("utf8").on("data", (text: string) => (output += text));
  const code = await new Promise((resolve) => child.once("close", resolve));
  expect(code, `${program} ${args.join(" ")}\n${output}`).toBe(0);
  return output;
}

/** A test with programs that may be missing; then it is skipped and says why. */
function testWith(programs: readonly string[], fact: string, body: () => Promise<void>): void {
  test(fact, { timeout: 60_000 }, async (context) => {
    const missing = programs.find((program) => whyMissing(program) !== undefined);
    context.skip(missing !== undefined, `${missing ?? "no program"} is not installed`);
    await body();
  });
}

testWith(["nbdinfo"], "nbdinfo sees what the export can do, and its map", async () => {
  const { uri, image } = await rig();
  fs.writeFileSync(image, Buffer.alloc(mib, 1), { flag: "r+" });
  const info = await run("nbdinfo", uri);
  for (const fact of [
    "export-size: 33554432",
    "can_multi_conn: true",
    "can_fua: true",
    "can_trim: true",
    "base:allocation",
  ])
    expect(info).toContain(fact);
  expect(info).toContain("a disk for tests");
  const map = await run("nbdinfo", "--map", uri);
  expect(
    map
      .trim()
      .split("\n")
      .map((line) => line.trim().split(/\s+/).slice(0, 3).map(Number)),
  ).toEqual([
    [0, mib, 0],
    [mib, 31 * mib, 3],
  ]);
});

testWith(["nbdcopy"], "nbdcopy brings an image in and out over several connections", async () => {
  const { uri, image, folder } = await rig();
  const original = Buffer.from(Uint8Array.from({ length: 8 * mib }, (_, index) => (index * 2654435761) >>> 24));
  fs.writeFileSync(join(folder, "in"), original);
  fs.truncateSync(join(folder, "in"), 32 * mib);
  await run("nbdcopy", "--connections=4", join(folder, "in"), uri);
  await run("nbdcopy", "--connections=4", uri, join(folder, "out"));
  expect(readFileSync(join(folder, "out")).equals(readFileSync(join(folder, "in")))).toBe(true);
  expect(
    readFileSync(image)
      .subarray(0, 8 * mib)
      .equals(original),
  ).toBe(true);
});

testWith(["qemu-img"], "qemu-img tells, converts and compares", async () => {
  const { uri, folder } = await rig();
  expect(await run("qemu-img", "info", "--output=json", uri)).toContain('"virtual-size": 33554432');
  const source = join(folder, "source");
  fs.writeFileSync(source, Buffer.concat([Buffer.alloc(mib, 7), Buffer.alloc(30 * mib), Buffer.alloc(mib, 8)]));
  await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri);
  expect(await run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri)).toContain("identical");
});

testWith(["qemu-io"], "qemu-io finds its patterns again", async () => {
  const { uri } = await rig();
  const commands = [
    "write -P 5 0 3M",
    "write -f -P 6 1M 512",
    "write -z 2M 64k",
    "write -z -u 100k 4k",
    "flush",
    "discard 30M 1M",
    "aio_write -P 9 7M 1M",
    "aio_flush",
  ];
  const checks = ["read -P 5 0 100k", "read -P 6 1M 512", "read -P 0 2M 64k", "read -P 0 100k 4k", "read -P 9 7M 1M"];
  const output = await run("qemu-io", "-f", "raw", ...[...commands, ...checks].flatMap((line) => ["-c", line]), uri);
  expect(output).not.toMatch(/failed/i);
});

testWith(["fio"], "fio verifies what it wrote, in several sizes and many requests at a time", async () => {
  const { uri, folder } = await rig();
  const verify = [
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
    `--aux-path=${folder}`,
    "--verify_state_save=0",
  ];
  // One size a run, and each block once: fio cannot tell what writes that overlap under way should
  // leave.
  for (const blockSize of ["4k", "20k", "128k", "1m"]) {
    const size = byDepth("8m", "32m");
    const job = ["--rw=randwrite", `--bs=${blockSize}`, "--iodepth=32", `--size=${size}`, "--fsync=50", "--randseed=1"];
    await run("fio", "--name=verify", "--ioengine=nbd", `--uri=${uri}`, ...job, ...verify);
  }
});
