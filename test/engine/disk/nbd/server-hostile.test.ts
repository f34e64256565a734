/**
 * Clients that break the rules, and ends of every kind: they cost their own connection, nothing
 * else.
 */
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, statSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { command, option } from "../../../../engine/disk/nbd/protocol.ts";
import { NbdServer } from "../../../../engine/disk/nbd/server.ts";
import { MemoryDisk, optionBytesOf, RawClient, requestBytesOf, serve, temporaryFolder, uint32 } from "./server-rig.ts";

const mib = 1024 * 1024;

async function expectServing(server: NbdServer): Promise<void> {
  const client = await RawClient.transmitting(server.address);
  expect(await client.call({ type: command.flush })).toMatchObject({ error: 0 });
  client.socket.destroy();
}

describe("a hostile client", () => {
  test.each([
    ["a wrong magic number of an option", Buffer.alloc(16, 0x41)],
    [
      "an export name of 4 GiB",
      Buffer.concat([optionBytesOf(option.exportName).subarray(0, 12), Buffer.alloc(4, 0xff)]),
    ],
    ["more options than anybody needs", Buffer.concat(Array.from({ length: 300 }, () => optionBytesOf(option.list)))],
  ])("with %s loses its connection", async (_what, bytes) => {
    const server = await serve(new MemoryDisk());
    const client = await RawClient.ready(server.address);
    client.send(bytes);
    await client.closed;
    await expectServing(server);
  });

  test("with a wrong magic number of a request loses its connection, and the other keeps its own", async () => {
    const server = await serve(new MemoryDisk());
    const [good, bad] = [await RawClient.transmitting(server.address), await RawClient.transmitting(server.address)];
    bad.send(Buffer.alloc(28, 0x42));
    await bad.closed;
    expect(await good.call({ type: command.flush })).toMatchObject({ error: 0 });
  });

  test.each([0, 3, 4, 11, 23])(
    "that stops in the handshake after %i bytes is sent away when its time is over",
    async (count) => {
      const server = await serve(new MemoryDisk(), { handshakeMsMax: 300 });
      const client = await RawClient.connect(server.address);
      client.send(
        Buffer.concat([Buffer.from([0, 0, 0, 3]), optionBytesOf(option.exportName, Buffer.from("disk"))]).subarray(
          0,
          count,
        ),
      );
      const before = process.cpuUsage();
      await client.closed;
      // A server that spins while it waits would burn the whole time. Other threads of this process
      // take some of it.
      expect(process.cpuUsage(before).user).toBeLessThan(250_000);
      await expectServing(server);
    },
  );

  test("that has finished the handshake may be silent", async () => {
    const server = await serve(new MemoryDisk(), { handshakeMsMax: 30 });
    const client = await RawClient.transmitting(server.address);
    // When one that came later has had its time, the time of this one is over too.
    const later = await RawClient.connect(server.address);
    await later.closed;
    expect(await client.call({ type: command.flush })).toMatchObject({ error: 0 });
  });

  test("that closes in the middle of a payload leaves the disk as it was", async () => {
    const disk = new MemoryDisk();
    const server = await serve(disk);
    const client = await RawClient.transmitting(server.address);
    client.send(requestBytesOf({ type: command.write, payload: Buffer.alloc(200_000, 1) }).subarray(0, 150_000));
    client.socket.end();
    await client.closed;
    await expectServing(server);
    expect(disk.bytes.every((byte) => byte === 0)).toBe(true);
  });

  test("that pipelines 10,000 requests has a bounded number of them begun, and gets every answer", async () => {
    const disk = new MemoryDisk();
    disk.answersAtOnce = false;
    const server = await serve(disk);
    const client = await RawClient.transmitting(server.address);
    const release = disk.hold();
    const count = 10_000;
    client.send(
      Buffer.concat(
        Array.from({ length: count }, (_, index) =>
          requestBytesOf({ type: command.write, cookie: BigInt(index), payload: Buffer.alloc(64) }),
        ),
      ),
    );
    await expect.poll(() => disk.underWay).toBe(256);
    release();
    const answered = new Set<bigint>();
    for (let index = 0; index < count; index += 1) answered.add((await client.takeReply()).cookie);
    expect(answered.size).toBe(count);
    expect(disk.underWayMax).toBe(256);
  });

  test("that never reads its answers is not read from any more, and its memory stays bounded", async () => {
    const server = await serve(new MemoryDisk(8 * mib));
    const client = await RawClient.transmitting(server.address);
    client.socket.pause();
    const request = requestBytesOf({ type: command.read, length: 64 * 1024 });
    const before = process.memoryUsage().arrayBuffers;
    client.send(Buffer.concat(Array.from({ length: 20_000 }, () => request)));
    await expectServing(server);
    for (let turn = 0; turn < 200; turn += 1) await new Promise(setImmediate);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(16 * mib);
    await expectServing(server);
  });

  test("finds no room among too many others", async () => {
    const server = await serve(new MemoryDisk(), { connectionsMax: 2 });
    const first = await RawClient.transmitting(server.address);
    await RawClient.transmitting(server.address);
    const third = await RawClient.transmitting(server.address);
    await third.closed;
    expect(await first.call({ type: command.flush })).toMatchObject({ error: 0 });
  });
});

