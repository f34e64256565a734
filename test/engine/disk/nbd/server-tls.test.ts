/**
 * TLS: nothing is to be had before it, and no client gets in without a certificate of our authority.
 */
import { beforeAll, describe, expect, test } from "vitest";
import { command, option, optionReply } from "../../../../engine/disk/nbd/protocol.ts";
import { NbdServer } from "../../../../engine/disk/nbd/server.ts";
import { whyMissing } from "./server-peer.ts";
import { infoQuery, MemoryDisk, metaQuery, optionBytesOf, RawClient, serve } from "./server-rig.ts";
import { type Certificates, makeCertificates, upgraded } from "./tls-certificates.ts";

const missing = whyMissing("openssl");

describe.skipIf(missing !== undefined)(`over TLS${missing === undefined ? "" : ` (${missing})`}`, () => {
  let server: Certificates["server"];
  let client: Certificates["client"];
  let stranger: Certificates["stranger"];

  beforeAll(() => {
    ({ server, client, stranger } = makeCertificates());
  });

  test("a plain client is refused everything but TLS and the end", async () => {
    const { address } = await serve(new MemoryDisk(), { tls: server });
    const plain = await RawClient.ready(address);
    for (const [id, data] of [
      [option.list, undefined],
      [option.go, infoQuery("disk")],
      [option.info, infoQuery("disk")],
      [option.structuredReply, undefined],
      [option.setMetaContext, metaQuery("disk")],
      [999, undefined],
    ] as const) {
      expect(await plain.ask(id, data)).toMatchObject([{ type: optionReply.errTlsReqd }]);
    }
    expect(await plain.ask(option.abort)).toMatchObject([{ type: optionReply.ack }]);
    await plain.closed;
    const bold = await RawClient.ready(address);
    bold.sendOption(option.exportName, Buffer.from("disk"));
    await bold.closed;
    expect(bold.untaken).toBe(0);
  });

  test.each(["TLSv1.2", "TLSv1.3"] as const)(
    "a client with our certificate is served over %s, pipelined and in megabytes",
    async (version) => {
      const disk = new MemoryDisk(8 * 1024 * 1024);
      const { address } = await serve(disk, { tls: server });
      const secure = await upgraded(await RawClient.ready(address), {
        ...client,
        minVersion: version,
        maxVersion: version,
      });
      expect(await secure.ask(option.startTls)).toMatchObject([{ type: optionReply.errInvalid }]);
      expect((await secure.ask(option.go, infoQuery("disk"))).at(-1)).toMatchObject({ type: optionReply.ack });
      const payload = Buffer.from(Uint8Array.from({ length: 1024 * 1024 }, (_, index) => (index * 7) % 253));
      for (let index = 0; index < 8; index += 1)
        secure.request({ type: command.write, offset: index * payload.byteLength, payload });
      for (let index = 0; index < 8; index += 1) expect(await secure.takeReply()).toMatchObject({ error: 0 });
      for (let index = 0; index < 8; index += 1)
        secure.request({ type: command.read, offset: index * payload.byteLength, length: payload.byteLength });
      for (let index = 0; index < 8; index += 1) {
        expect(await secure.takeReply()).toMatchObject({ error: 0 });
        expect((await secure.take(payload.byteLength)).equals(payload)).toBe(true);
      }
      secure.request({ type: command.disconnect });
      await secure.closed;
    },
  );

  test("a client of another authority, or without a certificate, learns nothing", async () => {
    const tlsServer = await serve(new MemoryDisk(), { tls: server });
    for (const options of [stranger, { ca: client.ca }]) {
      const secure = await upgraded(await RawClient.ready(tlsServer.address), options);
      secure.sendOption(option.list);
      await secure.closed;
      expect(secure.untaken).toBe(0);
    }
    await expect.poll(() => tlsServer.connections).toBe(0);
  });

  test("words that came before the encryption close the connection", async () => {
    const { address } = await serve(new MemoryDisk(), { tls: server });
    const plain = await RawClient.ready(address);
    plain.send(optionBytesOf(option.startTls), optionBytesOf(option.list));
    await plain.closed;
    expect(plain.untaken).toBe(0);
  });

  test("a client that stops in the TLS handshake is sent away when its time is over", async () => {
    const tlsServer = await serve(new MemoryDisk(), { tls: server, handshakeMsMax: 100 });
    const plain = await RawClient.ready(tlsServer.address);
    await plain.ask(option.startTls);
    await plain.closed;
    await expect.poll(() => tlsServer.connections).toBe(0);
  });

  // A client that ends its side sends no hello any more, so nothing is to be waited for.
  test.each([
    ["is gone before the answer", (plain: RawClient) => plain.send(optionBytesOf(option.startTls)), "destroy"],
    ["is gone after the answer", async (plain: RawClient) => plain.ask(option.startTls), "destroy"],
    ["sends no more", async (plain: RawClient) => plain.ask(option.startTls), "end"],
  ] as const)("a client that asks for TLS and %s costs no connection", async (_title, ask, ending) => {
    const tlsServer = await serve(new MemoryDisk(), { tls: server, handshakeMsMax: 3_600_000 });
    const plain = await RawClient.ready(tlsServer.address);
    await ask(plain);
    plain.socket[ending]();
    await plain.closed;
    await expect.poll(() => tlsServer.connections).toBe(0);
  });

  test("a client that sends no more gets the answers that it is owed", async () => {
    const disk = new MemoryDisk();
    disk.answersAtOnce = false;
    const { address } = await serve(disk, { tls: server });
    const secure = await upgraded(await RawClient.ready(address), client);
    await secure.ask(option.go, infoQuery("disk"));
    const release = disk.hold();
    secure.request({ type: command.read, length: 100_000 });
    secure.socket.end();
    await expect.poll(() => disk.underWay).toBe(1);
    release();
    expect(await secure.takeReply()).toMatchObject({ error: 0 });
    expect(await secure.take(100_000)).toHaveLength(100_000);
    await secure.closed;
  });

  test("keys that do not fit are refused before anybody listens", async () => {
    const listen = { kind: "tcp", host: "127.0.0.1", port: 0 } as const;
    await expect(NbdServer.listen({ listen, tls: { ...server, key: client.key } })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
    await expect(NbdServer.listen({ listen, tls: { ...server, cert: "nonsense" } })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
  });

  test("the server closes while a client is connected", async () => {
    const tlsServer = await serve(new MemoryDisk(), { tls: server });
    const secure = await upgraded(await RawClient.ready(tlsServer.address), client);
    await secure.ask(option.go, infoQuery("disk"));
    await tlsServer.close({ graceMs: 5000 });
    await secure.closed;
  });
});
