import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rename, rm, stat, truncate, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { DirtyBitmap, regionBytes, regionGranules } from "../../../../engine/disk/tracking/dirty-bitmap.ts";
import { TrackingFile, type TrackingOptions } from "../../../../engine/disk/tracking/tracking-file.ts";
import type { TrackingIdentity } from "../../../../engine/disk/tracking/tracking-format.ts";
import { headerSlotBytes, pageOffset, pageSlotBytes } from "../../../../engine/disk/tracking/tracking-format.ts";
import type { Recovered } from "../../../../engine/disk/tracking/tracking-recovery.ts";
import { hasCode, TidemarkError } from "../../../../engine/errors.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import { fileIdentity } from "../../../file-identity.ts";
import { CrashStorage, Medium, turns } from "./crash-storage.ts";

const regions = 64;
let folder = "";
let path = "";
let imagePath = "";

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "tidemark-tracking-"));
  path = join(folder, "tracking");
  imagePath = join(folder, "disk.img");
  await writeFile(imagePath, "");
  await truncate(imagePath, regions * regionBytes);
});

afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
});

async function identity(changes: Partial<TrackingIdentity> = {}): Promise<TrackingIdentity> {
  return {
    vault: "0".repeat(32),
    disk: "disk",
    sizeBytes: regions * regionBytes,
    image: await fileIdentity(imagePath),
    ...changes,
  };
}

async function open(
  changes: Partial<TrackingIdentity> = {},
  options: TrackingOptions = {},
): Promise<{ file: TrackingFile; recovered: Recovered }> {
  return await TrackingFile.open(path, await identity(changes), options);
}

/** What is recovered now; the file is closed again as a crash would leave it. */
async function recover(changes: Partial<TrackingIdentity> = {}): Promise<Recovered> {
  const { file, recovered } = await open(changes);
  await file.close();
  return recovered;
}

/** A tracking file that knows point `first` and in which regions 3 and 5 are marked. */
async function marked(options: TrackingOptions = {}): Promise<TrackingFile> {
  const { file } = await open({}, options);
  await file.makeDurable(3 * regionBytes, 1);
  await file.makeDurable(5 * regionBytes, 1);
  await file.expectPoint("first");
  return file;
}

function regionsMarked(recovered: Recovered): number[] {
  if (recovered.kind === "unknown") throw new Error(`nothing was recovered: ${recovered.reason}`);
  return [...recovered.dirty.regions()];
}

function reasonOf(recovered: Recovered): string {
  return recovered.kind === "unknown" ? recovered.reason : `recovered ${recovered.kind}`;
}

