/**
 * Collections beside disks that are protected for weeks: their writers acknowledge without being
 * disturbed, and forget what is condemned.
 */
import { afterEach, expect, test, vi } from "vitest";
import type { ProtectionPolicy } from "../../../../engine/replication/protection/protection-status.ts";
import { frameHeaderBytes } from "../../../../engine/store/format/frame.ts";
import { WriterLease } from "../../../../engine/store/points/writer-lease.ts";
import { quarantine } from "../../../../engine/store/segments/quarantine.ts";
import { contentOf, ModelDisk, modelStore } from "../../../model-disk.ts";
import { type Machine, machineForEachTest, type ProtectedImage } from "./protection-rig.ts";

const sizeBytes: number = 2 * 1024 * 1024;
const shared = contentOf(300_000, 5);

let machine: Machine;
let disk: ProtectedImage;
machineForEachTest((fresh) => {
  machine = fresh;
  disk = machine.disk(sizeBytes);
});

afterEach(() => {
  vi.restoreAllMocks();
});

/** Another disk of the vault holds `shared`, and then does not any more. */
async function passOn(policy: ProtectionPolicy = { crashConsistentFrequencyMs: 20 }): Promise<void> {
  const vault = await machine.vault();
  const other = new ModelDisk(Buffer.from(shared), "other");
  await vault.replicate({ disk: "other", volume: other });
  // A session that begins now knows the chunks.
  await disk.start({ policy });
  await disk.write(sizeBytes / 2, contentOf(10_000, 1));
  await disk.point();
  other.bytes.fill(1);
  await vault.replicate({ disk: "other", volume: other });
  await using writerLease = await WriterLease.take({
    store: await modelStore(machine.plain),
    vault: vault.id,
    disk: "other",
    onNotice: () => undefined,
  });
  await writerLease.drop([1], { leave: true, prove: () => Promise.resolve() });
}

test("a disk that rests acknowledges a collection, and then stores anew what that has given back", async () => {
  await passOn();
  const vault = await machine.vault();
  const summary = await vault.collect({ waitMsMax: 60_000 });
  expect(summary.waitingFor).toEqual([]);
  expect(summary.condemnedChunks).toBeGreaterThan(0);
  await disk.write(0, shared);
  await disk.point();
  await disk.checkAll();
  expect(disk.failures).toEqual([]);
});

test("a disk that is written meanwhile has points of which everything is there", async () => {
  await passOn();
  const vault = await machine.vault();
  const collecting = vault.collect({ waitMsMax: 60_000 });
  for (let write = 0; write < 12; write += 1) {
    await disk.write(write * 65_536, shared.subarray(0, 20_480 * (1 + (write % 3))));
    await disk.point();
  }
  expect((await collecting).waitingFor).toEqual([]);
  await disk.checkAll();
  expect(disk.failures).toEqual([]);
});

test("a disk whose cycle has referred to what is found to be damaged meanwhile has its point all the same", async () => {
  const vault = await machine.vault();
  await vault.replicate({ disk: "other", volume: new ModelDisk(Buffer.from(shared), "other") });
  await disk.start();
  await disk.write(sizeBytes / 2, contentOf(10_000, 1));
  await disk.point();
  const [segment = ""] = await (await modelStore(machine.plain)).names("segments/other/");
  const first = [{ segment, offset: frameHeaderBytes }];
  // Between two looks a writer that ships lets a time pass, which is over at once here.
  const now = performance.now.bind(performance);
  let clockMs = 0;
  vi.spyOn(performance, "now").mockImplementation(() => now() + (clockMs += 5_000));
  let looks = 0;
  machine.connect(
    new Proxy(machine.plain, {
      get(inner, property) {
        const value: unknown = Reflect.get(inner, property, inner);
        if (typeof value !== "function") return value;
        return (...given: readonly unknown[]): unknown => {
          const answer = (): unknown => Reflect.apply(value, inner, given);
          if (property !== "getObject" || given[0] !== "reclaim/collection") return answer();
          looks += 1;
          if (looks !== 2) return answer();
          // The first batch is packed.
          return modelStore(machine.plain)
            .then(async (store) => await quarantine(store, vault.id, first, {}))
            .then(answer);
        };
      },
    }),
  );
  await disk.write(0, shared);
  await disk.point();
  expect(disk.failures).toEqual(["CUT_ABANDONED"]);
  expect(disk.status.state).toBe("protecting");
  await disk.checkAll();
});

test("a disk whose next point is a long way off acknowledges a collection nevertheless", async () => {
  // A caller that waits for long here waits for the next point.
  const wait = setTimeout;
  vi.spyOn(globalThis, "setTimeout").mockImplementation((call, ms = 0, ...given) =>
    wait(call, ms > 10_000 ? 10 : ms, ...given),
  );
  await passOn({ startTimeMs: Date.now() + 24 * 3_600_000 });
  const vault = await machine.vault();
  expect((await vault.collect({ waitMsMax: 5_000 })).waitingFor).toEqual([]);
  await disk.write(0, shared);
  await disk.point();
  await disk.checkAll();
  expect(disk.failures).toEqual([]);
});

test("a disk that was paused while its vault was collected does not take that for a store that went back in time", async () => {
  await passOn();
  disk.protection.pause();
  await disk.next((event) => event.kind === "state" && event.state === "paused");
  const vault = await machine.vault();
  expect((await vault.collect({ waitMsMax: 0 })).deletedSegments).toBe(1);
  disk.protection.resume();
  await disk.write(0, shared);
  await disk.point();
  await disk.checkAll();
  expect(disk.failures).toEqual([]);
  expect(disk.notices).not.toContain("STORE_REGRESSED");
});
