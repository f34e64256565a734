import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import {
  fixedVhdFooter,
  parseFixedVhdFooter,
  vhdDiskBytes,
  vhdGeometry,
} from "../../../../engine/recovery/restore/vhd.ts";

const mib = 1024 * 1024;
const uuid = Uint8Array.from({ length: 16 }, (_, index) => index + 1);
const createdMs = Date.UTC(2026, 0, 2, 3, 4, 5);

test("the disk of a VHD is the volume rounded up to a MiB and never empty", () => {
  expect([0, 1, mib, mib + 1].map(vhdDiskBytes)).toEqual([mib, mib, mib, 2 * mib]);
});

test("a footer says what it was made from", () => {
  for (const diskBytes of [mib, 127 * mib, 2040 * 1024 * mib, 8 * 1024 * 1024 * mib - mib]) {
    expect(parseFixedVhdFooter(fixedVhdFooter({ diskBytes, uuid, createdMs }))).toEqual({ diskBytes, uuid, createdMs });
  }
});

test("a footer has the specification's fields in their places", () => {
  const footer = fixedVhdFooter({ diskBytes: 40 * mib, uuid, createdMs });
  expect(footer.length).toBe(512);
  expect(footer.toString("latin1", 0, 8)).toBe("conectix");
  expect(footer.toString("hex", 8, 24)).toBe("0000000200010000ffffffffffffffff");
  expect(footer.readUInt32BE(24)).toBe((createdMs - Date.UTC(2000, 0, 1)) / 1000);
  expect(footer.readBigUInt64BE(48)).toBe(BigInt(40 * mib));
  expect(footer.readUInt32BE(60)).toBe(2);
  let sum = 0;
  for (const [at, byte] of footer.entries()) if (at < 64 || at > 67) sum += byte;
  expect((sum + footer.readUInt32BE(64)) % 2 ** 32).toBe(2 ** 32 - 1);
});

test("anything else is no footer", () => {
  const footer = fixedVhdFooter({ diskBytes: mib, uuid, createdMs });
  for (let at = 0; at < 512; at += 1) {
    const bad = Buffer.from(footer);
    bad[at] = (bad[at] ?? 0) ^ 1;
    expect(parseFixedVhdFooter(bad)).toBeUndefined();
  }
  expect(parseFixedVhdFooter(footer.subarray(1))).toBeUndefined();
  expect(parseFixedVhdFooter(new Uint8Array(512))).toBeUndefined();
});

test("a disk beyond 8 TiB is refused", () => {
  expect(() => fixedVhdFooter({ diskBytes: 8 * 1024 * 1024 * mib, uuid, createdMs })).toThrow(
    expect.objectContaining({ code: "UNSUPPORTED" }),
  );
});

test("the geometry is that of the specification's appendix", () => {
  // As qemu-img 7.2 writes them into images of these sizes (subformat=fixed).
  expect(vhdGeometry(41_953_280)).toEqual({ cylinders: 964, heads: 5, sectorsPerTrack: 17 });
  expect(vhdGeometry(1_073_995_776)).toEqual({ cylinders: 2081, heads: 16, sectorsPerTrack: 63 });
  expect(vhdGeometry(139_586_437_120)).toEqual({ cylinders: 65535, heads: 16, sectorsPerTrack: 255 });
  expect(vhdGeometry(2040 * 1024 * mib)).toEqual({ cylinders: 65535, heads: 16, sectorsPerTrack: 255 });
});

test("qemu-img takes an image with our footer for a VHD of exactly its size, and makes the same geometry", async ({
  skip,
}) => {
  try {
    execFileSync("qemu-img", ["--version"], { stdio: "ignore" });
  } catch {
    skip("qemu-img is not installed here");
  }
  const folder = mkdtempSync(join(tmpdir(), "vhd-"));
  try {
    for (const diskBytes of [
      mib,
      3 * mib,
      40 * mib,
      513 * mib,
      1024 * mib,
      100 * 1024 * mib,
      200 * 1024 * mib,
      2040 * 1024 * mib,
    ]) {
      const image = join(folder, "ours.vhd");
      writeFileSync(image, "");
      truncateSync(image, diskBytes);
      const file = await open(image, "r+");
      await file.write(fixedVhdFooter({ diskBytes, uuid, createdMs }), 0, 512, diskBytes);
      await file.close();
      const info = JSON.parse(
        execFileSync("qemu-img", ["info", "-f", "vpc", "--output=json", image], { encoding: "utf8" }),
      ) as Record<string, unknown>;
      expect([diskBytes, info["format"], info["virtual-size"]]).toEqual([diskBytes, "vpc", diskBytes]);

      const theirs = join(folder, "theirs.vhd");
      execFileSync("qemu-img", ["create", "-q", "-f", "vpc", "-o", "subformat=fixed", theirs, String(diskBytes)]);
      const footer = Buffer.alloc(512);
      const reference = await open(theirs, "r");
      await reference.read(footer, 0, 512, (await reference.stat()).size - 512);
      await reference.close();
      // Unless told otherwise it rounds the disk up to what a geometry can say, and believes that.
      const geometry = {
        cylinders: footer.readUInt16BE(56),
        heads: footer.readUInt8(58),
        sectorsPerTrack: footer.readUInt8(59),
      };
      expect(vhdGeometry(parseFixedVhdFooter(footer)?.diskBytes ?? 0)).toEqual(geometry);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