describe("many clients", () => {
  test("that say nothing keep no other out, and none that has agreed", async () => {
    const server = await serve(new MemoryDisk());
    const agreed = await RawClient.transmitting(server.address);
    const silent: RawClient[] = [];
    for (let count = 0; count < 100; count += 1) silent.push(await RawClient.connect(server.address));
    await expectServing(server);
    expect(await agreed.call({ type: command.flush })).toMatchObject({ error: 0 });
    await silent[0]?.closed;
    expect(server.connections).toBeLessThanOrEqual(1 + 32 + 1);
  });

  test.runIf(process.platform === "linux")("of one address do not end the handshakes of another", async () => {
    const server = await serve(new MemoryDisk(), { listen: { kind: "tcp", host: "127.0.0.1", port: 0 } });
    const port = server.address.kind === "tcp" ? server.address.port : 0;
    const from = async (localAddress: string): Promise<RawClient> => {
      const socket = connect({ host: "127.0.0.1", port, localAddress });
      await once(socket, "connect");
      onTestFinished(() => void socket.destroy());
      return new RawClient(socket);
    };
    const slow = await from("127.0.0.2");
    await slow.take(18);
    for (let count = 0; count < 100; count += 1) await (await from("127.0.0.3")).take(18);
    slow.send(uint32(3));
    expect((await slow.ask(option.list)).length).toBe(2);
  });

  test("that read and take nothing hold one budget together, and small reads go on", async () => {
    const disk = new MemoryDisk(8 * mib);
    disk.answersAtOnce = false;
    const server = await serve(disk, { replyBytesMax: 16 * mib });
    const before = process.memoryUsage().arrayBuffers;
    for (let count = 0; count < 8; count += 1) {
      const client = await RawClient.transmitting(server.address);
      client.socket.pause();
      for (let read = 0; read < 8; read += 1) client.request({ type: command.read, length: 8 * mib });
    }
    await expectServing(server);
    for (let turn = 0; turn < 200; turn += 1) await new Promise(setImmediate);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(40 * mib);
    const witness = await RawClient.transmitting(server.address);
    expect(await witness.call({ type: command.read, length: 4096 })).toMatchObject({ error: 0 });
  });

  test("that read more than the budget, and take it, are all answered", async () => {
    const disk = new MemoryDisk(mib);
    disk.answersAtOnce = false;
    const server = await serve(disk, { replyBytesMax: 1.5 * mib });
    const read = async (): Promise<void> => {
      const client = await RawClient.transmitting(server.address);
      for (let count = 0; count < 4; count += 1) client.request({ type: command.read, length: mib });
      for (let count = 0; count < 4; count += 1) {
        expect(await client.takeReply()).toMatchObject({ error: 0 });
        await client.take(mib);
      }
    };
    await Promise.all([read(), read(), read()]);
  });

  test.each([
    ["takes no reply", (client: RawClient) => client.request({ type: command.read, length: 8 * mib })],
    [
      "ends in the middle of a payload",
      (client: RawClient) =>
        client.send(requestBytesOf({ type: command.write, length: 100_000 }), Buffer.alloc(50_000)),
    ],
  ])("of which one %s: it is ended, the others stay", async (_what, stall) => {
    const server = await serve(new MemoryDisk(8 * mib), { stalledMsMax: 100 });
    const idle = await RawClient.transmitting(server.address);
    const client = await RawClient.transmitting(server.address);
    client.socket.pause();
    stall(client);
    await expect.poll(() => server.connections).toBe(1);
    expect(await idle.call({ type: command.flush })).toMatchObject({ error: 0 });
  });
});

