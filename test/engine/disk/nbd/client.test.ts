import fc from "fast-check";
import { afterEach, describe, expect, test } from "vitest";
import { NbdClient } from "../../../../engine/disk/nbd/client.ts";
import type { NbdStatus } from "../../../../engine/disk/nbd/client-replies.ts";
import { runsOf } from "../../../depth.ts";
import { agreed, all, closeAll, done, filled, gib, kib, mib, more } from "./client-rig.ts";
import { be16, be32, be64, type Peer, ScriptedServer } from "./scripted-server.ts";

afterEach(closeAll);

describe("reading", () => {
  test("takes answers in any order, data in any pieces, and holes", async () => {
    const client = await agreed({ sizeBytes: mib }, async (peer) => {
      const first = await peer.request();
      const second = await peer.request();
      peer.hole(second, 8192, 4096, done);
      peer.data(first, 3000, filled(1096, 3), more);
      peer.data(first, 0, filled(1000, 1), more);
      peer.hole(first, 1000, 2000, more);
      peer.chunk(first, 0, done);
    });
    const [a, b] = [filled(4096, 9), filled(4096, 9)];
    await Promise.all([client.read(0, a), client.read(8192, b)]);
    expect(a.equals(Buffer.concat([filled(1000, 1), filled(2000, 0), filled(1096, 3)]))).toBe(true);
    expect(b.equals(filled(4096, 0))).toBe(true);
  });

  test("works with simple replies too, into shared memory", async () => {
    const client = await agreed({ sizeBytes: mib, structured: false }, async (peer) => {
      const request = await peer.request();
      peer.simple(request, 0, filled(request.length, 7));
    });
    const into = new Uint8Array(new SharedArrayBuffer(5000));
    await client.read(100, into);
    expect(into.every((byte) => byte === 7)).toBe(true);
  });

  test("keeps at most sixteen requests in flight, each of at most 1 MiB, however much is asked for", async () => {
    let inFlightMost = 0;
    const client = await agreed({ sizeBytes: 40 * mib }, async (peer) => {
      for (let answered = 0; answered < 40; ) {
        const requests = [await peer.request()];
        // All that come before an answer does; the client sends what it may before it waits.
        while (requests.length < Math.min(16, 40 - answered)) requests.push(await peer.request());
        inFlightMost = Math.max(inFlightMost, requests.length);
        expect(requests.every(({ length }) => length <= mib)).toBe(true);
        expect(peer.socket.readableLength).toBe(0);
        for (const request of requests) peer.hole(request, request.offset, request.length, done);
        answered += requests.length;
      }
    });
    const into = filled(40 * mib, 1);
    await client.read(0, into);
    expect(into.equals(Buffer.alloc(40 * mib))).toBe(true);
    expect(inFlightMost).toBe(16);
  });

  test("asks a server that wants whole blocks for whole blocks only, and gives any range", async () => {
    const asked: (readonly [number, number])[] = [];
    const client = await agreed({ sizeBytes: 64 * kib + 512, blockSizes: [512, 4096, 8192] }, async (peer) => {
      for (;;) {
        const request = await peer.request();
        asked.push([request.offset, request.length]);
        peer.data(
          request,
          request.offset,
          Buffer.from(Array.from({ length: request.length }, (_, index) => (request.offset + index) % 251)),
          done,
        );
      }
    });
    for (const [offset, length] of [
      [0, 512],
      [100, 10],
      [500, 20_000],
      [64 * kib - 1, 513],
      [777, 0],
    ] as const) {
      const into = Buffer.alloc(length);
      await client.read(offset, into);
      expect(into.every((byte, index) => byte === (offset + index) % 251)).toBe(true);
    }
    expect(asked.every(([offset, length]) => offset % 512 === 0 && length % 512 === 0 && length <= 8192)).toBe(true);
  });

  test.each([
    [5, "SOURCE_UNREADABLE"],
    [1, "ACCESS_REFUSED"],
    [108, "SOURCE_UNREADABLE"],
    [4711, "SOURCE_UNREADABLE"],
  ])("a range for which the server reports error %i is %s, and the connection goes on", async (error, code) => {
    const client = await agreed({ sizeBytes: mib }, async (peer) => {
      const first = await peer.request();
      peer.data(first, 0, filled(1000, 1), more);
      peer.chunk(first, 0x8002, more, be32(error), be16(4), Buffer.from("oh\u0007!"), be64(1000n));
      peer.chunk(first, 0, done);
      const second = await peer.request();
      peer.simple(second, error);
      const third = await peer.request();
      peer.data(third, 0, filled(4096, 2), done);
    });
    await expect(client.read(0, Buffer.alloc(4096))).rejects.toMatchObject({
      code,
      message: expect.stringContaining("oh !") as string,
    });
    await expect(client.read(0, Buffer.alloc(4096))).rejects.toMatchObject({ code });
    const into = Buffer.alloc(4096);
    await client.read(0, into);
    expect(into.equals(filled(4096, 2))).toBe(true);
  });

  test("of a part that fails settles only when no other part of it is under way", async () => {
    let answerLate = (): void => undefined;
    const client = await agreed({ sizeBytes: 2 * mib }, async (peer) => {
      const requests = [await peer.request(), await peer.request(), await peer.request()];
      for (const request of requests) {
        if (request.offset === mib) answerLate = () => peer.data(request, mib, filled(mib, 1), done);
        else if (request.length === mib) peer.chunk(request, 0x8001, done, be32(5), be16(0));
      }
      for (const request of requests)
        if (request.length === 512) peer.hole(request, request.offset, request.length, done);
    });
    const settled: string[] = [];
    const reading = client.read(0, Buffer.alloc(2 * mib)).catch(() => settled.push("failed"));
    // The answer to a later request proves that the failure has arrived.
    await client.read(0, Buffer.alloc(512));
    expect(settled).toEqual([]);
    answerLate();
    await reading;
    expect(settled).toEqual(["failed"]);
  });

  test("from a server that dies fails everything pending and everything later, and touches no memory afterwards", async () => {
    const client = await agreed({ sizeBytes: 8 * mib }, async (peer) => {
      const first = await peer.request();
      await peer.request();
      peer.send(
        be32(0x668e33ef),
        be16(1),
        be16(1),
        be64(first.cookie),
        be32(8 + first.length),
        be64(0n),
        filled(100, 1),
      );
      peer.socket.end();
    });
    const outcomes = await Promise.allSettled([
      client.read(0, Buffer.alloc(4096)),
      client.read(4096, Buffer.alloc(4 * mib)),
    ]);
    for (const outcome of outcomes)
      expect(outcome).toMatchObject({ status: "rejected", reason: { code: "SOURCE_UNREADABLE" } });
    await expect(client.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: "SOURCE_UNREADABLE" });
    await client.close();
  });

  test("from a server that falls silent is not waited for without end", async () => {
    const client = await agreed(
      { sizeBytes: mib },
      async (peer) => {
        const request = await peer.request();
        peer.hole(request, request.offset, request.length, done);
        await peer.request();
      },
      { silenceMsMax: 50 },
    );
    await client.read(0, Buffer.alloc(512));
    await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({
      code: "SOURCE_UNREADABLE",
      detail: { silenceMs: 50 },
    });
  });

  const violations: readonly (readonly [
    fact: string,
    answer: (peer: Peer, request: Awaited<ReturnType<Peer["request"]>>) => void,
  ])[] = [
    ["no known number", (peer) => peer.send(Buffer.alloc(20, 1))],
    ["an answer to no request", (peer) => peer.chunk({ cookie: 99n }, 0, done)],
    ["an answer to a cookie beyond all numbers", (peer) => peer.chunk({ cookie: 2n ** 64n - 1n }, 0, done)],
    ["data before the range", (peer, request) => peer.data(request, 4095, filled(4096, 1), done)],
    ["data beyond the range", (peer, request) => peer.data(request, 4097, filled(4096, 1), done)],
    ["more data than asked for", (peer, request) => peer.data(request, 4096, filled(4097, 1), done)],
    [
      "4 GiB",
      (peer, request) =>
        peer.send(be32(0x668e33ef), be16(1), be16(1), be64(request.cookie), be32(2 ** 32 - 1), be64(4096n)),
    ],
    ["no data", (peer, request) => peer.chunk(request, 1, done, be64(4096n))],
    ["less data than asked for", (peer, request) => peer.data(request, 4096, filled(4095, 1), done)],
    ["nothing at all", (peer, request) => peer.chunk(request, 0, done)],
    ["nothing, and not the end either", (peer, request) => peer.chunk(request, 0, more)],
    [
      "data twice",
      (peer, request) => {
        peer.data(request, 4096, filled(2000, 1), more);
        peer.data(request, 5000, filled(3192, 1), done);
      },
    ],
    [
      "data over a hole",
      (peer, request) => {
        peer.hole(request, 5000, 100, more);
        peer.data(request, 4096, filled(4096, 1), done);
      },
    ],
    ["a hole beyond the range", (peer, request) => peer.hole(request, 4096, 4097, done)],
    ["a hole of nothing", (peer, request) => peer.hole(request, 4096, 0, more)],
    ["a hole of 13 bytes of payload", (peer, request) => peer.chunk(request, 2, done, Buffer.alloc(13))],
    ["a state for a read", (peer, request) => peer.status(request, 1, [[4096, 0]], done)],
    ["an unknown part", (peer, request) => peer.chunk(request, 77, done, Buffer.alloc(4))],
    ["an error of 2 bytes", (peer, request) => peer.chunk(request, 0x8001, done, be16(5))],
    ["an error without a number", (peer, request) => peer.chunk(request, 0x8001, done, be32(0), be16(0))],
    [
      "an error with more words than it has",
      (peer, request) => peer.chunk(request, 0x8001, done, be32(5), be16(9), Buffer.from("short")),
    ],
    ["a novel", (peer, request) => peer.chunk(request, 0x8001, done, be32(5), be16(60_000), Buffer.alloc(60_000, 65))],
    [
      "a thousand fragments",
      (peer, request) => {
        for (let at = 4096; at < 8192; at += 2) peer.data(request, at, filled(1, 1), more);
      },
    ],
    ["a simple reply", (peer, request) => peer.simple(request, 0, filled(4096, 1))],
  ];
  test.each(violations)("ends the connection when the server sends %s", async (_fact, answer) => {
    const client = await agreed({ sizeBytes: mib, contexts: ["base:allocation"] }, async (peer) => {
      answer(peer, await peer.request());
      await peer.request();
    });
    const broken = { code: "SOURCE_UNREADABLE", message: expect.stringContaining("breaks the protocol") as string };
    await expect(client.read(4096, Buffer.alloc(4096))).rejects.toMatchObject(broken);
    await expect(client.read(0, Buffer.alloc(4096))).rejects.toMatchObject(broken);
  });

  test("ends the connection when the server does not stop to report errors", async () => {
    const client = await agreed({ sizeBytes: mib }, async (peer) => {
      const request = await peer.request();
      for (let count = 0; count < 100; count += 1) peer.chunk(request, 0x8001, more, be32(5), be16(0));
      await peer.request();
    });
    await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ detail: { error: "IO" } });
    const broken = { message: expect.stringContaining("breaks the protocol") as string };
    await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject(broken);
  });

  test("survives any bytes that a server may send: it ends, in success or with a typed error", async () => {
    const reply = Buffer.concat([
      be32(0x668e33ef),
      be16(1),
      be16(1),
      be64(1n),
      be32(8 + 512),
      be64(0n),
      filled(512, 1),
    ]);
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(47), fc.nat(255)), { maxLength: 4 }),
        fc.nat(reply.length),
        fc.array(fc.nat(reply.length), { maxLength: 3 }),
        async (changes, end, cuts) => {
          const bytes = Buffer.from(reply);
          for (const [at, value] of changes) bytes[at] = value;
          await using server = await ScriptedServer.listen(async (peer) => {
            await peer.handshake({ sizeBytes: 4096 });
            await peer.request();
            let from = 0;
            for (const to of [...cuts, end].sort((a, b) => a - b)) {
              peer.send(bytes.subarray(from, Math.min(to, end)));
              from = Math.min(to, end);
            }
            peer.socket.end();
          });
          const client = await NbdClient.connect({ kind: "unix", path: server.path, exportName: "" });
          const into = Buffer.alloc(512);
          try {
            await client.read(0, into);
            expect(into.equals(bytes.subarray(28))).toBe(true);
          } catch (error) {
            expect(error).toMatchObject({ name: "TidemarkError" });
          }
          await client.close();
        },
      ),
      { numRuns: runsOf(150) },
    );
  });
});

