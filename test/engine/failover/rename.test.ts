/** A renamed disk has its points, times, labels and pins under the new name, wherever the rename was interrupted. */
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { TidemarkError } from "../../../engine/errors.ts";
import { liveSessions } from "../../../engine/store/points/process-identity.ts";
import type { Vault } from "../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { callsOf } from "../../depth.ts";
import {
  closeModelVaults,
  committedPoints,
  openModelVault,
  pointBytes,
  redirected,
  sampleDisk,
  scribble,
} from "../../model-disk.ts";

const memory = new MemoryStore();
const line = { current: new MemorySink({ store: memory }) as MemorySink | FaultySink };
const opened = openModelVault(redirected(line));
let vault: Vault;
let renamed: MemorySnapshot | undefined;
/** What `web` has: its points as users see them, without what is new, and their bytes. */
let expected: readonly unknown[];

async function shown(disk: string): Promise<readonly unknown[]> {
  const records = await committedPoints(line.current, disk);
  return await Promise.all(
    (await vault.points(disk)).map(async ({ time, label, pinned, consistency }, index) => {
      const record = records[index];
      const bytes = record && (await pointBytes(line.current, disk, record));
      return { time, label, pinned, consistency, bytes: bytes?.toString("base64") };
    }),
  );
}

beforeEach(async () => {
  vault = await opened;
  line.current = new MemorySink({ store: memory });
  liveSessions().clear();
  if (renamed === undefined) {
    const volume = sampleDisk(200_000, 1);
    for (let at = 0; at < 3; at += 1) {
      scribble(volume, at + 1);
      await vault.replicate({ disk: "web", volume, label: at === 1 ? "before the upgrade" : undefined });
    }
    await vault.pin({ disk: "web", point: "1", name: "audit" });
    await vault.replicate({ disk: "db", volume: sampleDisk(8192, 2) });
    renamed = memory.snapshot();
    expected = await shown("web");
  }
  memory.restore(renamed);
});

afterAll(async () => {
  await closeModelVaults();
});

/** Calls of a sweep, and each of the last ones: there the former disk goes. */
function lastCallsToo(count: number): number[] {
  return [...new Set([...callsOf(1, count, 6), count - 4, count - 3, count - 2, count - 1])].toSorted((a, b) => a - b);
}

async function expectRenamed(): Promise<void> {
  expect(await shown("shop")).toEqual(expected);
  expect((await vault.disks()).map(({ disk }) => disk)).toEqual(["db", "shop"]);
  expect((await vault.verify()).damaged).toEqual([]);
}

describe("a rename", () => {
  test("keeps points, times, labels and pins, and stores no content again", async () => {
    const segments = async (): Promise<number> => (await vault.stats()).uniqueBytes;
    const before = await segments();
    expect(await vault.renameDisk({ disk: "web", to: "shop" })).toMatchObject({ disk: "web", to: "shop", points: 3 });
    await expectRenamed();
    expect(await segments()).toBe(before);
    await vault.collect();
    expect(await shown("shop")).toEqual(expected);
    await vault.replicate({ disk: "web", volume: sampleDisk(4096, 9) });
    await vault.replicate({ disk: "shop", volume: sampleDisk(200_000, 5) });
  });

  test("is refused for a name that another disk has, also when both were cut at the same time", async () => {
    await expect(vault.renameDisk({ disk: "web", to: "db" })).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    await expect(vault.renameDisk({ disk: "web", to: "web" })).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
    await expect(vault.renameDisk({ disk: "nope", to: "shop" })).rejects.toMatchObject({ code: "DISK_NOT_FOUND" });
    expect(await shown("web")).toEqual(expected);
    await vault.replicate({ disk: "web", volume: sampleDisk(200_000, 3) });
  });

  test("waits for no writer: it is refused while one has the disk", async () => {
    const volume = sampleDisk(200_000, 4);
    let refused: Promise<unknown> | undefined;
    volume.endScan = async () => {
      refused = expect(vault.renameDisk({ disk: "web", to: "shop" })).rejects.toMatchObject({ code: "WRITER_ACTIVE" });
      await refused;
      return "crash";
    };
    await vault.replicate({ disk: "web", volume });
    expect(refused).toBeDefined();
  }, 30_000);

  test("that dies at any call goes on when it is repeated; no writer gets the disk meanwhile", async () => {
    const counted = new FaultySink(new MemorySink({ store: memory }), []);
    line.current = counted;
    await vault.renameDisk({ disk: "web", to: "shop" });
    let died = 0;
    for (const call of lastCallsToo(counted.calls.length)) {
      if (renamed !== undefined) memory.restore(renamed);
      liveSessions().clear();
      line.current = new FaultySink(new MemorySink({ store: memory }), [
        { on: "any", when: call, fault: { kind: "crash", effect: "after" } },
      ]);
      const [outcome] = await Promise.allSettled([vault.renameDisk({ disk: "web", to: "shop" })]);
      if (outcome.status === "rejected") expect(outcome.reason).toBeInstanceOf(CrashError);
      died += outcome.status === "rejected" ? 1 : 0;
      line.current = new MemorySink({ store: memory });
      liveSessions().clear();
      const listed = (await vault.disks()).map(({ disk }) => disk);
      if (listed.includes("shop") && listed.includes("web")) {
        const writing = vault.replicate({ disk: "web", volume: sampleDisk(200_000, 7) });
        await expect(writing).rejects.toMatchObject({ code: "WRITER_ACTIVE" });
      }
      await vault.renameDisk({ disk: "web", to: "shop" }).catch((error: unknown) => {
        expect(error).toMatchObject({ code: "DISK_NOT_FOUND" });
        expect(call).toBe(counted.calls.length); // it died after the last call of the rename
      });
      await expectRenamed();
      await vault.replicate({ disk: "web", volume: sampleDisk(4096, 9) });
    }
    expect(died).toBeGreaterThan(4);
  }, 60_000);

  test("that was given up keeps the former name", async () => {
    line.current = new FaultySink(new MemorySink({ store: memory }), [
      {
        on: "putObject",
        prefix: "disks/shop/points/",
        when: 2,
        fault: { kind: "refused", error: new TidemarkError("ACCESS_REFUSED", "the store takes nothing") },
      },
    ]);
    await expect(vault.renameDisk({ disk: "web", to: "shop" })).rejects.toMatchObject({ code: "ACCESS_REFUSED" });
    line.current = new MemorySink({ store: memory });
    await vault.failovers.enable({ disk: "web" });
    expect(await shown("web")).toEqual(expected);
    await vault.removeDisk({ disk: "shop" });
    await vault.replicate({ disk: "web", volume: sampleDisk(200_000, 8) });
  });
});
