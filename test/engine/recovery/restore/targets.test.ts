import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { copyFile, link, mkdir, open, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { RestoreTarget } from "../../../../engine/recovery/restore/target.ts";
import { type OpenTargetOptions, openTarget } from "../../../../engine/recovery/restore/targets.ts";
import { parseFixedVhdFooter } from "../../../../engine/recovery/restore/vhd.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { runsOf } from "../../../depth.ts";
import { fileIdentity } from "../../../file-identity.ts";
import { attachLoop } from "../../../loop-device.ts";
import { mountSmallDisk } from "../../../small-disk.ts";

const mib = 1024 * 1024;
const oddSizes = [0, 1, 511, 4097, mib + 1];

let folder: string;
let image: string;
let nowMs: number;
const sink = new MemorySink();
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "target-"));
  image = join(folder, "disk.img");
  nowMs = 0;
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

function options(given: Partial<OpenTargetOptions>): OpenTargetOptions {
  return {
    to: image,
    format: "raw",
    mode: "create",
    volumeBytes: 0,
    vaultId: "v".repeat(32),
    point: "0123456789abcdef0123456789abcdef",
    sink,
    overwriteSource: false,
    clock: () => nowMs,
    ...given,
  };
}

function pattern(length: number, seed = 1): Buffer {
  return createHash("shake256", { outputLength: Math.max(1, length) })
    .update(`pattern ${seed}`)
    .digest()
    .subarray(0, length);
}

/**
 * Gives all of `bytes` to the target in overlapping calls of 64 KiB, from `from` on; blocks of
 * zeros as zeros.
 */
async function fill(target: RestoreTarget, bytes: Buffer, from = 0): Promise<void> {
  const calls: Promise<void>[] = [];
  for (let at = from; at < bytes.length; at += 65536) {
    const part = new Uint8Array(new SharedArrayBuffer(Math.min(65536, bytes.length - at)));
    part.set(bytes.subarray(at, at + part.length));
    calls.push(part.every((byte) => byte === 0) ? target.zero(at, part.length) : target.write(at, part));
  }
  await Promise.all(calls);
}

async function materialize(bytes: Buffer, given: Partial<OpenTargetOptions>): Promise<RestoreTarget> {
  const target = await openTarget(options({ volumeBytes: bytes.length, ...given }));
  await fill(target, bytes, target.resumeAt);
  await target.finish();
  return target;
}