describe("the state of a range", () => {
  const contexts = ["base:allocation", "qemu:dirty-bitmap:b"];

  test("is put together from short answers, joined where flags are equal, and clipped to what was asked for", async () => {
    const client = await agreed({ sizeBytes: mib, contexts }, async (peer) => {
      const first = await peer.request();
      expect([first.type, first.offset, first.length]).toEqual([7, 0, 700 * kib]);
      peer.status(first, 2, [[4096, 1]], more);
      peer.status(
        first,
        1,
        [
          [64 * kib, 0],
          [64 * kib, 0],
          [128 * kib, 3],
        ],
        done,
      );
      const second = await peer.request();
      expect([second.offset, second.length]).toEqual([256 * kib, 444 * kib]);
      peer.status(
        second,
        1,
        [
          [128 * kib, 3],
          [gib, 0],
        ],
        more,
      );
      peer.status(second, 2, [[4096, 1]], done);
    });
    expect(await all(client.status("base:allocation", 0, 700 * kib))).toEqual([
      { offset: 0, length: 128 * kib, flags: 0 },
      { offset: 128 * kib, length: 256 * kib, flags: 3 },
      { offset: 384 * kib, length: 316 * kib, flags: 0 },
    ] satisfies NbdStatus[]);
  });

  test("of a huge disk is asked for in pieces, some ahead, and told in order", async () => {
    const sizeBytes = 20 * gib + 4096;
    let unanswered = 0;
    let aheadMost = 0;
    const client = await agreed({ sizeBytes, contexts: ["base:allocation"] }, async (peer) => {
      for (let asked = 0; asked < 21; ) {
        const requests = [];
        while (requests.length < 4 && asked < 21) {
          requests.push(await peer.request());
          asked += 1;
          unanswered += 1;
          aheadMost = Math.max(aheadMost, unanswered);
          if (asked > 4) break;
        }
        for (const request of requests) {
          peer.status(request, 1, [[request.length, (request.offset / gib) % 2]], done);
          unanswered -= 1;
        }
      }
    });
    const found = await all(client.status("base:allocation", 0, sizeBytes));
    expect(found.map(({ flags }) => flags)).toEqual(Array.from({ length: 21 }, (_, index) => index % 2));
    expect(found.at(-1)).toEqual({ offset: 20 * gib, length: 4096, flags: 0 });
    expect(aheadMost).toBe(4);
  });

  test("may be left in mid-way, after which the connection still serves", async () => {
    const client = await agreed({ sizeBytes: 3 * gib, contexts: ["base:allocation"] }, async (peer) => {
      for (;;) {
        const request = await peer.request();
        if (request.type === 0) peer.hole(request, request.offset, request.length, done);
        else
          peer.status(
            request,
            1,
            [
              [4096, 0],
              [4096, 1],
            ],
            done,
          );
      }
    });
    for await (const status of client.status("base:allocation", 0, 3 * gib)) {
      expect(status).toEqual({ offset: 0, length: 4096, flags: 0 });
      break;
    }
    await client.read(0, Buffer.alloc(512));
  });

  const violations: readonly (readonly [
    fact: string,
    answer: (peer: Peer, request: Awaited<ReturnType<Peer["request"]>>) => void,
  ])[] = [
    ["no state", (peer, request) => peer.chunk(request, 0, done)],
    [
      "an empty extent",
      (peer, request) =>
        peer.status(
          request,
          1,
          [
            [4096, 0],
            [0, 0],
          ],
          done,
        ),
    ],
    [
      "extents beyond the range",
      (peer, request) =>
        peer.status(
          request,
          1,
          [
            [mib, 0],
            [4096, 0],
          ],
          done,
        ),
    ],
    ["a context that was not asked for", (peer, request) => peer.status(request, 7, [[4096, 0]], done)],
    [
      "one context twice",
      (peer, request) => {
        peer.status(request, 1, [[4096, 0]], more);
        peer.status(request, 1, [[4096, 0]], done);
      },
    ],
    ["half an extent", (peer, request) => peer.chunk(request, 5, done, be32(1), be32(4096))],
    [
      "a billion extents",
      (peer, request) => peer.send(be32(0x668e33ef), be16(1), be16(5), be64(request.cookie), be32(4 + 8 * 2 ** 28)),
    ],
    ["less than a block", (peer, request) => peer.status(request, 1, [[100, 0]], done)],
    ["data", (peer, request) => peer.data(request, 0, filled(512, 1), done)],
  ];
  test.each(violations)("ends the connection when the server sends %s", async (_fact, answer) => {
    const client = await agreed(
      { sizeBytes: mib, contexts: ["base:allocation"], blockSizes: [512, 4096, mib] },
      async (peer) => {
        answer(peer, await peer.request());
        await peer.request();
      },
    );
    await expect(all(client.status("base:allocation", 0, mib))).rejects.toMatchObject({
      code: "SOURCE_UNREADABLE",
      message: expect.stringContaining("breaks the protocol") as string,
    });
  });

  test("that the server cannot tell is an error of its own", async () => {
    const client = await agreed({ sizeBytes: mib, contexts: ["base:allocation"] }, async (peer) => {
      peer.chunk(await peer.request(), 0x8001, done, be32(22), be16(0));
    });
    await expect(all(client.status("base:allocation", 0, mib))).rejects.toMatchObject({
      code: "SOURCE_UNREADABLE",
      detail: { error: "INVAL" },
    });
  });
});

describe("closing", () => {
  test("waits for reads under way, says goodbye, and refuses what comes later", async () => {
    const seen: number[] = [];
    let answer = (): void => undefined;
    const asked = new Promise<void>((resolve) => {
      answer = resolve;
    });
    let hearGoodbye = (): void => undefined;
    const goodbye = new Promise<void>((resolve) => {
      hearGoodbye = resolve;
    });
    const client = await agreed({ sizeBytes: 40 * mib }, async (peer) => {
      for (;;) {
        const request = await peer.request();
        seen.push(request.type);
        answer();
        if (request.type === 2) hearGoodbye();
        if (request.type === 0) peer.hole(request, request.offset, request.length, done);
      }
    });
    const reading = client.read(0, Buffer.alloc(40 * mib));
    await asked;
    const closing = Promise.all([client.close(), client.close()]);
    await expect(client.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: "INTERNAL" });
    await reading;
    await closing;
    await goodbye;
    expect(seen).toEqual([...Array.from({ length: 40 }, () => 0), 2]);
  });
});
