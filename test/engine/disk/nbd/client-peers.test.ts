import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, rmSync, watch, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { NbdVolume } from "../../../../engine/disk/nbd/nbd-volume.ts";

const kib = 1024;
const mib = 1024 * kib;

let folder: string;
let socket: string;
const processes: ChildProcess[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "nbd-peers-"));
  socket = join(folder, "socket");
});
afterEach(async () => {
  for (const child of processes.splice(0)) {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
  }
  rmSync(folder, { recursive: true });
});

/** Why a test that needs these programs cannot run, or undefined. */
function missing(...programs: readonly string[]): string | undefined {
  const absent = programs.filter(
    (program) => !["/usr/bin", "/usr/sbin", "/usr/local/bin"].some((place) => existsSync(join(place, program))),
  );
  return absent.length === 0 ? undefined : `${absent.join(", ")} cannot be found here`;
}

/**
 * Starts a server and waits until it says, by its pid file, that it listens. Says what the server
 * printed when it ends instead.
 */
async function serve(program: string, args: readonly string[]): Promise<void> {
  const pidFile = join(folder, "pid");
  const watcher = watch(folder);
  try {
    const child = spawn(program, [program === "nbdkit" ? "--pidfile" : "--pid-file", pidFile, ...args], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    processes.push(child);
    let said = "";
    child.stderr.on("data", (bytes: Buffer) => {
      said += bytes.toString();
    });
    const ended = once(child, "exit").then(() => {
      throw new Error(`${program} ended: ${said}`);
    });
    ended.catch(() => undefined);
    while (!existsSync(pidFile)) await Promise.race([once(watcher, "change"), ended]);
  } finally {
    watcher.close();
  }
}

function run(program: string, ...args: readonly string[]): void {
  execFileSync(program, args, { stdio: ["ignore", "ignore", "pipe"] });
}

async function all<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const found: Item[] = [];
  for await (const item of items) found.push(item);
  return found;
}

async function readAll(volume: NbdVolume): Promise<Buffer> {
  const into = Buffer.from(new SharedArrayBuffer(await volume.sizeBytes()));
  await volume.read(0, into);
  return into;
}

describe("qemu-nbd as a source", () => {
  test("of a raw image gives its bytes, its holes and, read-only, a still disk", async (context) => {
    const reason = missing("qemu-nbd", "fallocate");
    if (reason !== undefined) return context.skip(`no peer to test with: ${reason}`);
    const image = join(folder, "disk.img");
    const bytes = Buffer.alloc(8 * mib);
    bytes.fill(7, mib, 2 * mib).fill(9, 5 * mib + 4096, 5 * mib + 8192);
    writeFileSync(image, bytes);
    run("fallocate", "--dig-holes", image);
    await serve("qemu-nbd", ["-f", "raw", "-r", "-t", "-k", socket, "-x", "disk", image]);
    await using volume = await NbdVolume.open(`nbd+unix:///disk?socket=${socket}`);
    expect(await volume.sizeBytes()).toBe(8 * mib);
    expect((await readAll(volume)).equals(bytes)).toBe(true);
    expect(await all(volume.allocated(8 * mib))).toEqual([
      { offset: mib, length: mib },
      { offset: 5 * mib + 4096, length: 4096 },
    ]);
    expect(await all(volume.allocated(mib + 4096))).toEqual([{ offset: mib, length: 4096 }]);
    expect(await volume.endScan()).toBe("crash");
    const part = Buffer.alloc(1000);
    await volume.read(mib - 500, part);
    expect(part.equals(bytes.subarray(mib - 500, mib + 500))).toBe(true);
    await volume.close();
    await expect(NbdVolume.open(`nbd+unix:///other?socket=${socket}`)).rejects.toMatchObject({
      code: "SOURCE_NOT_FOUND",
    });
  });

  test("tells what a dirty bitmap marks, ranges that became holes too, and nothing else", async (context) => {
    const reason = missing("qemu-nbd", "qemu-img", "qemu-io");
    if (reason !== undefined) return context.skip(`no peer to test with: ${reason}`);
    const image = join(folder, "disk.qcow2");
    run("qemu-img", "create", "-f", "qcow2", image, "64M");
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 8M", image);
    run("qemu-img", "bitmap", "--add", "--enable", "-g", "64K", image, "since");
    run(
      "qemu-io",
      "-f",
      "qcow2",
      "-c",
      "write -P 2 1M 64k",
      "-c",
      "write -z -u 4M 128k",
      "-c",
      "write -P 3 32M 4k",
      image,
    );
    await serve("qemu-nbd", ["-f", "qcow2", "-r", "-t", "-B", "since", "-k", socket, image]);
    const bitmap = "qemu:dirty-bitmap:since";
    await using volume = await NbdVolume.open(`nbd+unix:///?socket=${socket}`, { bitmaps: [bitmap] });
    const changed = await all(volume.changed(bitmap));
    expect(changed).toEqual([
      { offset: mib, length: 64 * kib },
      { offset: 4 * mib, length: 128 * kib },
      { offset: 32 * mib, length: 64 * kib },
    ]);
    const bytes = await readAll(volume);
    expect([bytes[mib], bytes[4 * mib], bytes[32 * mib], bytes[0]]).toEqual([2, 0, 3, 1]);
    await expect(all(volume.changed("qemu:dirty-bitmap:none"))).rejects.toMatchObject({ code: "SOURCE_NOT_FOUND" });
  });

  test("that can be written, and that dies, is fuzzy and then SOURCE_UNREADABLE", async (context) => {
    const reason = missing("qemu-nbd");
    if (reason !== undefined) return context.skip(`no peer to test with: ${reason}`);
    const image = join(folder, "disk.img");
    writeFileSync(image, Buffer.alloc(4 * mib, 5));
    await serve("qemu-nbd", ["-f", "raw", "-t", "-k", socket, image]);
    await using volume = await NbdVolume.open(`nbd+unix:///?socket=${socket}`);
    expect(await volume.endScan()).toBe("fuzzy");
    processes[0]?.kill("SIGKILL");
    await expect(
      (async () => {
        for (;;) await readAll(volume);
      })(),
    ).rejects.toMatchObject({ code: "SOURCE_UNREADABLE" });
  });

  test("over TLS is proved by its certificate, and proves ours", async (context) => {
    const reason = missing("qemu-nbd", "openssl");
    if (reason !== undefined) return context.skip(`no peer to test with: ${reason}`);
    const pki = makeCertificates(join(folder, "pki"));
    const image = join(folder, "disk.img");
    writeFileSync(image, Buffer.alloc(mib, 5));
    const object = `tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir=${pki}`;
    await serve("qemu-nbd", [
      "-f",
      "raw",
      "-r",
      "-t",
      "-e",
      "9",
      "--object",
      object,
      "--tls-creds",
      "t",
      "-k",
      socket,
      image,
    ]);
    const query = `socket=${socket}&tls-certificates=${pki}`;
    await using volume = await NbdVolume.open(`nbds+unix:///?${query}`);
    expect((await readAll(volume)).equals(Buffer.alloc(mib, 5))).toBe(true);
    await expect(NbdVolume.open(`nbd+unix:///?socket=${socket}`)).rejects.toMatchObject({ code: "ACCESS_REFUSED" });
    await expect(NbdVolume.open(`nbds+unix:///?socket=${socket}`)).rejects.toMatchObject({ code: "ACCESS_REFUSED" });
    await expect(NbdVolume.open(`nbds+unix:///?${query}&tls-hostname=another.host`)).rejects.toMatchObject({
      code: "ACCESS_REFUSED",
    });
    await expect(NbdVolume.open(`nbds+unix:///?socket=${socket}&tls-certificates=${folder}`)).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
  });
});

