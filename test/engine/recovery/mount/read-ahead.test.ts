/** Sequential readers are recognised, several at a time; random ones are not. */
import { describe, expect, test } from "vitest";
import { ReadAhead, type Stream } from "../../../../engine/recovery/mount/read-ahead.ts";
import { numbersFrom } from "../../../engine-model.ts";

const kib = 1024;
const mib = 1024 * kib;
const gib = 1024 * mib;

function readAhead(sizeBytes = 64 * gib): ReadAhead {
  return new ReadAhead({ sizeBytes, windowBytesMin: 256 * kib, windowBytesMax: 12 * mib, aheadBytesMax: 128 * mib });
}

/** Reads `count` times `length` in a row, as told by `place`; gives the stream after the last. */
function readOn(
  ahead: ReadAhead,
  count: number,
  length: number,
  place = (index: number): number => index * length,
): Stream | undefined {
  let stream: Stream | undefined;
  for (let index = 0; index < count; index += 1) stream = ahead.note(place(index), length);
  return stream;
}

describe("a sequential reader", () => {
  test("is recognised at its third read, wherever it begins", () => {
    const ahead = readAhead();
    expect(ahead.note(7 * mib, 4 * kib)).toBeUndefined();
    expect(ahead.note(7 * mib + 4 * kib, 4 * kib)).toBeUndefined();
    expect(ahead.note(7 * mib + 8 * kib, 4 * kib)).toMatchObject({ position: 7 * mib + 12 * kib });
  });

  test("is fetched for in ranges that grow with what it has read, up to the largest", () => {
    const ahead = readAhead();
    const lengths: number[] = [];
    for (let index = 0; index < 400; index += 1) {
      const stream = ahead.note(index * 128 * kib, 128 * kib);
      const range = stream === undefined ? undefined : ahead.next(stream);
      if (stream === undefined || range === undefined) continue;
      expect(range.from).toBe(Math.max(stream.aheadTo, stream.position));
      lengths.push(range.end - range.from);
      stream.aheadTo = range.end;
    }
    expect(lengths[0]).toBeLessThanOrEqual(mib);
    expect(Math.max(...lengths)).toBe(12 * mib);
  });

  test("is not fetched for beyond two windows, nor beyond the end", () => {
    const ahead = readAhead(100 * mib);
    const stream = readOn(ahead, 200, 128 * kib);
    if (stream === undefined) throw new Error("it is not recognised");
    for (let range = ahead.next(stream); range !== undefined; range = ahead.next(stream)) stream.aheadTo = range.end;
    expect(stream.aheadTo - stream.position).toBeLessThanOrEqual(24 * mib);
    stream.position = 99 * mib;
    expect(ahead.next(stream)).toEqual({ from: 99 * mib, end: 100 * mib });
    stream.aheadTo = 100 * mib;
    expect(ahead.next(stream)).toBeUndefined();
  });

  test("is still the same one when its reads come in disorder", () => {
    const ahead = readAhead();
    const stream = readOn(ahead, 8, 128 * kib);
    for (const index of [9, 8, 11, 10]) expect(ahead.note(index * 128 * kib, 128 * kib)).toBe(stream);
    expect(stream?.position).toBe(12 * 128 * kib);
  });

  test("is told from seven others that read at the same time, and all share what may be fetched ahead", () => {
    const ahead = readAhead();
    const streams = new Set<Stream>();
    for (let index = 0; index < 64; index += 1) {
      for (let reader = 0; reader < 8; reader += 1) {
        const stream = ahead.note(reader * gib + index * 256 * kib, 256 * kib);
        if (stream !== undefined) streams.add(stream);
      }
    }
    expect(streams.size).toBe(8);
    let aheadBytes = 0;
    for (const stream of ahead.active()) {
      for (let range = ahead.next(stream); range !== undefined; range = ahead.next(stream)) stream.aheadTo = range.end;
      aheadBytes += stream.aheadTo - stream.position;
    }
    expect(aheadBytes).toBeGreaterThan(64 * mib);
    expect(aheadBytes).toBeLessThanOrEqual(128 * mib);
  });
});

test("random readers are never recognised", () => {
  const ahead = readAhead();
  const next = numbersFrom(3);
  for (let index = 0; index < 20_000; index += 1) {
    expect(ahead.note((next() % (16 * mib)) * 4096, 4096)).toBeUndefined();
  }
});

test("a sequential reader is not lost among random ones", () => {
  const ahead = readAhead();
  const next = numbersFrom(4);
  let stream: Stream | undefined;
  for (let index = 0; index < 200; index += 1) {
    for (let other = 0; other < 10; other += 1) ahead.note(gib + (next() % mib) * 4096, 4096);
    stream = ahead.note(index * 128 * kib, 128 * kib);
  }
  expect(stream?.position).toBe(200 * 128 * kib);
});
