/**
 * Every command of the transmission, what it does to the disk, what it answers, and how it refuses.
 */
import { describe, expect, test } from "vitest";
import type { DeviceExtent } from "../../../../engine/device.ts";
import { chunkType, command, commandFlag, option, wireError } from "../../../../engine/disk/nbd/protocol.ts";
import { TidemarkError } from "../../../../engine/errors.ts";
import { infoQuery, MemoryDisk, optionBytesOf, RawClient, requestBytesOf, serve } from "./server-rig.ts";

const { read, write, flush, trim, writeZeroes, blockStatus } = command;
const mib = 1024 * 1024;

/** Repeats after 251 bytes, which no power of two is a multiple of. */
function pattern(length: number, seed = 1): Buffer {
  return Buffer.alloc(
    length,
    Uint8Array.from({ length: 251 }, (_, index) => (index * 31 + seed) % 251),
  );
}

describe.each([true, false])("with a disk that answers at once: %s", (answersAtOnce) => {
  async function rig(
    options: { structured?: boolean; allocation?: boolean } = {},
  ): Promise<{ disk: MemoryDisk; client: RawClient }> {
    const disk = new MemoryDisk(8 * mib);
    disk.answersAtOnce = answersAtOnce;
    const server = await serve(disk);
    return { disk, client: await RawClient.transmitting(server.address, options) };
  }

  test.each([1, 511, 4096, 70_000, 3 * mib])(
    "%i bytes that are written are read again, at any offset",
    async (length) => {
      const { disk, client } = await rig();
      const payload = pattern(length);
      expect(await client.call({ type: write, cookie: 0xfedcba9876543210n, offset: 777, payload })).toMatchObject({
        cookie: 0xfedcba9876543210n,
        error: 0,
      });
      expect(disk.bytes.subarray(777, 777 + length).equals(payload)).toBe(true);
      expect(await client.call({ type: read, cookie: 5n, offset: 777, length })).toMatchObject({
        cookie: 5n,
        error: 0,
      });
      expect((await client.take(length)).equals(payload)).toBe(true);
    },
  );

  test.each([4096, 70_000, 3 * mib])(
    "%i bytes come in structured chunks to a client that asked for them",
    async (length) => {
      const { disk, client } = await rig({ structured: true });
      const payload = pattern(length, 2);
      payload.copy(disk.bytes, 4096);
      const reply = await client.call({ type: read, offset: 4096, length });
      expect(reply).toMatchObject({ cookie: 7n, type: chunkType.offsetData, isLast: true });
      expect(reply.data.readBigUInt64BE(0)).toBe(4096n);
      expect(reply.data.subarray(8).equals(payload)).toBe(true);
    },
  );

  test("a flush makes durable what was written, and a write with FUA itself", async () => {
    const { disk, client } = await rig();
    await client.call({ type: write, offset: 0, payload: pattern(4096) });
    expect(disk.durable.equals(disk.bytes)).toBe(false);
    expect(await client.call({ type: flush })).toMatchObject({ error: 0 });
    expect(disk.durable.equals(disk.bytes)).toBe(true);
    for (const request of [
      { type: write, payload: pattern(4096, 9), offset: 8192 },
      { type: writeZeroes, length: 100, offset: 0 },
      { type: trim, length: 4096, offset: 8192 },
    ]) {
      expect(await client.call({ ...request, flags: commandFlag.fua })).toMatchObject({ error: 0 });
      expect(disk.durable.equals(disk.bytes)).toBe(true);
    }
    expect(disk.flushes).toBe(4);
  });

  test.each([
    ["NO_SPACE", wireError.noSpc],
    ["ACCESS_REFUSED", wireError.perm],
    ["DEVICE_FAILED", wireError.io],
    ["SOURCE_UNREADABLE", wireError.io],
  ] as const)(
    "what the device fails with, %s, reaches the client as %i, and the connection goes on",
    async (code, error) => {
      const { disk, client } = await rig({ structured: true, allocation: true });
      disk.failure = new TidemarkError(code, "/secret/path is broken");
      for (const type of [write, flush, trim, writeZeroes]) {
        const reply = await client.call({
          type,
          ...(type === write ? { payload: pattern(512) } : type === flush ? {} : { length: 512 }),
        });
        expect(reply).toMatchObject({ type: -1, error });
      }
      for (const type of [read, blockStatus]) {
        const reply = await client.call({ type, length: 65536 });
        expect(reply).toMatchObject({ type: chunkType.error, isLast: true, error });
        expect(reply.data.toString()).not.toContain("secret");
      }
      disk.failure = undefined;
      expect(await client.call({ type: write, payload: pattern(512) })).toMatchObject({ error: 0 });
    },
  );
});

