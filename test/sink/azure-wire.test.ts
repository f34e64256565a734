/** Bodies of page writes: whole, and in pieces between which the event loop does other work. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { expect, test } from "vitest";
import { bodyOf } from "../../sink/azure-wire.ts";

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