describe("a new file", () => {
  test.each(oddSizes)("of %i bytes holds what was written and leaves nothing beside it", async (sizeBytes) => {
    const bytes = pattern(sizeBytes);
    const target = await materialize(bytes, {});
    expect(Buffer.compare(await readFile(image), bytes)).toBe(0);
    expect(target.bytesWritten).toBe(sizeBytes);
    expect(await readdir(folder)).toEqual(["disk.img"]);
  });

  test("is sparse where the point holds zeros", async () => {
    const bytes = Buffer.alloc(16 * mib);
    pattern(4096).copy(bytes, 8 * mib);
    await materialize(bytes, {});
    expect((await stat(image)).blocks * 512).toBeLessThan(mib);
    expect(Buffer.compare(await readFile(image), bytes)).toBe(0);
  });

  test("bears its name only when it is whole, and an abandoned one leaves nothing", async () => {
    const target = await openTarget(options({ volumeBytes: 8192 }));
    await target.write(0, pattern(4096));
    expect(await readdir(folder)).not.toContain("disk.img");
    await target.abandon();
    await target.abandon();
    expect(await readdir(folder)).toEqual([]);
  });

  test.each(oddSizes)("as a VHD of a volume of %i bytes is padded to a MiB and ends in a footer", async (sizeBytes) => {
    const bytes = pattern(sizeBytes);
    await materialize(bytes, { format: "vhd", pointTimeMs: Date.UTC(2026, 1, 3) });
    const written = await readFile(image);
    const diskBytes = Math.max(1, Math.ceil(sizeBytes / mib)) * mib;
    expect(written.length).toBe(diskBytes + 512);
    expect(Buffer.compare(written.subarray(0, sizeBytes), bytes)).toBe(0);
    expect(written.subarray(sizeBytes, diskBytes).every((byte) => byte === 0)).toBe(true);
    expect(parseFixedVhdFooter(written.subarray(diskBytes))).toMatchObject({
      diskBytes,
      createdMs: Date.UTC(2026, 1, 3),
    });
  });

  test("that was there already is kept without leave and replaced with it, also through a link", async () => {
    await writeFile(image, "mine");
    await expect(openTarget(options({}))).rejects.toMatchObject({ code: "TARGET_EXISTS" });
    await symlink(image, join(folder, "link"));
    const bytes = pattern(5000);
    const target = await openTarget(options({ to: join(folder, "link"), mode: "replace", volumeBytes: 5000 }));
    expect(await readFile(image, "utf8")).toBe("mine");
    await fill(target, bytes);
    await target.finish();
    expect(Buffer.compare(await readFile(image), bytes)).toBe(0);
    expect((await readdir(folder)).sort()).toEqual(["disk.img", "link"]);
  });

  test("that another process made meanwhile is not overwritten", async () => {
    const target = await openTarget(options({ volumeBytes: 4096 }));
    await target.write(0, pattern(4096));
    await writeFile(image, "mine");
    await expect(target.finish()).rejects.toMatchObject({ code: "TARGET_EXISTS" });
    await target.abandon();
    expect(await readFile(image, "utf8")).toBe("mine");
  });

  test("is refused by name where it cannot be", async () => {
    await expect(openTarget(options({ to: folder }))).rejects.toMatchObject({ code: "TARGET_FAILED" });
    await expect(openTarget(options({ to: join(folder, "none", "disk.img") }))).rejects.toMatchObject({
      code: "TARGET_FAILED",
    });
    await expect(openTarget(options({ to: "/dev/null", mode: "replace" }))).rejects.toMatchObject({
      code: "TARGET_FAILED",
    });
    await writeFile(image, "");
    await expect(openTarget(options({ to: join(image, "below") }))).rejects.toMatchObject({ code: "TARGET_FAILED" });
    await expect(
      openTarget(options({ to: join(folder, "x"), format: "vhd", volumeBytes: 3 * 1024 ** 4 })),
    ).rejects.toMatchObject({
      code: "UNSUPPORTED",
    });
  });

  test("on a full disk ends in NO_SPACE and can be resumed from its last checkpoint", async ({ skip }) => {
    const disk = mountSmallDisk(join(folder, "small"), mib);
    if ("reason" in disk) {
      skip(disk.reason);
      return;
    }
    try {
      const bytes = pattern(2 * mib);
      const target = await openTarget(options({ to: join(disk.path, "disk.img"), volumeBytes: bytes.length }));
      await target.write(0, bytes.subarray(0, 65536));
      nowMs += 10_000;
      await target.checkpoint(65536);
      await expect(fill(target, bytes, 65536)).rejects.toMatchObject({ code: "NO_SPACE" });
      await target.abandon();
      const again = await openTarget(options({ to: join(disk.path, "disk.img"), volumeBytes: bytes.length }));
      expect(again.resumeAt).toBe(65536);
      await again.abandon();
    } finally {
      disk.unmount();
    }
  });
});