describe("a tracking file after a crash", () => {
  it("marks whole regions since every point that it was told of", async () => {
    const file = await marked();
    await file.expectPoint("second");
    await file.close();
    const recovered = await recover();
    expect(recovered).toMatchObject({ kind: "unclean", bases: ["first", "second"] });
    expect(regionsMarked(recovered)).toEqual([3, 5]);
    expect(recovered.kind === "unclean" && recovered.dirty.count).toBe(2 * regionGranules);
  });

  it("knows nothing when it was told of no point", async () => {
    const { file, recovered } = await open();
    expect(reasonOf(recovered)).toMatch(/no tracking/);
    await file.makeDurable(0, 1);
    await file.close();
    expect(reasonOf(await recover())).toMatch(/names no recovery point/);
  });

  it("forgets bases before the first that is settled, and keeps those expected since", async () => {
    const file = await marked();
    for (const point of ["second", "third", "fourth"]) await file.expectPoint(point);
    file.settled(["second", "third"], () => true);
    await file.close();
    expect(await recover()).toMatchObject({ bases: ["second", "third", "fourth"] });
  });

  it("keeps the marks that are needed or hot and clears the others", async () => {
    const { file } = await open({}, { hotRegionsMax: 2 });
    for (const region of [1, 2, 3, 4, 5]) await file.makeDurable(region * regionBytes, 1);
    file.isDurable(3 * regionBytes, 1);
    await file.expectPoint("first");
    file.settled(["first"], (region) => region === 1);
    await file.close();
    expect(regionsMarked(await recover())).toEqual([1, 3, 5]);
  });

  it("counts what the disk has grown by as changed", async () => {
    const file = await marked();
    await file.close();
    const sizeBytes = (regions + 2) * regionBytes + 100;
    const recovered = await recover({ sizeBytes });
    expect(regionsMarked(recovered)).toEqual([3, 5, regions, regions + 1, regions + 2]);
    // It has been written down meanwhile that the disk is larger.
    expect(regionsMarked(await recover({ sizeBytes }))).toEqual([3, 5, regions, regions + 1, regions + 2]);
    expect(reasonOf(await recover({ sizeBytes: sizeBytes - 1 }))).toMatch(/smaller/);
  });

  it("starts afresh from the bases and regions that it is given", async () => {
    const { file } = await open();
    await file.rebase(["earlier", "base"], [7, 9]);
    await file.close();
    const recovered = await recover();
    expect(recovered).toMatchObject({ kind: "unclean", bases: ["earlier", "base"] });
    expect(regionsMarked(recovered)).toEqual([7, 9]);
  });

  it("keeps a bounded number of bases, and of those that were only expected the newest", async () => {
    const { file } = await open();
    await file.rebase(["base"], []);
    for (let index = 0; index < 200; index += 1) await file.expectPoint(`tried-${index}`);
    await file.close();
    const recovered = await recover();
    if (recovered.kind !== "unclean") throw new Error(recovered.kind);
    expect(recovered.bases).toHaveLength(128);
    expect(recovered.bases[0]).toBe("base");
    expect(recovered.bases.at(-1)).toBe("tried-199");
  });
});

describe("what a crash leaves of a tracking file", () => {
  it("names a base that it is given only with the marks that the base needs", async () => {
    const storage = new CrashStorage(new Medium(), () => 0.5);
    const { file } = await open({}, { storage: () => Promise.resolve(storage) });
    await file.rebase(["base"], [7, 9]);
    const medium = new Medium();
    let named = 0;
    for (const event of storage.log) {
      medium.apply(event);
      for (const survives of [() => true, () => false, alternately(), alternately(8)]) {
        const recovered = await recoveredFrom(medium.afterPowerFailure(survives));
        if (recovered.kind === "unknown") continue;
        expect(regionsMarked(recovered)).toEqual([7, 9]);
        named += 1;
      }
    }
    expect(named).toBeGreaterThan(1);
    await file.close();
  });

  it("is synced before it is believed: a mark that a killed process had not synced survives the power failure after", async () => {
    const { storage, file } = await onCrashStorage();
    const killed = new Medium();
    for (const event of storage.log) killed.apply(event);
    const logged = storage.log.length;
    const marking = file.makeDurable(9 * regionBytes, 1);
    while (storage.log.length === logged) await turns(1);
    for (const event of storage.log.slice(logged)) killed.apply(event);
    await marking;
    await file.close();
    // The process died between the write of the page and its sync; the next one reads the page
    // cache.
    const next = new CrashStorage(killed, () => 0);
    const { file: again } = await open({}, { storage: () => Promise.resolve(next) });
    expect(again.isDurable(9 * regionBytes, 1)).toBe(true);
    for (const event of next.log) killed.apply(event);
    expect(regionsMarked(await recoveredFrom(killed.afterPowerFailure(() => false)))).toEqual([3, 5, 9]);
    await again.close();
  });

  it("marks a region that the disk has grown into although a settling before had found it cold", async () => {
    const sizeBytes = regions * regionBytes - granuleBytes;
    const storage = new CrashStorage(new Medium(), () => 0.5);
    const { file } = await open({ sizeBytes }, { storage: () => Promise.resolve(storage), hotRegionsMax: 0 });
    await file.rebase(["base"], [regions - 1]);
    file.settled(["base"], () => false);
    await file.grow(sizeBytes + 100);
    await storage.quiet();
    await file.close();
    expect(
      regionsMarked(
        await recoveredFrom(
          remainsOf(storage, () => true),
          sizeBytes + 100,
        ),
      ),
    ).toEqual([regions - 1]);
  });
});

