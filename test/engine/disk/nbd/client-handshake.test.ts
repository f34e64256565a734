import { once } from "node:events";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { NbdClient } from "../../../../engine/disk/nbd/client.ts";
import { NbdVolume, parseNbdUri } from "../../../../engine/disk/nbd/nbd-volume.ts";
import { agreed, all, closeAll, connect, gib, mib, type Script, serve } from "./client-rig.ts";
import { be16, be32, be64, type Peer } from "./scripted-server.ts";

afterEach(closeAll);

describe("connecting", () => {
  test("tells size and whether the export is read-only", async () => {
    const client = await agreed({ sizeBytes: 5 * gib, flags: 3 }, () => undefined);
    expect([client.sizeBytes, client.readOnly, client.hasContext("base:allocation")]).toEqual([5 * gib, true, false]);
    expect(client.description).toMatch(/^nbd\+unix:\/\/\/disk\?socket=/);
  });

  test("where no server listens is SOURCE_NOT_FOUND", async () => {
    const path = join(tmpdir(), "no-such-folder", "socket");
    await expect(NbdClient.connect({ kind: "unix", path, exportName: "" })).rejects.toMatchObject({
      code: "SOURCE_NOT_FOUND",
    });
    const listener = net.createServer().listen(0, "127.0.0.1");
    await once(listener, "listening");
    const { port } = listener.address() as net.AddressInfo;
    await new Promise((resolve) => listener.close(resolve));
    await expect(NbdClient.connect({ kind: "tcp", host: "127.0.0.1", port, exportName: "" })).rejects.toMatchObject({
      code: "SOURCE_NOT_FOUND",
    });
  });

  const refusals: readonly (readonly [fact: string, type: number, code: string])[] = [
    ["the export is unknown", 0x80000006, "SOURCE_NOT_FOUND"],
    ["TLS is needed", 0x80000005, "ACCESS_REFUSED"],
    ["the policy forbids it", 0x80000002, "ACCESS_REFUSED"],
    ["GO is unknown", 0x80000001, "FORMAT_UNSUPPORTED"],
    ["the server is shutting down", 0x80000007, "SOURCE_UNREADABLE"],
    ["the error is one from the future", 0x80001234, "SOURCE_UNREADABLE"],
  ];
  test.each(refusals)(
    "to a server that says that %s (%i) is %s, with its words cleaned of control characters",
    async (_fact, type, code) => {
      const server = await serve(async (peer) => {
        await peer.greet();
        peer.reply((await peer.option()).option, 1);
        peer.reply((await peer.option()).option, type, "because\u001b[31m\nof you");
      });
      await expect(connect(server)).rejects.toMatchObject({
        code,
        message: expect.stringContaining("because [31m of you") as string,
      });
    },
  );

  test("to a server without structured replies or contexts goes on without them", async () => {
    const client = await agreed({ sizeBytes: mib, structured: false, contexts: ["base:allocation"] }, () => undefined);
    expect(client.hasContext("base:allocation")).toBe(false);
    await expect(all(client.status("base:allocation", 0, mib))).rejects.toMatchObject({ code: "SOURCE_NOT_FOUND" });
  });

  test("with TLS to a server that offers none is ACCESS_REFUSED, and nothing is said in clear", async () => {
    const asked: number[] = [];
    const server = await serve(async (peer) => {
      await peer.greet();
      for (;;) {
        const { option } = await peer.option();
        asked.push(option);
        peer.reply(option, 0x80000001);
      }
    });
    await expect(connect(server, { tls: {} })).rejects.toMatchObject({ code: "ACCESS_REFUSED" });
    expect(asked).toEqual([5]);
  });

  test("with TLS to a server that sends clear text after it agreed is refused", async () => {
    const server = await serve(async (peer) => {
      await peer.greet();
      await peer.option();
      peer.send(be64(0x0003e889045565a9n), be32(5), be32(1), be32(0), "injected");
    });
    await expect(connect(server, { tls: {} })).rejects.toMatchObject({
      code: "SOURCE_UNREADABLE",
      message: expect.stringContaining("in clear") as string,
    });
  });

  const wrong: readonly (readonly [fact: string, code: string, script: Script])[] = [
    ["speaks HTTP", "FORMAT_UNSUPPORTED", (peer) => peer.send("HTTP/1.1 400 Bad Request\r\n\r\n")],
    ["speaks the old style", "FORMAT_UNSUPPORTED", (peer) => peer.send("NBDMAGIC", be64(0x00420281861253n), be64(0n))],
    ["is not fixed", "FORMAT_UNSUPPORTED", (peer) => peer.send("NBDMAGICIHAVEOPT", be16(2))],
    ["hangs up", "SOURCE_UNREADABLE", (peer) => peer.hangUp()],
    ["hangs up in its greeting", "SOURCE_UNREADABLE", (peer) => void peer.socket.end("NBDMAGICIHA")],
    ["answers another question", "SOURCE_UNREADABLE", (peer) => peer.greet().then(() => peer.reply(77, 1))],
    [
      "answers without the magic number",
      "SOURCE_UNREADABLE",
      (peer) => peer.greet().then(() => peer.send(Buffer.alloc(20))),
    ],
    [
      "announces 4 GiB",
      "SOURCE_UNREADABLE",
      (peer) => peer.greet().then(() => peer.send(be64(0x0003e889045565a9n), be32(8), be32(1), be32(2 ** 32 - 1))),
    ],
    ["tells no size", "SOURCE_UNREADABLE", afterStructured((peer) => peer.reply(7, 1))],
    ["claims a size beyond all disks", "SOURCE_UNREADABLE", afterStructured((peer) => exportOf(peer, 2n ** 63n))],
    [
      "describes its export in 11 bytes",
      "SOURCE_UNREADABLE",
      afterStructured((peer) => peer.reply(7, 3, Buffer.alloc(11))),
    ],
    ["never stops to inform", "SOURCE_UNREADABLE", afterStructured((peer) => flood(peer))],
    ["has blocks of 0 bytes", "SOURCE_UNREADABLE", afterStructured((peer) => blocksOf(peer, 0, 0, 4096))],
    ["has blocks of 3 bytes", "SOURCE_UNREADABLE", afterStructured((peer) => blocksOf(peer, 3, 4096, 4096))],
    ["has blocks of 1 MiB", "SOURCE_UNREADABLE", afterStructured((peer) => blocksOf(peer, mib, mib, mib))],
    ["serves one byte a request", "SOURCE_UNREADABLE", afterStructured((peer) => blocksOf(peer, 1, 1, 1))],
    [
      "talks on after the handshake",
      "SOURCE_UNREADABLE",
      afterStructured((peer) => {
        peer.send(...informed(7, be16(0), be64(4096n), be16(1)), ...optionAck(7), "and more");
      }),
    ],
  ];
  test.each(wrong)("to a server that %s is %s", async (_fact, code, script) => {
    const server = await serve(script);
    await expect(connect(server)).rejects.toMatchObject({ code });
  });

  test.each([
    ["that was not asked for", ["base:allocation", "qemu:secret"]],
    ["twice", ["base:allocation", "base:allocation"]],
  ])("to a server that grants a context %s is refused", async (_fact, contexts) => {
    const server = await serve((peer) => peer.handshake({ sizeBytes: mib, contexts }));
    await expect(connect(server, { contexts: ["base:allocation"] })).rejects.toMatchObject({
      code: "SOURCE_UNREADABLE",
    });
  });

  test("can be interrupted, and closes the connection", async () => {
    const stop = new AbortController();
    let closed: Promise<unknown> | undefined;
    const server = await serve((peer) => {
      closed = once(peer.socket, "close");
      stop.abort();
    });
    await expect(connect(server, { signal: stop.signal })).rejects.toMatchObject({ code: "INTERRUPTED" });
    await closed;
    await expect(connect(server, { signal: stop.signal })).rejects.toMatchObject({ code: "INTERRUPTED" });
  });

  test("does not wait for a silent server without end", async () => {
    const server = await serve(() => undefined);
    await expect(connect(server, { silenceMsMax: 20 })).rejects.toMatchObject({
      code: "SOURCE_UNREADABLE",
      detail: { silenceMs: 20 },
    });
  });

  test("with a name longer than the protocol allows is INVALID_ARGUMENT", async () => {
    const server = await serve((peer) => peer.handshake({ sizeBytes: mib }));
    await expect(connect(server, { exportName: "x".repeat(5000) })).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  });
});

