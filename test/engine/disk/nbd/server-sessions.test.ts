/**
 * Hostile sessions: every shape of option and request, right and wrong, plain and over TLS, in any
 * pieces, with clients that read nothing, stop in the middle or vanish. Meanwhile a well-behaved
 * client of each server is served, and the process does not grow.
 */
import { connect, type Socket } from "node:net";
import { setImmediate as turn } from "node:timers/promises";
import { connect as connectTls, type TLSSocket } from "node:tls";
import fc from "fast-check";
import { expect, test } from "vitest";
import { command, greetingBytes, option, payloadBytesMax } from "../../../../engine/disk/nbd/protocol.ts";
import type { NbdServer } from "../../../../engine/disk/nbd/server.ts";
import { byDepth } from "../../../depth.ts";
import { whyMissing } from "./server-peer.ts";
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
import { type Certificates, makeCertificates, upgraded } from "./tls-certificates.ts";

const sessionsAtOnce = 5;
const sessions: number = byDepth(60, 6_000);
const grownBytesMax: number = 256 * 1024 * 1024;
const diskBytes = 1024 * 1024;
/** The longest time limit of the server, and a little more. */
const goneMsMax = 70_000;
/** Of a payload; of a longer one the rest never comes. */
const sentBytesMax = 70_000;
/** Pieces in which a session begins; the rest follows at once. */
const piecesMax = 100;
/** What the well-behaved client reads, over and over: longer than one write of the socket. */
const witnessBytes = 96 * 1024;

const names = ["disk", "frozen", "", "nothing", "x".repeat(4096), "x".repeat(4097), "a\0b", "naïve 🌊"] as const;
const name = fc.constantFrom(...names);
const contexts = fc.array(fc.constantFrom("base:allocation", "base:", "qemu:", "", "x".repeat(5000)), { maxLength: 4 });
const optionData = fc.oneof(
  fc.constant(new Uint8Array()),
  fc.tuple(name, fc.array(fc.nat(9), { maxLength: 5 })).map(([text, kinds]) => infoQuery(text, ...kinds)),
  fc.tuple(name, contexts).map(([text, queries]) => metaQuery(text, ...queries)),
  name.map((text) => Buffer.from(text)),
  fc.uint8Array({ maxLength: 64 }),
);
const oneOption = fc
  .record({
    id: fc.oneof(fc.constantFrom(...Object.values(option)), fc.constantFrom(0, 4, 99, 0xffff_ffff)),
    data: optionData,
    /** Of the data, how much is sent; of the length, what is told instead. */
    keep: fc.oneof(
      { weight: 5, arbitrary: fc.constant(1) },
      { weight: 1, arbitrary: fc.double({ min: 0, max: 1, noNaN: true }) },
    ),
    told: fc.oneof(
      { weight: 9, arbitrary: fc.constant(undefined) },
      { weight: 1, arbitrary: fc.constantFrom(0, 1, 65_536, 65_537, 0xffff_ffff) },
    ),
  })
  .map(({ id, data, keep, told }) => {
    const bytes = optionBytesOf(id, data);
    if (told !== undefined) bytes.writeUInt32BE(told, 12);
    return bytes.subarray(0, 16 + Math.floor(data.byteLength * keep));
  });

const edges = [0, 1, 511, 512, 4095, 4096, 65_536, 70_000, diskBytes - 1, diskBytes, diskBytes + 1];
const oneRequest = fc
  .record({
    type: fc.oneof(fc.constantFrom(...Object.values(command)), fc.constantFrom(5, 8, 0xffff)),
    flags: fc.oneof(fc.constantFrom(0, 1, 2, 4, 8, 16, 32), fc.nat(0xffff)),
    offset: fc.oneof(fc.constantFrom(...edges).map(BigInt), fc.constantFrom(2n ** 63n, 2n ** 64n - 1n)),
    length: fc.oneof(fc.constantFrom(...edges), fc.constantFrom(payloadBytesMax, payloadBytesMax + 1, 0xffff_ffff)),
    payload: fc.constantFrom("whole", "whole", "half", "none"),
    isGarbled: fc.nat(40).map((number) => number === 0),
  })
  .map(({ type, flags, offset, length, payload, isGarbled }) => {
    const header = requestBytesOf({ type, flags, offset, length });
    if (isGarbled) header[0] = 0;
    const sent = type !== command.write || payload === "none" ? 0 : Math.min(length, sentBytesMax);
    return Buffer.concat([header, Buffer.alloc(payload === "half" ? Math.floor(sent / 2) : sent, 0x55)]);
  });

const session = fc.record({
  over: fc.oneof(
    { weight: 6, arbitrary: fc.constant("plain" as const) },
    { weight: 1, arbitrary: fc.constantFrom("client", "stranger", "no certificate", "no TLS", "no hello", "garbage") },
  ),
  flags: fc.oneof({ weight: 9, arbitrary: fc.constantFrom(1, 3) }, { weight: 1, arbitrary: fc.nat(0xffff_ffff) }),
  options: fc.array(oneOption, { maxLength: 5 }),
  agrees: fc.constantFrom("structured", "simple", "old", "frozen", "no"),
  requests: fc.array(oneRequest, { maxLength: 8 }),
  piece: fc.constantFrom(1, 7, 100, 5000, 1_000_000),
  reads: fc.boolean(),
  atOnce: fc.boolean(),
  ending: fc.constantFrom("end", "destroy"),
});
type Session = typeof session extends fc.Arbitrary<infer Value> ? Value : never;

