/**
 * A disk with an overlay is written as clients write it, on a storage that logs every call. Every
 * prefix of that log is a place where the machine may die, and from what was not synced a power
 * failure leaves any sectors. What the overlay then gives back is held against what was written:
 * each sector holds what the last flush that was acknowledged covered, or something that was
 * written there since.
 *
 *     file of the overlay:  header · record, two pages · summary · the disk's first granules · … · its last granules
 *
 * An image is tested alike: its two files are the two parts of one storage, and a sync of one does
 * nothing for the other. It is also hydrated, and what its record does not call below, the image holds
 * by itself.
 *
 * The disk has so many granules that its record has a second page. Those in between are not touched
 * one by one, and not kept: the storage closes the gap.
 */

import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import type { BlockDevice, DeviceExtent } from "../../../../engine/device.ts";
import { pageBitmapBytes } from "../../../../engine/disk/tracking/tracking-format.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import { granuleState } from "../../../../engine/recovery/mount/granule-states.ts";
import { OverlaidDisk } from "../../../../engine/recovery/mount/overlaid-disk.ts";
import { OverlayFile } from "../../../../engine/recovery/mount/overlay-file.ts";
import type { OverlayIdentity } from "../../../../engine/recovery/mount/overlay-header.ts";
import { byDepth } from "../../../depth.ts";
import { numbersFrom } from "../../../engine-model.ts";
import { contentOf } from "../../../model-disk.ts";
import { MemoryDisk } from "../../disk/nbd/server-rig.ts";
import { CrashStorage, Medium, type StorageEvent, turns } from "../../disk/tracking/crash-storage.ts";

const sectorBytes = 512;
const pageGranules = pageBitmapBytes * 4;
/** Granules at the disk's front and at its end, around the border of the two pages. */
const frontGranules = 6;
const tailFrom = pageGranules - 4;
const sizeBytes = (pageGranules + 4) * granuleBytes + 100;
const gapBytes = (tailFrom - frontGranules) * granuleBytes;
const keptBytes = sizeBytes - gapBytes;
/** Where the granules lie in the file: behind header, record and summary. */
const dataAt = 4096 + (2 + 1) * 2 * 4096;
const identity: OverlayIdentity = { vault: "1".repeat(32), disk: "web", point: "2".repeat(32), sizeBytes };

/** Where a byte of the disk is kept; what lies in the gap is kept nowhere. */
function kept(offset: number): number {
  return offset <= frontGranules * granuleBytes ? offset : Math.max(frontGranules * granuleBytes, offset - gapBytes);
}

/** Which of the two is tested. */
type Kind = "overlay" | "image";

type Note =
  | { readonly kind: "change" }
  /** A flush was acknowledged; it covered, of each sector, this version at least. */
  | { readonly kind: "flushed"; readonly covered: Uint32Array }
  | { readonly kind: "opened"; readonly content: Buffer };

/**
 * What the kept sectors may hold: everything from the version that is durable to the one that was
 * written last.
 */
class Truth {
  readonly #versions: (readonly Buffer[])[];
  readonly #durable: Uint32Array;

  private constructor(versions: (readonly Buffer[])[], durable: Uint32Array) {
    this.#versions = versions;
    this.#durable = durable;
  }

  static of(content: Buffer): Truth {
    const sectors = Math.ceil(content.byteLength / sectorBytes);
    const versions = Array.from({ length: sectors }, (_, sector) => [sectorOf(content, sector)]);
    return new Truth(versions, new Uint32Array(sectors));
  }