test("nbdkit, which wants whole blocks and has many holes, gives its bytes", async (context) => {
  const reason = missing("nbdkit");
  if (reason !== undefined) return context.skip(`no peer to test with: ${reason}`);
  const data = "0x11*4096 @65536 0x22*8192 @1048576 0x33*512";
  await serve("nbdkit", [
    "--foreground",
    "-U",
    socket,
    "--filter=blocksize-policy",
    "data",
    `data=${data}`,
    "blocksize-minimum=4096",
    "size=2M",
  ]);
  await using volume = await NbdVolume.open(`nbd+unix:///?socket=${socket}`);
  const wanted = Buffer.alloc(2 * mib);
  wanted
    .fill(0x11, 0, 4096)
    .fill(0x22, 65_536, 73_728)
    .fill(0x33, mib, mib + 512);
  expect((await readAll(volume)).equals(wanted)).toBe(true);
  const part = Buffer.alloc(100);
  await volume.read(65_500, part);
  expect(part.equals(wanted.subarray(65_500, 65_600))).toBe(true);
  let outside = 0;
  let end = 0;
  for (const extent of await all(volume.allocated(2 * mib))) {
    outside += wanted.subarray(end, extent.offset).filter((byte) => byte !== 0).length;
    end = extent.offset + extent.length;
  }
  expect(outside + wanted.subarray(end).filter((byte) => byte !== 0).length).toBe(0);
});

/**
 * An authority, and certificates of a server `localhost` and of a client, named as qemu and libnbd
 * name them.
 */
function makeCertificates(path: string): string {
  mkdirSync(path);
  const at = (name: string): string => join(path, name);
  const key = ["-newkey", "rsa:2048", "-nodes", "-days", "2"];
  run("openssl", "req", "-x509", ...key, "-keyout", at("ca-key.pem"), "-out", at("ca-cert.pem"), "-subj", "/CN=ca");
  for (const [role, usage] of [
    ["server", "serverAuth"],
    ["client", "clientAuth"],
  ] as const) {
    writeFileSync(
      at(`${role}.ext`),
      `subjectAltName=DNS:localhost\nkeyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=${usage}\n`,
    );
    run(
      "openssl",
      "req",
      "-new",
      ...key.slice(0, 3),
      "-keyout",
      at(`${role}-key.pem`),
      "-out",
      at(`${role}.csr`),
      "-subj",
      "/CN=localhost",
    );
    const sign = [
      "-CA",
      at("ca-cert.pem"),
      "-CAkey",
      at("ca-key.pem"),
      "-CAcreateserial",
      "-days",
      "2",
      "-extfile",
      at(`${role}.ext`),
    ];
    run("openssl", "x509", "-req", "-in", at(`${role}.csr`), ...sign, "-out", at(`${role}-cert.pem`));
  }
  return path;
}
