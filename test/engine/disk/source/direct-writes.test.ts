/** Writes past the page cache leave the same bytes as writes through it, wherever they begin and end. */
import { constants, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { DirectWrites } from "../../../../engine/disk/source/direct-writes.ts";
import { PositionalFile } from "../../../../engine/disk/source/positional-file.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import { byDepth } from "../../../depth.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";

const unitBytes = 65_536;
const fileBytes: number = 16 * unitBytes;
/** Begins on a page, as the memory of slabs does. */
const memory: Buffer = Buffer.from(new WebAssembly.Memory({ initial: 32, maximum: 32, shared: true }).buffer);
for (let at = 0; at < memory.byteLength; at += 1) memory[at] = (at * 31 + (at >> 12)) % 251;

let folder: string;

beforeAll(() => {
  folder = createFolder("direct-writes");
});

afterEach(() => {
  vi.restoreAllMocks();
});

afterAll(async () => {
  await removeFolder(folder);
});

type Write = (this: PositionalFile, offset: number, bytes: Uint8Array) => Promise<void>;

/** Puts `write` in place of the writes past the cache. */
function pastCache(write: (real: () => Promise<void>, bytes: Uint8Array) => Promise<void>): void {
  const prototype = PositionalFile.prototype as { readonly write: Write };
  const real = prototype.write;
  vi.spyOn(PositionalFile.prototype, "write").mockImplementation(async function (this: PositionalFile, offset, bytes) {
    const goOn = async (): Promise<void> => await real.call(this, offset, bytes);
    await (this.path.startsWith("/proc/") ? write(goOn, bytes) : goOn());
  });
}

/** Counts the bytes that go past the cache. */
function directBytes(): () => number {
  let count = 0;
  pastCache(async (real, bytes) => {
    count += bytes.byteLength;
    await real();
  });
  return () => count;
}

async function written(writes: readonly { offset: number; bytes: Uint8Array }[]): Promise<Buffer> {
  const path = join(folder, "image");
  const file = await PositionalFile.open(path, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC);
  await file.truncate(fileBytes);
  const direct = await DirectWrites.to(file);
  await Promise.all(writes.map(async ({ offset, bytes }) => await direct.write(offset, bytes)));
  await direct.close();
  await file.close();
  return readFileSync(path);
}

function expected(writes: readonly { offset: number; bytes: Uint8Array }[]): Buffer {
  const image = Buffer.alloc(fileBytes);
  for (const { offset, bytes } of writes) image.set(bytes, offset);
  return image;
}

/** Disjoint ranges, mostly of granules, from memory that lies as it does in slabs, or does not. */
const ranges = fc
  .uniqueArray(
    fc.oneof(
      fc.nat(fileBytes / granuleBytes).map((at) => at * granuleBytes),
      fc.nat(fileBytes),
    ),
    {
      minLength: 2,
      maxLength: 12,
    },
  )
  .chain((edges) => {
    const sorted = edges.sort((a, b) => a - b);
    return fc
      .array(fc.constantFrom(0, 0, 0, granuleBytes, 512, 7), { minLength: sorted.length, maxLength: 12 })
      .map((shifts) =>
        sorted.slice(1).map((end, index) => {
          const offset = sorted[index] ?? 0;
          const at = (shifts[index] ?? 0) + (offset % granuleBytes);
          return { offset, bytes: memory.subarray(at, at + end - offset) };
        }),
      );
  });

test("any writes leave the same bytes", async () => {
  await fc.assert(
    fc.asyncProperty(ranges, async (writes) => {
      expect((await written(writes)).equals(expected(writes))).toBe(true);
    }),
    { numRuns: byDepth(100, 400) },
  );
});

test("whole units go past the cache, and the ends of a write through it", async (context) => {
  const count = directBytes();
  const writes = [{ offset: granuleBytes, bytes: memory.subarray(0, 5 * unitBytes) }];
  expect((await written(writes)).equals(expected(writes))).toBe(true);
  if (count() === 0) context.skip("the file system of the temporary folder has no O_DIRECT");
  expect(count()).toBe(4 * unitBytes);
});

test.each(["open", "write"] as const)(
  "a file system that refuses the %s is written through the cache",
  async (call) => {
    const refused = Object.assign(new Error("EINVAL"), { code: "EINVAL", errno: -22, syscall: call });
    let asked = 0;
    if (call === "open") {
      const real = PositionalFile.open.bind(PositionalFile);
      vi.spyOn(PositionalFile, "open").mockImplementation(async (path, flags, mode) => {
        if (!path.startsWith("/proc/")) return await real(path, flags, mode);
        asked += 1;
        throw refused;
      });
    } else {
      pastCache(async () => {
        asked += 1;
        await Promise.reject(refused);
      });
    }
    const part = 4 * unitBytes;
    const writes = [0, 1, 2].map((index) => ({ offset: index * part, bytes: memory.subarray(0, part) }));
    expect((await written(writes)).equals(expected(writes))).toBe(true);
    expect(asked).toBeGreaterThan(0);
  },
);
