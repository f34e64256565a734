/**
 * Instant targets: a point that runs at once, is copied into a local image while it runs, and needs
 * the vault no more when that is done.
 */
import { existsSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, onTestFinished, test, vi } from "vitest";
import type { BlockDevice } from "../../../engine/device.ts";
import { FileVolume } from "../../../engine/disk/source/file-volume.ts";
import { hasCode } from "../../../engine/errors.ts";
import { granuleBytes } from "../../../engine/limits.ts";
import type { Notice } from "../../../engine/notice.ts";
import { Bandwidth } from "../../../engine/throttle.ts";
import { FaultySink } from "../../../sink/faults.ts";
import { runsOf } from "../../depth.ts";
import { contentOf, ModelDisk, modelBlockBytes } from "../../model-disk.ts";
import { expectCode, namesIn } from "../../sink/expectations.ts";
import { mountSmallDisk } from "../../small-disk.ts";
import {
  allExtents,
  closeVaults,
  type Filled,
  filledVault,
  mounted,
  readAll,
  readRange,
  temporaryFolder,
  vaultOf,
} from "../recovery/mount/mount-rig.ts";
import { Line, openInstant, shutGate } from "./instant-rig.ts";

afterAll(closeVaults);

const sizeBytes = 400_001;

function newest(filled: Filled): Buffer {
  return Buffer.from(filled.contents.at(-1) ?? Buffer.alloc(0));
}

async function until(isSo: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await isSo())) await new Promise((resolve) => setTimeout(resolve, 2));
}

/** Reads; false while the store is not back. */
async function readsNow(device: BlockDevice, offset: number, into: Uint8Array): Promise<boolean> {
  try {
    await device.read(offset, into);
    return true;
  } catch (error) {
    if (!hasCode(error, "STORE_UNREACHABLE")) throw error;
    return false;
  }
}

