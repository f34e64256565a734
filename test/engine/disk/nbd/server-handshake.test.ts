/** Every option of the handshake, what it answers, and how it refuses. */
import { describe, expect, test } from "vitest";
import { command, infoType, option, optionReply, transmissionFlag } from "../../../../engine/disk/nbd/protocol.ts";
import { infoQuery, MemoryDisk, metaQuery, RawClient, serve, uint32 } from "./server-rig.ts";

const { hasFlags, sendFlush, sendFua, canMultiConn, sendTrim, sendWriteZeroes, sendFastZero, sendDf, readOnly } =
  transmissionFlag;
const readWriteFlags = hasFlags | sendFlush | sendFua | canMultiConn | sendTrim | sendWriteZeroes | sendFastZero;

describe("the handshake", () => {
  test("greets with fixed newstyle and without zeroes", async () => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.connect(server.address);
    expect((await client.take(18)).toString("hex")).toBe("4e42444d41474943" + "49484156454f5054" + "0003");
  });

  test.each([4, 0x80000000])("closes on the unknown client flags %i", async (flags) => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address, flags);
    await client.closed;
    expect(client.untaken).toBe(0);
  });

  test("export name leads to the transmission, with 124 zeroes unless they were declined", async () => {
    const server = await serve(new MemoryDisk(8192));
    for (const [flags, zeroes] of [
      [0, 124],
      [1, 124],
      [3, 0],
    ] as const) {
      const client = await RawClient.ready(server.address, flags);
      client.sendOption(option.exportName, Buffer.from("disk"));
      const answer = await client.take(10 + zeroes);
      expect(answer.readBigUInt64BE(0)).toBe(8192n);
      expect(answer.readUInt16BE(8)).toBe(readWriteFlags);
      expect(answer.subarray(10)).toEqual(Buffer.alloc(zeroes));
      expect(await client.call({ type: command.flush, cookie: 99n })).toMatchObject({ cookie: 99n, error: 0 });
      expect(client.untaken).toBe(0);
    }
  });

  test("an export name that is not offered closes the connection", async () => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address);
    client.sendOption(option.exportName, Buffer.from("other"));
    await client.closed;
    expect(client.untaken).toBe(0);
  });

  test("a client without fixed newstyle gets no option but the export name", async () => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address, 0);
    client.sendOption(option.list);
    await client.closed;
    expect(client.untaken).toBe(0);
  });

  test("the empty name is the only export, and none among several", async () => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address);
    const [first, second] = await client.ask(option.info, infoQuery("", infoType.name));
    expect(first?.data.readUInt16BE(0)).toBe(infoType.export);
    expect(second?.data.toString("utf8", 2)).toBe("disk");
    server.addExport({ name: "second", device: new MemoryDisk() });
    expect(await client.ask(option.info, infoQuery(""))).toMatchObject([{ type: optionReply.errUnknown }]);
    const nameless = new MemoryDisk(4096);
    server.addExport({ name: "", device: nameless });
    expect((await client.ask(option.info, infoQuery("")))[0]?.data.readBigUInt64BE(2)).toBe(4096n);
  });

  test("info tells size, flags, name, description and block sizes, and go the same before the transmission", async () => {
    const server = await serve(new MemoryDisk(12345));
    const client = await RawClient.ready(server.address);
    const query = infoQuery("disk", infoType.name, infoType.description, infoType.blockSize, 77);
    const told = await client.ask(option.info, query);
    expect(told.map(({ type }) => type)).toEqual([3, 3, 3, 3, optionReply.ack]);
    const facts = new Map(told.slice(0, 4).map(({ data }) => [data.readUInt16BE(0), data.subarray(2)]));
    expect(facts.get(infoType.export)?.readBigUInt64BE(0)).toBe(12345n);
    expect(facts.get(infoType.export)?.readUInt16BE(8)).toBe(readWriteFlags);
    expect(facts.get(infoType.name)?.toString()).toBe("disk");
    expect(facts.get(infoType.description)?.toString()).toBe("a disk for tests");
    expect(facts.get(infoType.blockSize)?.toString("hex")).toBe("00000001" + "00001000" + "02000000");
    expect(await client.ask(option.go, query)).toEqual(told.map((reply) => ({ ...reply, option: option.go })));
    expect(await client.call({ type: command.flush })).toMatchObject({ error: 0 });
  });

  test.each([option.info, option.go])(
    "option %i refuses unknown exports and lengths that do not fit, and goes on",
    async (id) => {
      const server = await serve(new MemoryDisk());
      const client = await RawClient.ready(server.address);
      expect(await client.ask(id, infoQuery("other"))).toMatchObject([{ type: optionReply.errUnknown }]);
      const broken = [
        Buffer.alloc(0),
        uint32(3),
        uint32(0xffffffff),
        infoQuery("disk").subarray(0, 9),
        Buffer.concat([infoQuery("disk", 1), Buffer.alloc(1)]),
        infoQuery("disk", 1).subarray(0, -1),
        infoQuery("di\0sk"),
        Buffer.concat([uint32(2), Buffer.from([0xff, 0xfe]), Buffer.alloc(2)]),
      ];
      for (const data of broken) expect(await client.ask(id, data)).toMatchObject([{ type: optionReply.errInvalid }]);
      expect((await client.ask(option.list)).at(-1)).toMatchObject({ type: optionReply.ack });
    },
  );

  test("list names every export with its description", async () => {
    const server = await serve(new MemoryDisk());
    server.addExport({ name: "zweite Platte", device: new MemoryDisk() });
    const client = await RawClient.ready(server.address);
    const replies = await client.ask(option.list);
    expect(replies.map(({ type }) => type)).toEqual([optionReply.server, optionReply.server, optionReply.ack]);
    expect(replies[0]?.data.toString("latin1")).toBe("\0\0\0\x04diska disk for tests");
    expect(replies[1]?.data.toString("utf8", 4)).toBe("zweite Platte");
    expect(await client.ask(option.list, Buffer.alloc(1))).toMatchObject([{ type: optionReply.errInvalid }]);
  });

  test("abort is acknowledged and closes the connection", async () => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address);
    expect(await client.ask(option.abort)).toMatchObject([{ type: optionReply.ack, option: option.abort }]);
    await client.closed;
  });

  test.each([4, 11, 12345, 0xffffffff])(
    "the unknown option %i is refused as such, with its data skipped",
    async (id) => {
      const server = await serve(new MemoryDisk());
      const client = await RawClient.ready(server.address);
      expect(await client.ask(id, Buffer.alloc(1000, 1))).toMatchObject([{ option: id, type: optionReply.errUnsup }]);
      expect((await client.ask(option.list)).at(-1)).toMatchObject({ type: optionReply.ack });
    },
  );

  test("an option that is too long is skipped and refused", async () => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address);
    expect(await client.ask(option.go, Buffer.alloc(1_000_000))).toMatchObject([{ type: optionReply.errTooBig }]);
    expect((await client.ask(option.list)).at(-1)).toMatchObject({ type: optionReply.ack });
  });

  test("without TLS, starting it is against the policy", async () => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address);
    expect(await client.ask(option.startTls)).toMatchObject([{ type: optionReply.errPolicy }]);
  });

  test("structured replies bring the flag for unfragmented reads", async () => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address);
    expect(await client.ask(option.structuredReply, Buffer.alloc(4))).toMatchObject([{ type: optionReply.errInvalid }]);
    expect((await client.ask(option.info, infoQuery("disk")))[0]?.data.readUInt16BE(10)).toBe(readWriteFlags);
    expect(await client.ask(option.structuredReply)).toMatchObject([{ type: optionReply.ack }]);
    expect((await client.ask(option.info, infoQuery("disk")))[0]?.data.readUInt16BE(10)).toBe(readWriteFlags | sendDf);
  });

  test.each([
    ["by its offer", new MemoryDisk(), true],
    ["by its device", new MemoryDisk(4096, { readOnly: true }), false],
  ])("an export that is read-only %s says so", async (_how, device, isReadOnly) => {
    const server = await serve(new MemoryDisk());
    server.addExport({ name: "ro", device, readOnly: isReadOnly });
    const client = await RawClient.ready(server.address);
    const flags = (await client.ask(option.info, infoQuery("ro")))[0]?.data.readUInt16BE(10);
    expect(flags).toBe(hasFlags | readOnly | sendFlush | sendFua | canMultiConn);
  });
});

