import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { restSignatureCharactersMax } from "../../../../engine/disk/source/quiescence.ts";
import {
  checkIdentity,
  decodeHeader,
  decodePage,
  encodeHeader,
  encodePage,
  headerSlotBytes,
  pageBitmapBytes,
  pageSlotBytes,
  type TrackingHeader,
} from "../../../../engine/disk/tracking/tracking-format.ts";
import { hasCode } from "../../../../engine/errors.ts";
import { golden } from "../../../golden.ts";

const header: TrackingHeader = {
  vault: "0123456789abcdef0123456789abcdef",
  disk: "disk",
  sizeBytes: 2 ** 40,
  image: { kind: "file", dev: "2049", ino: "1234567890123456789", rdev: "0", path: "/var/lib/disk.img" },
  bases: ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"],
  clean: {
    base: 1,
    areaAt: 106_496,
    areaBytes: 132,
    areaCrc: 0xdeadbeef,
    rest: { sizeBytes: 2 ** 40, signature: "modified 1700000000000000001 changed 1700000000000000002" },
  },
};
const bits = Uint8Array.from({ length: pageBitmapBytes }, (_, index) => index % 251);
const older = new Uint8Array(pageBitmapBytes);

describe("the bytes of a tracking file, version 1", () => {
  it("of a header are fixed", () => {
    const bytes = golden("tracking-header-v1.bin", encodeHeader(1, 7, header));
    expect(Buffer.from(encodeHeader(1, 7, header)).equals(bytes)).toBe(true);
    const pair = Buffer.concat([encodeHeader(0, 6, { ...header, bases: [], clean: null }), bytes]);
    expect(decodeHeader(pair, "tracking")).toMatchObject({ header, pair: { slot: 1, generation: 7 } });
  });

  it("of a page are fixed", () => {
    const bytes = golden("tracking-page-v1.bin", encodePage(3, 0, 9, bits));
    expect(Buffer.from(encodePage(3, 0, 9, bits)).equals(bytes)).toBe(true);
    const pair = decodePage(Buffer.concat([bytes, encodePage(3, 1, 8, older)]), 3, "tracking");
    expect(Buffer.compare(pair.payload, bits)).toBe(0);
    expect(pair).toMatchObject({ slot: 0, generation: 9 });
  });
});

describe("a page", () => {
  const whole = encodePage(3, 0, 9, bits);
  const before = encodePage(3, 1, 8, older);
  const next = encodePage(3, 1, 10, bits);

  it("leaves its other slot when a write was cut short, whichever of its sectors were written", () => {
    for (let written = 1; written < 255; written += 1) {
      const pair = decodePage(Buffer.concat([whole, mixed(before, next, written)]), 3, "tracking");
      expect(Buffer.compare(pair.payload, bits)).toBe(0);
      // The next write goes to the torn slot, above every generation there.
      expect(pair).toMatchObject({ slot: 0, generation: 10 });
    }
  });

  it.each([
    ["both slots are torn", [mixed(encodePage(3, 0, 7, older), whole, 15), mixed(before, next, 15)]],
    ["a torn slot is not the newest", [whole, mixed(before, encodePage(3, 1, 6, older), 15)]],
    ["two slots have one generation", [whole, encodePage(3, 1, 9, older)]],
    ["it is another page", [encodePage(4, 0, 9, bits), encodePage(4, 1, 8, bits)]],
    ["its slots have changed places", [before, whole]],
    ["one slot was never written", [whole, Buffer.alloc(pageSlotBytes)]],
  ])("is damaged when %s", (_fact, slots) => {
    expect(codeOf(() => decodePage(Buffer.concat(slots), 3, "tracking"))).toBe("DAMAGED");
  });
});

describe("a header", () => {
  it("says nothing when it is all zeros", () => {
    expect(decodeHeader(new Uint8Array(2 * headerSlotBytes), "tracking")).toBeUndefined();
  });

  it("has room for the longest path, as many bases as are kept and the longest mark", () => {
    const image = { ...header.image, path: `/${"x".repeat(4095)}` };
    const rest = { sizeBytes: 2 ** 52, signature: "x".repeat(restSignatureCharactersMax) };
    const clean = { base: 127, areaAt: 2 ** 52, areaBytes: 2 ** 52, areaCrc: 2 ** 32 - 1, rest };
    const full = {
      ...header,
      image,
      clean,
      bases: Array.from({ length: 128 }, (_, index) => String(index).padStart(64, "0")),
    };
    checkIdentity({ vault: full.vault, disk: full.disk, sizeBytes: full.sizeBytes, image });
    const pair = Buffer.concat([encodeHeader(0, 1, full), encodeHeader(1, 2, full)]);
    expect(decodeHeader(pair, "tracking")?.header).toEqual(full);
  });

  it("refuses a path that does not fit", () => {
    const image = { ...header.image, path: "\u0001".repeat(4096) };
    expect(codeOf(() => checkIdentity({ ...header, image }))).toBe("INVALID_ARGUMENT");
  });

  it("is decoded, or refused with a typed error, whatever its bytes are", () => {
    const sound = Buffer.concat([encodeHeader(0, 6, header), encodeHeader(1, 7, header)]);
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(sound.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }),
        (changes) => {
          const bytes = Buffer.from(sound);
          for (const [at, value] of changes) bytes[at] = value;
          expect(["", "DAMAGED", "FORMAT_UNSUPPORTED"]).toContain(codeOf(() => decodeHeader(bytes, "tracking")));
        },
      ),
    );
  });
});

/** Sectors of `next` where `written` has a bit, else of `before`. */
function mixed(before: Uint8Array, next: Uint8Array, written: number): Uint8Array {
  const bytes = Buffer.from(before);
  for (let sector = 0; sector < 8; sector += 1) {
    if (((written >>> sector) & 1) === 1) bytes.set(next.subarray(sector * 512, (sector + 1) * 512), sector * 512);
  }
  return bytes;
}

/** The code of what `call` throws, or "". */
function codeOf(call: () => unknown): string {
  try {
    call();
    return "";
  } catch (error) {
    if (hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED", "INVALID_ARGUMENT")) return error.code;
    throw error;
  }
}