describe("a tracking file after a clean shutdown", () => {
  it("knows the exact granules", async () => {
    const file = await marked();
    const dirty = new DirtyBitmap(regions * regionBytes);
    dirty.mark(5 * regionBytes + granuleBytes, 1);
    dirty.mark(regions * regionBytes - 1, 1);
    await file.closeClean("first", dirty);
    const { file: again, recovered } = await open();
    expect(recovered).toMatchObject({ kind: "clean", bases: ["first"], expected: [] });
    expect(recovered.kind === "clean" && [...recovered.regions.regions()]).toEqual([3, 5, regions - 1]);
    expect(recovered.kind === "clean" && [...recovered.dirty.extents()]).toEqual([...dirty.extents()]);
    // Until something is written it stays true.
    await again.close();
    expect((await recover()).kind).toBe("clean");
  });

  it("counts what the disk has grown by as changed since the base and since the points before it", async () => {
    const signature = () => Promise.resolve({ sizeBytes: 0, signature: "at rest" });
    const file = await marked({ quiescenceSignature: signature });
    await file.expectPoint("second");
    await file.closeClean("second", new DirtyBitmap(regions * regionBytes));
    const sizeBytes = (regions + 1) * regionBytes;
    const { file: again, recovered } = await open({ sizeBytes }, { quiescenceSignature: signature });
    await again.close();
    if (recovered.kind !== "clean") throw new Error(recovered.kind);
    expect(recovered.bases).toEqual(["first", "second"]);
    expect([...recovered.dirty.extents()]).toEqual([{ offset: regions * regionBytes, length: regionBytes }]);
    expect([...recovered.regions.regions()]).toEqual([3, 5, regions]);
  });

  it("is unclean from the first write on, before that write goes to the disk", async () => {
    const file = await marked();
    await file.closeClean("first", new DirtyBitmap(regions * regionBytes));
    const { file: again } = await open();
    // Region 3 is marked on disk already, and still it must wait.
    expect(again.isDurable(3 * regionBytes, 1)).toBe(false);
    await again.makeDurable(3 * regionBytes, 1);
    expect(again.isDurable(3 * regionBytes, 1)).toBe(true);
    await again.close();
    expect(regionsMarked(await recover())).toEqual([3, 5]);
  });

  it("tells of points that were expected after the base", async () => {
    const file = await marked();
    await file.expectPoint("tried");
    await file.closeClean("first", new DirtyBitmap(regions * regionBytes));
    expect(await recover()).toMatchObject({ kind: "clean", bases: ["first"], expected: ["tried"] });
  });

  it("is stale when the image was changed since, however little", async () => {
    const file = await marked();
    await file.closeClean("first", new DirtyBitmap(regions * regionBytes));
    // The clock of the file system advances in steps; a write in the very step of the last one
    // would go unseen.
    await changeTimes(async () => {
      await writeFile(imagePath, "x", { flag: "r+" });
    });
    expect(reasonOf(await recover())).toMatch(/changed while it was not protected/);
  });

  it("falls back to whole regions when the exact bitmap is damaged", async () => {
    const file = await marked();
    const dirty = new DirtyBitmap(regions * regionBytes);
    dirty.mark(5 * regionBytes, 1);
    await file.closeClean("first", dirty);
    await patch((bytes) => bytes.set([0xff], pageOffset(1, 0) + 10));
    const recovered = await recover();
    expect(recovered).toMatchObject({ kind: "unclean", bases: ["first"] });
    expect(regionsMarked(recovered)).toEqual([3, 5]);
  });

  it("takes more records than are read at once", async () => {
    const sizeBytes = 5000 * regionBytes;
    const { file } = await open({ sizeBytes });
    const dirty = new DirtyBitmap(sizeBytes);
    for (let region = 0; region < 5000; region += 1)
      dirty.mark(region * regionBytes + (region % regionGranules) * granuleBytes, 1);
    await file.rebase(["base"], dirty.regions());
    await file.closeClean("base", dirty);
    const recovered = await recover({ sizeBytes });
    expect(recovered.kind === "clean" && [...recovered.dirty.extents()]).toEqual([...dirty.extents()]);
  });
});