describe("the end", () => {
  test("asked for by the client comes after the requests under way", async () => {
    const disk = new MemoryDisk();
    const server = await serve(disk);
    const client = await RawClient.transmitting(server.address);
    const release = disk.hold();
    client.request({ type: command.flush, cookie: 1n });
    client.request({ type: command.disconnect });
    client.request({ type: command.write, payload: Buffer.alloc(10, 1) });
    await expect.poll(() => disk.underWay).toBe(1);
    release();
    expect(await client.takeReply()).toMatchObject({ cookie: 1n, error: 0 });
    await client.closed;
    expect(client.untaken).toBe(0);
    expect(disk.bytes[0]).toBe(0);
    await expect.poll(() => server.connections).toBe(0);
  });

  test("of the server comes after the requests under way", async () => {
    const disk = new MemoryDisk();
    const server = await serve(disk);
    const client = await RawClient.transmitting(server.address);
    const release = disk.hold();
    client.request({ type: command.flush, cookie: 1n });
    await expect.poll(() => disk.underWay).toBe(1);
    let isClosed = false;
    const closing = server.close().then(() => {
      isClosed = true;
    });
    await new Promise(setImmediate);
    expect(isClosed).toBe(false);
    release();
    expect(await client.takeReply()).toMatchObject({ cookie: 1n, error: 0 });
    await closing;
    expect(server.connections).toBe(0);
  });

  test("of the server comes by force when a request takes too long", async () => {
    const disk = new MemoryDisk();
    const server = await serve(disk);
    const client = await RawClient.transmitting(server.address);
    const release = disk.hold();
    client.request({ type: command.flush });
    await expect.poll(() => disk.underWay).toBe(1);
    await server.close({ graceMs: 10 });
    await client.closed;
    release();
  });

  test("of an export ends its connections and no other", async () => {
    const server = await serve(new MemoryDisk());
    server.addExport({ name: "other", device: new MemoryDisk() });
    const [gone, stays] = [
      await RawClient.transmitting(server.address),
      await RawClient.transmitting(server.address, { name: "other" }),
    ];
    await server.removeExport("disk");
    await gone.closed;
    expect(await stays.call({ type: command.flush })).toMatchObject({ error: 0 });
    await server.removeExport("disk");
    expect(() => server.addExport({ name: "other", device: new MemoryDisk() })).toThrow(
      /already an export named "other"/,
    );
  });
});

describe("the socket file", () => {
  test("is the owner's only, and gone when the server is closed", async () => {
    const path = join(temporaryFolder(), "s");
    const server = await serve(new MemoryDisk(), { listen: { kind: "unix", path } });
    expect(statSync(path).mode % 0o1000).toBe(0o600);
    await server.close();
    expect(existsSync(path)).toBe(false);
  });

  test("of a dead server is replaced", async () => {
    const path = join(temporaryFolder(), "s");
    const script = `require("net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL"))`;
    expect(spawnSync(process.execPath, ["-e", script]).signal).toBe("SIGKILL");
    expect(existsSync(path)).toBe(true);
    await expectServing(await serve(new MemoryDisk(), { listen: { kind: "unix", path } }));
  });

  test("of a living server, and what is no socket, are left alone", async () => {
    const path = join(temporaryFolder(), "s");
    const server = await serve(new MemoryDisk(), { listen: { kind: "unix", path } });
    await expect(NbdServer.listen({ listen: { kind: "unix", path } })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
    await expectServing(server);
    const file = join(temporaryFolder(), "f");
    writeFileSync(file, "precious");
    await expect(NbdServer.listen({ listen: { kind: "unix", path: file } })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
    expect(existsSync(file)).toBe(true);
  });
});

describe("on TCP", () => {
  test("any free port is taken and told", async () => {
    const server = await serve(new MemoryDisk(), { listen: { kind: "tcp", host: "127.0.0.1", port: 0 } });
    expect(server.address).toMatchObject({ kind: "tcp", host: "127.0.0.1" });
    expect(server.warnings).toEqual([]);
    await expectServing(server);
  });

  test("a port that is taken is refused by name", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => other.once("listening", resolve));
    const address = other.address();
    const port = address === null || typeof address === "string" ? 0 : address.port;
    await expect(NbdServer.listen({ listen: { kind: "tcp", host: "127.0.0.1", port } })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      message: `cannot listen on 127.0.0.1:${port}: another server listens there`,
    });
    other.close();
  });

  test("an address that others reach without TLS comes with a warning", async () => {
    const server = await serve(new MemoryDisk(), { listen: { kind: "tcp", host: "0.0.0.0", port: 0 } });
    expect(server.warnings).toEqual([expect.stringContaining("set up TLS")]);
  });
});