describe("metadata contexts", () => {
  test("are to be had after structured replies only", async () => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address);
    for (const id of [option.listMetaContext, option.setMetaContext]) {
      expect(await client.ask(id, metaQuery("disk", "base:allocation"))).toMatchObject([
        { type: optionReply.errInvalid },
      ]);
    }
  });

  test.each([
    [option.listMetaContext, [], 1],
    [option.listMetaContext, ["base:"], 1],
    [option.listMetaContext, ["base:allocation"], 1],
    [option.listMetaContext, ["qemu:"], 0],
    [option.setMetaContext, [], 0],
    [option.setMetaContext, ["base:"], 0],
    [option.setMetaContext, ["x-other:thing", "base:allocation"], 1],
    [option.setMetaContext, ["base:allocation", "base:allocation"], 1],
  ] as const)("option %i with the queries %j finds %i", async (id, queries, count) => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address);
    await client.ask(option.structuredReply);
    const replies = await client.ask(id, metaQuery("disk", ...queries));
    expect(replies.map(({ type }) => type)).toEqual([
      ...Array<number>(count).fill(optionReply.metaContext),
      optionReply.ack,
    ]);
    if (count === 1) expect(replies[0]?.data.toString("utf8", 4)).toBe("base:allocation");
  });

  test("refuse unknown exports and lengths that do not fit", async () => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address);
    await client.ask(option.structuredReply);
    expect(await client.ask(option.setMetaContext, metaQuery("other"))).toMatchObject([
      { type: optionReply.errUnknown },
    ]);
    const whole = metaQuery("disk", "base:allocation");
    const broken = [
      whole.subarray(0, -1),
      Buffer.concat([whole, Buffer.alloc(4)]),
      whole.subarray(0, 8),
      Buffer.alloc(3),
    ];
    const more = [
      Buffer.concat([metaQuery("disk"), uint32(5)]),
      Buffer.concat([metaQuery("disk").subarray(0, 8), uint32(0xffffffff)]),
    ];
    for (const data of [...broken, ...more]) {
      expect(await client.ask(option.setMetaContext, data)).toMatchObject([{ type: optionReply.errInvalid }]);
    }
  });

  test("that were selected for another export, or in vain, do not count", async () => {
    const server = await serve(new MemoryDisk());
    server.addExport({ name: "other", device: new MemoryDisk() });
    for (const spoil of [metaQuery("other", "base:allocation"), metaQuery("disk"), Buffer.alloc(2)]) {
      const client = await RawClient.ready(server.address);
      await client.ask(option.structuredReply);
      await client.ask(option.setMetaContext, metaQuery("disk", "base:allocation"));
      await client.ask(option.setMetaContext, spoil);
      await client.ask(option.go, infoQuery("disk"));
      expect(await client.call({ type: command.blockStatus, length: 4096 })).toMatchObject({ error: 22 });
    }
  });
});