describe("requests", () => {
  test("for zeroes and trims reach the device with their flags", async () => {
    const disk = new MemoryDisk();
    const client = await RawClient.transmitting((await serve(disk)).address);
    await client.call({ type: writeZeroes, offset: 4096, length: 100 });
    await client.call({ type: writeZeroes, offset: 8192, length: 1, flags: commandFlag.noHole });
    await client.call({ type: trim, offset: 5, length: 6 });
    expect(disk.zeroes).toEqual([
      { offset: 4096, length: 100, mayTrim: true },
      { offset: 8192, length: 1, mayTrim: false },
    ]);
    expect(disk.trims).toEqual([{ offset: 5, length: 6 }]);
  });

  test.each([
    ["a read beyond the end", { type: read, offset: mib - 1, length: 2 }, wireError.inval],
    ["a read at the largest offset", { type: read, offset: 0xffffffffffffffffn, length: 1 }, wireError.inval],
    ["a read of more than 32 MiB", { type: read, length: 32 * mib + 1 }, wireError.inval],
    ["a write beyond the end", { type: write, offset: mib - 1, payload: pattern(2) }, wireError.noSpc],
    ["a write from beyond the end", { type: write, offset: 2n ** 63n, payload: pattern(70_000) }, wireError.noSpc],
    ["a write of nothing beyond the end", { type: write, offset: mib + 1, length: 0 }, wireError.noSpc],
    ["a write of more than 32 MiB", { type: write, payload: Buffer.alloc(32 * mib + 1) }, wireError.inval],
    ["zeroes beyond the end", { type: writeZeroes, offset: mib, length: 1 }, wireError.noSpc],
    ["zeroes that must be fast", { type: writeZeroes, length: 4096, flags: commandFlag.fastZero }, wireError.notSup],
    ["a trim beyond the end", { type: trim, offset: mib, length: 1 }, wireError.inval],
    ["a flush of a range", { type: flush, offset: 1, length: 1 }, wireError.inval],
    ["a block status that was not agreed on", { type: blockStatus, length: 4096 }, wireError.inval],
    ["an unknown command", { type: 999, length: 4096 }, wireError.inval],
    ["an unknown flag", { type: write, flags: 0x4000, payload: pattern(512) }, wireError.inval],
    ["an unfragmented read without chunks", { type: read, flags: commandFlag.df, length: 512 }, wireError.inval],
    ["a write without holes", { type: write, flags: commandFlag.noHole, payload: pattern(512) }, wireError.inval],
  ])("such as %s are refused, and the connection goes on", async (_what, request, error) => {
    const disk = new MemoryDisk(mib);
    const client = await RawClient.transmitting((await serve(disk)).address);
    expect(await client.call({ ...request, cookie: 3n })).toMatchObject({ cookie: 3n, error });
    expect(disk.bytes.equals(Buffer.alloc(mib))).toBe(true);
    expect(await client.call({ type: write, cookie: 4n, payload: pattern(512) })).toMatchObject({
      cookie: 4n,
      error: 0,
    });
  });

  test("that would change a read-only export are not permitted", async () => {
    const disk = new MemoryDisk();
    const server = await serve(disk);
    server.addExport({ name: "ro", device: disk, readOnly: true });
    const client = await RawClient.transmitting(server.address, { name: "ro" });
    expect(await client.call({ type: write, payload: pattern(5000) })).toMatchObject({ error: wireError.perm });
    expect(await client.call({ type: trim, length: 5000 })).toMatchObject({ error: wireError.perm });
    expect(await client.call({ type: writeZeroes, length: 5000 })).toMatchObject({ error: wireError.perm });
    expect(await client.call({ type: flush })).toMatchObject({ error: 0 });
    expect(disk.bytes.equals(Buffer.alloc(mib))).toBe(true);
  });

  test("of no length succeed", async () => {
    const server = await serve(new MemoryDisk());
    const simple = await RawClient.transmitting(server.address);
    for (const type of [read, write, trim, writeZeroes])
      expect(await simple.call({ type, length: 0 })).toMatchObject({ error: 0 });
    const structured = await RawClient.transmitting(server.address, { structured: true });
    expect(await structured.call({ type: read, length: 0 })).toMatchObject({ type: chunkType.none, isLast: true });
  });

  test("that come byte by byte, or many in one piece, are all served", async () => {
    const disk = new MemoryDisk();
    const server = await serve(disk);
    const client = await RawClient.transmitting(server.address);
    const requests = Buffer.concat(
      Array.from({ length: 40 }, (_, index) =>
        requestBytesOf({ type: write, cookie: BigInt(index), offset: index * 50, payload: pattern(50, index) }),
      ),
    );
    for (const byte of requests.subarray(0, 500)) {
      client.socket.write(Uint8Array.of(byte));
      await new Promise(setImmediate);
    }
    client.send(requests.subarray(500));
    for (let index = 0; index < 40; index += 1)
      expect(await client.takeReply()).toMatchObject({ cookie: BigInt(index), error: 0 });
    expect(disk.bytes.subarray(0, 2000)).toEqual(
      Buffer.concat(Array.from({ length: 40 }, (_, index) => pattern(50, index))),
    );
  });

  test("that come together with the handshake, and the end, are answered", async () => {
    const disk = new MemoryDisk();
    const client = await RawClient.ready((await serve(disk)).address);
    const requests = [0, 1, 2].map((index) =>
      requestBytesOf({ type: write, cookie: BigInt(index), offset: index, payload: pattern(1, index) }),
    );
    client.socket.end(Buffer.concat([optionBytesOf(option.exportName, Buffer.from("disk")), ...requests]));
    await client.take(10);
    for (const cookie of [0n, 1n, 2n]) expect(await client.takeReply()).toMatchObject({ cookie, error: 0 });
    await client.closed;
  });

  test("are answered out of order when one of them takes long", async () => {
    const disk = new MemoryDisk();
    const client = await RawClient.transmitting((await serve(disk)).address);
    const release = disk.hold();
    client.request({ type: flush, cookie: 1n });
    expect(await client.call({ type: write, cookie: 2n, payload: pattern(10) })).toMatchObject({ cookie: 2n });
    release();
    expect(await client.takeReply()).toMatchObject({ cookie: 1n, error: 0 });
  });

  test("to flush that come while one is under way share the next", async () => {
    const disk = new MemoryDisk();
    const client = await RawClient.transmitting((await serve(disk)).address);
    const release = disk.hold();
    client.request({ type: flush, cookie: 1n });
    for (let index = 0; index < 20; index += 1)
      client.request({ type: write, flags: commandFlag.fua, offset: index, payload: pattern(1) });
    expect(await client.call({ type: read, cookie: 2n, length: 0 })).toMatchObject({ cookie: 2n });
    release();
    for (let index = 0; index < 21; index += 1) expect(await client.takeReply()).toMatchObject({ error: 0 });
    expect(disk.flushes).toBe(2);
    expect(disk.durable.equals(disk.bytes)).toBe(true);
  });
});