describe("a tracking file is not believed", () => {
  it.each([
    ["of another vault", { vault: "1".repeat(32) }],
    ["of another disk", { disk: "other" }],
  ])("%s", async (fact, changes) => {
    await (await marked()).close();
    expect(reasonOf(await recover(changes))).toContain(fact);
  });

  it("when another image has taken the place of its own", async () => {
    await (await marked()).close();
    await writeFile(join(folder, "other.img"), "");
    await rename(join(folder, "other.img"), imagePath);
    expect(reasonOf(await recover())).toContain("of another image");
  });

  it("when a later version wrote it", async () => {
    await (await marked()).close();
    await patch((bytes) => {
      bytes.writeUInt32LE(2, 8);
    });
    expect(reasonOf(await recover())).toMatch(/format version 2/);
  });

  it.each([
    ["empty", () => Buffer.alloc(0)],
    ["cut short in its header", (bytes: Buffer) => bytes.subarray(0, headerSlotBytes + 100)],
    ["cut short in its pages", (bytes: Buffer) => bytes.subarray(0, pageOffset(0, 1))],
    ["all zeros", (bytes: Buffer) => Buffer.alloc(bytes.length)],
    ["something else", (bytes: Buffer) => Buffer.alloc(bytes.length, "tidemark")],
  ])("when it is %s", async (_what, make) => {
    await (await marked()).close();
    await writeFile(path, make(await readFile(path)));
    expect((await recover()).kind).toBe("unknown");
    // It has been made anew.
    expect(reasonOf(await recover())).toMatch(/names no recovery point/);
  });

  it("when any bit of a header or a page has rotted", async () => {
    await (await marked()).close();
    const sound = await readFile(path);
    expect(sound).toHaveLength(2 * headerSlotBytes + 2 * pageSlotBytes);
    for (let at = 5; at < sound.length; at += 257) {
      const bytes = Buffer.from(sound);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << (at % 8));
      await writeFile(path, bytes);
      expect((await recover()).kind, `with byte ${at} changed`).toBe("unknown");
    }
  });
});

