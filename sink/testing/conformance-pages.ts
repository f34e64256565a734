/** Conformance of page objects. */
import assert from "node:assert/strict";
import { pageWriteBytesMax, type Sink } from "../../engine/index.ts";
import type { CheckList } from "./checks.ts";
import {
  expectCode,
  expectOneWinner,
  isZero,
  matches,
  mebibyte,
  type OpenedSinks,
  pagesOf,
  pattern,
  put,
  utf8,
} from "./expectations.ts";

/** Adds the checks of page objects. */
export function checkPages(list: CheckList, opened: () => OpenedSinks): void {
  list.group("page objects", () => {
    let a: Sink;
    let b: Sink;

    list.before(() => {
      ({ a, b } = opened());
    });

    list.check("a new one is zeros, with the size and sequence number it was given", async () => {
      const { etag } = await a.createPages("segments/d/1-0-0", mebibyte, 7);
      assert.deepEqual(await b.statPages("segments/d/1-0-0"), {
        etag,
        sizeBytes: mebibyte,
        sequenceNumber: 7,
        writtenBytes: 0,
      });
      matches(await b.statObject("segments/d/1-0-0"), { etag, sizeBytes: mebibyte });
      assert.equal(isZero(await pagesOf(b, "segments/d/1-0-0", 0, mebibyte)), true);
    });

    list.check("one of 1 GiB costs next to nothing, and works at its far end", async () => {
      const sizeBytes = 1024 * mebibyte;
      await a.createPages("big", sizeBytes, 1);
      await a.writePages("big", sizeBytes - 512, pattern(512, 1), { sequenceNumber: 1 });
      assert.deepEqual(await pagesOf(b, "big", sizeBytes - 512, 512), pattern(512, 1));
      assert.equal(isZero(await pagesOf(b, "big", sizeBytes - 1024, 512)), true);
      assert.equal((await b.statPages("big")).writtenBytes, sizeBytes);
    });

    list.check("of ten creators at once exactly one succeeds", async () => {
      const creators = Array.from({ length: 10 }, (_, index) =>
        (index % 2 === 0 ? a : b).createPages("race", 512, index),
      );
      expectOneWinner(await Promise.allSettled(creators), "OBJECT_EXISTS");
    });

    list.check("a name belongs to one object, whatever its kind", async () => {
      await put(a, "object", "x");
      await a.createPages("pages", 512, 1);
      await expectCode(b.createPages("object", 512, 1), "OBJECT_EXISTS");
      await expectCode(b.createPages("pages", 512, 2), "OBJECT_EXISTS");
      await expectCode(b.putObject("pages", utf8("x"), { ifAbsent: true }), "OBJECT_EXISTS");
    });

    list.check("an absent one is reported as absent", async () => {
      await expectCode(a.statPages("no/such"), "OBJECT_NOT_FOUND");
      await expectCode(a.readPages("no/such", 0, new Uint8Array(512)), "OBJECT_NOT_FOUND");
      await expectCode(a.writePages("no/such", 0, new Uint8Array(512), { sequenceNumber: 1 }), "OBJECT_NOT_FOUND");
      await expectCode(a.clearPages("no/such", 0, 512), "OBJECT_NOT_FOUND");
      await expectCode(a.raiseSequenceNumber("no/such", 1), "OBJECT_NOT_FOUND");
    });

    list.check("what one client has written, another reads, at any alignment", async () => {
      await a.createPages("p", 64 * 1024, 1);
      const bytes = pattern(8192, 5);
      const { etag } = await a.writePages("p", 1024, bytes, { sequenceNumber: 1 });
      assert.equal((await b.statPages("p")).etag, etag);
      const whole = new Uint8Array(64 * 1024);
      whole.set(bytes, 1024);
      for (const [offset, length] of [
        [0, 64 * 1024],
        [1, 1],
        [1023, 3],
        [1500, 4097],
        [9215, 2],
        [65_535, 1],
        [0, 0],
        [65_536, 0],
      ] as const) {
        assert.deepEqual(await pagesOf(b, "p", offset, length), whole.slice(offset, offset + length));
      }
    });

    list.check("later writes lie over earlier ones", async () => {
      await a.createPages("p", 256 * 1024, 1);
      await a.writePages("p", 0, new Uint8Array(200 * 1024).fill(1), { sequenceNumber: 1 });
      await b.writePages("p", 64 * 1024 - 512, new Uint8Array(1024).fill(2), { sequenceNumber: 1 });
      await a.writePages("p", 64 * 1024, new Uint8Array(512).fill(0), { sequenceNumber: 1 });
      const expected = new Uint8Array(256 * 1024);
      expected
        .fill(1, 0, 200 * 1024)
        .fill(2, 64 * 1024 - 512, 64 * 1024 + 512)
        .fill(0, 64 * 1024, 64 * 1024 + 512);
      assert.equal(Buffer.compare(await pagesOf(b, "p", 0, 256 * 1024), expected), 0);
    });

    list.check("a write of 4 MiB is allowed, one of more is not", async () => {
      await a.createPages("p", 2 * pageWriteBytesMax, 1);
      const bytes = pattern(pageWriteBytesMax + 512, 9);
      await expectCode(a.writePages("p", 0, bytes, { sequenceNumber: 1 }), "INVALID_ARGUMENT");
      await a.writePages("p", pageWriteBytesMax, bytes.subarray(0, pageWriteBytesMax), { sequenceNumber: 1 });
      const read = await pagesOf(b, "p", pageWriteBytesMax, pageWriteBytesMax);
      assert.equal(Buffer.compare(read, bytes.subarray(0, pageWriteBytesMax)), 0);
    });

    list.check(
      "sizes, offsets and lengths that are not aligned are refused, and so is a write of nothing",
      async () => {
        for (const sizeBytes of [1, 511, 513, -512, Number.NaN])
          await expectCode(a.createPages("q", sizeBytes, 1), "INVALID_ARGUMENT");
        await a.createPages("p", 4096, 1);
        for (const [offset, length] of [
          [1, 512],
          [511, 512],
          [0, 511],
          [0, 1],
          [0, 0],
          [-512, 512],
        ] as const) {
          await expectCode(
            a.writePages("p", offset, new Uint8Array(length).fill(1), { sequenceNumber: 1 }),
            "INVALID_ARGUMENT",
          );
        }
        matches(await b.statPages("p"), { writtenBytes: 0 });
      },
    );

    list.check("a write that passes the end is refused and changes nothing", async () => {
      const { etag } = await a.createPages("p", 4096, 1);
      await expectCode(a.writePages("p", 4096, new Uint8Array(512).fill(1), { sequenceNumber: 1 }), "INVALID_ARGUMENT");
      await expectCode(
        a.writePages("p", 3584, new Uint8Array(1024).fill(1), { sequenceNumber: 1 }),
        "INVALID_ARGUMENT",
      );
      assert.equal(isZero(await pagesOf(b, "p", 0, 4096)), true);
      assert.deepEqual(await b.statPages("p"), { etag, sizeBytes: 4096, sequenceNumber: 1, writtenBytes: 0 });
    });

    list.check("a read that passes the end is reported as damage", async () => {
      await a.createPages("p", 4096, 1);
      await expectCode(b.readPages("p", 4095, new Uint8Array(2)), "DAMAGED");
      await expectCode(b.readPages("p", 8192, new Uint8Array(1)), "DAMAGED");
    });

    list.check("a write whose fence does not hold changes nothing", async () => {
      const { etag } = await a.createPages("p", 4096, 5);
      for (const sequenceNumber of [0, 4, 6]) {
        await expectCode(b.writePages("p", 0, new Uint8Array(512).fill(1), { sequenceNumber }), "CONDITION_FAILED");
      }
      const second = await a.writePages("p", 512, new Uint8Array(512).fill(2), { sequenceNumber: 5, etag });
      await expectCode(
        b.writePages("p", 0, new Uint8Array(512).fill(3), { sequenceNumber: 5, etag }),
        "CONDITION_FAILED",
      );
      matches(await b.statPages("p"), { etag: second.etag, sequenceNumber: 5 });
      assert.equal(isZero(await pagesOf(b, "p", 0, 512)), true);
    });

    list.check("a raised sequence number refuses writes that are fenced below, and is never lowered", async () => {
      const { etag } = await a.createPages("p", 4096, 5);
      const raised = await b.raiseSequenceNumber("p", 9);
      assert.equal(raised.sequenceNumber, 9);
      assert.notEqual(raised.etag, etag);
      await expectCode(a.writePages("p", 0, new Uint8Array(512).fill(1), { sequenceNumber: 5 }), "CONDITION_FAILED");
      assert.equal((await a.raiseSequenceNumber("p", 7)).sequenceNumber, 9);
      assert.equal((await a.raiseSequenceNumber("p", 9)).sequenceNumber, 9);
      assert.equal((await b.statPages("p")).sequenceNumber, 9);
      await b.writePages("p", 0, new Uint8Array(512).fill(2), { sequenceNumber: 9 });
      assert.deepEqual(await pagesOf(a, "p", 0, 512), new Uint8Array(512).fill(2));
    });

    list.check("large sequence numbers are kept exactly", async () => {
      await a.createPages("p", 512, 2 ** 40 + 1);
      await a.writePages("p", 0, new Uint8Array(512), { sequenceNumber: 2 ** 40 + 1 });
      assert.equal((await b.raiseSequenceNumber("p", 2 ** 52 + 3)).sequenceNumber, 2 ** 52 + 3);
      assert.equal((await b.statPages("p")).sequenceNumber, 2 ** 52 + 3);
      for (const wrong of [-1, 0.5, 2 ** 53]) await expectCode(a.raiseSequenceNumber("p", wrong), "INVALID_ARGUMENT");
    });

    list.check("the ETag changes with every write and every raise, and reading leaves it", async () => {
      const etags = [(await a.createPages("p", 4096, 1)).etag];
      for (let round = 0; round < 5; round++)
        etags.push((await a.writePages("p", 0, new Uint8Array(512), { sequenceNumber: 1 })).etag);
      etags.push((await a.raiseSequenceNumber("p", 2)).etag);
      await pagesOf(b, "p", 0, 4096);
      assert.equal((await b.statPages("p")).etag, etags.at(-1));
      await a.deleteObject("p");
      etags.push((await a.createPages("p", 4096, 1)).etag);
      assert.equal(new Set(etags).size, etags.length);
    });

    list.check(
      "how far one has been written is the end of its last page, zeros and pages after a gap included",
      async () => {
        await a.createPages("p", mebibyte, 1);
        const fence = { sequenceNumber: 1 };
        const written = async (): Promise<number> => (await b.statPages("p")).writtenBytes;
        await a.writePages("p", 0, pattern(4096, 1), fence);
        await a.writePages("p", 4096, new Uint8Array(512), fence);
        assert.equal(await written(), 4608);
        await a.writePages("p", 16_384, pattern(512, 1), fence);
        assert.equal(await written(), 16_896);
        await a.writePages("p", 8192, pattern(512, 1), fence);
        await a.writePages("p", 0, pattern(512, 2), fence);
        assert.equal(await written(), 16_896);
        await a.raiseSequenceNumber("p", 2);
        await expectCode(a.writePages("p", 32_768, pattern(512, 1), fence), "CONDITION_FAILED");
        assert.equal(await written(), 16_896);
        await b.writePages("p", 16_384, new Uint8Array(1024), { sequenceNumber: 2 });
        assert.equal(await written(), 17_408);
      },
    );

    list.group("that are cleared", () => {
      const sizeBytes = 256 * 1024;
      const fence = { sequenceNumber: 1 };
      let model: Uint8Array;

      /** Written by two requests, so that a store which keeps them apart has a border inside. */
      list.before(async () => {
        model = pattern(sizeBytes, 3);
        await a.createPages("p", sizeBytes, 1);
        await a.writePages("p", 0, model.subarray(0, 100 * 1024), fence);
        await a.writePages("p", 100 * 1024, model.subarray(100 * 1024), fence);
      });

      async function expectModel(): Promise<void> {
        assert.equal(Buffer.compare(await pagesOf(b, "p", 0, sizeBytes), model), 0);
      }

      for (const [range, offset, length] of [
        ["one page inside a block", 512, 512],
        ["pages on both sides of a block's border", 4096 - 512, 1024],
        ["a block", 8192, 4096],
        ["blocks, with pages before and after", 64 * 1024 - 1024, 64 * 1024 + 1536],
        ["what two writes have written", 99 * 1024, 2048],
        ["the first pages", 0, 1536],
        ["the last pages", sizeBytes - 1536, 1536],
        ["the whole object", 0, sizeBytes],
      ] as const) {
        list.check(`read as zeros, and their neighbours as before: ${range}`, async () => {
          await a.clearPages("p", offset, length);
          model.fill(0, offset, offset + length);
          await expectModel();
        });
      }

      list.check("stay clear when that is repeated, in whole, in part and over what was clear before", async () => {
        for (const [offset, length] of [
          [65_536, 65_536],
          [65_536, 65_536],
          [66_048, 512],
          [60_416, 70_656],
        ] as const) {
          await (length === 512 ? b : a).clearPages("p", offset, length);
          model.fill(0, offset, offset + length);
          await expectModel();
        }
      });

      list.check("can be written again, and what was written then is cleared like anything else", async () => {
        await a.clearPages("p", 4096, 8192);
        await b.writePages("p", 6144, pattern(1024, 8), fence);
        model.fill(0, 4096, 12_288).set(pattern(1024, 8), 6144);
        await expectModel();
        await a.clearPages("p", 6656, 1024);
        model.fill(0, 6656, 7680);
        await expectModel();
      });

      list.check("need never have been written", async () => {
        await a.createPages("q", mebibyte, 1);
        await a.clearPages("q", 0, mebibyte);
        matches(await b.statPages("q"), { sizeBytes: mebibyte, sequenceNumber: 1, writtenBytes: 0 });
        await a.writePages("q", 4096, pattern(512, 1), fence);
        await a.clearPages("q", 4608, mebibyte - 4608);
        assert.deepEqual(await pagesOf(b, "q", 4096, 512), pattern(512, 1));
        assert.equal(isZero(await pagesOf(b, "q", 4608, mebibyte - 4608)), true);
        assert.equal((await b.statPages("q")).writtenBytes, 4608);
      });

      list.check("count as written or not, but those that are still there do", async () => {
        const written = async (): Promise<number> => (await b.statPages("p")).writtenBytes;
        await a.clearPages("p", 0, 128 * 1024);
        assert.equal(await written(), sizeBytes);
        await a.clearPages("p", sizeBytes - 4096, 4096);
        assert((await written()) >= sizeBytes - 4096);
        assert((await written()) <= sizeBytes);
      });

      list.check("change the ETag and nothing else: a write that demands the old one is refused", async () => {
        const before = await b.statPages("p");
        await a.clearPages("p", 0, 512);
        const after = await b.statPages("p");
        assert.deepEqual(after, { ...before, etag: after.etag });
        assert.notEqual(after.etag, before.etag);
        await expectCode(a.writePages("p", 0, pattern(512, 1), { ...fence, etag: before.etag }), "CONDITION_FAILED");
        await b.writePages("p", 0, pattern(512, 1), { ...fence, etag: after.etag });
      });

      list.check("are whole pages inside the object: anything else is refused and changes nothing", async () => {
        const before = await b.statPages("p");
        for (const [offset, length] of [
          [1, 512],
          [0, 511],
          [256, 256],
          [0, 0],
          [512, -512],
          [-512, 512],
          [0, Number.NaN],
          [sizeBytes, 512],
          [sizeBytes - 512, 1024],
          [0, sizeBytes + 512],
        ] as const) {
          await expectCode(a.clearPages("p", offset, length), "INVALID_ARGUMENT");
        }
        await expectModel();
        assert.deepEqual(await b.statPages("p"), before);
      });

      list.check("are more than one write may hold", async () => {
        const large = 3 * pageWriteBytesMax;
        await a.createPages("q", large, 1);
        for (let offset = 0; offset < large; offset += pageWriteBytesMax) {
          await a.writePages("q", offset, new Uint8Array(pageWriteBytesMax).fill(5), fence);
        }
        await a.clearPages("q", 512, large - 1024);
        const expected = new Uint8Array(large).fill(5, 0, 512).fill(5, large - 512);
        assert.equal(Buffer.compare(await pagesOf(b, "q", 0, large), expected), 0);
      });

      list.check("stay as they are when the signal is aborted before", async () => {
        const before = await b.statPages("p");
        await expectCode(a.clearPages("p", 0, 512, { signal: AbortSignal.abort() }), "INTERRUPTED");
        assert.deepEqual(await b.statPages("p"), before);
        await expectModel();
      });
    });

    list.group("that are restored", () => {
      list.check("are created when they are absent, by the first client", async () => {
        await Promise.all([
          a.restorePages("lost", mebibyte, 7),
          b.restorePages("lost", mebibyte, 7),
          a.restorePages("lost", mebibyte, 7),
        ]);
        matches(await b.statPages("lost"), { sizeBytes: mebibyte, sequenceNumber: 7, writtenBytes: 0 });
        assert.equal(isZero(await pagesOf(b, "lost", 0, mebibyte)), true);
        await b.writePages("lost", mebibyte - 512, pattern(512, 1), { sequenceNumber: 7 });
      });

      list.check("get their length, keep what they hold, and refuse writes that are fenced below", async () => {
        await a.createPages("p", 4096, 5);
        const { etag } = await a.writePages("p", 512, pattern(3584, 2), { sequenceNumber: 5 });
        await b.restorePages("p", 16_384, 9);
        matches(await a.statPages("p"), { sizeBytes: 16_384, sequenceNumber: 9, writtenBytes: 4096 });
        await expectCode(a.writePages("p", 0, pattern(512, 1), { sequenceNumber: 5 }), "CONDITION_FAILED");
        await expectCode(a.writePages("p", 0, pattern(512, 1), { sequenceNumber: 9, etag }), "CONDITION_FAILED");
        await a.writePages("p", 15_872, pattern(512, 3), { sequenceNumber: 9 });
        const whole = new Uint8Array(16_384);
        whole.set(pattern(3584, 2), 512);
        whole.set(pattern(512, 3), 15_872);
        assert.equal(Buffer.compare(await pagesOf(b, "p", 0, 16_384), whole), 0);
      });

      list.check(
        "are left as they are when nothing is wrong with them, and never made shorter or lowered",
        async () => {
          await a.createPages("p", 8192, 5);
          await a.writePages("p", 0, pattern(512, 2), { sequenceNumber: 5 });
          const before = await a.statPages("p");
          for (const [sizeBytes, sequenceNumber] of [
            [8192, 5],
            [512, 1],
          ] as const) {
            await b.restorePages("p", sizeBytes, sequenceNumber);
          }
          assert.deepEqual(await b.statPages("p"), before);
        },
      );

      list.check("are page objects: of another kind's name nothing is made", async () => {
        await put(a, "object", "x");
        await expectCode(b.restorePages("object", 512, 1), "DAMAGED");
        for (const sizeBytes of [1, -512, Number.NaN])
          await expectCode(a.restorePages("p", sizeBytes, 1), "INVALID_ARGUMENT");
        await expectCode(a.restorePages("p", 512, -1), "INVALID_ARGUMENT");
        await expectCode(b.statPages("p"), "OBJECT_NOT_FOUND");
      });
    });

    list.check("writes to different offsets at once all arrive, in whatever order they finish", async () => {
      const pieceBytes = 64 * 1024;
      const pieces = Array.from({ length: 16 }, (_, index) => index);
      await a.createPages("p", pieces.length * pieceBytes, 3);
      const backwards = [...pieces].reverse();
      const results = await Promise.all(
        backwards.map((index) =>
          (index % 2 === 0 ? a : b).writePages("p", index * pieceBytes, pattern(pieceBytes, index), {
            sequenceNumber: 3,
          }),
        ),
      );
      assert.equal(new Set(results.map(({ etag }) => etag)).size, pieces.length);
      assert.equal((await a.statPages("p")).writtenBytes, pieces.length * pieceBytes);
      for (const index of pieces) {
        assert.equal(
          Buffer.compare(await pagesOf(b, "p", index * pieceBytes, pieceBytes), pattern(pieceBytes, index)),
          0,
        );
      }
    });

    list.check("of several writes at once that demand one ETag exactly one succeeds", async () => {
      const { etag } = await a.createPages("p", 8192, 1);
      const writes = Array.from({ length: 6 }, (_, index) =>
        (index % 2 === 0 ? a : b).writePages("p", index * 512, new Uint8Array(512).fill(index + 1), {
          sequenceNumber: 1,
          etag,
        }),
      );
      const results = await Promise.allSettled(writes);
      expectOneWinner(results, "CONDITION_FAILED");
      const winner = results.findIndex(({ status }) => status === "fulfilled");
      const expected = new Uint8Array(8192).fill(winner + 1, winner * 512, winner * 512 + 512);
      assert.deepEqual(await pagesOf(b, "p", 0, 8192), expected);
    });

    list.check("one that was deleted is gone for all, and one created anew is zeros again", async () => {
      await a.createPages("p", 4096, 1);
      await a.writePages("p", 0, pattern(512, 1), { sequenceNumber: 1 });
      await pagesOf(b, "p", 0, 512);
      await b.deleteObject("p");
      await expectCode(a.writePages("p", 512, pattern(512, 1), { sequenceNumber: 1 }), "OBJECT_NOT_FOUND");
      await expectCode(a.clearPages("p", 0, 512), "OBJECT_NOT_FOUND");
      await expectCode(a.readPages("p", 0, new Uint8Array(1)), "OBJECT_NOT_FOUND");
      await b.createPages("p", 8192, 2);
      matches(await a.statPages("p"), { sizeBytes: 8192, sequenceNumber: 2, writtenBytes: 0 });
      assert.equal(isZero(await pagesOf(a, "p", 0, 8192)), true);
      await expectCode(a.writePages("p", 0, pattern(512, 1), { sequenceNumber: 1 }), "CONDITION_FAILED");
    });

    list.check("bytes are not shared with the caller, and views of shared memory work both ways", async () => {
      await a.createPages("p", 4096, 1);
      const memory = new SharedArrayBuffer(8192);
      const given = new Uint8Array(memory, 1024, 1024);
      given.set(pattern(1024, 4));
      await a.writePages("p", 512, given, { sequenceNumber: 1 });
      given.fill(0);
      const into = new Uint8Array(memory, 4096, 1024);
      await b.readPages("p", 512, into);
      assert.deepEqual(Array.from(into), Array.from(pattern(1024, 4)));
      into.fill(0);
      assert.deepEqual(await pagesOf(a, "p", 512, 1024), pattern(1024, 4));
      // Nothing beside the view was touched.
      assert.equal(isZero(new Uint8Array(memory, 0, 4096)), true);
      assert.equal(isZero(new Uint8Array(memory, 5120, 3072)), true);
    });
  });
}