describe("a partial file", () => {
  const bytes = pattern(512 * 1024 + 77);

  /** Writes half, notes a quarter and stops there. */
  async function interrupted(given: Partial<OpenTargetOptions> = {}): Promise<void> {
    const target = await openTarget(options({ volumeBytes: bytes.length, ...given }));
    await target.write(0, bytes.subarray(0, 131072));
    nowMs += 2000;
    await target.checkpoint(131072);
    await target.write(131072, Buffer.alloc(131072, 0xee));
    await target.checkpoint(262144);
    await target.abandon();
  }

  test("is resumed at its last checkpoint, and stale bytes behind it are gone", async () => {
    await interrupted();
    const target = await openTarget(options({ volumeBytes: bytes.length }));
    expect(target.resumeAt).toBe(131072);
    const rest = Buffer.from(bytes);
    rest.fill(0, 131072, 262144);
    await fill(target, rest, target.resumeAt);
    await target.finish();
    expect(Buffer.compare(await readFile(image), rest)).toBe(0);
    expect(await readdir(folder)).toEqual(["disk.img"]);
  });

  test("is resumed after a kill too, which leaves the files as they are at any moment", async () => {
    const target = await openTarget(options({ volumeBytes: bytes.length }));
    await target.write(0, bytes.subarray(0, 131072));
    nowMs += 2000;
    await target.checkpoint(131072);
    await target.write(131072, bytes.subarray(131072, 200_000));
    const killed = join(folder, "killed.img");
    for (const suffix of [".tidemark-partial", ".tidemark-partial.json"])
      await copyFile(image + suffix, killed + suffix);
    await target.abandon();
    const again = await openTarget(options({ to: killed, volumeBytes: bytes.length }));
    expect(again.resumeAt).toBe(131072);
    await fill(again, bytes, again.resumeAt);
    await again.finish();
    expect((await readFile(killed)).equals(bytes)).toBe(true);
  });

  test("is noted at most twice a second", async () => {
    const target = await openTarget(options({ volumeBytes: bytes.length }));
    nowMs += 499;
    await target.checkpoint(65536);
    expect(await readdir(folder)).toEqual(["disk.img.tidemark-partial"]);
    nowMs += 1;
    await target.checkpoint(65536);
    expect((await readdir(folder)).sort()).toEqual(["disk.img.tidemark-partial", "disk.img.tidemark-partial.json"]);
    await target.abandon();
  });

  test.each([
    ["point", { point: "f".repeat(32) }],
    ["vault", { vaultId: "w".repeat(32) }],
    ["size", { volumeBytes: bytes.length + 1 }],
    ["format", { format: "vhd" as const }],
  ])("of another %s is started anew", async (_, other) => {
    await interrupted();
    const target = await openTarget(options({ volumeBytes: bytes.length, ...other }));
    expect(target.resumeAt).toBe(0);
    const zeros = Buffer.alloc(bytes.length);
    await fill(target, zeros);
    await target.finish();
    expect((await readFile(image)).subarray(0, bytes.length).equals(zeros)).toBe(true);
  });

  test.each(["", "{", "null", "[]", '{"doneBytes":1e99}'])(
    "whose journal reads %j is started anew",
    async (journal) => {
      await interrupted();
      await writeFile(`${image}.tidemark-partial.json`, journal);
      const target = await openTarget(options({ volumeBytes: bytes.length }));
      expect(target.resumeAt).toBe(0);
      await target.abandon();
    },
  );

  test("that is shorter than its journal says is started anew", async () => {
    await interrupted();
    await writeFile(`${image}.tidemark-partial`, "short");
    const target = await openTarget(options({ volumeBytes: bytes.length }));
    expect(target.resumeAt).toBe(0);
    await target.abandon();
  });

  test("that is another name of an existing file never changes that file", async () => {
    await writeFile(join(folder, "precious"), "mine");
    await link(join(folder, "precious"), `${image}.tidemark-partial`);
    await materialize(bytes, {});
    expect(await readFile(join(folder, "precious"), "utf8")).toBe("mine");
  });

  test("has one writer at a time", async () => {
    const first = await openTarget(options({ volumeBytes: 4096 }));
    await expect(openTarget(options({ volumeBytes: 4096 }))).rejects.toMatchObject({
      code: "TARGET_FAILED",
      message: /another process/,
    });
    await first.write(0, pattern(4096));
    await first.finish();
    expect(Buffer.compare(await readFile(image), pattern(4096))).toBe(0);
  });
});

