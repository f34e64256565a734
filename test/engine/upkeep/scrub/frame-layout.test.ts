/** Frames that are laid out anew: whatever was there, walking from frame to frame leads to every chunk that is needed, and nothing of it is written over. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { expect, test } from "vitest";
import { pageAlignmentBytes } from "../../../../engine/sink.ts";
import {
  decodeFrameHeader,
  decodeFrameTable,
  encodeFrameHeader,
  FrameBuilder,
  frameHeaderBytes,
  storedLength,
  storedLz4Flag,
} from "../../../../engine/store/format/frame.ts";
import { PageSet } from "../../../../engine/store/segments/page-set.ts";
import { type LaidChunk, layFrame } from "../../../../engine/upkeep/scrub/frame-layout.ts";

const ids = { vaultId: new Uint8Array(16).fill(1), segmentId: new Uint8Array(16).fill(2) };

interface Original {
  readonly chunks: readonly LaidChunk[];
  readonly frames: readonly { readonly from: number; readonly end: number; readonly tableFrom: number; readonly lives: boolean }[];
}

/** Frames as a writer fills them, of chunks of which some are needed still. */
function original(frames: readonly (readonly { readonly length: number; readonly isNeeded: boolean }[])[]): Original {
  const builder = new FrameBuilder();
  const chunks: LaidChunk[] = [];
  const laid: Original["frames"][number][] = [];
  let offset = 0;
  for (const frame of frames) {
    builder.reset();
    for (const { length, isNeeded } of frame) {
      if (!builder.fits(length)) continue;
      const digest = new Uint8Array(16).fill(1 + (chunks.length % 250));
      const at = builder.append(new Uint8Array(length), storedLz4Flag + length, digest, 0, chunks.length, 1);
      const places = new Set([chunks.length]);
      if (isNeeded) chunks.push({ offset: offset + at, storedWord: storedLz4Flag + length, digest, granules: 1, places, isProved: true });
    }
    const bytes = Buffer.from(builder.seal({ ...ids, offset }));
    const end = offset + bytes.length;
    const lives = chunks.some((chunk) => chunk.offset >= offset && chunk.offset < end);
    laid.push({ from: offset, end, tableFrom: offset + bytes.readUInt32LE(12), lives });
    offset = end;
  }
  return { chunks, frames: laid };
}

/** The pages that a collection would have given back of them. */
function givenBack({ chunks, frames }: Original): PageSet {
  const [given, kept] = [new PageSet(), new PageSet()];
  for (const { offset, storedWord } of chunks) kept.addBytes(offset, storedLength(storedWord));
  for (const [index, { from, end, tableFrom, lives }] of frames.entries()) {
    if (index === frames.length - 1) continue;
    if (lives) {
      kept.addBytes(from, frameHeaderBytes);
      kept.addBytes(tableFrom, end - tableFrom);
    }
    for (let page = from / pageAlignmentBytes; page < end / pageAlignmentBytes; page += 1) if (!kept.has(page)) given.add(page, page + 1);
  }
  return given;
}

const chunk = fc.record({
  length: fc.oneof(fc.integer({ min: 5, max: 300 }), fc.integer({ min: 300, max: 60_000 })),
  isNeeded: fc.boolean(),
});
const sparse = fc.record({
  length: fc.integer({ min: 5, max: 900_000 }),
  isNeeded: fc.integer({ min: 0, max: 9 }).map((number) => number === 0),
});
const frames = fc.array(fc.array(fc.oneof(chunk, sparse), { minLength: 1, maxLength: 12 }), { minLength: 1, maxLength: 8 });

test("a stretch in which everything is lost leads to all that is needed", () => {
  fc.assert(
    fc.property(frames, fc.constantFrom("nothing", "dead", "condemned"), (shape, gone) => {
      const written = original(shape);
      const given = gone === "nothing" ? new PageSet() : givenBack(written);
      const dead = gone === "dead" ? given : gone === "condemned" ? new PageSet() : given;
      const { chunks } = written;
      const found = new Map<number, Uint8Array>();
      const frameEnds = new Map<number, number>();
      const last = chunks.at(-1)?.offset ?? -1;
      for (let offset = 0; offset <= last; ) {
        const page = offset / pageAlignmentBytes;
        if (dead.has(page)) {
          offset = dead.endOfRun(page) * pageAlignmentBytes;
          continue;
        }
        const from = offset;
        const layout = layFrame({ offset, end: undefined, chunks: chunks.filter((known) => known.offset >= from), given });
        assert(layout !== undefined, `a frame fits at ${String(offset)}`);
        const object = "segment";
        const place = { ...ids, offset };
        const header = decodeFrameHeader(encodeFrameHeader({ ...place, ...layout }), object, place);
        const table = decodeFrameTable(layout.table, object, header);
        for (let index = 0; index < table.count; index += 1) {
          if (table.granules[index] !== 0)
            found.set(offset + (table.offsets[index] ?? 0), table.digests.slice(index * 16, index * 16 + 16));
        }
        for (const [at, length] of [
          [offset, frameHeaderBytes],
          [offset + header.tableOffset, header.tableBytes],
        ] as const) {
          if (table.count > 0) expect(given.touches(at, length)).toBe(false);
          for (const known of chunks) expect(known.offset < at + length && at < known.offset + storedLength(known.storedWord)).toBe(false);
        }
        offset += header.frameBytes;
        frameEnds.set(from, offset);
      }
      // Who knows already what may be given back passes over it, and meets the others behind it.
      for (let offset = 0; offset <= last; ) {
        const behind = given.endOfRun(offset / pageAlignmentBytes) * pageAlignmentBytes;
        const end = behind > offset ? behind : frameEnds.get(offset);
        assert(end !== undefined, `a frame begins at ${String(offset)}`);
        offset = end;
      }
      expect([...found.keys()].sort((a, b) => a - b)).toEqual(chunks.map((known) => known.offset));
      for (const known of chunks) expect(found.get(known.offset)).toEqual(known.digest);
    }),
    { numRuns: 60 },
  );
});

test("one frame whose neighbours live is laid out up to its end, and what does not read is told of as a gap", () => {
  const written = original([
    [
      { length: 100, isNeeded: true },
      { length: 5000, isNeeded: false },
      { length: 700, isNeeded: true },
    ],
  ]);
  const [first, second] = written.chunks;
  const end = written.frames[0]?.end ?? 0;
  assert(first !== undefined && second !== undefined);
  const none = new PageSet();
  const layout = layFrame({ offset: 0, end, chunks: [first, { ...second, isProved: false }], given: none });
  assert(layout !== undefined);
  expect(layout.frameBytes).toBe(end);
  const header = decodeFrameHeader(encodeFrameHeader({ ...ids, offset: 0, ...layout }), "segment", { ...ids, offset: 0 });
  const table = decodeFrameTable(layout.table, "segment", header);
  expect([...table.granules]).toEqual([1, 0, 0]);
  expect([...table.offsets]).toEqual([128, 232, second.offset]);
  expect(table.digests.subarray(16).every((byte) => byte === 0)).toBe(true);
});
