import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdir, open, readdir, readFile, readlink, stat, truncate, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { libc, punchHole } from "../../engine/disk/source/libc.ts";
import { DirectorySink } from "../../sink/directory.ts";
import { FileLock } from "../../sink/file-lock.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { describeSink } from "./conformance.ts";
import { expectCode, namesIn } from "./expectations.ts";

let nowMs = Date.now();

describeSink(
  "DirectorySink",
  async () => {
    const folder = createFolder("directory");
    const options = { clock: () => nowMs };
    const a = await DirectorySink.open(join(folder, "new/vault"), options);
    const b = await DirectorySink.open(join(folder, "new/vault"), options);
    const absent = await DirectorySink.open(join(folder, "absent"), options);
    await a.createContainer();
    return {
      a,
      b,
      absent,
      cleanup: async () => {
        await Promise.all([a, b, absent].map((sink) => sink[Symbol.asyncDispose]()));
        await removeFolder(folder);
      },
    };
  },
  {
    advanceMs: (ms) => {
      nowMs += ms;
    },
  },
);

describe("DirectorySink", () => {
  let folder: string;
  let root: string;
  let sink: DirectorySink;

  beforeEach(async () => {
    folder = createFolder("directory");
    root = join(folder, "vault");
    sink = await DirectorySink.open(root);
    await sink.createContainer();
  });

  afterEach(async () => {
    await sink[Symbol.asyncDispose]();
    await removeFolder(folder);
  });

  test("an object is a plain file under its own name", async () => {
    await sink.putObject("disks/d/head", Buffer.from("content"), { ifAbsent: true });
    expect(await readFile(join(root, "disks/d/head"), "utf8")).toBe("content");
  });

  test("no temporary file is left behind, neither by success nor by failure", async () => {
    await sink.putObject("x", new Uint8Array(1), { ifAbsent: true });
    await sink.createPages("p", 512, 1);
    await expectCode(sink.putObject("x", new Uint8Array(1), { ifAbsent: true }), "OBJECT_EXISTS");
    await expectCode(sink.createPages("p", 512, 1), "OBJECT_EXISTS");
    expect((await readdir(join(root, "@tidemark"))).sort()).toEqual(["clock", "lock"]);
  });

  test("the first write removes the temporary files of writers that died, and keeps the young ones", async () => {
    const old = new Date(Date.now() - 25 * 60 * 60 * 1000);
    await writeFile(join(root, "@tidemark/temp-old"), "x");
    await utimes(join(root, "@tidemark/temp-old"), old, old);
    await writeFile(join(root, "@tidemark/temp-young"), "x");
    await sink.putObject("x", new Uint8Array(1), { ifAbsent: true });
    expect((await readdir(join(root, "@tidemark"))).sort()).toEqual(["clock", "lock", "temp-young"]);
  });

  test("files of others in the folder are not taken for objects", async () => {
    await writeFile(join(root, ".DS_Store"), "x");
    await mkdir(join(root, "Some Folder"));
    await sink.putObject("mine", new Uint8Array(1), { ifAbsent: true });
    expect(await namesIn(sink, "")).toEqual(["mine"]);
  });

  test("a folder that holds other files does not become a vault, an empty one does", async () => {
    await mkdir(join(folder, "documents"));
    await writeFile(join(folder, "documents/letter"), "x");
    const documents = await DirectorySink.open(join(folder, "documents"));
    await expectCode(documents.createContainer(), "INVALID_ARGUMENT");
    expect(await readdir(join(folder, "documents"))).toEqual(["letter"]);
    await mkdir(join(folder, "empty/lost+found"), { recursive: true });
    const empty = await DirectorySink.open(join(folder, "empty"));
    await expectCode(empty.getObject("x", 1), "VAULT_NOT_FOUND");
    expect(await empty.createContainer()).toBe(true);
  });

  test("a file is no place for a vault", async () => {
    await writeFile(join(folder, "file"), "x");
    await expectCode(DirectorySink.open(join(folder, "file")), "INVALID_ARGUMENT");
  });

  test("an object in the place of another's folder is refused", async () => {
    await sink.putObject("a/b", new Uint8Array(1), { ifAbsent: true });
    await sink.createPages("p", 512, 1);
    await expectCode(sink.putObject("a", new Uint8Array(1), { ifAbsent: true }), "INVALID_ARGUMENT");
    await expectCode(sink.createPages("a", 512, 1), "INVALID_ARGUMENT");
    await expectCode(sink.putObject("a/b/c", new Uint8Array(1), { ifAbsent: true }), "INVALID_ARGUMENT");
    await expectCode(sink.putObject("p/c", new Uint8Array(1), { ifAbsent: true }), "INVALID_ARGUMENT");
    await expectCode(sink.getObject("a", 1), "OBJECT_NOT_FOUND");
    await expectCode(sink.getObject("a/b/c", 1), "OBJECT_NOT_FOUND");
  });

  test("each kind of object is refused where the other is wanted", async () => {
    await sink.putObject("object", new Uint8Array(512), { ifAbsent: true });
    await sink.createPages("pages", 512, 1);
    await expectCode(sink.readPages("object", 0, new Uint8Array(1)), "DAMAGED");
    await expectCode(sink.getObject("pages", 512), "DAMAGED");
  });

  test("versions written at one instant of a clock that stands still or goes back have ETags of their own", async () => {
    let clockMs = 1_700_000_000_000;
    await using still = await DirectorySink.open(root, { clock: () => clockMs });
    const etags: string[] = [];
    for (let round = 0; round < 6; round++) {
      etags.push((await still.putObject("x", new Uint8Array(1), { ifAbsent: true })).etag);
      await still.deleteObject("x");
      clockMs -= 1;
    }
    expect(new Set(etags).size).toBe(etags.length);
  });

  test("a vault whose files were copied with their times keeps its ETags", async () => {
    const { etag } = await sink.putObject("x", new Uint8Array(1), { ifAbsent: true });
    const copy = spawn("cp", ["-a", root, join(folder, "copy")]);
    expect(await once(copy, "exit")).toEqual([0, null]);
    await using copied = await DirectorySink.open(join(folder, "copy"));
    expect((await copied.statObject("x")).etag).toBe(etag);
  });

  test("a segment of 1 GiB takes the disk space of what was written to it", async () => {
    await sink.createPages("segment", 2 ** 30, 1);
    await sink.writePages("segment", 0, new Uint8Array(65_536).fill(1), { sequenceNumber: 1 });
    const { size, blocks } = await stat(join(root, "segment@pages"));
    expect(size).toBe(2 ** 30 + 4096);
    expect(blocks * 512).toBeLessThan(2 ** 20);
  });

  test("pages that are cleared give their disk space back, blocks that are cleared in part do not", async (context) => {
    const reason = await noHolesIn(folder);
    if (reason !== undefined) context.skip(`no space can be given back here: ${reason}`);
    const mebibyte = 2 ** 20;
    await sink.createPages("segment", 64 * mebibyte, 1);
    for (let offset = 0; offset < 16 * mebibyte; offset += 4 * mebibyte) {
      await sink.writePages("segment", offset, new Uint8Array(4 * mebibyte).fill(1), { sequenceNumber: 1 });
    }
    const usedBytes = async (): Promise<number> => (await stat(join(root, "segment@pages"))).blocks * 512;
    const full = await usedBytes();
    expect(full).toBeGreaterThanOrEqual(16 * mebibyte);
    await sink.clearPages("segment", 512, 1024);
    expect(await usedBytes()).toBeGreaterThanOrEqual(16 * mebibyte);
    await sink.clearPages("segment", 2 * mebibyte - 512, 8 * mebibyte + 1024);
    expect(full - (await usedBytes())).toBeGreaterThanOrEqual(8 * mebibyte - 65_536);
    await sink.clearPages("segment", 0, 64 * mebibyte);
    expect(await usedBytes()).toBeLessThan(65_536);
    expect((await stat(join(root, "segment@pages"))).size).toBe(64 * mebibyte + 4096);
  });

  // Which files a process has open, only Linux tells so simply.
  test.runIf(process.platform === "linux")(
    "more page objects than are kept open work, and the files of deleted ones are closed",
    async () => {
      const names = Array.from({ length: 70 }, (_, index) => `segments/${String(index)}`);
      await Promise.all(names.map((name) => sink.createPages(name, 4096, 1)));
      await Promise.all(
        names.map((name, index) => sink.writePages(name, 0, new Uint8Array(512).fill(index), { sequenceNumber: 1 })),
      );
      for (const [index, name] of names.entries()) {
        const into = new Uint8Array(512);
        await sink.readPages(name, 0, into);
        expect(into).toEqual(new Uint8Array(512).fill(index));
      }
      expect(await openFilesBelow(root)).toBeLessThanOrEqual(32);
      for (const name of names) await sink.deleteObject(name);
      expect(await openFilesBelow(root)).toBe(0);
    },
  );

  describe("a page file", () => {
    const path = (): string => join(root, "p@pages");

    async function overwrite(at: number, bytes: Uint8Array): Promise<void> {
      const handle = await open(path(), "r+");
      try {
        await handle.write(bytes, 0, bytes.length, at);
      } finally {
        await handle.close();
      }
    }

    async function expectDamaged(): Promise<void> {
      // A client of its own, which has not seen the file when it was whole.
      await using fresh = await DirectorySink.open(root);
      await expectCode(fresh.statPages("p"), "DAMAGED");
      await expectCode(fresh.readPages("p", 0, new Uint8Array(512)), "DAMAGED");
      await expectCode(fresh.writePages("p", 0, new Uint8Array(512), { sequenceNumber: 1 }), "DAMAGED");
      await expectCode(fresh.clearPages("p", 0, 512), "DAMAGED");
      await expectCode(fresh.raiseSequenceNumber("p", 2), "DAMAGED");
      expect(await namesIn(fresh, "")).toEqual(["other", "p"]);
    }

    beforeEach(async () => {
      await sink.createPages("p", 8192, 1);
      await sink.writePages("p", 0, new Uint8Array(8192).fill(7), { sequenceNumber: 1 });
      await sink.putObject("other", new Uint8Array(1), { ifAbsent: true });
    });

    test.each([0, 12, 20, 24, 40, 50, 56, 300, 511])(
      "whose header has a wrong byte at %i is reported as damaged, and listed",
      async (at) => {
        const byte = (await readFile(path()))[at] ?? 0;
        await overwrite(at, Uint8Array.of(byte ^ 0x10));
        await expectDamaged();
      },
    );

    test("with a header torn in the middle is reported as damaged", async () => {
      await overwrite(256, new Uint8Array(256).fill(0xff));
      await expectDamaged();
    });

    test("that is foreign is reported as damaged", async () => {
      await writeFile(path(), Buffer.alloc(12_288, "foreign"));
      await expectDamaged();
    });

    test.each([0, 100, 511])("that has been cut to %i bytes is reported as damaged", async (length) => {
      await truncate(path(), length);
      await expectDamaged();
    });

    test.each([512, 4096, 8191])(
      "that has been cut to %i bytes is reported as damaged, but read as far as it goes",
      async (length) => {
        await truncate(path(), length);
        await using fresh = await DirectorySink.open(root);
        await expectCode(fresh.readPages("p", Math.max(0, length - 4096), new Uint8Array(1)), "DAMAGED");
        if (length === 8191) await fresh.readPages("p", 0, new Uint8Array(4095));
        for (const call of [fresh.statPages("p"), fresh.clearPages("p", 0, 512), fresh.raiseSequenceNumber("p", 2)])
          await expectCode(call, "DAMAGED");
        await expectCode(fresh.writePages("p", 0, new Uint8Array(512), { sequenceNumber: 1 }), "DAMAGED");
      },
    );

    test.each([
      ["has been cut short", 6144, 8192, 2048],
      ["has been cut inside its header", 300, 0, 0],
      ["was made longer", 20_000, 8192, 8192],
    ])("that %s can be used again once it is restored", async (_what, length, writtenBytes, sound) => {
      await truncate(path(), length);
      await using other = await DirectorySink.open(root);
      await other.restorePages("p", 8192, 4);
      const expected = new Uint8Array(8192).fill(7, 0, sound);
      const found = new Uint8Array(8192);
      await sink.readPages("p", 0, found);
      expect(found).toEqual(expected);
      expect(await sink.statPages("p")).toMatchObject({ sizeBytes: 8192, sequenceNumber: 4, writtenBytes });
      await sink.writePages("p", 7680, new Uint8Array(512).fill(9), { sequenceNumber: 4 });
    });

    test("whose header is gone gets one that knows how far its bytes go", async () => {
      await sink.clearPages("p", 5120, 3072);
      await overwrite(0, new Uint8Array(512));
      await sink.restorePages("p", 16_384, 4);
      expect(await sink.statPages("p")).toMatchObject({ sizeBytes: 16_384, sequenceNumber: 4, writtenBytes: 5120 });
    });

    test("of another version is not touched", async () => {
      const before = await readFile(path());
      before.writeUInt32LE(2, 8);
      before.writeUInt32LE(0, 12);
      before.writeUInt32LE(crc32(before.subarray(0, 512)), 12);
      await writeFile(path(), before);
      await expectCode(sink.restorePages("p", 8192, 4), "FORMAT_UNSUPPORTED");
      expect(await readFile(path())).toEqual(before);
    });

    test("that is cut off while it is open is reported as damaged when the missing part is read", async () => {
      const into = new Uint8Array(512);
      await sink.readPages("p", 7680, into);
      await truncate(path(), 4096 + 4096);
      await expectCode(sink.readPages("p", 7680, into), "DAMAGED");
    });

    test("of a newer version is refused by name", async () => {
      const header = (await readFile(path())).subarray(0, 512);
      header.writeUInt32LE(2, 8);
      header.writeUInt32LE(0, 12);
      header.writeUInt32LE(crc32(header), 12);
      await overwrite(0, header);
      await expectCode(sink.statPages("p"), "FORMAT_UNSUPPORTED");
    });

    test("to which a crashed writer sent pages that its header does not tell of, is zeros there once they are cleared", async () => {
      await sink.createPages("q", 65_536, 1);
      const crashed = await open(join(root, "q@pages"), "r+");
      await crashed.write(new Uint8Array(8192).fill(9), 0, 8192, 4096 + 8192);
      await crashed.close();
      expect((await sink.statPages("q")).writtenBytes).toBe(0);
      await sink.clearPages("q", 0, 65_536);
      const into = new Uint8Array(65_536).fill(1);
      await sink.readPages("q", 0, into);
      expect(into.every((byte) => byte === 0)).toBe(true);
    });
  });

  test("a damaged lease is reported, never taken for none", async () => {
    const { etag } = await sink.putObject("head", new Uint8Array(1), { ifAbsent: true });
    for (const text of ["", "{", "null", '{"id":1}', '{"id":"x","durationMs":1}']) {
      await writeFile(join(root, "head@lease"), text);
      await expectCode(sink.putObject("head", new Uint8Array(1), { ifMatch: etag }), "DAMAGED");
      await expectCode(sink.acquireLease("head", "00000000-0000-4000-8000-000000000001", 15), "DAMAGED");
      await expectCode(sink.deleteObject("head"), "DAMAGED");
    }
  });

  test("a call that waits for the lock ends soon after its signal is aborted, and has done nothing", async () => {
    const lock = await FileLock.acquire(join(root, "@tidemark/lock"), "exclusive");
    const controller = new AbortController();
    const put = sink.putObject("x", new Uint8Array(1), { ifAbsent: true }, { signal: controller.signal });
    setImmediate(() => {
      controller.abort();
    });
    await expectCode(put, "INTERRUPTED");
    await lock.release();
    expect(await namesIn(sink, "")).toEqual([]);
  });

  test.runIf(process.getuid?.() !== 0)(
    "a vault that may only be read is read, and writing to it is refused as such",
    async () => {
      await sink.putObject("x", Uint8Array.of(5), { ifAbsent: true });
      await sink.createPages("p", 4096, 1);
      await chmod(join(root, "p@pages"), 0o400);
      await chmod(join(root, "@tidemark"), 0o500);
      await chmod(join(root, "@tidemark/lock"), 0o400);
      try {
        await using reader = await DirectorySink.open(root);
        expect((await reader.getObject("x", 1)).bytes).toEqual(Uint8Array.of(5));
        await reader.readPages("p", 0, new Uint8Array(512));
        await expectCode(reader.writePages("p", 0, new Uint8Array(512), { sequenceNumber: 1 }), "ACCESS_REFUSED");
        await expectCode(reader.clearPages("p", 0, 512), "ACCESS_REFUSED");
        await expectCode(reader.putObject("y", new Uint8Array(1), { ifAbsent: true }), "ACCESS_REFUSED");
      } finally {
        await chmod(join(root, "@tidemark"), 0o700);
      }
    },
  );
});

/** Why no holes can be made in files of this folder; undefined when they can. */
async function noHolesIn(folder: string): Promise<string | undefined> {
  const fallocate = libc()?.fallocate;
  if (fallocate === undefined) return "the platform has no fallocate";
  const handle = await open(join(folder, "probe"), "wx+");
  try {
    await handle.writeFile(new Uint8Array(65_536).fill(1));
    const result = await fallocate(handle.fd, punchHole, 0, 65_536);
    return "errno" in result ? "the file system of the temporary folder makes no holes" : undefined;
  } finally {
    await handle.close();
  }
}

/** How many files below `folder` this process has open. */
async function openFilesBelow(folder: string): Promise<number> {
  const descriptors = await readdir("/proc/self/fd");
  const targets = await Promise.all(
    descriptors.map((descriptor) => readlink(`/proc/self/fd/${descriptor}`).catch(() => "")),
  );
  return targets.filter((target) => target.startsWith(folder)).length;
}