describe("an existing image in place", () => {
  test("becomes the point, whatever it was, and only granules that differ are written", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(47), fc.nat(2)), { maxLength: 30 }),
        fc.array(fc.tuple(fc.nat(47), fc.nat(2)), { maxLength: 30 }),
        fc.integer({ min: 1, max: 48 * 4096 }),
        fc.integer({ min: 0, max: 48 * 4096 }),
        async (before, after, volumeBytes, oldBytes) => {
          const make = (granules: readonly (readonly [number, number])[], length: number): Buffer => {
            const made = Buffer.alloc(48 * 4096);
            for (const [granule, value] of granules) made.fill(value, granule * 4096, granule * 4096 + 4096);
            return made.subarray(0, length);
          };
          const old = make(before, oldBytes);
          const wanted = make(after, volumeBytes);
          await writeFile(image, old);
          const target = await materialize(wanted, { mode: "in-place" });
          expect(Buffer.compare(await readFile(image), wanted)).toBe(0);
          const grown = Buffer.alloc(volumeBytes);
          old.copy(grown);
          let differing = 0;
          for (let at = 0; at < volumeBytes; at += 4096) {
            const end = Math.min(volumeBytes, at + 4096);
            if (!grown.subarray(at, end).equals(wanted.subarray(at, end))) differing += end - at;
          }
          expect(target.bytesWritten).toBe(differing);
        },
      ),
      { numRuns: runsOf(60) },
    );
  });

  test("that equals the point already is not written at all", async () => {
    const bytes = pattern(3 * mib + 5);
    await writeFile(image, bytes);
    expect((await materialize(bytes, { mode: "in-place" })).bytesWritten).toBe(0);
  });

  test("as a VHD keeps its UUID while it grows and shrinks, and is padded with zeros", async () => {
    const first = pattern(2 * mib + 100);
    await materialize(first, { format: "vhd" });
    const uuid = parseFixedVhdFooter((await readFile(image)).subarray(-512))?.uuid;
    for (const sizeBytes of [5 * mib - 9, 5 * mib - 700, mib, 4 * mib]) {
      const bytes = pattern(sizeBytes, sizeBytes);
      await materialize(bytes, { format: "vhd", mode: "in-place", point: sizeBytes.toString(16) });
      const written = await readFile(image);
      const diskBytes = Math.ceil(sizeBytes / mib) * mib;
      expect(written.length).toBe(diskBytes + 512);
      expect(written.subarray(0, sizeBytes).equals(bytes)).toBe(true);
      expect(written.subarray(sizeBytes, diskBytes).every((byte) => byte === 0)).toBe(true);
      expect(parseFixedVhdFooter(written.subarray(-512))).toMatchObject({ diskBytes, uuid });
    }
  });

  test("of the other form is refused and left as it was", async () => {
    await materialize(pattern(4096), { format: "vhd" });
    const before = await readFile(image);
    await expect(openTarget(options({ mode: "in-place", volumeBytes: 4096 }))).rejects.toMatchObject({
      code: "TARGET_FAILED",
    });
    expect((await readFile(image)).equals(before)).toBe(true);
    await writeFile(image, "raw");
    await expect(openTarget(options({ mode: "in-place", format: "vhd", volumeBytes: 4096 }))).rejects.toMatchObject({
      code: "TARGET_FAILED",
    });
    expect(await readFile(image, "utf8")).toBe("raw");
  });

  test("that is the source itself is refused unless the caller insists", async () => {
    await writeFile(image, pattern(4096));
    await link(image, join(folder, "hard"));
    const given = { mode: "in-place" as const, volumeBytes: 4096, sourceIdentity: await fileIdentity(image) };
    for (const to of [image, join(folder, "hard")])
      await expect(openTarget(options({ ...given, to }))).rejects.toMatchObject({ code: "TARGET_IS_SOURCE" });
    await expect(openTarget(options({ ...given, mode: "replace" }))).rejects.toMatchObject({
      code: "TARGET_IS_SOURCE",
    });
    await (await openTarget(options({ ...given, overwriteSource: true }))).abandon();
  });
});

