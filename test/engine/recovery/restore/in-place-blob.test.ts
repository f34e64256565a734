/** Page blobs that are changed in place: they equal the point, at the price of what differs. */
import { beforeEach, describe, expect, test } from "vitest";
import { openTarget } from "../../../../engine/recovery/restore/targets.ts";
import { parseFixedVhdFooter } from "../../../../engine/recovery/restore/vhd.ts";
import { FaultySink } from "../../../../sink/faults.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { contentOf } from "../../../model-disk.ts";

const name = "replicas/web.vhd";
const mib = 1024 * 1024;
/** Neither whole pages nor whole MiB. */
const volumeBytes: number = 9 * mib + 1000;

let store: MemorySink;
let old: Buffer;

beforeEach(async () => {
  store = new MemorySink({ attachablePages: true });
  await store.createContainer();
  old = contentOf(volumeBytes, 1);
  await fill(old, "create");
});

const options = { format: "vhd" as const, vaultId: "00".repeat(16), point: "11".repeat(16), overwriteSource: false };

async function fill(
  bytes: Buffer,
  mode: "create" | "in-place",
  sink: MemorySink | FaultySink = store,
): Promise<number> {
  const target = await openTarget({ ...options, to: `blob:${name}`, mode, volumeBytes: bytes.length, sink });
  for (let at = 0; at < bytes.length; at += 65_536) {
    const part = bytes.subarray(at, at + 65_536);
    if (part.some((byte) => byte !== 0)) await target.write(at, part);
    else await target.zero(at, part.length);
  }
  await target.finish();
  return target.bytesWritten;
}

async function content(): Promise<Buffer> {
  const { sizeBytes } = await store.statPages(name);
  const bytes = Buffer.alloc(sizeBytes);
  await store.readPages(name, 0, bytes);
  return bytes;
}

async function expectContent(bytes: Buffer): Promise<void> {
  const there = await content();
  expect(there.subarray(0, bytes.length).equals(bytes)).toBe(true);
  expect(there.subarray(bytes.length, -512).every((byte) => byte === 0)).toBe(true);
  expect(parseFixedVhdFooter(there.subarray(-512))?.diskBytes).toBe(10 * mib);
}

describe("a page blob that is changed in place", () => {
  test("gets what differs, zeros among it, and keeps its footer", async () => {
    const footer = (await content()).subarray(-512);
    const wanted = Buffer.from(old);
    wanted.fill(0, mib, mib + 200_000);
    wanted.fill(7, 5 * mib + 100, 5 * mib + 200);
    wanted.fill(9, volumeBytes - 1);
    const written = await fill(wanted, "in-place");
    await expectContent(wanted);
    expect((await content()).subarray(-512).equals(footer)).toBe(true);
    expect(written).toBeGreaterThan(0);
    expect(written).toBeLessThanOrEqual(200_000 + 4 * 4096);
    expect(await fill(wanted, "in-place")).toBe(0);
  });

  test("loses what a foreign program left behind the volume", async () => {
    const { sequenceNumber } = await store.statPages(name);
    await store.writePages(name, 9 * mib + 4096, Buffer.alloc(512, 5), { sequenceNumber });
    await fill(old, "in-place");
    await expectContent(old);
  });

  test("is whole although outcomes were unknown, and a late original cannot touch it any more", async () => {
    const faulty = new FaultySink(store, [
      { on: "writePages", when: 1, fault: { kind: "late" } },
      { on: "writePages", when: 4, fault: { kind: "unacknowledged" } },
    ]);
    const wanted = contentOf(volumeBytes, 2);
    await fill(wanted, "in-place", faulty);
    faulty.assertAllFired();
    await faulty.releaseLate();
    await expectContent(wanted);
    // The late original was refused, also where it holds other bytes than the pages have by now.
    const again = contentOf(volumeBytes, 3);
    const late = new FaultySink(store, [{ on: "writePages", when: 1, fault: { kind: "late" } }]);
    await fill(wanted, "in-place", late);
    await fill(again, "in-place", late);
    await late.releaseLate();
    await expectContent(again);
  });

  test("is given up by a run that a second one has overtaken", async () => {
    const given = { ...options, to: `blob:${name}`, mode: "in-place" as const, volumeBytes, sink: store };
    const first = await openTarget(given);
    const second = await openTarget(given);
    await expect(first.write(0, Buffer.alloc(4096, 1))).rejects.toMatchObject({ code: "TARGET_FAILED" });
    await expect(first.finish()).rejects.toMatchObject({ code: "TARGET_FAILED" });
    await first.abandon();
    await second.write(0, Buffer.alloc(4096, 2));
    await second.finish();
    expect((await content()).subarray(0, 4096).every((byte) => byte === 2)).toBe(true);
  });

  test("is refused when it is absent, no VHD, or of another size", async () => {
    const given = { ...options, mode: "in-place" as const, sink: store };
    await store.createPages("replicas/bare.vhd", 10 * mib + 512, 1);
    for (const [to, bytes] of [
      ["blob:replicas/none.vhd", volumeBytes],
      ["blob:replicas/bare.vhd", volumeBytes],
      [`blob:${name}`, 11 * mib],
    ] as const)
      await expect(openTarget({ ...given, to, volumeBytes: bytes })).rejects.toMatchObject({ code: "TARGET_FAILED" });
    await expectContent(old);
  });
});
