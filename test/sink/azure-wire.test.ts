/** Bodies of requests, whole and in pieces between which the event loop does other work; bodies of answers. */
import { Readable } from "node:stream";
import { setImmediate as nextTurn } from "node:timers/promises";
import { expect, test } from "vitest";
import { bodyOf, fill } from "../../sink/azure-wire.ts";

test("a body leaves in pieces, none of them in the turn of the one before", async () => {
  const bytes = Buffer.alloc(1_000_000, "the tide comes in, and goes out again. ");
  let turns = 0;
  const over = new AbortController();
  const counting = (async () => {
    for (; !over.signal.aborted; turns += 1) await nextTurn();
  })();
  const pieces: Buffer[] = [];
  const arrivals: number[] = [];
  for await (const piece of bodyOf(bytes)()) {
    pieces.push(piece as Buffer);
    arrivals.push(turns);
  }
  over.abort();
  await counting;
  expect(pieces.map(({ length }) => length)).toEqual([262_144, 262_144, 262_144, 213_568]);
  expect(Buffer.concat(pieces).equals(bytes)).toBe(true);
  expect(new Set(arrivals).size).toBe(pieces.length);
});

test("a body of an answer that is too long is given up, and writes nothing behind its room", async () => {
  let given = 0;
  const endless = function* (): Generator<Buffer> {
    for (;;) {
      given += 1;
      yield Buffer.alloc(1_000, 7);
    }
  };
  const room = new Uint8Array(3_000);
  const into = room.subarray(0, 2_500);
  const response = { readableStreamBody: Readable.from(endless()) } as unknown as Parameters<typeof fill>[1];
  await expect(fill(into, response, "pages")).rejects.toThrow();
  expect(room.subarray(2_500).every((byte) => byte === 0)).toBe(true);
  expect(given).toBeLessThan(100);
});