describe("an instant target", () => {
  test("is the point at once, and its image is the point when it is hydrated, without the vault", async () => {
    const filled = await filledVault();
    const image = join(temporaryFolder(), "d.img");
    const { instant, notices } = await openInstant(filled, { image });
    expect((await readAll(instant.device)).equals(newest(filled))).toBe(true);
    await instant.hydrated();
    expect(instant.status()).toMatchObject({
      state: "hydrated",
      sequence: 3,
      hydratedBytes: sizeBytes,
      trouble: null,
    });
    expect(notices).toEqual([]);
    await instant.close();
    expect(readFileSync(image).equals(newest(filled))).toBe(true);
    const line = new Line(filled.sink);
    const again = await openInstant(filled, { image }, line);
    expect((await readAll(again.instant.device)).equals(newest(filled))).toBe(true);
    expect(again.instant.status().state).toBe("hydrated");
    expect(line.calls).toBe(0);
  });

  test("is no source and cannot be protected as a file before its image holds everything", async () => {
    const filled = await filledVault();
    const { gate, open } = shutGate();
    const line = new Line(filled.sink);
    line.gate = gate;
    const image = join(temporaryFolder(), "d.img");
    const { instant } = await openInstant(filled, { image }, line);
    await expectCode(FileVolume.open(image), "INVALID_ARGUMENT");
    line.isCut = true;
    open();
    await instant.close();
    await expectCode(filled.vault.protect({ disk: "d", image, stateFolder: temporaryFolder() }), "INVALID_ARGUMENT");
    const again = await openInstant(filled, { image });
    await again.instant.hydrated();
    await again.instant.close();
    const volume = await FileVolume.open(image);
    expect(await volume.sizeBytes()).toBe(sizeBytes);
    await volume.close();
  });

  test("says once that its image has no room, and serves the point meanwhile", async (context) => {
    const small = mountSmallDisk(join(temporaryFolder(), "small"), 256 * 1024);
    if ("reason" in small) return context.skip(`no disk to fill: ${small.reason}`);
    onTestFinished(() => small.unmount());
    const filled = await filledVault();
    const notices: string[] = [];
    const onNotice = ({ code }: Notice): void => void notices.push(code);
    const instant = await filled.vault.instant({ disk: "d", image: join(small.path, "run.img"), onNotice });
    await vi.waitFor(() => expect(instant.status().trouble).toMatchObject({ code: "NO_SPACE" }));
    expect((await readAll(instant.device)).equals(newest(filled))).toBe(true);
    expect(notices).toEqual(["IMAGE_NOT_FILLED"]);
    // Its record has no room, either. All of its files are closed nevertheless: else nothing is unmounted.
    await expectCode(instant.close(), "NO_SPACE");
  });

  test("holds and pins its point until the image holds everything", async () => {
    const filled = await filledVault();
    const { gate, open } = shutGate();
    const line = new Line(filled.sink);
    line.gate = gate;
    const image = join(temporaryFolder(), "d.img");
    const { instant } = await openInstant(filled, { image, point: "1" }, line);
    const left = async (): Promise<readonly string[]> => [
      ...(await namesIn(filled.sink, "disks/d/holds/")),
      ...(await namesIn(filled.sink, "disks/d/pins/")),
    ];
    await until(async () => (await left()).length === 2);
    open();
    await instant.hydrated();
    expect(await left()).toEqual([]);
  });

  test("holds what an array of bytes would hold, whatever clients do while it is copied, and so does its image", async () => {
    const folder = temporaryFolder();
    const filled = await filledVault();
    const kind = fc.constantFrom("write", "write", "zero", "trim", "read", "flush", "reopen", "rest" as const);
    const place = fc.oneof(
      fc.nat(sizeBytes - 1),
      fc.nat(97).map((granule) => granule * granuleBytes),
    );
    const length = fc.oneof(
      fc.nat(20_000),
      fc.nat(9).map((granules) => granules * granuleBytes),
    );
    let run = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(kind, place, length, fc.nat(255)), { maxLength: 25 }), async (steps) => {
        run += 1;
        const image = join(folder, `${run}.img`);
        const model = newest(filled);
        filled.line.current = filled.sink;
        let instant = await filled.vault.instant({ disk: "d", image });
        for (const [step, offset, wanted, seed] of steps) {
          const count = Math.min(wanted, sizeBytes - offset);
          const { device } = instant;
          if (step === "write") {
            const bytes = contentOf(count, seed + 1);
            bytes.copy(model, offset);
            if (!device.tryWrite(offset, bytes)) await device.write(offset, bytes);
          } else if (step === "zero") {
            model.fill(0, offset, offset + count);
            await device.zero(offset, count, seed % 2 === 0);
          } else if (step === "trim") {
            const end = offset + count;
            const first = Math.ceil(offset / granuleBytes) * granuleBytes;
            const last = end === sizeBytes ? end : Math.floor(end / granuleBytes) * granuleBytes;
            if (last > first) model.fill(0, first, last);
            await device.trim(offset, count);
          } else if (step === "read")
            expect((await readRange(device, offset, count)).equals(model.subarray(offset, offset + count))).toBe(true);
          else if (step === "flush") await device.flush();
          else if (step === "rest") await instant.hydrated();
          else {
            await instant.close();
            instant = await filled.vault.instant({ disk: "d", image });
          }
        }
        for (const { kind: told, offset, length: count } of await allExtents(instant.device, 3))
          if (told === "hole") expect(model.subarray(offset, offset + count).every((byte) => byte === 0)).toBe(true);
        await instant.hydrated();
        expect((await readAll(instant.device, 7777)).equals(model)).toBe(true);
        await instant.close();
        expect(readFileSync(image).equals(model)).toBe(true);
        rmSync(image);
      }),
      { numRuns: runsOf(40) },
    );
  });

  test("never overwrites what a client wrote while its granule was being fetched", async () => {
    const filled = await filledVault();
    const { gate, open } = shutGate();
    const line = new Line(filled.sink);
    line.gate = gate;
    const { instant } = await openInstant(filled, { image: join(temporaryFolder(), "d.img") }, line);
    await until(() => line.calls > 2);
    const model = newest(filled);
    const bytes = contentOf(3 * granuleBytes, 77);
    bytes.copy(model, 2 * granuleBytes);
    await instant.device.write(2 * granuleBytes, bytes);
    // Written in part: the rest of the granule comes from the vault.
    const part = instant.device.write(100_000, Buffer.alloc(100, 9));
    model.fill(9, 100_000, 100_100);
    open();
    await part;
    await instant.hydrated();
    expect((await readAll(instant.device)).equals(model)).toBe(true);
  });

  test("fetches nothing twice, over all its restarts, whatever is read and written meanwhile", async () => {
    const filled = await vaultOf("dense instant", new ModelDisk(contentOf(sizeBytes, 1)));
    const whole = new Line(filled.sink);
    const { device } = await mounted(filled, { point: "1" }, whole);
    await readAll(device, modelBlockBytes);
    const image = join(temporaryFolder(), "d.img");
    const line = new Line(filled.sink);
    for (const place of [390_000, 50_000, 200_000]) {
      // So slow that each round copies a part.
      const { instant } = await openInstant(
        filled,
        { image, bandwidth: new Bandwidth({ bytesPerSecond: 1024 }) },
        line,
      );
      await readRange(instant.device, place, 5000);
      await instant.device.write(place + 7000, Buffer.alloc(10, 1));
      await instant.close();
    }
    const { instant } = await openInstant(filled, { image }, line);
    await instant.hydrated();
    // What was under way when a round ended is lost, a block or two each time; and ranges are widened
    // to what a store reads at a time.
    const lostBytes = 3 * 2 * modelBlockBytes + 16 * line.ranges;
    expect(line.pageBytes).toBeLessThanOrEqual(whole.pageBytes + lostBytes);
  });

  test("of a store that is away serves what it has, lets other reads wait, and fails them after a while, never with zeros", async () => {
    const filled = await filledVault();
    const image = join(temporaryFolder(), "d.img");
    const slow = { image, bandwidth: new Bandwidth({ bytesPerSecond: 1024 }), readWaitMs: 300 };
    const line = new Line(filled.sink);
    const { gate, open } = shutGate();
    const first = await openInstant(filled, { ...slow, readWaitMs: 30_000 }, line);
    await readRange(first.instant.device, 0, granuleBytes);
    await first.instant.device.write(300_000, Buffer.alloc(5000, 5));
    await first.instant.device.flush();
    await first.instant.close();
    // Begun while the store is away, and while it does not answer.
    line.isCut = true;
    const { instant } = await openInstant(filled, slow, line);
    expect((await readRange(instant.device, 0, granuleBytes)).equals(newest(filled).subarray(0, granuleBytes))).toBe(
      true,
    );
    expect((await readRange(instant.device, 301_056, 2000)).every((byte) => byte === 5)).toBe(true);
    const into = Buffer.alloc(granuleBytes, 0xee);
    await expectCode(instant.device.read(sizeBytes - granuleBytes, into), "STORE_UNREACHABLE");
    expect(into.every((byte) => byte === 0xee)).toBe(true);
    expect(instant.status().trouble?.code).toBe("STORE_UNREACHABLE");
    line.isCut = false;
    line.gate = gate;
    await expectCode(instant.device.read(sizeBytes - granuleBytes, into), "STORE_UNREACHABLE");
    open();
    await until(async () => await readsNow(instant.device, sizeBytes - granuleBytes, into));
    expect(into.equals(newest(filled).subarray(sizeBytes - granuleBytes))).toBe(true);
  });

  test("that is closed while its store is away ends reads that wait for it, and does not wait with them", async () => {
    const filled = await filledVault();
    const line = new Line(filled.sink);
    line.isCut = true;
    const image = join(temporaryFolder(), "d.img");
    await (await openInstant(filled, { image })).instant.close();
    const { instant } = await openInstant(filled, { image, readWaitMs: 600_000 }, line);
    const refused = expectCode(
      instant.device.read(sizeBytes - granuleBytes, Buffer.alloc(granuleBytes)),
      "DEVICE_FAILED",
    );
    await instant.close();
    await refused;
  });

  test("leaves what is damaged in the vault to be read there, and copies all the rest", async () => {
    const filled = await filledVault({ points: 1 });
    const [segment = ""] = await namesIn(filled.sink, "segments/");
    const lost = new FaultySink(filled.sink, [
      { on: "readPages", prefix: segment, when: { probability: 0.3 }, fault: { kind: "flipped" } },
    ]);
    const image = join(temporaryFolder(), "d.img");
    const { instant, notices } = await openInstant(filled, { image }, lost);
    await until(() => instant.status().state === "hydrated" || instant.status().trouble !== null);
    expect(notices.every(({ code }) => code === "POINT_DAMAGED")).toBe(true);
    // What the vault gives back when it is read again is copied after all.
    filled.line.current = filled.sink;
    expect(instant.status().trouble?.code ?? "DAMAGED").toBe("DAMAGED");
  });

  test("refuses a file that is there, another disk's image, another point, and a second opening", async () => {
    const filled = await filledVault();
    const folder = temporaryFolder();
    const precious = join(folder, "precious");
    writeFileSync(precious, "precious");
    await expectCode(openInstant(filled, { image: precious }), "TARGET_EXISTS");
    expect(readFileSync(precious, "utf8")).toBe("precious");
    expect(existsSync(`${precious}.tidemark`)).toBe(false);
    expect(await namesIn(filled.sink, "disks/d/pins/")).toEqual([]);
    const image = join(folder, "d.img");
    writeFileSync(image, "");
    truncateSync(image, sizeBytes);
    const { instant } = await openInstant(filled, { image, point: "2" });
    await expectCode(openInstant(filled, { image, point: "2" }), "WRITER_ACTIVE");
    await expectCode(filled.vault.discardInstant({ disk: "d", image }), "WRITER_ACTIVE");
    await instant.close();
    await expectCode(openInstant(filled, { image, point: "3" }), "INVALID_ARGUMENT");
    await expectCode(openInstant(filled, { image, disk: "e" }), "INVALID_ARGUMENT");
    await expectCode(openInstant(filled, { image, readWaitMs: 0.5 }), "INVALID_ARGUMENT");
    const again = await openInstant(filled, { image, point: "latest" });
    expect(again.instant.status().sequence).toBe(2);
    await again.instant.close();
    rmSync(image);
    await expectCode(openInstant(filled, { image }), "DAMAGED");
  });

  test("that is discarded leaves neither files nor a pin, and can be discarded again", async () => {
    const filled = await filledVault();
    const image = join(temporaryFolder(), "d.img");
    const limit = new Bandwidth({ bytesPerSecond: 1024 });
    const { instant } = await openInstant(filled, { image, bandwidth: limit });
    await instant.close();
    expect(await namesIn(filled.sink, "disks/d/pins/")).toHaveLength(1);
    await filled.vault.discardInstant({ disk: "d", image });
    await filled.vault.discardInstant({ disk: "d", image });
    expect([existsSync(image), existsSync(`${image}.tidemark`)]).toEqual([false, false]);
    expect(await namesIn(filled.sink, "disks/d/pins/")).toEqual([]);
  });

  test("makes points under the disk's own name of what differs, also when it began as an older point and was closed between", async () => {
    const filled = await filledVault();
    const image = join(temporaryFolder(), "d.img");
    const model = Buffer.from(filled.contents[0] ?? Buffer.alloc(0));
    const first = await openInstant(filled, { image, point: "1" });
    Buffer.alloc(5000, 7).copy(model, 9000);
    await first.instant.device.write(9000, Buffer.alloc(5000, 7));
    await first.instant.close();
    const { instant } = await openInstant(filled, { image, point: "1" });
    expect(instant.status().dirtyBytes).toBe(2 * granuleBytes);
    const protection = await instant.protect({ policy: { crashConsistentFrequencyMs: 3_600_000 } });
    await expectCode(instant.protect(), "INVALID_ARGUMENT");
    const fourth = await protection.point();
    expect(fourth.consistency).toBe("crash");
    // The differences of points 1 and 3, and what was written: not the disk.
    expect(fourth.changedBytes).toBeLessThan(sizeBytes / 2);
    Buffer.alloc(100, 8).copy(model, 200_000);
    await instant.device.write(200_000, Buffer.alloc(100, 8));
    const fifth = await protection.point();
    expect(fifth.changedBytes).toBe(granuleBytes);
    await instant.close();
    for (const [point, at] of [
      [fourth, 0],
      [fifth, 8],
    ] as const) {
      const { device } = await mounted(filled, { point: point.point });
      const found = await readAll(device);
      expect(found.subarray(0, 200_000).equals(model.subarray(0, 200_000))).toBe(true);
      expect(found.subarray(200_100).equals(model.subarray(200_100))).toBe(true);
      expect(found[200_050] === 8).toBe(at === 8);
    }
    const again = await openInstant(filled, { image });
    expect(again.instant.status().dirtyBytes).toBe(0);
  });

  test("knows what may have been written when its tracking file is lost", async () => {
    const filled = await filledVault();
    const image = join(temporaryFolder(), "d.img");
    const slow = { image, bandwidth: new Bandwidth({ bytesPerSecond: 1024 }) };
    const first = await openInstant(filled, slow);
    await first.instant.device.write(granuleBytes, Buffer.alloc(granuleBytes, 7));
    await first.instant.close();
    rmSync(`${image}.tidemark/tracking`);
    const { instant } = await openInstant(filled, slow);
    const { dirtyBytes, hydratedBytes } = instant.status();
    expect(dirtyBytes).toBeGreaterThanOrEqual(granuleBytes);
    expect(dirtyBytes).toBeLessThanOrEqual(hydratedBytes);
    const protection = await instant.protect({ policy: { crashConsistentFrequencyMs: 3_600_000 } });
    const point = await protection.point();
    expect(point.changedBytes).toBeLessThan(sizeBytes / 2);
    const model = newest(filled).fill(7, granuleBytes, 2 * granuleBytes);
    await instant.close();
    const { device } = await mounted(filled, { point: point.point });
    expect((await readAll(device)).equals(model)).toBe(true);
  });
});
