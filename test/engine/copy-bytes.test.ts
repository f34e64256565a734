import { describe, expect, test } from "vitest";
import { copyBytes } from "../../engine/copy-bytes.ts";

const numbered = (length: number): Uint8Array => Uint8Array.from({ length }, (_, at) => at + 1);

describe.each([
  ["of its own", (bytes: number): ArrayBufferLike => new ArrayBuffer(bytes)],
  ["that is shared", (bytes: number): ArrayBufferLike => new SharedArrayBuffer(bytes)],
])("bytes are copied into memory %s", (_where, allocate) => {
  test.each([
    [0, 0],
    [1, 3],
    [7, 12],
    [64, 5],
  ])("%i bytes at %i, and none beside them change", (length, at) => {
    const into = new Uint8Array(allocate(128), 16, 100);
    const all = new Uint8Array(into.buffer);
    copyBytes(numbered(length), into, at);
    const wanted = new Uint8Array(128);
    wanted.set(numbered(length), 16 + at);
    expect(all).toEqual(wanted);
  });
});
