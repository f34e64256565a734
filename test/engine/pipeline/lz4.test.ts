/** LZ4 chunks: our kernel against lz4-wasm and the system's `lz4`, and against what is no chunk. */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ReferenceLz4 } from "../../../bench/lz4-comparison.ts";
import { Lz4 } from "../../../engine/pipeline/lz4.ts";
import { lz4TableBytes, openWasmKernels } from "../../../engine/pipeline/wasm-kernels.ts";
import { byDepth, runsOf } from "../../depth.ts";
import { numbersFrom, randomBytes } from "../../engine-model.ts";

describe("LZ4", () => {
  const lz4 = new Lz4();
  /** Bytes of which some can be compressed well, some a little, some not at all. */
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 300 }),
    fc.tuple(fc.nat(70_000), fc.nat(255), fc.nat()).map(([length, repeat, seed]) => {
      const data = randomBytes(length, seed);
      for (let at = repeat; at < length; at += 1) if (at % 256 < repeat) data[at] = data[at - repeat] ?? 0;
      return data;
    }),
    fc.nat(1_048_576).map((length) => new Uint8Array(length).fill(7)),
  );

  test("gives any bytes back that it made smaller, and says so when it did not", () => {
    fc.assert(
      fc.property(bytes, fc.nat(100), (plain, at) => {
        const into = new Uint8Array(at + plain.length + 50).fill(0xee);
        const blockBytes = lz4.compress(plain, into, at);
        expect(blockBytes === 0 || blockBytes < plain.length).toBe(true);
        // Nothing around its place is touched.
        expect(into.subarray(0, at).every((byte) => byte === 0xee)).toBe(true);
        expect(into.subarray(at + blockBytes).every((byte) => byte === 0xee)).toBe(true);
        if (blockBytes === 0) return;
        const back = new Uint8Array(plain.length + 20).fill(0xdd);
        lz4.decompress(into.subarray(at, at + blockBytes), plain.length, back, 10);
        expect(Buffer.compare(back.subarray(10, 10 + plain.length), plain)).toBe(0);
        expect(back.subarray(10 + plain.length).every((byte) => byte === 0xdd)).toBe(true);
      }),
      { numRuns: runsOf(150) },
    );
  });

  test("refuses garbage and wrong lengths as DAMAGED and works afterwards", () => {
    const plain = new Uint8Array(65_536).map((_, index) => index % 97);
    const block = new Uint8Array(65_536);
    const blockBytes = lz4.compress(plain, block, 0);
    expect(blockBytes).toBeGreaterThan(0);
    const into = new Uint8Array(65_536);
    const worksStill = (): void => {
      into.fill(0);
      lz4.decompress(block.subarray(0, blockBytes), plain.length, into, 0);
      expect(Buffer.compare(into, plain)).toBe(0);
    };
    const damaged = expect.objectContaining({ name: "TidemarkError", code: "DAMAGED" }) as Error;
    for (const plainBytes of [1, 4096, 65_535, 65_537, 1_048_576]) {
      expect(() => {
        lz4.decompress(block.subarray(0, blockBytes), plainBytes, new Uint8Array(1_048_576), 0);
      }).toThrow(damaged);
      worksStill();
    }
    let refused = 0;
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (garbage) => {
        try {
          lz4.decompress(garbage, 65_536, into, 0);
        } catch (error) {
          expect(error).toEqual(damaged);
          refused += 1;
        }
        worksStill();
      }),
    );
    expect(refused).toBeGreaterThan(50);
  });

  test("ends in DAMAGED or in bytes of the right length when a block is altered anywhere", () => {
    const plain = Buffer.from("a sentence that repeats, a sentence that repeats, and ends. ".repeat(200));
    const block = new Uint8Array(plain.length);
    const blockBytes = lz4.compress(plain, block, 0);
    const into = new Uint8Array(plain.length);
    fc.assert(
      fc.property(fc.nat(blockBytes - 1), fc.integer({ min: 1, max: 255 }), (at, difference) => {
        const altered = block.slice(0, blockBytes);
        altered[at] = (altered[at] ?? 0) ^ difference;
        try {
          lz4.decompress(altered, plain.length, into, 0);
        } catch (error) {
          expect(error).toMatchObject({ code: "DAMAGED" });
        }
      }),
      { numRuns: runsOf(300) },
    );
  });

  test("touches nothing outside its source and its target", () => {
    const memory = new WebAssembly.Memory({ initial: 8, maximum: 8, shared: true });
    const kernels = openWasmKernels(memory);
    const bytes = new Uint8Array(memory.buffer);
    const [table, middle, end] = [0, lz4TableBytes + 100, bytes.length];
    const blank = Buffer.alloc(bytes.length, 0xaa);
    const random = numbersFrom(11);
    /** Runs with source and target at the end of the memory in turn, where one byte more is a trap. */
    const atBothEnds = (
      source: Uint8Array,
      targetBytes: number,
      run: (source: number, target: number) => void,
    ): void => {
      for (const [sourceAt, targetAt] of [
        [middle, end - targetBytes],
        [end - source.length, middle],
      ] as const) {
        bytes.fill(0xaa);
        bytes.set(source, sourceAt);
        run(sourceAt, targetAt);
        const [firstAt, firstBytes] = targetAt === middle ? [targetAt, targetBytes] : [sourceAt, source.length];
        const lastAt = targetAt === middle ? sourceAt : targetAt;
        expect(Buffer.compare(bytes.subarray(lz4TableBytes, firstAt), blank.subarray(lz4TableBytes, firstAt))).toBe(0);
        const between = bytes.subarray(firstAt + firstBytes, lastAt);
        expect(Buffer.compare(between, blank.subarray(0, between.length))).toBe(0);
        expect(Buffer.compare(bytes.subarray(sourceAt, sourceAt + source.length), source)).toBe(0);
      }
    };
    for (let round = 0; round < byDepth(40, 1_000); round += 1) {
      const plain = repetitive(random);
      let block = new Uint8Array();
      for (const targetBytes of [plain.length + 100, random() % (plain.length + 1)]) {
        atBothEnds(plain, targetBytes, (source, target) => {
          const length = kernels.lz4Compress(source, plain.length, target, targetBytes, table);
          if (length > 0) block = bytes.slice(target, target + length);
        });
      }
      const altered = block.slice();
      for (let change = random() % 4; change > 0; change -= 1)
        altered[random() % Math.max(1, block.length)] = random() % 256;
      const shorter = random() % (plain.length + 1);
      for (const [packed, targetBytes] of [
        [block, plain.length],
        [block, shorter],
        [altered, plain.length],
        [altered.subarray(0, random() % (block.length + 1)), plain.length],
      ] as const) {
        atBothEnds(packed, targetBytes, (source, target) => {
          const isBlock = kernels.lz4Decompress(source, packed.length, target, targetBytes) === 1;
          if (packed !== block) return;
          expect(isBlock).toBe(block.length > 0 && targetBytes === plain.length);
          if (isBlock) expect(Buffer.compare(bytes.subarray(target, target + targetBytes), plain)).toBe(0);
        });
      }
    }
    // A long match that ends with the target, or a little later, in mid-source.
    const plain = Buffer.concat([randomBytes(10, 1), Buffer.alloc(200), randomBytes(200, 2)]);
    for (let at = 10; at < 210; at += 1) plain[at] = plain[at - 10] ?? 0;
    const into = new Uint8Array(plain.length);
    const block = into.subarray(4, lz4.compress(plain, into, 0));
    for (let targetBytes = 0; targetBytes < plain.length; targetBytes += 1) {
      atBothEnds(block, targetBytes, (source, target) => {
        expect(kernels.lz4Decompress(source, block.length, target, targetBytes)).toBe(0);
      });
    }
  }, 300_000);

  test("takes a match that begins with the block and refuses one that begins before it, near the end and far from it", () => {
    for (const [tailBytes, firstBytes] of [
      [12, 0],
      [12, 14],
      [200, 0],
      [200, 14],
    ] as const) {
      for (let literals = 1; literals <= 14; literals += 1) {
        for (const matched of [4, 18, 19, 60]) {
          const begun = firstBytes + literals;
          const plainBytes = begun + matched + tailBytes;
          const blockWith = (distance: number): Buffer =>
            Buffer.concat([
              // Ten literals, four bytes of a match, and then the sequence that is tried.
              Buffer.from(firstBytes === 0 ? [] : [10 << 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]),
              Buffer.from([(literals << 4) | Math.min(15, matched - 4)]),
              Buffer.alloc(literals, 1),
              Buffer.from([distance & 255, distance >> 8, ...(matched >= 19 ? [matched - 19] : [])]),
              Buffer.from(tailBytes < 15 ? [tailBytes * 16] : [15 << 4, tailBytes - 15]),
              Buffer.alloc(tailBytes, 2),
            ]);
          const into = new Uint8Array(plainBytes);
          const head = Buffer.alloc(4);
          head.writeUInt32LE(plainBytes);
          const read = (distance: number): void => {
            lz4.decompress(Buffer.concat([head, blockWith(distance)]), plainBytes, into, 0);
          };
          for (let distance = 1; distance <= begun; distance += 1) {
            read(distance);
            expect(into.indexOf(2)).toBe(begun + matched);
            expect(into.lastIndexOf(1)).toBe(begun + matched - 1);
          }
          for (const distance of [0, begun + 1, begun + 8, 65_535])
            expect(() => {
              read(distance);
            }).toThrow("cannot be decompressed");
        }
      }
    }
  });

  test("makes blocks that lz4-wasm reads, and reads those that lz4-wasm makes", () => {
    const reference = ReferenceLz4.load();
    if (reference === undefined) throw new Error("lz4-wasm is a development dependency");
    const random = numbersFrom(9);
    const into = new Uint8Array(150_000);
    const back = new Uint8Array(150_000);
    let smaller = 0;
    for (let block = 0; block < byDepth(2_000, 50_000); block += 1) {
      const plain = repetitive(random, byDepth(10, 1_000));
      const length = lz4.compress(plain, into, 0);
      if (length > 0) {
        smaller += 1;
        const packed = into.subarray(0, length);
        if (Buffer.compare(reference.decompress(packed), plain) !== 0)
          throw new Error(`block ${String(block)} differs`);
        lz4.decompress(packed, plain.length, back, 0);
        if (Buffer.compare(back.subarray(0, plain.length), plain) !== 0)
          throw new Error(`block ${String(block)} is lost`);
      }
      lz4.decompress(reference.compress(plain).slice(), plain.length, back, 0);
      if (Buffer.compare(back.subarray(0, plain.length), plain) !== 0)
        throw new Error(`block ${String(block)} is unread`);
    }
    expect(smaller).toBeGreaterThan(1_000);
  }, 1_200_000);

  test("makes blocks that the system's lz4 reads", (context) => {
    context.skip(spawnSync("lz4", ["--version"]).error !== undefined, "lz4 is not installed");
    const random = numbersFrom(3);
    for (let block = 0; block < byDepth(5, 100); block += 1) {
      const plain = repetitive(random);
      const into = new Uint8Array(plain.length);
      const length = lz4.compress(plain, into, 0);
      if (length === 0) continue;
      const { stdout } = spawnSync("lz4", ["-d", "-c"], { input: legacyFile(into.subarray(4, length)) });
      expect(Buffer.compare(stdout, plain)).toBe(0);
    }
  });

  test("makes the same block of the same bytes in every version: what heals chunks relies on it", () => {
    const random = numbersFrom(5);
    const into = new Uint8Array(150_000);
    const hash = createHash("sha256");
    for (let block = 0; block < 200; block += 1)
      hash.update(into.subarray(0, lz4.compress(repetitive(random), into, 0)));
    expect(hash.digest("hex").slice(0, 16)).toBe("e6875fa461a5ea26");
  });

  test("keeps its memory bounded over thousands of blocks", () => {
    const plain = new Uint8Array(65_536).map((_, index) => (index * 7) % 251);
    const random = randomBytes(65_536, 1);
    const into = new Uint8Array(65_536);
    const back = new Uint8Array(65_536);
    const before = process.memoryUsage().rss;
    for (let round = 0; round < 2000; round += 1) {
      expect(lz4.compress(random, into, 0)).toBe(0);
      const blockBytes = lz4.compress(plain, into, 0);
      lz4.decompress(into.subarray(0, blockBytes), plain.length, back, 0);
    }
    // 2000 calls that each leaked a block would take 256 MiB.
    expect(process.memoryUsage().rss - before).toBeLessThan(64 * 1024 * 1024);
  });
});

/** Up to 5,000 bytes, one in `longOneIn` up to 140,000, in which much is there again at all distances. */
function repetitive(random: () => number, longOneIn = 10): Uint8Array {
  const below = (limit: number): number => random() % Math.max(1, limit);
  const plain = new Uint8Array(below(below(longOneIn) === 0 ? 140_000 : 5_000));
  const alphabet = 1 + below(1 + below(256));
  for (let at = 0; at < plain.length; ) {
    const end = Math.min(plain.length, at + 4 + below(1 + below(400)));
    const distance = 1 + below(Math.min(at, below(2) === 0 ? 20 : 70_000));
    if (at > 0 && below(2) === 0) for (; at < end; at += 1) plain[at] = plain[at - distance] ?? 0;
    else for (; at < end; at += 1) plain[at] = below(alphabet);
  }
  return plain;
}

/** A block as a file of the legacy frame format, which holds blocks without checksums. */
function legacyFile(block: Uint8Array): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt32LE(0x184c_2102, 0);
  head.writeUInt32LE(block.length, 4);
  return Buffer.concat([head, block]);
}