describe("holes", () => {
  async function sparse(): Promise<RawClient> {
    const disk = new MemoryDisk(mib);
    pattern(8192, 3).copy(disk.bytes, 65536);
    disk.bytes.fill(9, 65536 + 4096, 65536 + 8192);
    return RawClient.transmitting((await serve(disk)).address, { structured: true, allocation: true });
  }

  test("are read as such in long structured reads", async () => {
    const client = await sparse();
    client.request({ type: read, offset: 0, length: mib });
    const [first, second, third] = [await client.takeReply(), await client.takeReply(), await client.takeReply()];
    expect(first).toMatchObject({ type: chunkType.offsetHole, isLast: false });
    expect(first.data.toString("hex")).toBe("0000000000000000" + "00010000");
    expect(second).toMatchObject({ type: chunkType.offsetData, isLast: false });
    expect(second.data.readBigUInt64BE(0)).toBe(65536n);
    expect(second.data.byteLength).toBe(8 + 8192);
    expect(third).toMatchObject({ type: chunkType.offsetHole, isLast: true });
    expect(third.data.readUInt32BE(8)).toBe(mib - 65536 - 8192);
  });

  test("are spelled out where the client wants one piece", async () => {
    const client = await sparse();
    const reply = await client.call({ type: read, flags: commandFlag.df, offset: 0, length: mib });
    expect(reply).toMatchObject({ type: chunkType.offsetData, isLast: true });
    expect(reply.data.byteLength).toBe(8 + mib);
  });

  test("are told by block status, one extent at a time if wished", async () => {
    const client = await sparse();
    const all = await client.call({ type: blockStatus, offset: 4096, length: mib - 4096 });
    expect(all).toMatchObject({ type: chunkType.blockStatus, isLast: true });
    const descriptors = [61440, 3, 8192, 0, mib - 73728, 3]
      .map((value) => value.toString(16).padStart(8, "0"))
      .join("");
    expect(all.data.toString("hex")).toBe(`00000001${descriptors}`);
    const one = await client.call({ type: blockStatus, flags: commandFlag.reqOne, offset: 4096, length: mib - 4096 });
    expect(one.data.toString("hex")).toBe(`00000001${descriptors.slice(0, 16)}`);
    expect(await client.call({ type: blockStatus, offset: mib, length: 1 })).toMatchObject({
      type: chunkType.error,
      error: wireError.inval,
    });
    expect(await client.call({ type: blockStatus, offset: 0, length: 0 })).toMatchObject({ error: wireError.inval });
  });

  test("that a disk has to look up are told exactly, and hold up no other request meanwhile", async () => {
    const disk = new UnknownDisk(mib);
    disk.bytes.fill(1, 65536, 65536 + 8192);
    const server = await serve(disk);
    const client = await RawClient.transmitting(server.address, { structured: true, allocation: true });
    client.request({ type: blockStatus, cookie: 1n, length: mib });
    expect(await client.call({ type: read, cookie: 2n, offset: 65536, length: 10 })).toMatchObject({
      cookie: 2n,
      error: 0,
    });
    disk.look();
    const status = await client.takeReply();
    expect(status).toMatchObject({ cookie: 1n, type: chunkType.blockStatus, isLast: true });
    const descriptors = [65536, 3, 8192, 0, mib - 73728, 3]
      .map((value) => value.toString(16).padStart(8, "0"))
      .join("");
    expect(status.data.toString("hex")).toBe(`00000001${descriptors}`);
    disk.failure = new TidemarkError("STORE_UNREACHABLE", "it is away");
    const failed = await client.call({ type: blockStatus, length: mib });
    expect(failed).toMatchObject({ type: chunkType.error, isLast: true, error: wireError.io });
  });
});