  copy(): Truth {
    return new Truth([...this.#versions], Uint32Array.from(this.#durable));
  }

  /** Versions of each sector but one, which is the number of the last. */
  get last(): Uint32Array {
    return Uint32Array.from(this.#versions, (versions) => versions.length - 1);
  }

  written(content: Buffer, from: number, end: number): void {
    for (let sector = Math.floor(from / sectorBytes); sector * sectorBytes < end; sector += 1) {
      this.#versions[sector] = [...(this.#versions[sector] ?? []), sectorOf(content, sector)];
    }
  }

  flushed(covered: Uint32Array): void {
    for (const [sector, version] of covered.entries())
      this.#durable[sector] = Math.max(this.#durable[sector] ?? 0, version);
  }

  check(content: Buffer): void {
    for (const [sector, versions] of this.#versions.entries()) {
      const found = sectorOf(content, sector);
      const durable = this.#durable[sector] ?? 0;
      if (versions.slice(durable).some((version) => version.equals(found))) continue;
      const older = versions.slice(0, durable).some((version) => version.equals(found));
      throw new Error(
        `sector ${sector} holds ${older ? "what had been replaced, and flushed" : "what no client wrote there"}`,
      );
    }
  }
}

function sectorOf(content: Buffer, sector: number): Buffer {
  return Buffer.from(content.subarray(sector * sectorBytes, (sector + 1) * sectorBytes));
}

interface Step {
  readonly kind: "write" | "whole" | "zero" | "trim" | "everything" | "flush" | "wait" | "rest" | "hydrate";
  readonly place: number;
  readonly length: number;
}

const step: fc.Arbitrary<Step> = fc.record({
  kind: fc.constantFrom<Step["kind"][]>(
    "write",
    "write",
    "whole",
    "whole",
    "zero",
    "trim",
    "everything",
    "flush",
    "flush",
    "wait",
    "rest",
    "hydrate",
  ),
  place: fc.nat(keptBytes - 1),
  length: fc.integer({ min: 1, max: 4 * granuleBytes }),
});

const history = fc.record({
  seed: fc.nat(),
  rounds: fc.array(
    fc.record({
      steps: fc.array(step, { maxLength: 14 }),
      isClosed: fc.boolean(),
      isKilled: fc.boolean(),
      crashAt: fc.double({ min: 0, max: 1, noNaN: true }),
    }),
    { minLength: 1, maxLength: 3 },
  ),
});

const below = belowDisk();

function belowDisk(): MemoryDisk {
  const disk = new MemoryDisk(sizeBytes, { readOnly: true });
  const content = contentOf(keptBytes, 5);
  content.copy(disk.bytes, 0, 0, frontGranules * granuleBytes);
  content.copy(disk.bytes, tailFrom * granuleBytes, frontGranules * granuleBytes);
  return disk;
}

test.each(["overlay", "image"] as const)(
  "an %s holds what was flushed, and of the rest nothing that no client wrote, wherever the machine dies",
  async (kind) => {
    const seen = { recovered: 0, torn: 0, flushed: 0 };
    const empty = await emptyOverlay(kind);
    await fc.assert(
      fc.asyncProperty(history, async ({ seed, rounds }) => {
        const numbers = numbersFrom(seed);
        const random = (): number => numbers() / 2 ** 32;
        let place = { medium: new Medium(empty.bytes), truth: Truth.of(contentOf(keptBytes, 5)) };
        for (const { steps, isClosed, isKilled, crashAt } of rounds) {
          const storage = new CrashStorage<Note>(place.medium, random);
          const changes = await clients(
            await overlayOn(kind, storage, empty.fileBytes, random),
            storage,
            steps,
            isClosed,
            random,
          );
          place = await crashes(
            place,
            storage.log,
            changes,
            { at: crashAt, isKilled, random, fileBytes: empty.fileBytes, kind },
            seen,
          );
        }
      }),
      { numRuns: byDepth(8, 50) },
    );
    expect(Math.min(seen.recovered, seen.torn, seen.flushed)).toBeGreaterThan(byDepth(2, 50));
    expect(below.bytes.equals(belowDisk().bytes)).toBe(true);
    expect([...below.trims, ...below.zeroes]).toEqual([]);
  },
);

/** A new overlay, as far as it is kept, and how long its file is. */
async function emptyOverlay(kind: Kind): Promise<{ readonly bytes: Buffer; readonly fileBytes: number }> {
  const folder = mkdtempSync(join(tmpdir(), "overlay-crash-"));
  try {
    const path = join(folder, "overlay");
    await (await OverlayFile.open(path, identity)).close();
    const wholeBytes = Math.ceil(keptBytes / granuleBytes) * granuleBytes;
    if (kind === "image") return { bytes: Buffer.alloc(dataAt + keptBytes), fileBytes: dataAt + sizeBytes };
    return { bytes: readFileSync(path).subarray(0, dataAt + wholeBytes), fileBytes: statSync(path).size };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/**
 * A change in the order of the log: the whole content behind it, and the part of it that it
 * concerned.
 */
interface Changed {
  readonly content: Buffer;
  readonly from: number;
  readonly end: number;
}

/**
 * Does `steps`, many at a time. Returns the changes that were made, one for each note of a change.
 */
async function clients(
  overlay: OverlayFile,
  storage: CrashStorage<Note>,
  steps: readonly Step[],
  isClosed: boolean,
  random: () => number,
): Promise<readonly Changed[]> {
  const disk = new OverlaidDisk(below, overlay);
  const content = await contentOfDisk(disk);
  storage.note({ kind: "opened", content: Buffer.from(content) });
  const changes: Changed[] = [];
  const truth = Truth.of(content);
  /** Of each sector: the last version that is done. */
  const done = truth.last;
  const underWay: Promise<void>[] = [];

  const change = (from: number, end: number, bytes: Buffer | undefined, apply: () => Promise<void>): void => {
    if (bytes === undefined) content.fill(0, from, end);
    else bytes.copy(content, from);
    if (end > from) truth.written(content, from, end);
    const versions = truth.last;
    changes.push({ content: Buffer.from(content), from, end });
    storage.note({ kind: "change" });
    const finish = async (): Promise<void> => {
      await apply();
      for (let sector = Math.floor(from / sectorBytes); sector * sectorBytes < end; sector += 1) {
        done[sector] = Math.max(done[sector] ?? 0, versions[sector] ?? 0);
      }
    };
    underWay.push(finish());
  };
  const flush = async (): Promise<void> => {
    const covered = Uint32Array.from(done);
    await disk.flush();
    storage.note({ kind: "flushed", covered });
  };

  for (const [index, { kind, place, length }] of steps.entries()) {
    const isFront = place < frontGranules * granuleBytes;
    const whole = kind === "whole" ? granuleBytes : 1;
    const from = place - (place % whole);
    const end = Math.min(isFront ? frontGranules * granuleBytes : keptBytes, from + Math.ceil(length / whole) * whole);
    const offset = isFront ? from : from + gapBytes;
    switch (kind) {
      case "write":
      case "whole": {
        const bytes = contentOf(end - from, 10 + index);
        change(from, end, bytes, async () => {
          if (!disk.tryWrite(offset, bytes)) await disk.write(offset, bytes);
        });
        break;
      }
      case "zero":
        change(from, end, undefined, async () => await disk.zero(offset, end - from));
        break;
      case "trim": {
        const first = Math.min(keptBytes, Math.ceil(from / granuleBytes) * granuleBytes);
        const last = end === keptBytes ? end : Math.floor(end / granuleBytes) * granuleBytes;
        change(first, Math.max(first, last), undefined, async () => await disk.trim(offset, end - from));
        break;
      }
      case "everything":
        change(0, keptBytes, undefined, async () => await disk.trim(0, sizeBytes));
        break;
      case "hydrate": {
        // As every other step it ends before the gap, whose bytes the storage does not keep.
        const first = offset - (offset % granuleBytes);
        const stop = isFront ? frontGranules * granuleBytes : sizeBytes;
        const bytes = below.bytes.subarray(
          first,
          Math.min(stop, first + length - (length % granuleBytes) + granuleBytes),
        );
        underWay.push(disk.adopt(first, bytes).then(() => undefined));
        if (place % 5 === 0) underWay.push(disk.adoptZeros(frontGranules * granuleBytes, gapBytes));
        break;
      }
      case "flush":
        underWay.push(flush());
        break;
      case "wait":
        await turns(place % 30);
        break;
      case "rest":
        await Promise.all(underWay);
        break;
    }
    await turns(Math.floor(random() * 4));
  }
  if (isClosed) await disk.close();
  await Promise.all(underWay);
  if (isClosed) storage.note({ kind: "flushed", covered: truth.last });
  return changes;
}

interface Crash {
  /** Which part of the log the next round finds done. */
  readonly at: number;
  readonly isKilled: boolean;
  readonly random: () => number;
  readonly fileBytes: number;
  readonly kind: Kind;
}

/**
 * Lets the machine die behind every event of the log, and checks what is left. Returns what the
 * next round begins with.
 */
async function crashes(
  before: { readonly medium: Medium; readonly truth: Truth },
  log: readonly StorageEvent<Note>[],
  changes: readonly Changed[],
  { at: share, isKilled, random, fileBytes, kind }: Crash,
  seen: { recovered: number; torn: number; flushed: number },
): Promise<{ readonly medium: Medium; readonly truth: Truth }> {
  const medium = before.medium.copy();
  let { truth } = { truth: before.truth.copy() };
  const next = changes.values();
  const end = Math.floor(share * (log.length + 0.999));
  let after: { readonly medium: Medium; readonly truth: Truth } | undefined;
  for (let at = 0; at <= log.length; at += 1) {
    const event = log[at - 1];
    if (event?.kind === "note") {
      const { note } = event;
      if (note.kind === "opened") {
        truth.check(note.content);
        truth = Truth.of(note.content);
      } else if (note.kind === "flushed") {
        truth.flushed(note.covered);
        seen.flushed += 1;
      } else {
        const changed = next.next().value;
        if (changed === undefined) throw new Error("a change was noted that was not made");
        if (changed.end > changed.from) truth.written(changed.content, changed.from, changed.end);
      }
    } else if (event !== undefined) medium.apply(event);
    // A note changes what is true, and an event what is there.
    for (const likelihood of medium.sectorsInDoubt === 0 ? [1] : [0, 0.1, 0.5, 0.9, 1]) {
      const bytes = medium.afterPowerFailure(() => random() < likelihood);
      truth.check(await recovered(kind, bytes, fileBytes));
      seen.recovered += 1;
      if (likelihood > 0 && likelihood < 1) seen.torn += 1;
    }
    if (at === end) {
      const left = isKilled ? medium.copy() : new Medium(medium.afterPowerFailure(() => random() < 0.5));
      after = { medium: left, truth: truth.copy() };
    }
  }
  if (after === undefined) throw new Error("the place of the crash was not met");
  return after;
}

/** What the overlaid disk holds when the file of its overlay holds `bytes`. */
async function recovered(kind: Kind, bytes: Uint8Array, fileBytes: number): Promise<Buffer> {
  const still = (): number => 0;
  const storage = new CrashStorage<Note>(new Medium(bytes), still);
  const overlay = await overlayOn(kind, storage, fileBytes, still);
  const content = await contentOfDisk(new OverlaidDisk(below, overlay));
  if (kind === "image") {
    const raw = Buffer.alloc(keptBytes);
    await storage.read(dataAt, raw);
    for (let at = 0; at < keptBytes; at += granuleBytes) {
      const place = at < frontGranules * granuleBytes ? at : at + gapBytes;
      if (overlay.states.get(place / granuleBytes) === granuleState.below) continue;
      expect(raw.subarray(at, at + granuleBytes).equals(content.subarray(at, at + granuleBytes))).toBe(true);
    }
  }
  return content;
}

/** Opens an overlay, or the record and the image, that lie in a storage. */
async function overlayOn(
  kind: Kind,
  storage: CrashStorage<Note>,
  fileBytes: number,
  random: () => number,
): Promise<OverlayFile> {
  if (kind === "overlay") return await OverlayFile.over(new CrashDisk(storage, 0, fileBytes, random), identity);
  const record = new CrashDisk(storage, 0, dataAt, random);
  return await OverlayFile.ofImage(record, new CrashDisk(storage, dataAt, sizeBytes, random), sizeBytes);
}

/** The kept content of a disk. */
async function contentOfDisk(disk: OverlaidDisk): Promise<Buffer> {
  const content = Buffer.alloc(keptBytes);
  const frontBytes = frontGranules * granuleBytes;
  await disk.read(0, content.subarray(0, frontBytes));
  await disk.read(tailFrom * granuleBytes, content.subarray(frontBytes));
  return content;
}

/**
 * The overlay's file on a storage that may lose power. Trimmed space reads as zeros, or as what it
 * was while that is not synced.
 */
class CrashDisk implements BlockDevice {
  readonly description = "overlay";
  readonly readOnly = false;
  readonly sizeBytes: number;
  readonly #storage: CrashStorage<Note>;
  readonly #from: number;
  readonly #random: () => number;

  /** The part of the storage that begins at byte `from`. */
  constructor(storage: CrashStorage<Note>, from: number, fileBytes: number, random: () => number) {
    this.#storage = storage;
    this.#from = from;
    this.sizeBytes = fileBytes;
    this.#random = random;
  }

  tryRead(): boolean {
    return false;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    expect(await this.#storage.read(this.#placeOf(offset), into)).toBe(into.byteLength);
  }

  tryWrite(offset: number, bytes: Uint8Array): boolean {
    if (offset % granuleBytes !== 0 || bytes.byteLength % granuleBytes !== 0 || this.#random() < 0.5) return false;
    this.#storage.writeAtOnce(this.#placeOf(offset), bytes);
    return true;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#storage.write(this.#placeOf(offset), bytes);
  }

  async zero(offset: number, length: number): Promise<void> {
    if (this.#from === 0) throw new Error("an overlay never asks for zeros");
    await this.trim(offset, length);
  }

  async trim(offset: number, length: number): Promise<void> {
    await this.#storage.write(
      this.#placeOf(offset),
      new Uint8Array(this.#placeOf(offset + length) - this.#placeOf(offset)),
    );
  }

  async flush(): Promise<void> {
    await this.#storage.datasync([this.#placeOf(0), this.#placeOf(this.sizeBytes)]);
  }

  extents(offset: number, length: number): DeviceExtent[] {
    return [{ offset, length, kind: "data" }];
  }

  async close(): Promise<void> {
    await this.#storage.close();
  }

  /** Where a byte of the file is kept. */
  #placeOf(offset: number): number {
    const at = this.#from + offset;
    return at < dataAt ? at : dataAt + kept(at - dataAt);
  }
}
