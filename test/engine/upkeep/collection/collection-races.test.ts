/**
 * What may happen between any two steps of a collection, and to what it has written down: nothing
 * that a committed point needs is lost by it.
 */

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import { Catalog } from "../../../../engine/pipeline/catalog.ts";
import { fromHex } from "../../../../engine/store/format/checksum.ts";
import { frameHeaderBytes } from "../../../../engine/store/format/frame.ts";
import { quarantine } from "../../../../engine/store/segments/quarantine.ts";
import { LiveSet } from "../../../../engine/upkeep/collection/live-set.ts";
import { FaultySink, Gate, type PlannedFault } from "../../../../sink/faults.ts";
import { callsOf } from "../../../depth.ts";
import { closeModelVaults, modelStore, watched } from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { tamperObject } from "../scrub/tamper.ts";
import { ChurnedVault } from "./churned-vault.ts";

let churned: ChurnedVault;
beforeEach(async () => {
  churned = new ChurnedVault();
  // A segment of which nothing is needed, and one of which half is not: content 5 and 7 are
  // no point's any more.
  churned.change("a", 0, 20, 5);
  await churned.replicate("a");
  churned.change("a", 0, 40, 6);
  await churned.replicate("a");
  churned.change("b", 0, 20, 7);
  await churned.replicate("b");
  churned.change("b", 0, 20, 8);
  await churned.replicate("b");
  await churned.drop("a", [1]);
  await churned.drop("b", [1]);
});
afterEach(async () => {
  await closeModelVaults();
});

function slow(
  on: PlannedFault["on"],
  prefix: string,
  when: number,
): { readonly gate: Gate; readonly sink: FaultySink } {
  const gate = new Gate();
  return { gate, sink: new FaultySink(churned.connect(), [{ on, prefix, when, fault: { kind: "slow", gate } }]) };
}

test("a segment that is made and committed while a collection looks is no damage", async () => {
  const look = slow("list", "disks/", 2);
  const collecting = churned.collect({ sink: look.sink });
  collecting.catch(() => undefined);
  await look.gate.reached;
  churned.change("a", 0, 10);
  await churned.replicate("a");
  look.gate.open();
  expect((await collecting).condemnedChunks).toBeGreaterThan(0);
  expect(await churned.check()).toBe(3);
});

test.each([5, 7])("a disk that did not exist when the collection looked is waited for", async (seed) => {
  const announce = slow("putObject", "reclaim/collection", 1);
  const collecting = churned.collect({ sink: announce.sink, waitMsMax: 0 });
  collecting.catch(() => undefined);
  await announce.gate.reached;
  // Its point refers to what is condemned, which its writer cannot know yet; and all of it has been
  // proved.
  const commit = slow("putObject", "disks/c/head", 4);
  churned.through(commit.sink);
  churned.change("c", 0, 20, seed);
  const cycle = churned.replicate("c");
  cycle.catch(() => undefined);
  await commit.gate.reached;
  announce.gate.open();
  expect((await collecting).waitingFor).toEqual(["c"]);
  commit.gate.open();
  await cycle;
  expect(await churned.check()).toBe(3);
  await churned.collect();
  expect(await churned.check()).toBe(3);
});

test("what is found to be damaged while a collection frees is forgotten by writers that have acknowledged it", async () => {
  const [store, { id }] = [await modelStore(churned.plain), await churned.vault()];
  const options = { vaultId: fromHex(id), indexBytesMax: 2 ** 20, onDamage: () => undefined };
  const catalog = await Catalog.load({ ...options, store });
  const free = slow("deleteObject", "segments/", 1);
  const collecting = churned.collect({ sink: free.sink });
  collecting.catch(() => undefined);
  await free.gate.reached;
  await catalog.adopt(store, undefined);
  const known = catalog.index.count;
  const [, segment = ""] = await churned.names("segments/a/");
  const quarantined = quarantine(store, id, [{ segment, offset: frameHeaderBytes }], {});
  free.gate.open();
  await Promise.all([collecting, quarantined]);
  await catalog.adopt(store, undefined);
  expect(catalog.index.count).toBe(known - 1);
});

describe("what a collection has written down", () => {
  test("is found when the id of the newest collection is lost", async () => {
    await churned.collect();
    await churned.plain.deleteObject("reclaim/collection");
    churned.change("c", 0, 20, 5);
    churned.change("b", 0, 20, 7);
    await churned.replicate("c");
    await churned.replicate("b");
    expect(await churned.check()).toBe(4);
  });

  test.each(["reclaim/collection", "reclaim/dead/a/"])(
    "holds up no writer when %s is damaged, and is not lost",
    async (prefix) => {
      await churned.collect();
      const [name = ""] = await churned.names(prefix);
      tamperObject(churned.store, name, "flipped", churned.store);
      churned.change("c", 0, 20, 5);
      churned.change("b", 0, 20, 7);
      await churned.replicate("c");
      await churned.replicate("b");
      expect(await churned.check()).toBe(4);
    },
  );

  test("is not taken away by one that slept while its successor worked", async () => {
    const orphans = slow("list", "reclaim/dead/", 1);
    const slept = churned.collect({ sink: orphans.sink });
    slept.catch(() => undefined);
    await orphans.gate.reached;
    churned.nowMs += 61_000;
    churned.change("a", 0, 15);
    await churned.replicate("a");
    const [made = ""] = (await churned.names("segments/a/")).slice(-1);
    churned.change("a", 0, 10);
    await churned.replicate("a");
    await churned.drop("a", [3]);
    await churned.collect();
    const record = made.replace("segments/", "reclaim/dead/");
    expect(await churned.names(record)).toEqual([record]);
    orphans.gate.open();
    await expectCode(slept, "COLLECTION_ACTIVE");
    expect(await churned.names(record)).toEqual([record]);
  });
});