/** The bytes behind the flags. */
function conversation({ options, agrees, requests }: Session): Buffer {
  const agreement = {
    structured: [
      optionBytesOf(option.structuredReply),
      optionBytesOf(option.setMetaContext, metaQuery("disk", "base:allocation")),
      optionBytesOf(option.go, infoQuery("disk")),
    ],
    simple: [optionBytesOf(option.go, infoQuery("disk"))],
    old: [optionBytesOf(option.exportName, Buffer.from("disk"))],
    frozen: [optionBytesOf(option.go, infoQuery("frozen"))],
    no: [],
  }[agrees];
  return Buffer.concat([...options, ...agreement, ...requests]);
}

/** As `once`, but an error is no end: `close` follows it. */
async function told(socket: Socket, event: "connect" | "secureConnect" | "close"): Promise<void> {
  await new Promise<void>((resolve) => void socket.once(event, () => resolve()));
}

/** Goes over to TLS, or fails to. Gives what carries the rest of the session. */
async function secured(socket: Socket, { over, flags }: Session, keys: Certificates): Promise<Socket | TLSSocket> {
  const hello = new Promise<void>((resolve) => {
    let missing = greetingBytes + 20;
    socket.on("data", (chunk: Buffer) => {
      missing -= chunk.byteLength;
      if (missing <= 0) resolve();
    });
  });
  socket.write(Buffer.concat([uint32(flags), optionBytesOf(option.startTls)]));
  await Promise.race([hello, told(socket, "close")]);
  socket.removeAllListeners("data");
  if (over === "no hello" || socket.destroyed) return socket;
  if (over === "garbage") {
    socket.write(Buffer.alloc(500, 0x16));
    return socket;
  }
  const { client, stranger } = keys;
  const options = over === "stranger" ? stranger : over === "client" ? client : { ca: client.ca };
  const secure = connectTls({ ...options, socket, servername: "localhost" });
  secure.on("error", () => secure.destroy());
  await Promise.race([told(secure, "secureConnect"), told(secure, "close")]);
  return secure;
}

async function run(server: NbdServer, hostile: Session, keys: Certificates | undefined): Promise<void> {
  const { over, flags, piece, reads, ending } = hostile;
  if (server.address.kind !== "unix") throw new Error("the server listens on a path");
  const socket = connect({ path: server.address.path });
  socket.on("error", () => socket.destroy());
  const closed = told(socket, "close");
  await Promise.race([told(socket, "connect"), closed]);
  let line: Socket = socket;
  if (over === "plain" || over === "no TLS" || keys === undefined) socket.write(uint32(flags));
  else line = await secured(socket, hostile, keys);
  if (reads) line.on("data", () => undefined);
  else line.pause();
  const bytes = conversation(hostile);
  const slowly = Math.min(bytes.byteLength, piecesMax * piece);
  for (let at = 0; at < slowly; at += piece) line.write(bytes.subarray(at, Math.min(at + piece, slowly)));
  line.write(bytes.subarray(slowly));
  if (ending === "end") line.end();
  // What does not end by itself ends here.
  if (ending !== "end" || !reads || over === "no hello" || over === "garbage") {
    await turn();
    socket.destroy();
  }
  await closed;
}

/** The client whose service must not suffer. */
async function witness(server: NbdServer, keys: Certificates | undefined): Promise<() => Promise<void>> {
  const ready = await RawClient.ready(server.address);
  const client = keys === undefined ? ready : await upgraded(ready, keys.client);
  await client.ask(option.go, infoQuery("witness"));
  let round = 0;
  return async () => {
    round += 1;
    const payload = Buffer.alloc(witnessBytes, round % 251);
    expect(await client.call({ type: command.write, payload })).toMatchObject({ error: 0 });
    expect(await client.call({ type: command.read, length: witnessBytes })).toMatchObject({ error: 0 });
    expect((await client.take(witnessBytes)).equals(payload)).toBe(true);
  };
}

test(
  "of any shape, plain and over TLS, cost other clients nothing and the process no memory",
  async () => {
    const keys = whyMissing("openssl") === undefined ? makeCertificates() : undefined;
    const disk = new MemoryDisk(diskBytes);
    const open = async (tls: Certificates | undefined): Promise<NbdServer> => {
      const server = await serve(disk, { tls: tls?.server });
      server.addExport({ name: "frozen", device: new MemoryDisk(diskBytes, { readOnly: true }) });
      server.addExport({ name: "witness", device: new MemoryDisk(diskBytes) });
      return server;
    };
    const plain = await open(undefined);
    const secure = keys === undefined ? plain : await open(keys);
    const [serveWell, serveWellOverTls] = [await witness(plain, undefined), await witness(secure, keys)];
    const before = process.memoryUsage();
    let grownBytes = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(session, { minLength: sessionsAtOnce, maxLength: sessionsAtOnce }), async (hostile) => {
        disk.answersAtOnce = hostile[0]?.atOnce ?? true;
        const all = hostile.map(async (one) => await run(one.over === "plain" ? plain : secure, one, keys));
        await Promise.all([serveWell(), serveWellOverTls(), ...all]);
        const { arrayBuffers, heapUsed } = process.memoryUsage();
        grownBytes = Math.max(grownBytes, arrayBuffers + heapUsed - before.arrayBuffers - before.heapUsed);
        expect(grownBytes).toBeLessThan(grownBytesMax);
      }),
      { numRuns: Math.ceil(sessions / sessionsAtOnce), seed: 20_240_607, endOnFailure: true },
    );
    // Node may lose a write over TLS to a client that has vanished. Its connection then ends with the
    // time of its handshake, or when it has taken no reply for as long as it may.
    await expect
      .poll(() => [plain, secure].map(({ connections }) => connections), { timeout: goneMsMax })
      .toEqual([1, 1]);
    await expect.poll(() => disk.underWay).toBe(0);
  },
  byDepth(60_000 + goneMsMax, 30 * 60_000),
);
