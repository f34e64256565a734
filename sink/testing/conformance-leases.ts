/** Conformance of leases. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import type { Sink } from "../../engine/index.ts";
import type { CheckList } from "./checks.ts";
import { expectCode, expectOneWinner, type OpenedSinks, put, type SinkTraits, textOf, utf8 } from "./expectations.ts";

/** Adds the checks of leases. */
export function checkLeases(list: CheckList, opened: () => OpenedSinks, { advanceMs }: SinkTraits): void {
  list.group("leases", () => {
    let a: Sink;
    let b: Sink;

    list.before(() => {
      ({ a, b } = opened());
    });

    const one = randomUUID();
    const two = randomUUID();
    let etag: string;

    list.before(async () => {
      etag = await put(a, "disks/d/head", "0");
    });

    list.check("a lease is held by one id; the same id extends it", async () => {
      await a.acquireLease("disks/d/head", one, 15);
      await expectCode(b.acquireLease("disks/d/head", two, 15), "LEASE_HELD");
      await b.acquireLease("disks/d/head", one, 60);
      await a.renewLease("disks/d/head", one);
    });

    list.check("of ten that want it at once exactly one gets it", async () => {
      const wanted = Array.from({ length: 10 }, (_, index) =>
        (index % 2 === 0 ? a : b).acquireLease("disks/d/head", randomUUID(), 60),
      );
      expectOneWinner(await Promise.allSettled(wanted), "LEASE_HELD");
    });

    list.check("a put on a leased object needs the lease", async () => {
      await a.acquireLease("disks/d/head", one, 60);
      await expectCode(b.putObject("disks/d/head", utf8("1"), { ifMatch: etag }), "LEASE_LOST");
      await expectCode(b.putObject("disks/d/head", utf8("1"), { ifMatch: etag, leaseId: two }), "LEASE_LOST");
      assert.equal(await textOf(b, "disks/d/head"), "0");
      await a.putObject("disks/d/head", utf8("1"), { ifMatch: etag, leaseId: one });
      assert.equal(await textOf(b, "disks/d/head"), "1");
    });

    list.check("a put that relies on a lease fails without one", async () => {
      await expectCode(a.putObject("disks/d/head", utf8("1"), { ifMatch: etag, leaseId: one }), "LEASE_LOST");
      await a.acquireLease("disks/d/head", one, 60);
      await a.releaseLease("disks/d/head", one);
      await expectCode(a.putObject("disks/d/head", utf8("1"), { ifMatch: etag, leaseId: one }), "LEASE_LOST");
      assert.equal(await textOf(b, "disks/d/head"), "0");
    });

    list.check("the holder's put outlasts the lease only if its ETag fits", async () => {
      await a.acquireLease("disks/d/head", one, 60);
      await a.putObject("disks/d/head", utf8("1"), { ifMatch: etag, leaseId: one });
      await expectCode(a.putObject("disks/d/head", utf8("2"), { ifMatch: etag, leaseId: one }), "CONDITION_FAILED");
      assert.equal(await textOf(b, "disks/d/head"), "1");
    });

    list.check("a leased object is not deleted", async () => {
      await a.acquireLease("disks/d/head", one, 60);
      await expectCode(b.deleteObject("disks/d/head"), "LEASE_HELD");
      assert.equal(await textOf(b, "disks/d/head"), "0");
      await a.releaseLease("disks/d/head", one);
      await b.deleteObject("disks/d/head");
    });

    list.check("lease calls leave the ETag as it is", async () => {
      await a.acquireLease("disks/d/head", one, 60);
      await a.renewLease("disks/d/head", one);
      await a.changeLease("disks/d/head", one, two);
      await a.releaseLease("disks/d/head", two);
      assert.equal((await b.statObject("disks/d/head")).etag, etag);
    });

    list.check("reading needs no lease", async () => {
      await a.acquireLease("disks/d/head", one, 60);
      assert.equal(await textOf(b, "disks/d/head"), "0");
      assert.equal((await b.statObject("disks/d/head")).sizeBytes, 1);
    });

    list.check("a released lease is free for another, and releasing it again is no error", async () => {
      await a.acquireLease("disks/d/head", one, 60);
      await a.releaseLease("disks/d/head", one);
      await b.acquireLease("disks/d/head", two, 60);
      await a.releaseLease("disks/d/head", one);
      await expectCode(a.acquireLease("disks/d/head", one, 60), "LEASE_HELD");
    });

    list.check("releasing a lease on an absent object is no error", async () => {
      await a.releaseLease("no/such", one);
    });

    list.check("a lease that is not held cannot be renewed", async () => {
      await expectCode(a.renewLease("disks/d/head", one), "LEASE_LOST");
      await b.acquireLease("disks/d/head", two, 60);
      await expectCode(a.renewLease("disks/d/head", one), "LEASE_LOST");
    });

    list.check("a lease passes from one id to another, and passing it twice is the same as once", async () => {
      await a.acquireLease("disks/d/head", one, 60);
      await b.changeLease("disks/d/head", one, two);
      await b.changeLease("disks/d/head", one, two);
      await expectCode(a.renewLease("disks/d/head", one), "LEASE_LOST");
      await expectCode(a.putObject("disks/d/head", utf8("1"), { ifMatch: etag, leaseId: one }), "LEASE_LOST");
      await b.putObject("disks/d/head", utf8("2"), { ifMatch: etag, leaseId: two });
    });

    list.check("of two that pass it on at once one gets it", async () => {
      await a.acquireLease("disks/d/head", one, 60);
      const results = await Promise.allSettled([
        a.changeLease("disks/d/head", one, randomUUID()),
        b.changeLease("disks/d/head", one, randomUUID()),
      ]);
      expectOneWinner(results, "LEASE_LOST");
    });

    list.check("a lease that another holds is not passed on", async () => {
      await a.acquireLease("disks/d/head", one, 60);
      await expectCode(b.changeLease("disks/d/head", two, randomUUID()), "LEASE_LOST");
      await a.renewLease("disks/d/head", one);
    });

    list.check("there is no lease on an absent object", async () => {
      await expectCode(a.acquireLease("no/such", one, 15), "OBJECT_NOT_FOUND");
      await expectCode(a.renewLease("no/such", one), "OBJECT_NOT_FOUND");
      await expectCode(a.changeLease("no/such", one, two), "OBJECT_NOT_FOUND");
    });

    list.check("a lease lasts 15 to 60 seconds and has a UUID", async () => {
      for (const seconds of [-1, 0, 14, 61, 15.5])
        await expectCode(a.acquireLease("disks/d/head", one, seconds), "INVALID_ARGUMENT");
      await expectCode(a.acquireLease("disks/d/head", "me", 15), "INVALID_ARGUMENT");
      await a.acquireLease("disks/d/head", one, 15);
    });

    if (advanceMs === undefined) return;
    list.group("in time", () => {
      list.check("a lease is held until its duration has passed since it was last extended", async () => {
        await a.acquireLease("disks/d/head", one, 20);
        advanceMs(19_999);
        await expectCode(b.acquireLease("disks/d/head", two, 15), "LEASE_HELD");
        await a.renewLease("disks/d/head", one);
        advanceMs(19_999);
        await expectCode(b.acquireLease("disks/d/head", two, 15), "LEASE_HELD");
        advanceMs(1);
        await b.acquireLease("disks/d/head", two, 15);
        await expectCode(a.renewLease("disks/d/head", one), "LEASE_LOST");
      });

      list.check("acquiring again sets a new duration", async () => {
        await a.acquireLease("disks/d/head", one, 60);
        await a.acquireLease("disks/d/head", one, 15);
        advanceMs(15_000);
        await b.acquireLease("disks/d/head", two, 15);
      });

      list.check("a lease that is passed on starts anew with its full duration", async () => {
        await a.acquireLease("disks/d/head", one, 20);
        advanceMs(15_000);
        await a.changeLease("disks/d/head", one, two);
        advanceMs(19_999);
        await expectCode(b.acquireLease("disks/d/head", one, 15), "LEASE_HELD");
      });

      list.check("an expired lease protects nothing and permits nothing", async () => {
        await a.acquireLease("disks/d/head", one, 15);
        advanceMs(15_000);
        await expectCode(a.putObject("disks/d/head", utf8("1"), { ifMatch: etag, leaseId: one }), "LEASE_LOST");
        await expectCode(a.changeLease("disks/d/head", one, two), "LEASE_LOST");
        await b.putObject("disks/d/head", utf8("2"), { ifMatch: etag });
        await b.deleteObject("disks/d/head");
      });

      list.check("an expired lease is renewed when the object was neither written nor leased since", async () => {
        await a.acquireLease("disks/d/head", one, 15);
        advanceMs(100_000);
        await a.renewLease("disks/d/head", one);
        await expectCode(b.acquireLease("disks/d/head", two, 15), "LEASE_HELD");
      });

      list.check("an expired lease is not renewed once the object was written", async () => {
        await a.acquireLease("disks/d/head", one, 15);
        advanceMs(15_000);
        await b.putObject("disks/d/head", utf8("1"), { ifMatch: etag });
        await expectCode(a.renewLease("disks/d/head", one), "LEASE_LOST");
      });

      list.check("a write during the lease does not keep it from being renewed later", async () => {
        await a.acquireLease("disks/d/head", one, 15);
        await a.putObject("disks/d/head", utf8("1"), { ifMatch: etag, leaseId: one });
        advanceMs(15_000);
        await a.renewLease("disks/d/head", one);
      });

      list.check("an object that takes a deleted one's name has no lease", async () => {
        await a.acquireLease("disks/d/head", one, 15);
        advanceMs(15_000);
        await b.deleteObject("disks/d/head");
        await put(a, "disks/d/head", "new");
        await expectCode(a.renewLease("disks/d/head", one), "LEASE_LOST");
      });
    });
  });
}