test("a store that forgets the prune before a collection loses nothing of the points that are back", async () => {
  await churned.collect();
  churned.settlingMs = 100;
  // Nothing but a manifest and parts of maps can be given back, and of those no record is written.
  churned.disk("a").bytes.copyWithin(4096 * 30, 4096 * 10, 4096 * 12);
  await churned.replicate("a");
  await churned.replicate("a");
  const before = churned.store.snapshot();
  await churned.drop("a", [3]);
  const dropped = churned.store.snapshot();
  const whole = new FaultySink(churned.connect(), []);
  expect(await churned.collect({ sink: whole })).toMatchObject({ condemnedChunks: 0 });
  const firstLook = whole.calls.indexOf("list disks/");
  const firstDelete = whole.calls.findIndex((name) => name.startsWith("deleteObject disks/"));
  for (const call of callsOf(firstLook, firstDelete - 1)) {
    churned.store.restore(dropped);
    let calls = 0;
    const goesBack = watched(churned.connect(), () => {
      calls += 1;
      if (calls === call) churned.store.restore(before);
    });
    await churned.collect({ sink: goesBack }).catch((error: unknown) => {
      expect(error).toBeInstanceOf(TidemarkError);
    });
    const points = await churned.check().catch(() => 0);
    expect(points, `went back at call ${String(call)}, ${String(whole.calls[call - 1])}`).toBe(4);
    churned.nowMs += 61_000;
  }
});

test("a point that refers to what was condemned and not given back is listed again when its disk's head is lost", async () => {
  // Its writer does not acknowledge in time, so nothing is given back.
  const commit = slow("putObject", "disks/c/points/", 1);
  churned.through(commit.sink);
  churned.change("c", 0, 20, 5);
  const cycle = churned.replicate("c");
  await commit.gate.reached;
  expect(await churned.collect({ waitMsMax: 0 })).toMatchObject({ waitingFor: ["c"] });
  commit.gate.open();
  await cycle;
  churned.through();
  await churned.plain.deleteObject("disks/c/head");
  expect(await (await churned.vault()).repair()).toMatchObject({ lost: [] });
  expect(await churned.points("c")).toHaveLength(1);
  expect(await churned.check()).toBe(3);
});

test("of two that are the first ever and begin at once, one collects and the other yields", async () => {
  const writerLease = slow("putObject", "reclaim/collector", 1);
  const late = churned.collect({ sink: writerLease.sink });
  late.catch(() => undefined);
  await writerLease.gate.reached;
  const look = slow("list", "segments/", 1);
  const early = churned.collect({ sink: look.sink });
  await look.gate.reached;
  writerLease.gate.open();
  await expectCode(late, "COLLECTION_ACTIVE");
  look.gate.open();
  expect((await early).deletedSegments).toBe(1);
});

test.each(["reclaim/collection", "reclaim/collected"])(
  "one that slept before it wrote %s says what has happened",
  async (name) => {
    const write = slow("putObject", name, 1);
    const slept = churned.collect({ sink: write.sink });
    slept.catch(() => undefined);
    await write.gate.reached;
    churned.nowMs += 61_000;
    await churned.collect();
    write.gate.open();
    if (name === "reclaim/collection") await expectCode(slept, "COLLECTION_ACTIVE");
    else expect((await slept).deletedSegments).toBe(1);
    expect(await churned.check()).toBe(2);
  },
);

test("what the first look has learned takes no memory when the second one begins", async () => {
  const looks: WeakRef<LiveSet>[] = [];
  const look = LiveSet.of.bind(LiveSet);
  onTestFinished(() => {
    LiveSet.of = look;
  });
  LiveSet.of = async (options) => {
    const live = await look(options);
    looks.push(new WeakRef(live));
    return live;
  };
  const announce = slow("putObject", "reclaim/collection", 1);
  const collecting = churned.collect({ sink: announce.sink });
  await announce.gate.reached;
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc") as () => void;
  // A reference that was looked at stays until the turn ends, and what is being compiled may hold one longer.
  await vi.waitFor(() => {
    gc();
    expect(looks.map((ref) => ref.deref())).toEqual([undefined]);
  });
  announce.gate.open();
  await collecting;
  expect(looks).toHaveLength(2);
});