/** A script that comes after structured replies were agreed upon and GO was asked. */
function afterStructured(script: (peer: Peer) => void): Script {
  return async (peer) => {
    await peer.greet();
    peer.reply((await peer.option()).option, 1);
    await peer.option();
    script(peer);
  };
}

function informed(option: number, ...data: readonly Buffer[]): Buffer[] {
  const body = Buffer.concat(data);
  return [be64(0x0003e889045565a9n), be32(option), be32(3), be32(body.byteLength), body];
}

function optionAck(option: number): Buffer[] {
  return [be64(0x0003e889045565a9n), be32(option), be32(1), be32(0)];
}

function exportOf(peer: Peer, sizeBytes: bigint): void {
  peer.reply(7, 3, be16(0), be64(sizeBytes), be16(1));
  peer.reply(7, 1);
}

function blocksOf(peer: Peer, least: number, preferred: number, most: number): void {
  peer.reply(7, 3, be16(3), be32(least), be32(preferred), be32(most));
  exportOf(peer, 2n ** 30n);
}

function flood(peer: Peer): void {
  for (let count = 0; count < 1000; count += 1) peer.reply(7, 3, be16(1), "a name");
}

describe("an NBD address", () => {
  test("is taken apart", () => {
    expect(parseNbdUri("nbd://example.org/disk%201")).toEqual({
      endpoint: { kind: "tcp", host: "example.org", port: 10809 },
      exportName: "disk 1",
      tls: undefined,
    });
    expect(parseNbdUri("nbd://[::1]:4000")).toMatchObject({ endpoint: { host: "::1", port: 4000 }, exportName: "" });
    expect(parseNbdUri("nbd+unix:///a/b?socket=/run/x+y%20z")).toMatchObject({
      endpoint: { kind: "unix", path: "/run/x+y z" },
      exportName: "a/b",
    });
    expect(parseNbdUri("nbds+unix:///?socket=/s&tls-certificates=/pki&tls-hostname=h")).toEqual({
      endpoint: { kind: "unix", path: "/s" },
      exportName: "",
      tls: { certificates: "/pki", serverName: "h" },
    });
  });

  test.each([
    "",
    "disk.img",
    "http://a/b",
    "nbd:///x",
    "nbd+unix:///x",
    "nbd+unix://host/x?socket=/s",
    "nbd://h/x?socket=/s",
    "nbd://h/%zz",
    "nbds://alice:secret@h/x",
  ])("that cannot be used is INVALID_ARGUMENT and is not repeated: %s", async (uri) => {
    const fault: unknown = await NbdVolume.open(uri).catch((error: unknown) => error);
    expect(fault).toMatchObject({ code: "INVALID_ARGUMENT" });
    expect(String(fault)).not.toContain("secret");
  });
});