describe("two processes with one tracking file", () => {
  it("exclude each other until the first has closed it", async () => {
    const file = await marked();
    const refused = await open().then(
      () => undefined,
      (error: unknown) => error,
    );
    expect(hasCode(refused, "WRITER_ACTIVE")).toBe(true);
    await file.close();
    expect((await recover()).kind).toBe("unclean");
  });

  it("exclude each other until the first is killed", async () => {
    await (await marked()).close();
    const koffi = JSON.stringify(createRequire(import.meta.url).resolve("koffi"));
    const script = `
      const fd = require("node:fs").openSync(${JSON.stringify(path)}, "r+");
      console.log(require(${koffi}).load(null).func("int flock(int fd, int operation)")(fd, 2 | 4));
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    try {
      await once(child.stdout, "data");
      await expect(open()).rejects.toMatchObject({ code: "WRITER_ACTIVE" });
    } finally {
      const ended = once(child, "close");
      child.kill("SIGKILL");
      await ended;
    }
    expect((await recover()).kind).toBe("unclean");
  });
});

describe("makeDurable", () => {
  it("shares one sync among the callers that came while another was under way", async () => {
    const storage = new CrashStorage(new Medium(), () => 0.9);
    const { file } = await open({}, { storage: () => Promise.resolve(storage) });
    const syncs = (): number => storage.log.filter(({ kind }) => kind === "synced").length;
    const before = syncs();
    const first = file.makeDurable(0, 1);
    await turns(3);
    const rest = Array.from({ length: 40 }, (_, region) => file.makeDurable(region * regionBytes, regionBytes));
    await Promise.all([first, ...rest]);
    expect(syncs() - before).toBe(2);
    expect(file.isDurable(0, 40 * regionBytes)).toBe(true);
    expect(file.isDurable(0, 41 * regionBytes)).toBe(false);
    await file.close();
  });

  it("writes nothing for a region that is marked already", async () => {
    const storage = new CrashStorage(new Medium(), () => 0);
    const { file } = await open({}, { storage: () => Promise.resolve(storage) });
    await file.makeDurable(0, 10);
    const before = storage.log.length;
    await file.makeDurable(regionBytes - 10, 10);
    await storage.quiet();
    expect(storage.log).toHaveLength(before);
    await file.close();
  });

  it("marks a region anew that is written to while its mark is being cleared, at whatever moment", async () => {
    for (let moment = 0; moment < 60; moment += 1) {
      const storage = new CrashStorage(new Medium(), () => 0.9);
      const { file } = await open({}, { storage: () => Promise.resolve(storage), hotRegionsMax: 0 });
      await file.makeDurable(0, 1);
      await file.expectPoint("first");
      file.settled(["first"], () => false);
      await turns(moment);
      while (!file.isDurable(0, 1)) await file.makeDurable(0, 1);
      // From here on the region may be written to, so that no power failure may leave it without
      // its mark.
      expect(regionsMarked(await reopened(storage, () => false)), `after ${moment} turns`).toEqual([0]);
      await storage.quiet();
      expect(regionsMarked(await reopened(storage, () => false)), `after ${moment} turns and a rest`).toEqual([0]);
      await file.close();
    }
  });
});

describe("a tracking file that cannot be written", () => {
  it.each(["write", "datasync"] as const)(
    "lets the disk go on, makes itself void and says so, when a %s fails",
    async (call) => {
      const { storage, file } = await onCrashStorage();
      let failures = 1;
      storage.fail = (asked) => (asked === call && failures-- > 0 ? "ENOSPC" : undefined);
      await file.makeDurable(9 * regionBytes, 1);
      expect(file.isDurable(0, regions * regionBytes)).toBe(true);
      expect(file.lost).toBeInstanceOf(TidemarkError);
      expect(file.lost).toMatchObject({ code: "NO_SPACE", detail: { void: true } });
      // Whatever it is asked from now on goes through.
      await file.makeDurable(0, 1);
      await file.expectPoint("second");
      file.settled(["second"], () => false);
      await file.closeClean("second", new DirtyBitmap(regions * regionBytes));
      expect((await reopened(storage)).kind).toBe("unknown");
    },
  );

  it("is cut off or removed when it cannot even be made void", async () => {
    for (const working of ["truncate", "remove"] as const) {
      const { storage, file } = await onCrashStorage();
      let isBroken = true;
      storage.fail = (call) => {
        if (call === working) isBroken = false;
        return isBroken && call !== "read" ? "EIO" : undefined;
      };
      await file.makeDurable(9 * regionBytes, 1);
      expect(file.lost).toMatchObject({ code: "DEVICE_FAILED", detail: { void: true } });
      expect(storage.removed).toBe(working === "remove");
      if (working === "truncate") expect((await reopened(storage)).kind).toBe("unknown");
      await file.close();
    }
  });

  it("knows no point that is committed after it was lost, when nothing at all can be done to it", async () => {
    const { storage, file } = await onCrashStorage();
    storage.fail = (call) => (call === "read" ? undefined : "EROFS");
    await file.makeDurable(9 * regionBytes, 1);
    expect(file.lost).toMatchObject({ code: "ACCESS_REFUSED", detail: { void: false } });
    await file.expectPoint("second");
    await file.close();
    const recovered = await reopened(storage);
    expect(recovered.kind === "unknown" || !recovered.bases.includes("second")).toBe(true);
  });

  it.each([
    ["the next point", async (file: TrackingFile) => await file.expectPoint("second")],
    ["the close", async () => undefined],
    [
      "a close in good order",
      async (file: TrackingFile) => {
        await file.closeClean("first", new DirtyBitmap(regions * regionBytes));
      },
    ],
  ])("is made void with %s, when that becomes possible", async (_what, act) => {
    const { storage, file } = await onCrashStorage();
    storage.fail = (call) => (call === "read" ? undefined : "EIO");
    await file.makeDurable(9 * regionBytes, 1);
    storage.fail = () => undefined;
    await act(file);
    await file.close();
    expect((await reopened(storage)).kind).toBe("unknown");
  });

  it("tracks again after a rebase that succeeds", async () => {
    const { storage, file } = await onCrashStorage();
    storage.fail = (call) => (call === "write" ? "ENOSPC" : undefined);
    await file.makeDurable(9 * regionBytes, 1);
    await file.rebase(["second"], [9]);
    expect(file.lost).toBeDefined();
    storage.fail = () => undefined;
    await file.rebase(["second"], [9]);
    expect(file.lost).toBeUndefined();
    expect(file.isDurable(0, 1)).toBe(false);
    expect(file.isDurable(9 * regionBytes, 1)).toBe(true);
    await file.makeDurable(0, 1);
    await file.close();
    const recovered = await reopened(storage);
    expect(recovered).toMatchObject({ kind: "unclean", bases: ["second"] });
    expect(regionsMarked(recovered)).toEqual([0, 9]);
  });

  it("opens on a full disk, and is lost from the start", async () => {
    const storage = new CrashStorage(new Medium(), () => 0);
    storage.fail = (call) => (call === "write" ? "ENOSPC" : undefined);
    const { file, recovered } = await open({}, { storage: () => Promise.resolve(storage) });
    expect(recovered.kind).toBe("unknown");
    expect(file.lost).toMatchObject({ code: "NO_SPACE" });
    await file.makeDurable(0, 1);
    await file.close();
  });

  it("keeps its regions when only the exact bitmap cannot be saved", async () => {
    const { storage, file } = await onCrashStorage();
    storage.fail = (call) => (call === "truncate" ? "ENOSPC" : undefined);
    await expect(file.closeClean("first", new DirtyBitmap(regions * regionBytes))).rejects.toMatchObject({
      code: "NO_SPACE",
    });
    await file.close();
    const recovered = await reopened(storage);
    expect(recovered).toMatchObject({ kind: "unclean", bases: ["first"] });
    expect(regionsMarked(recovered)).toEqual([3, 5]);
  });

  it("is unknown when it cannot be read", async () => {
    const { storage, file } = await onCrashStorage();
    await file.close();
    const again = new CrashStorage(new Medium(remainsOf(storage, () => true)), () => 0);
    again.fail = (call) => (call === "read" ? "EIO" : undefined);
    const { file: opened, recovered } = await open({}, { storage: () => Promise.resolve(again) });
    expect(reasonOf(recovered)).toMatch(/cannot be read \(EIO\)/);
    await opened.close();
  });
});

async function onCrashStorage(): Promise<{ storage: CrashStorage; file: TrackingFile }> {
  const storage = new CrashStorage(new Medium(), () => 0.5);
  const file = await marked({ storage: () => Promise.resolve(storage) });
  return { storage, file };
}

/**
 * What is recovered from a storage when of the changes in doubt those survive that `survives` lets.
 */
async function reopened(storage: CrashStorage, survives: () => boolean = () => true): Promise<Recovered> {
  return await recoveredFrom(remainsOf(storage, survives));
}

async function recoveredFrom(bytes: Uint8Array, sizeBytes: number = regions * regionBytes): Promise<Recovered> {
  const storage = new CrashStorage(new Medium(bytes), () => 0);
  const { file, recovered } = await open({ sizeBytes }, { storage: () => Promise.resolve(storage) });
  await file.close();
  return recovered;
}

/** Lets runs of `length` sectors survive and as many not, in turn. */
function alternately(length = 1): () => boolean {
  let sector = 0;
  return () => Math.floor(sector++ / length) % 2 === 0;
}

function remainsOf(storage: CrashStorage, survives: () => boolean): Uint8Array {
  const medium = new Medium();
  for (const event of storage.log) medium.apply(event);
  return medium.afterPowerFailure(survives);
}

async function patch(change: (bytes: Buffer) => void): Promise<void> {
  const bytes = await readFile(path);
  change(bytes);
  await writeFile(path, bytes);
}

/**
 * Repeats a change until the file system's clock has moved on, which it does within a few
 * milliseconds.
 */
async function changeTimes(change: () => Promise<void>): Promise<void> {
  const before = await fileTimes();
  do await change();
  while ((await fileTimes()) === before);
}

async function fileTimes(): Promise<string> {
  const { mtimeNs, ctimeNs } = await stat(imagePath, { bigint: true });
  return `${mtimeNs} ${ctimeNs}`;
}