test("a block device is written in place, refused when it is too small or in use, and keeps what lies behind the volume", async ({
  skip,
}) => {
  await writeFile(join(folder, "backing"), pattern(mib, 5));
  const loop = attachLoop(join(folder, "backing"));
  if ("reason" in loop) {
    skip(loop.reason);
    return;
  }
  try {
    await expect(openTarget(options({ to: loop.path, volumeBytes: 4096 }))).rejects.toMatchObject({
      code: "TARGET_EXISTS",
    });
    await expect(openTarget(options({ to: loop.path, mode: "in-place", volumeBytes: mib + 1 }))).rejects.toMatchObject({
      code: "TARGET_TOO_SMALL",
      detail: { targetBytes: mib, volumeBytes: mib + 1 },
    });
    await expect(openTarget(options({ to: loop.path, mode: "in-place", format: "vhd" }))).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
    const bytes = Buffer.concat([pattern(100_000, 7), Buffer.alloc(200_000), pattern(77, 8)]);
    const target = await openTarget(options({ to: loop.path, mode: "in-place", volumeBytes: bytes.length }));
    await expect(openTarget(options({ to: loop.path, mode: "in-place" }))).rejects.toMatchObject({
      code: "TARGET_FAILED",
      message: /in use/,
    });
    await fill(target, bytes);
    await target.finish();
    const device = await open(loop.path, "r");
    const present = Buffer.alloc(mib);
    await device.read(present, 0, mib, 0);
    await device.close();
    expect(present.equals(Buffer.concat([bytes, pattern(mib, 5).subarray(bytes.length)]))).toBe(true);
  } finally {
    loop.detach();
  }
});

