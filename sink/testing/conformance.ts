/**
 * Conformance suite of a sink: what the contract of `Sink` promises, as checks that every adapter
 * passes.
 *
 * `a` and `b` are two clients of one store, as two machines would be; `absent` is a client of a
 * container that was never created.
 */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import type { Sink } from "../../engine/index.ts";
import { type Check, CheckList } from "./checks.ts";
import { checkLeases } from "./conformance-leases.ts";
import { checkPages } from "./conformance-pages.ts";
import {
  expectCode,
  expectOneWinner,
  mebibyte,
  namesIn,
  type OpenedSinks,
  objectOf,
  pattern,
  put,
  type SinkTraits,
  textOf,
  utf8,
} from "./expectations.ts";

/**
 * The suite for one adapter. `open` is called for each check and returns three sinks: two on one
 * new, empty store, with its container created, and one on a container that does not exist.
 * `cleanup` is called after each check.
 *
 * Run the checks one after the other: they share variables.
 *
 * @example
 * ```ts
 * import { test } from "node:test";
 * import { sinkConformance } from "tidemark/testing";
 *
 * for (const { group, name, run } of sinkConformance(openMySinks)) test([...group, name].join(": "), run);
 * ```
 */
export function sinkConformance(open: () => Promise<OpenedSinks>, traits: SinkTraits = {}): readonly Check[] {
  const list = new CheckList();
  list.group("a sink", () => {
    let opened: OpenedSinks;
    let a: Sink;
    let b: Sink;
    let absent: Sink;

    list.before(async () => {
      opened = await open();
      ({ a, b, absent } = opened);
    });

    list.after(async () => {
      await opened.cleanup();
    });

    list.group("container", () => {
      list.check("one that exists is not created again", async () => {
        assert.equal(await a.createContainer(), false);
        assert.equal(await b.createContainer(), false);
      });

      list.check("exactly one of several creators at once creates it", async () => {
        const created = await Promise.all([
          absent.createContainer(),
          absent.createContainer(),
          absent.createContainer(),
        ]);
        assert.equal(created.filter(Boolean).length, 1);
        await absent.putObject("now/it-works", utf8("x"), { ifAbsent: true });
        assert.equal(await textOf(absent, "now/it-works"), "x");
      });

      list.check(
        "every call on an absent one fails with VAULT_NOT_FOUND, also those that tolerate absent objects",
        async () => {
          const id = randomUUID();
          const calls: (() => Promise<unknown>)[] = [
            () => absent.getObject("x", 10),
            () => absent.putObject("x", utf8("x"), { ifAbsent: true }),
            () => absent.putObject("x", utf8("x"), { ifMatch: '"0x1"' }),
            () => absent.statObject("x"),
            () => absent.deleteObject("x"),
            () => namesIn(absent, ""),
            () => absent.acquireLease("x", id, 15),
            () => absent.renewLease("x", id),
            () => absent.changeLease("x", id, randomUUID()),
            () => absent.releaseLease("x", id),
            () => absent.createPages("x", 512, 1),
            () => absent.writePages("x", 0, new Uint8Array(512), { sequenceNumber: 1 }),
            () => absent.readPages("x", 0, new Uint8Array(512)),
            () => absent.statPages("x"),
            () => absent.clearPages("x", 0, 512),
            () => absent.raiseSequenceNumber("x", 2),
            () => absent.restorePages("x", 512, 2),
          ];
          for (const call of calls) await expectCode(call(), "VAULT_NOT_FOUND");
        },
      );
    });

    list.group("objects", () => {
      list.check("what one client has put, another reads, with the ETag of the put", async () => {
        const etag = await put(a, "disks/d/head", "first");
        const read = await b.getObject("disks/d/head", 5);
        assert.equal(new TextDecoder().decode(read.bytes), "first");
        assert.equal(read.etag, etag);
        assert.deepEqual(await b.statObject("disks/d/head"), { etag, sizeBytes: 5 });
      });

      list.check("an object of no bytes is an object", async () => {
        const etag = await put(a, "empty", "");
        assert.equal((await b.getObject("empty", 0)).bytes.length, 0);
        assert.deepEqual(await b.statObject("empty"), { etag, sizeBytes: 0 });
      });

      list.check("an object of several MiB comes back as it was", async () => {
        const bytes = pattern(5 * mebibyte + 7, 3);
        await a.putObject("map/large", bytes, { ifAbsent: true });
        const read = await b.getObject("map/large", bytes.length);
        assert.equal(Buffer.compare(read.bytes, bytes), 0);
      });

      list.check("one that is larger than its reader expects is refused as damaged", async () => {
        await put(a, "large", "123456");
        await expectCode(b.getObject("large", 5), "DAMAGED");
      });

      list.check("only absence is reported as absence", async () => {
        await expectCode(a.getObject("no/such", 10), "OBJECT_NOT_FOUND");
        await expectCode(a.statObject("no/such"), "OBJECT_NOT_FOUND");
        await a.deleteObject("no/such");
      });

      list.check("ifAbsent does not replace what is there", async () => {
        const etag = await put(a, "vault.json", "mine");
        await expectCode(b.putObject("vault.json", utf8("yours"), { ifAbsent: true }), "OBJECT_EXISTS");
        assert.deepEqual(await objectOf(b, "vault.json"), { bytes: utf8("mine"), etag });
      });

      list.check("ifMatch replaces only the version it names", async () => {
        const first = await put(a, "head", "1");
        const second = (await b.putObject("head", utf8("2"), { ifMatch: first })).etag;
        await expectCode(a.putObject("head", utf8("3"), { ifMatch: first }), "CONDITION_FAILED");
        assert.deepEqual(await objectOf(b, "head"), { bytes: utf8("2"), etag: second });
      });

      list.check("ifMatch fails on an absent object", async () => {
        const etag = await put(a, "gone", "1");
        await a.deleteObject("gone");
        await expectCode(a.putObject("gone", utf8("2"), { ifMatch: etag }), "CONDITION_FAILED");
        await expectCode(a.getObject("gone", 10), "OBJECT_NOT_FOUND");
      });

      list.check("of ten puts with ifAbsent at once exactly one succeeds, and its bytes are there", async () => {
        const writers = Array.from({ length: 10 }, (_, index) => `writer ${String(index)}`);
        const results = await Promise.allSettled(
          writers.map((text, index) => (index % 2 === 0 ? a : b).putObject("race", utf8(text), { ifAbsent: true })),
        );
        expectOneWinner(results, "OBJECT_EXISTS");
        assert.equal(await textOf(b, "race"), writers[results.findIndex(({ status }) => status === "fulfilled")]);
      });

      list.check("of ten compare-and-swaps at once exactly one succeeds, and its bytes are there", async () => {
        const etag = await put(a, "race", "start");
        const writers = Array.from({ length: 10 }, (_, index) => `writer ${String(index)}`);
        const results = await Promise.allSettled(
          writers.map((text, index) => (index % 2 === 0 ? a : b).putObject("race", utf8(text), { ifMatch: etag })),
        );
        expectOneWinner(results, "CONDITION_FAILED");
        assert.equal(await textOf(a, "race"), writers[results.findIndex(({ status }) => status === "fulfilled")]);
      });

      list.check("an ETag is never used twice for one name, also for the same bytes and after a deletion", async () => {
        const etags = [await put(a, "same", "x")];
        for (let round = 0; round < 8; round++) {
          const latest = etags.at(-1) ?? "";
          etags.push((await a.putObject("same", utf8("x"), { ifMatch: latest })).etag);
          await a.deleteObject("same");
          etags.push(await put(a, "same", "x"));
        }
        assert.equal(new Set(etags).size, etags.length);
      });

      list.check("a deleted object is gone, and deleting it again is no error", async () => {
        await put(a, "a/b", "x");
        await b.deleteObject("a/b");
        await expectCode(a.getObject("a/b", 10), "OBJECT_NOT_FOUND");
        await a.deleteObject("a/b");
      });

      list.check("a reader never sees a part of a put", async () => {
        const sizeBytes = 256 * 1024;
        let etag = (await a.putObject("whole", new Uint8Array(sizeBytes).fill(0), { ifAbsent: true })).etag;
        const progress = { writing: true };
        const writer = (async () => {
          for (let round = 1; round <= 10; round++) {
            etag = (await a.putObject("whole", new Uint8Array(sizeBytes).fill(round), { ifMatch: etag })).etag;
          }
          progress.writing = false;
        })();
        const torn: number[] = [];
        while (progress.writing) {
          const { bytes } = await b.getObject("whole", sizeBytes);
          if (Buffer.compare(bytes, new Uint8Array(sizeBytes).fill(bytes[0] ?? 0)) !== 0) torn.push(bytes.length);
        }
        await writer;
        assert.deepEqual(torn, []);
      });

      list.check("bytes are not shared with the caller, neither those given nor those returned", async () => {
        const given = utf8("given");
        await a.putObject("mine", given, { ifAbsent: true });
        given.fill(0);
        const first = await a.getObject("mine", 10);
        assert.deepEqual(Uint8Array.from(first.bytes), utf8("given"));
        first.bytes.fill(0);
        assert.deepEqual((await objectOf(a, "mine")).bytes, utf8("given"));
      });

      list.check("a view of shared memory is a body like any other", async () => {
        const shared = new Uint8Array(new SharedArrayBuffer(64), 16, 6);
        shared.set(utf8("shared"));
        await a.putObject("shared", shared, { ifAbsent: true });
        assert.equal(await textOf(b, "shared"), "shared");
      });
    });

    list.group("names", () => {
      list.check("every allowed character and the greatest lengths work", async () => {
        const names = ["0123456789", "abcdefghijklmnopqrstuvwxyz", ".hidden", "~", "-", "_", "a..b", "x/.y/~z/_-.~"];
        names.push("p".repeat(240), `${"q".repeat(240)}/${"r".repeat(240)}/${"s".repeat(30)}`);
        for (const object of names) {
          await put(a, object, object);
          assert.equal(await textOf(b, object), object);
        }
        assert.deepEqual((await namesIn(a, "")).sort(), [...names].sort());
      });

      for (const object of [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        ".",
        "..",
        "a/../b",
        "a/./b",
        "A",
        "a b",
        "a@b",
        "ä",
        "a\\b",
        "a\0",
        "x".repeat(513),
        "y".repeat(241),
      ]) {
        list.check(`${JSON.stringify(object)} is refused`, async () => {
          await expectCode(a.putObject(object, utf8("x"), { ifAbsent: true }), "INVALID_ARGUMENT");
          await expectCode(a.getObject(object, 10), "INVALID_ARGUMENT");
          await expectCode(a.createPages(object, 512, 1), "INVALID_ARGUMENT");
        });
      }
    });

    list.group("list", () => {
      list.check("names everything under a prefix, also one that ends inside a part, with size and ETag", async () => {
        const etag = await put(a, "disks/one/head", "12345");
        await put(a, "disks/other/head", "x");
        await put(a, "vault.json", "x");
        const pages = await a.createPages("disks/on", 1024, 1);
        const listed = [];
        for await (const object of b.list("disks/on")) listed.push(object);
        assert.deepEqual(
          listed
            .sort((x, y) => x.name.localeCompare(y.name))
            .map((object) => [object.name, object.sizeBytes, object.etag]),
          [
            ["disks/on", 1024, pages.etag],
            ["disks/one/head", 5, etag],
          ],
        );
      });

      list.check("gives nothing under a prefix that no name has", async () => {
        await put(a, "disks/one/head", "x");
        assert.deepEqual(await namesIn(a, "disks/one/head/"), []);
        assert.deepEqual(await namesIn(a, "no/such/prefix"), []);
      });

      list.check("tells all of many names, each once", async () => {
        const names = Array.from({ length: 45 }, (_, index) => `points/${String(index).padStart(3, "0")}`);
        await Promise.all(names.map((object) => put(a, object, object)));
        assert.deepEqual((await namesIn(b, "points/")).sort(), names);
      });

      list.check("does not tell what has been deleted, nor leases", async () => {
        await put(a, "x/kept", "1");
        await put(a, "x/gone", "2");
        await a.acquireLease("x/kept", randomUUID(), 60);
        await a.deleteObject("x/gone");
        assert.deepEqual(await namesIn(b, "x/"), ["x/kept"]);
      });
    });

    checkLeases(list, () => opened, traits);
    checkPages(list, () => opened);

    list.check("a signal that has been aborted ends every call, and nothing is written", async () => {
      const etag = await put(a, "object", "x");
      await a.createPages("pages", 4096, 1);
      const before = await a.statPages("pages");
      const options = { signal: AbortSignal.abort() };
      const id = randomUUID();
      const calls: (() => Promise<unknown>)[] = [
        () => a.createContainer(options),
        () => a.getObject("object", 10, options),
        () => a.putObject("new", utf8("y"), { ifAbsent: true }, options),
        () => a.putObject("object", utf8("y"), { ifMatch: etag }, options),
        () => a.statObject("object", options),
        () => a.deleteObject("object", options),
        () => namesIn(a, "", options),
        () => a.acquireLease("object", id, 15, options),
        () => a.renewLease("object", id, options),
        () => a.changeLease("object", id, randomUUID(), options),
        () => a.releaseLease("object", id, options),
        () => a.createPages("new-pages", 512, 1, options),
        () => a.writePages("pages", 0, pattern(512, 1), { sequenceNumber: 1 }, options),
        () => a.readPages("pages", 0, new Uint8Array(512), options),
        () => a.statPages("pages", options),
        () => a.raiseSequenceNumber("pages", 2, options),
        () => a.restorePages("pages", 1024, 2, options),
        () => a.restorePages("lost-pages", 512, 2, options),
      ];
      for (const call of calls) await expectCode(call(), "INTERRUPTED");
      assert.deepEqual((await namesIn(b, "")).sort(), ["object", "pages"]);
      assert.equal((await b.statObject("object")).etag, etag);
      assert.deepEqual(await b.statPages("pages"), before);
    });

    list.check("the settling time is a number of milliseconds from 0 up", () => {
      const { settlingMs } = a.capabilities;
      assert(Number.isFinite(settlingMs) && settlingMs >= 0);
    });

    list.check("the store's clock is that of this machine, within a minute", () => {
      assert(Math.abs(a.clockAheadMs) < 60_000);
    });

    list.check("it says where it is", () => assert.notEqual(a.description, ""));

    list.check("disposing of it twice is the same as once", async () => {
      await b[Symbol.asyncDispose]();
      await b[Symbol.asyncDispose]();
    });
  });
  return list.checks;
}
