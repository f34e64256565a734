/**
 * The server against bytes that are not what they should be: whatever comes, it closes or answers,
 * and goes on serving others.
 */

import fc from "fast-check";
import { expect, test } from "vitest";
import { command, option } from "../../../../engine/disk/nbd/protocol.ts";
import { runsOf } from "../../../depth.ts";
import {
  infoQuery,
  MemoryDisk,
  metaQuery,
  optionBytesOf,
  RawClient,
  requestBytesOf,
  serve,
  uint32,
} from "./server-rig.ts";

/** A whole conversation that touches every part of the parser. */
const conversation = Buffer.concat([
  uint32(3),
  optionBytesOf(option.structuredReply),
  optionBytesOf(option.list),
  optionBytesOf(option.listMetaContext, metaQuery("disk", "base:")),
  optionBytesOf(option.setMetaContext, metaQuery("disk", "base:allocation")),
  optionBytesOf(option.info, infoQuery("disk", 1, 2, 3)),
  optionBytesOf(option.go, infoQuery("disk")),
  requestBytesOf({ type: command.write, offset: 5000, payload: Buffer.alloc(3000, 5) }),
  requestBytesOf({ type: command.read, offset: 4000, length: 70_000 }),
  requestBytesOf({ type: command.blockStatus, length: 65536 }),
  requestBytesOf({ type: command.writeZeroes, offset: 1, length: 9999 }),
  requestBytesOf({ type: command.trim, offset: 4096, length: 4096 }),
  requestBytesOf({ type: command.flush }),
  requestBytesOf({ type: command.disconnect }),
]);
const transmissionStart = conversation.indexOf(
  requestBytesOf({ type: command.write, offset: 5000, payload: Buffer.alloc(0) }).subarray(0, 24),
);

const mutated = fc
  .array(fc.record({ at: fc.nat(conversation.byteLength - 1), value: fc.nat(255) }), { minLength: 1, maxLength: 6 })
  .map((changes) => {
    const bytes = Buffer.from(conversation);
    for (const { at, value } of changes) bytes[at] = value;
    return bytes;
  });
const truncated = fc.nat(conversation.byteLength).map((length) => conversation.subarray(0, length));
const randomBehind = fc
  .tuple(fc.constantFrom(0, 4, 20, transmissionStart), fc.uint8Array({ maxLength: 2000 }))
  .map(([keep, bytes]) => Buffer.concat([conversation.subarray(0, keep), bytes]));

test("mutated, truncated and random conversations end, in whatever pieces they come, and the server goes on", async () => {
  expect(transmissionStart).toBeGreaterThan(0);
  const disk = new MemoryDisk(128 * 1024);
  const server = await serve(disk);
  const witness = await RawClient.transmitting(server.address);
  await fc.assert(
    fc.asyncProperty(
      fc.oneof(mutated, truncated, randomBehind),
      fc.integer({ min: 1, max: 4096 }),
      fc.boolean(),
      async (bytes, piece, atOnce) => {
        disk.answersAtOnce = atOnce;
        const client = await RawClient.connect(server.address);
        for (let at = 0; at < bytes.byteLength; at += piece) client.socket.write(bytes.subarray(at, at + piece));
        client.socket.end();
        await client.closed;
        expect(await witness.call({ type: command.flush })).toMatchObject({ error: 0 });
      },
    ),
    { numRuns: runsOf(400) },
  );
  await expect.poll(() => server.connections).toBe(1);
});