/** Knows nothing at once of what it holds, and looks when it is told to. */
class UnknownDisk extends MemoryDisk {
  look: () => void = () => undefined;
  readonly #told = new Promise<void>((resolve) => {
    this.look = resolve;
  });

  override extents(): DeviceExtent[] {
    return [];
  }

  async lookUp(offset: number, length: number, countMax: number): Promise<DeviceExtent[]> {
    await this.#told;
    return super.extents(offset, length, countMax);
  }
}

describe("two connections", () => {
  test("see one disk, and a flush on one covers the writes of the other", async () => {
    const disk = new MemoryDisk();
    const server = await serve(disk);
    const [one, two] = [await RawClient.transmitting(server.address), await RawClient.transmitting(server.address)];
    expect(server.connections).toBe(2);
    await one.call({ type: write, offset: 100, payload: pattern(300) });
    await two.call({ type: flush });
    expect(disk.durable.subarray(100, 400)).toEqual(pattern(300));
    await two.call({ type: read, offset: 100, length: 300 });
    expect(await two.take(300)).toEqual(pattern(300));
  });

  test("a disk that has grown is served in its new size", async () => {
    const disk = new MemoryDisk(4096);
    const server = await serve(disk);
    const client = await RawClient.transmitting(server.address);
    expect(await client.call({ type: write, offset: 4096, payload: pattern(10) })).toMatchObject({
      error: wireError.noSpc,
    });
    disk.bytes = Buffer.alloc(8192);
    expect(await client.call({ type: write, offset: 4096, payload: pattern(10) })).toMatchObject({ error: 0 });
    const later = await RawClient.ready(server.address);
    expect((await later.ask(option.info, infoQuery("disk")))[0]?.data.readBigUInt64BE(2)).toBe(8192n);
  });
});
