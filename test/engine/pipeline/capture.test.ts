import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { TidemarkError } from "../../../engine/errors.ts";
import { granuleBytes } from "../../../engine/limits.ts";
import { digestNames } from "../../../engine/store/format/documents.ts";
import type { Extent, Volume } from "../../../engine/volume.ts";
import { Gate } from "../../../sink/faults.ts";
import { runsOf } from "../../depth.ts";
import { namesOf, randomBytes } from "../../engine-model.ts";
import { expectCode } from "../../sink/expectations.ts";
import type { Point } from "./capture-rig.ts";
import { CaptureRig } from "./capture-rig.ts";

/** A volume in memory whose holes are told apart at 512 bytes, which no granule bounds. */
class ByteVolume implements Volume {
  readonly description = "bytes";
  bytes: Buffer;
  onRead: (offset: number) => Promise<void> = () => Promise.resolve();

  constructor(bytes: Uint8Array) {
    this.bytes = Buffer.from(bytes);
  }

  sizeBytes(): Promise<number> {
    return Promise.resolve(this.bytes.length);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.onRead(offset);
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  async *allocated(sizeBytes: number): AsyncGenerator<Extent> {
    let offset = -1;
    for (let at = 0; at < sizeBytes; at += 512) {
      const filled = this.bytes.subarray(at, Math.min(at + 512, sizeBytes)).some((byte) => byte !== 0);
      if (filled && offset < 0) offset = at;
      if (filled || offset < 0) continue;
      yield await Promise.resolve({ offset, length: at - offset });
      offset = -1;
    }
    if (offset >= 0) yield { offset, length: sizeBytes - offset };
  }
}

/** The same bytes, of which the holes are not told. */
function withoutHoles(volume: ByteVolume): Volume {
  return {
    description: "bytes",
    sizeBytes: () => volume.sizeBytes(),
    read: async (offset, into) => await volume.read(offset, into),
  };
}

/** Granules that differ, and those of them that became zero. */
function compare(before: Buffer, after: Buffer): { readonly changed: number; readonly zeroed: number } {
  let changed = 0;
  let zeroed = 0;
  for (let at = 0; at < after.length; at += granuleBytes) {
    const now = padded(after, at);
    if (now.equals(padded(before, at))) continue;
    changed += 1;
    if (now.every((byte) => byte === 0)) zeroed += 1;
  }
  return { changed, zeroed };
}

function padded(bytes: Buffer, at: number): Buffer {
  const granule = Buffer.alloc(granuleBytes);
  granule.set(bytes.subarray(at, at + granuleBytes));
  return granule;
}

interface Change {
  readonly kind: "random" | "zero" | "text" | "copy";
  readonly at: number;
  readonly length: number;
  readonly seed: number;
}

/** What happens to a disk between two cycles. Places and lengths are thousandths of the disk. */
const changes: fc.Arbitrary<Change[]> = fc.array(
  fc.record({
    kind: fc.constantFrom("random" as const, "zero" as const, "text" as const, "copy" as const),
    at: fc.nat(999),
    length: fc.oneof(fc.nat(20), fc.nat(500)),
    seed: fc.nat(20),
  }),
  { maxLength: 5 },
);

function change(bytes: Buffer, { kind, at, length, seed }: Change): void {
  const from = Math.floor((bytes.length * at) / 1000);
  const end = Math.min(bytes.length, from + Math.max(1, Math.floor((bytes.length * length) / 1000)));
  if (kind === "zero") bytes.fill(0, from, end);
  else if (kind === "text") bytes.fill(`the tide of ${String(seed)} `, from, end);
  else if (kind === "random") bytes.set(randomBytes(end - from, seed), from);
  else bytes.copyWithin(from, 0, end - from);
}

const sizes = [0, 1, 511, 4096, 65_535, 65_536, 65_537, 300_000, 3 * 2 ** 20 + 777] as const;

const kinds = digestNames.flatMap((digest, index) => [
  { digest, blockBytes: 16 * 1024 },
  { digest, blockBytes: index === 0 ? 64 * 1024 : 2 ** 20 },
]);

describe.each(kinds)("a capture with $digest and blocks of $blockBytes bytes", ({ digest, blockBytes }) => {
  let rig: CaptureRig;
  beforeAll(async () => {
    rig = await CaptureRig.open(blockBytes, digest);
  });
  afterAll(async () => {
    await rig[Symbol.asyncDispose]();
  });

  test("gives points that hold what the disk held, cycle after cycle", async () => {
    const cycle = fc.record({
      edits: changes,
      knowing: fc.constantFrom("prints" as const, "map" as const),
      grow: fc.constantFrom(0, 0, 0, 1, 5000, 70_000),
      holes: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...sizes),
        fc.nat(9),
        fc.array(cycle, { minLength: 1, maxLength: 4 }),
        async (size, seed, cycles) => {
          await rig.empty();
          const volume = new ByteVolume(Buffer.alloc(size));
          change(volume.bytes, { kind: "random", at: 0, length: 700, seed });
          let parent: Point | undefined;
          let before: Buffer = Buffer.alloc(0);
          const kept: { readonly point: Point; readonly bytes: Buffer }[] = [];
          for (const { edits, knowing, grow, holes } of cycles) {
            if (parent !== undefined && grow > 0) volume.bytes = Buffer.concat([volume.bytes, randomBytes(grow, seed)]);
            for (const edit of edits) change(volume.bytes, edit);
            const { point, statistics, storedBytes } = await rig.cycle(holes ? volume : withoutHoles(volume), {
              parent,
              knowing,
            });
            const { changed, zeroed } = compare(before, volume.bytes);
            if (knowing === "prints" || parent === undefined) {
              expect(statistics).toMatchObject({
                changedBytes: changed * granuleBytes,
                zeroBytes: zeroed * granuleBytes,
              });
            } else {
              // By digest only whole chunks can be told to be unchanged.
              expect(statistics.changedBytes).toBeGreaterThanOrEqual(changed * granuleBytes);
            }
            expect(statistics.newBytes === 0).toBe(storedBytes === 0);
            expect(storedBytes).toBeLessThan(statistics.newBytes * 1.02 + 8192);
            kept.push({ point, bytes: Buffer.from(volume.bytes) });
            parent = point;
            before = Buffer.from(volume.bytes);
          }
          for (const { point, bytes } of kept) expect((await rig.read(point)).equals(bytes)).toBe(true);
          expect(rig.workerPool.slabs.leasedCount).toBe(0);
        },
      ),
      { numRuns: runsOf(10) },
    );
  });

  test("keeps to its pace: no batch is larger or begins earlier, and the point is the same", async () => {
    await rig.empty();
    const volume = new ByteVolume(randomBytes(20 * blockBytes + 5_000, 3));
    const asked: (readonly [number, number])[] = [];
    const { point } = await rig.cycle(withoutHoles(volume), {
      pace: {
        next: (begunBytes, underWay) => {
          asked.push([begunBytes, underWay]);
          // Every other time not now, and never two under way.
          return { waitMs: underWay > 0 || asked.length % 2 === 0 ? 1 : 0, batchBytes: 2 * blockBytes + 1 };
        },
      },
    });
    expect((await rig.read(point)).equals(volume.bytes)).toBe(true);
    const begun = [...new Set(asked.map(([begunBytes]) => begunBytes))];
    expect(begun).toEqual([...Array.from({ length: 11 }, (_, batch) => batch * 2 * blockBytes), volume.bytes.length]);
    expect(Math.max(...asked.map(([, underWay]) => underWay))).toBe(1);
  });

  test("ships nothing of a disk that has not changed, whatever is known of it", async () => {
    await rig.empty();
    const volume = new ByteVolume(randomBytes(1_000_001, 1));
    volume.bytes.fill(0, 300_000, 500_000);
    const first = await rig.cycle(volume);
    for (const knowing of ["prints", "map"] as const) {
      const again = await rig.cycle(volume, { parent: first.point, knowing });
      expect(again.statistics).toMatchObject({ changedBytes: 0, zeroBytes: 0, newBytes: 0, dedupedBytes: 0 });
      expect([again.delta, again.storedBytes]).toEqual([undefined, 0]);
    }
  });
});

