/**
 * The way back of a disk that has moved: what the old image holds, what is fetched for it, and what
 * a cancel leaves.
 */
import { constants, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { PositionalFile } from "../../../engine/disk/source/positional-file.ts";
import type { SourceSite } from "../../../engine/failover/source.ts";
import { lockTarget } from "../../../engine/recovery/restore/target.ts";
import { fixedVhdFooter, openImage } from "../../../engine/recovery/restore/vhd.ts";
import type { Vault } from "../../../engine/vault.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { closeModelVaults, openModelVault, sampleDisk } from "../../model-disk.ts";
import { expectCode } from "../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";

const diskBytes = 600_000;

let folder: string;
let vault: Vault;
let empty: MemorySnapshot;
const memory = new MemoryStore();

beforeAll(async () => {
  vault = await openModelVault(new MemorySink({ store: memory }));
  empty = memory.snapshot();
});

beforeEach(() => {
  memory.restore(empty);
  folder = createFolder("failback");
});

afterEach(async () => {
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
});

const path = (name: string): string => join(folder, name);

function write(name: string, fill: number, from: number, end: number): void {
  const bytes = readFileSync(path(name));
  bytes.fill(fill, from, end);
  writeFileSync(path(name), bytes);
}

async function replicate(name: string): Promise<void> {
  const volume = await openImage(path(name));
  await vault.replicate({ disk: "web", volume });
  await volume.close();
}

/** A disk that has moved from old.img to new.img, and was written there. Gives the run. */
async function moved(): Promise<string> {
  writeFileSync(path("old.img"), sampleDisk(diskBytes, 1).bytes);
  await replicate("old.img");
  const source = { kind: "image", path: path("old.img") } as const;
  const move = { kind: "planned", disks: ["web"], to: `file:${path("new.img")}`, source } as const;
  const { run } = await vault.failovers.start(move);
  await vault.failovers.commit({ run });
  write("new.img", 0xaa, 40_000, 60_000);
  await vault.failovers.reprotect({ run });
  write("new.img", 0xbb, 300_000, 310_000);
  await replicate("new.img");
  // Written since the newest point.
  write("new.img", 0xcc, 500_000, 504_000);
  return run;
}

const sameAsNew = (name: string): boolean => readFileSync(path(name)).equals(readFileSync(path("new.img")));

describe("a failback", () => {
  test("brings an untouched image up by the differences alone, and the disk is protected there again", async () => {
    const run = await moved();
    expect((await vault.failovers.show(run)).allowedOperations).toEqual(["Failback"]);
    const back = await vault.failovers.failback({ run, to: [path("old.img")] });
    expect(back).toMatchObject({
      kind: "failback",
      state: "PlannedFailoverCompleted",
      direction: "RecoveryToPrimary",
      activeLocation: "Recovery",
      disks: [{ disk: "web", complete: true, target: `image:${path("old.img")}` }],
    });
    expect(back.jobs[0]?.tasks.map(({ name }) => name)).toEqual([
      "ResynchronizationInitiated",
      "PlannedFailoverInitiated",
      "PlannedFailoverCompleting",
    ]);
    expect(sameAsNew("old.img")).toBe(true);
    // The former source is what the disk goes back to: it may not be deleted meanwhile, nor afterwards.
    const gone = { successor: back.run, allowedOperations: [], mayBeDeleted: [] };
    expect(await vault.failovers.show(run)).toMatchObject(gone);
    // What the points differ in, and a granule at each end.
    expect(back.bytesWritten).toBeLessThan(65_000);
    expect(back.bytesRead).toBeLessThan(60_000);
    await vault.failovers.commit({ run: back.run });
    expect(readdirSync(folder).sort()).toEqual(["new.img", "old.img"]);
    const over = await vault.failovers.reprotect({ run: back.run });
    expect(over).toMatchObject({ state: "Protected", activeLocation: "Primary", successor: null });
    expect(over.mayBeDeleted).toEqual([`the former source of "web": ${path("new.img")}`]);
    expect(await vault.failovers.show(run)).toMatchObject(gone);
    await replicate("old.img");
    await expectCode(replicate("new.img"), "WRITER_ACTIVE");
    await expectCode(vault.failovers.failback({ run: back.run, to: [path("new.img")] }), "INVALID_ARGUMENT");
    // The next failover goes the first way again.
    const source = { kind: "image", path: path("old.img") } as const;
    const again = { kind: "planned", disks: ["web"], to: `file:${path("third.img")}`, source } as const;
    expect(await vault.failovers.start(again)).toMatchObject({ direction: "PrimaryToRecovery" });
  });

  test("compares an image that was written since, block by block", async () => {
    const run = await moved();
    write("old.img", 0xee, 200_000, 220_000);
    const back = await vault.failovers.failback({ run, to: [path("old.img")] });
    expect(sameAsNew("old.img")).toBe(true);
    expect(back.bytesRead).toBeGreaterThan(150_000);
    expect(back.bytesWritten).toBeLessThan(100_000);
  });

  test("that is cancelled before the apply leaves the image untouched, and the disk where it is", async () => {
    const run = await moved();
    const before = readFileSync(path("old.img"));
    const gone = new MemorySink();
    const openAgent = (): SourceSite => ({
      point: async () => await Promise.resolve(),
      // The way back is staged by now; the disk cannot be stopped.
      stop: async () => {
        expect(readdirSync(folder)).toContain("old.img.tidemark-staged");
        await gone.getObject("absent", 1);
        return [];
      },
      start: async () => await Promise.resolve(),
    });
    const source = { kind: "agent", path: "/run/agent.sock" } as const;
    const failing = vault.failovers.failback({ run, to: [path("old.img")], source, openAgent });
    await expectCode(failing, "VAULT_NOT_FOUND");
    const [found] = await vault.failovers.list();
    expect(found).toMatchObject({ state: "PlannedFailoverFailed", allowedOperations: ["CancelFailover", "Resume"] });
    expect(found?.leftovers).toHaveLength(3);
    await expectCode(vault.failovers.failback({ run, to: [path("old.img")] }), "WRITER_ACTIVE");
    const over = await vault.failovers.cancel({ run: found?.run ?? "", openAgent });
    expect(over).toMatchObject({ state: "Protected", activeLocation: "Recovery", leftovers: [] });
    expect(readFileSync(path("old.img")).equals(before)).toBe(true);
    expect(readdirSync(folder).sort()).toEqual(["new.img", "old.img"]);
    await replicate("new.img");
  });

  test("that is cancelled after the apply leaves a whole image, and another one is compared", async () => {
    const run = await moved();
    const back = await vault.failovers.failback({ run, to: [path("old.img")] });
    await vault.failovers.cancel({ run: back.run });
    expect(sameAsNew("old.img")).toBe(true);
    write("new.img", 0xdd, 100_000, 101_000);
    await replicate("new.img");
    await vault.failovers.failback({ run, to: [path("old.img")] });
    expect(sameAsNew("old.img")).toBe(true);
  });

  test("that cannot write the old image is cancelled, which leaves the image untouched", async () => {
    const run = await moved();
    const before = readFileSync(path("old.img"));
    const busy = await PositionalFile.open(path("old.img"), constants.O_RDWR);
    lockTarget(busy, path("old.img"));
    await expectCode(vault.failovers.failback({ run, to: [path("old.img")] }), "TARGET_FAILED");
    const [found] = await vault.failovers.list();
    expect(found?.state).toBe("PlannedFailoverCompletionFailed");
    const over = await vault.failovers.cancel({ run: found?.run ?? "" });
    expect(over).toMatchObject({ state: "Protected", activeLocation: "Recovery", leftovers: [] });
    await busy.close();
    expect(readFileSync(path("old.img")).equals(before)).toBe(true);
    expect(readdirSync(folder).sort()).toEqual(["new.img", "old.img"]);
    await replicate("new.img");
  });

  test("brings an old image up that is a fixed VHD, and it stays one", async () => {
    const vhdBytes = 602_112; // not padded to a MiB, as other programs make them
    const footer = fixedVhdFooter({ diskBytes: vhdBytes, uuid: new Uint8Array(16).fill(7), createdMs: 0 });
    writeFileSync(path("old.vhd"), Buffer.concat([sampleDisk(vhdBytes, 1).bytes, footer]));
    await replicate("old.vhd");
    const source = { kind: "image", path: path("old.vhd") } as const;
    const move = { kind: "planned", disks: ["web"], to: `file:${path("new.img")}`, source } as const;
    const { run } = await vault.failovers.start(move);
    await vault.failovers.commit({ run });
    await vault.failovers.reprotect({ run });
    write("new.img", 0xaa, 40_000, 60_000);
    const back = await vault.failovers.failback({ run, to: [path("old.vhd")] });
    expect(back).toMatchObject({ state: "PlannedFailoverCompleted", disks: [{ complete: true }] });
    expect(back.bytesWritten).toBeLessThan(65_000);
    expect(readFileSync(path("old.vhd")).equals(Buffer.concat([readFileSync(path("new.img")), footer]))).toBe(true);
    await vault.failovers.commit({ run: back.run });
    expect(await vault.failovers.reprotect({ run: back.run })).toMatchObject({ activeLocation: "Primary" });
  });

  test("refuses what is no image of the disk's, and a run whose disks are elsewhere", async () => {
    const run = await moved();
    await expectCode(vault.failovers.failback({ run, to: [path("none.img")] }), "INVALID_ARGUMENT");
    await expectCode(vault.failovers.failback({ run, to: [folder] }), "INVALID_ARGUMENT");
    await expectCode(vault.failovers.failback({ run, to: [] }), "INVALID_ARGUMENT");
    expect(existsSync(path("none.img"))).toBe(false);
    const other = await vault.failovers.start({ kind: "test", disks: ["web"], to: `file:${path("t.img")}` });
    await expectCode(vault.failovers.failback({ run: other.run, to: [path("old.img")] }), "INVALID_ARGUMENT");
  });

  test("changes its point by differences, also backwards", async () => {
    const run = await moved();
    const back = await vault.failovers.failback({ run, to: [path("old.img")] });
    const before = await vault.failovers.changePoint({ run: back.run, point: "1" });
    expect(readFileSync(path("old.img")).equals(sampleDisk(diskBytes, 1).bytes)).toBe(true);
    expect(before.bytesRead).toBeLessThan(60_000);
  });
});