describe("a page blob", () => {
  let store: MemorySink;
  beforeEach(async () => {
    store = new MemorySink({ attachablePages: true });
    await store.createContainer();
  });

  const blob = (given: Partial<OpenTargetOptions>): OpenTargetOptions =>
    options({ to: "blob:replicas/web.vhd", format: "vhd", sink: store, ...given });

  async function content(): Promise<Buffer> {
    const { sizeBytes } = await store.statPages("replicas/web.vhd");
    const bytes = Buffer.alloc(sizeBytes);
    await store.readPages("replicas/web.vhd", 0, bytes);
    return bytes;
  }

  test.each([...oddSizes, 9 * mib + 4096])(
    "of a volume of %i bytes is a fixed VHD, written out of order",
    async (sizeBytes) => {
      const bytes = pattern(sizeBytes);
      bytes.fill(0, Math.min(sizeBytes, 3 * mib), Math.min(sizeBytes, 6 * mib));
      const target = await openTarget(blob({ volumeBytes: sizeBytes }));
      const blocks = Array.from(
        { length: Math.ceil(sizeBytes / 65536) },
        (_, index) => (index * 37) % Math.ceil(sizeBytes / 65536),
      );
      expect(new Set(blocks).size).toBe(blocks.length);
      await Promise.all(
        blocks.map((block) => {
          const part = bytes.subarray(block * 65536, (block + 1) * 65536);
          return part.every((byte) => byte === 0)
            ? target.zero(block * 65536, part.length)
            : target.write(block * 65536, part);
        }),
      );
      await target.finish();
      const written = await content();
      const diskBytes = Math.max(1, Math.ceil(sizeBytes / mib)) * mib;
      expect(written.length).toBe(diskBytes + 512);
      expect(written.subarray(0, sizeBytes).equals(bytes)).toBe(true);
      expect(parseFixedVhdFooter(written.subarray(-512))?.diskBytes).toBe(diskBytes);
    },
  );

  test("gathers what comes into few large writes, also when more windows are open than may be", async () => {
    const bytes = pattern(32 * mib);
    const target = await openTarget(blob({ volumeBytes: bytes.length }));
    let calls = 0;
    const original = store.writePages.bind(store);
    store.writePages = (...given) => {
      calls += 1;
      return original(...given);
    };
    for (let at = 0; at < 2 * mib; at += mib / 2) {
      for (let window = 0; window < 16; window += 1) {
        const offset = window * 2 * mib + at;
        await target.write(offset, bytes.subarray(offset, offset + mib / 2));
      }
    }
    await target.finish();
    expect((await content()).subarray(0, bytes.length).equals(bytes)).toBe(true);
    expect(calls).toBeLessThanOrEqual(65);
    expect(target.bytesWritten).toBe(bytes.length + 512);
  });

  test("that is not finished has no footer, and abandoning deletes it", async () => {
    const target = await openTarget(blob({ volumeBytes: 4096 }));
    await target.write(0, pattern(4096));
    expect(parseFixedVhdFooter((await content()).subarray(-512))).toBeUndefined();
    await target.abandon();
    await expect(store.statPages("replicas/web.vhd")).rejects.toMatchObject({ code: "OBJECT_NOT_FOUND" });
  });

  test("that exists is kept without leave; one that replaced ours stops us and is not deleted", async () => {
    const first = await openTarget(blob({ volumeBytes: 8192 }));
    await expect(openTarget(blob({ volumeBytes: 8192 }))).rejects.toMatchObject({ code: "TARGET_EXISTS" });
    const second = await openTarget(blob({ volumeBytes: 8192, mode: "replace" }));
    await expect(first.write(0, pattern(8192))).rejects.toMatchObject({ code: "TARGET_FAILED" });
    await expect(first.finish()).rejects.toMatchObject({ code: "TARGET_FAILED" });
    await first.abandon();
    await fill(second, pattern(8192, 3));
    await second.finish();
    expect((await content()).subarray(0, 8192).equals(pattern(8192, 3))).toBe(true);
  });

  test("is whole although the outcome of every other call was unknown, and a late original cannot touch it any more", async () => {
    const late: (() => Promise<unknown>)[] = [];
    let calls = 0;
    const create = store.createPages.bind(store);
    const write = store.writePages.bind(store);
    const unknown = (): TidemarkError => new TidemarkError("OUTCOME_UNKNOWN", "no answer came");
    store.createPages = async (...given) => {
      await create(...given);
      throw unknown();
    };
    store.writePages = async (name, offset, given, fence, callOptions) => {
      calls += 1;
      if (calls % 2 === 0) return write(name, offset, given, fence, callOptions);
      const stale = Buffer.alloc(given.byteLength, 0xee);
      late.push(() => write(name, offset, stale, fence));
      throw unknown();
    };
    const bytes = pattern(9 * mib);
    const target = await openTarget(blob({ volumeBytes: bytes.length }));
    await fill(target, bytes);
    await target.finish();
    expect(late.length).toBe(4);
    for (const original of late) await expect(original()).rejects.toMatchObject({ code: "CONDITION_FAILED" });
    expect((await content()).subarray(0, bytes.length).equals(bytes)).toBe(true);
  });

  test("is refused where it could not be attached, in a format that it has not, and under the vault's own names", async () => {
    await expect(openTarget(blob({ sink }))).rejects.toMatchObject({ code: "UNSUPPORTED" });
    await expect(openTarget(blob({ format: "raw" }))).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    await expect(openTarget(blob({ volumeBytes: 8 * 1024 ** 4 }))).rejects.toMatchObject({ code: "UNSUPPORTED" });
    for (const name of [
      "vault.json",
      "copy/vault.json",
      "disks/a/head",
      "segments/x",
      "reclaim/1",
      "",
      "a//b",
      "../a",
      "Größe.vhd",
    ]) {
      await expect(openTarget(blob({ to: `blob:${name}` }))).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    }
  });
});

test("a folder is never taken for a target, even with leave to replace", async () => {
  await mkdir(image);
  for (const mode of ["replace", "in-place"] as const)
    await expect(openTarget(options({ mode }))).rejects.toMatchObject({ code: "TARGET_FAILED" });
});