describe("a capture", () => {
  const blockBytes = 64 * 1024;
  let rig: CaptureRig;
  beforeAll(async () => {
    rig = await CaptureRig.open(blockBytes, "blake3");
  });
  afterAll(async () => {
    await rig[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    await rig.empty();
  });

  async function replicated(bytes: Uint8Array): Promise<{ readonly volume: ByteVolume; readonly parent: Point }> {
    const volume = new ByteVolume(bytes);
    return { volume, parent: (await rig.cycle(volume)).point };
  }

  test.each([
    [1, 1],
    [8, 8],
    [9, 16],
    [16, 16],
  ])("of a block with %i of 16 granules changed ships %i", async (changed, shipped) => {
    const { volume, parent } = await replicated(randomBytes(5 * blockBytes, 1));
    volume.bytes.set(randomBytes(changed * granuleBytes, 2), 2 * blockBytes);
    const { statistics, point } = await rig.cycle(volume, { parent });
    expect(statistics).toMatchObject({ changedBytes: changed * granuleBytes, newBytes: shipped * granuleBytes });
    expect((await rig.read(point)).equals(volume.bytes)).toBe(true);
  });

  test("ships runs of changed granules as chunks of their own", async () => {
    const { volume, parent } = await replicated(randomBytes(blockBytes, 1));
    for (const granule of [1, 2, 5, 15]) volume.bytes.set(randomBytes(granuleBytes, granule), granule * granuleBytes);
    const { statistics, delta } = await rig.cycle(volume, { parent });
    expect([statistics.newBytes, delta?.entries]).toEqual([4 * granuleBytes, 3]);
  });

  test.each(["prints", "map"] as const)(
    "turns what became zero into ZERO, without a byte of data, knowing the %s",
    async (knowing) => {
      const { volume, parent } = await replicated(randomBytes(6 * blockBytes, 1));
      volume.bytes.fill(0, blockBytes, 3 * blockBytes);
      const { statistics, storedBytes, delta, point } = await rig.cycle(volume, { parent, knowing });
      expect(statistics).toMatchObject({
        changedBytes: 2 * blockBytes,
        zeroBytes: 2 * blockBytes,
        newBytes: 0,
        scannedBytes: 4 * blockBytes,
      });
      expect([storedBytes, delta?.entries]).toEqual([0, 1]);
      expect((await rig.read(point)).equals(volume.bytes)).toBe(true);
    },
  );

  test("stores what it holds already only once, in one disk and across disks", async () => {
    const block = randomBytes(blockBytes, 3);
    const volume = new ByteVolume(Buffer.concat(Array.from({ length: 40 }, () => block)));
    const first = await rig.cycle(volume);
    expect(first.statistics).toMatchObject({ newBytes: blockBytes, dedupedBytes: 39 * blockBytes });
    const other = await rig.cycle(volume, { disk: "other" });
    expect(other.statistics).toMatchObject({ newBytes: 0, dedupedBytes: 40 * blockBytes });
    expect(other.storedBytes).toBe(0);
    expect((await rig.read(other.point, "other")).equals(volume.bytes)).toBe(true);
    expect(await namesOf(rig.sink, "segments/other")).toEqual([]);
  });

  test("compresses what can be, and keeps what cannot as it is", async () => {
    const text = await rig.cycle(new ByteVolume(Buffer.alloc(20 * blockBytes, "the tide comes, and the tide goes; ")));
    expect(text.storedBytes).toBeLessThan(blockBytes);
    await rig.empty();
    const noise = await rig.cycle(new ByteVolume(randomBytes(20 * blockBytes, 1)));
    expect(noise.storedBytes).toBeGreaterThanOrEqual(20 * blockBytes);
    expect(noise.storedBytes).toBeLessThan(20 * blockBytes * 1.005);
  });

  test("compresses with the scan while hardly any chunk is known, and nothing of a disk that is", async () => {
    const compress = vi.spyOn(rig.workerPool, "compress");
    const scan = vi.spyOn(rig.workerPool, "scan");
    const compressingScans = (): number => scan.mock.calls.filter(([task]) => task.compresses).length;
    const volume = new ByteVolume(randomBytes(40 * blockBytes, 7));
    await rig.cycle(volume);
    // Ten slabs, of which those three that are scanned before the first one is packed tell nothing.
    expect([compress.mock.calls.length, compressingScans()]).toEqual([3, 7]);
    vi.clearAllMocks();
    expect((await rig.cycle(volume, { disk: "other" })).statistics.newBytes).toBe(0);
    expect([compress.mock.calls.length, compressingScans()]).toEqual([0, 0]);
    vi.restoreAllMocks();
  });

  test("makes the same frames and the same map of the same disk", async () => {
    const volume = new ByteVolume(randomBytes(40 * blockBytes + 99, 1));
    change(volume.bytes, { kind: "text", at: 300, length: 400, seed: 1 });
    const digests: unknown[] = [];
    for (let round = 0; round < 3; round += 1) {
      await rig.empty();
      const { storedBytes, statistics, delta } = await rig.cycle(volume);
      digests.push([storedBytes, statistics, delta?.entries]);
    }
    expect(digests[1]).toEqual(digests[0]);
    expect(digests[2]).toEqual(digests[0]);
  });

  test("that is aborted ends in INTERRUPTED, gives all slabs back and writes nothing more", async () => {
    for (const abortedRead of [0, 3, 17]) {
      await rig.empty();
      const aborter = new AbortController();
      const volume = new ByteVolume(randomBytes(120 * blockBytes, 1));
      let reads = 0;
      volume.onRead = async () => {
        reads += 1;
        if (reads === abortedRead + 1) aborter.abort();
        return Promise.resolve();
      };
      await expectCode(rig.cycle(volume, { signal: aborter.signal }), "INTERRUPTED");
      expect(rig.workerPool.slabs.leasedCount).toBe(0);
      const calls = rig.sink.calls.length;
      for (let turn = 0; turn < 20; turn += 1) await namesOf(rig.sink.inner);
      expect(rig.sink.calls).toHaveLength(calls);
    }
    const { point } = await rig.cycle(new ByteVolume(Buffer.from("after that, another")));
    expect((await rig.read(point)).toString()).toBe("after that, another");
  });

  test("of which a read fails ends in that error, and gives its slab back once every other read has ended", async () => {
    const unreadable = new TidemarkError("SOURCE_UNREADABLE", "a sector cannot be read");
    const bytes = randomBytes(4 * blockBytes, 1);
    // Every other block is a hole, so that the one slab that is needed is filled by several reads.
    for (let block = 1; block < 4; block += 2) bytes.fill(0, block * blockBytes, (block + 1) * blockBytes);
    const volume = new ByteVolume(bytes);
    const gate = new Gate();
    let reading = 0;
    volume.onRead = async (offset) => {
      reading += 1;
      try {
        if (offset === 0) throw unreadable;
        await gate.pass(undefined);
      } finally {
        reading -= 1;
      }
    };
    const ended = rig.cycle(volume).then(
      () => "it succeeded",
      (error: unknown) => error,
    );
    await gate.reached;
    for (let turn = 0; turn < 50; turn += 1) await namesOf(rig.sink.inner);
    // The other read still writes to the slab, so the slab is not free yet.
    expect([reading, rig.workerPool.slabs.leasedCount]).toEqual([1, 1]);
    gate.open();
    expect(await ended).toBe(unreadable);
    expect([reading, rig.workerPool.slabs.leasedCount]).toEqual([0, 0]);
    expect(await namesOf(rig.sink, "segments/")).toEqual([]);
  });

  test("asks the volume for what a thread could not read from its descriptor, and for nothing else", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "descriptor-"));
    try {
      const bytes = randomBytes(10 * blockBytes + 700, 1);
      for (const [held, asked] of [
        [bytes.length, 0],
        [6 * blockBytes, 2],
      ] as const) {
        await rig.empty();
        const inner = new ByteVolume(bytes);
        let reads = 0;
        inner.onRead = () => {
          reads += 1;
          return Promise.resolve();
        };
        await writeFile(path.join(folder, "disk"), bytes.subarray(0, held));
        const handle = await open(path.join(folder, "disk"), "r");
        try {
          const { point } = await rig.cycle({ ...withoutHoles(inner), descriptor: handle.fd });
          expect((await rig.read(point)).equals(bytes)).toBe(true);
          expect(reads).toBe(asked);
        } finally {
          await handle.close();
        }
      }
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test("refuses a volume whose extents are not in order, before anything is stored", async () => {
    const volume: Volume = {
      ...withoutHoles(new ByteVolume(randomBytes(8 * blockBytes, 1))),
      async *allocated() {
        yield await Promise.resolve({ offset: 0, length: 2 * blockBytes });
        yield { offset: blockBytes, length: blockBytes };
      },
    };
    await expect(rig.cycle(volume)).rejects.toThrow(/sorted and disjoint/);
    expect([rig.workerPool.slabs.leasedCount, await namesOf(rig.sink, "segments/")]).toEqual([0, []]);
  });

  test("ends with the store's error when a frame cannot be written, and gives all slabs back", async () => {
    const full = new TidemarkError("NO_SPACE", "the store is full");
    await rig.empty([{ on: "writePages", when: 2, fault: { kind: "refused", error: full } }]);
    await expect(rig.cycle(new ByteVolume(randomBytes(300 * blockBytes, 1)))).rejects.toBe(full);
    expect(rig.workerPool.slabs.leasedCount).toBe(0);
    rig.sink.assertAllFired();
  });
});
