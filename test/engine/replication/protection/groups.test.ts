/** Groups: points of several disks that are cut at one barrier, and members that do not come. */
import assert from "node:assert/strict";
import { setImmediate } from "node:timers/promises";
import { beforeEach, describe, expect, test } from "vitest";
import { Group } from "../../../../engine/replication/protection/groups.ts";
import { functionHook, type Hook } from "../../../../engine/replication/protection/hooks.ts";
import type { PointRecord } from "../../../../engine/store/format/documents.ts";
import { byDepth } from "../../../depth.ts";
import { committedPoints, contentOf, pointBytes } from "../../../model-disk.ts";
import { type Machine, machineForEachTest, type ProtectedImage, type Settings } from "./protection-rig.ts";

const granuleBytes = 4096;
const granules = 48;
/** Behind the granules that are looked at: for writes that take long. */
const longBytes: number = 2 * 1024 * 1024;
const sizeBytes: number = granules * granuleBytes + longBytes;

let machine: Machine;
let group: Group;
machineForEachTest((fresh) => {
  machine = fresh;
  group = new Group("database");
});

/** Disks in the group, each with a point. */
async function begin(count: number, settings: Settings = {}): Promise<ProtectedImage[]> {
  const disks = Array.from({ length: count }, () => machine.disk(sizeBytes, { group, ...settings }));
  for (const disk of disks) await disk.start();
  await Promise.all(disks.map(async (disk) => await disk.point()));
  return disks;
}

/** The disks' points of one id; undefined where one of them has none. */
async function pointsOf(disks: readonly ProtectedImage[], id: string): Promise<(PointRecord | undefined)[]> {
  return await Promise.all(
    disks.map(async ({ name }) => (await committedPoints(machine.plain, name)).find((point) => point.group?.id === id)),
  );
}

function first(disks: readonly ProtectedImage[]): [ProtectedImage, ProtectedImage] {
  const [one, two] = disks;
  assert(one !== undefined && two !== undefined);
  return [one, two];
}

/**
 * One client that writes to the disks in turn, each write after the one before has been
 * acknowledged.
 */
class Client {
  readonly #disks: readonly ProtectedImage[];
  #written = 0;
  #isEnding = false;

  constructor(disks: readonly ProtectedImage[]) {
    this.#disks = disks;
  }

  async run(): Promise<void> {
    const holding = this.#hold();
    while (!this.#isEnding) {
      const { disk, granule } = this.#place(this.#written + 1);
      const { device } = this.#disks[disk] ?? assert.fail();
      const bytes = Buffer.alloc(granuleBytes);
      bytes.writeUInt32LE(this.#written + 1);
      if (!device.tryWrite(granule * granuleBytes, bytes)) await device.write(granule * granuleBytes, bytes);
      this.#written += 1;
      await setImmediate();
    }
    await holding;
  }

  /**
   * Always has long writes under way to the second disk, so that its cut takes the longest to be
   * prepared.
   */
  async #hold(): Promise<void> {
    const bytes = Buffer.alloc(longBytes, 1);
    const write = async (): Promise<void> => {
      while (!this.#isEnding) await this.#disks[1]?.device.write(granules * granuleBytes, bytes);
    };
    await Promise.all(Array.from({ length: 6 }, write));
  }

  end(): void {
    this.#isEnding = true;
  }

  /** How many writes the disks hold together. Fails unless it is the first so many. */
  countIn(contents: readonly Buffer[]): number {
    const count = Math.max(
      ...contents.flatMap((content) =>
        Array.from({ length: granules }, (_, at) => content.readUInt32LE(at * granuleBytes)),
      ),
    );
    const expected = contents.map(() => Buffer.alloc(granules * granuleBytes));
    for (let write = 1; write <= count; write += 1) {
      const { disk, granule } = this.#place(write);
      expected[disk]?.writeUInt32LE(write, granule * granuleBytes);
    }
    for (const [disk, content] of contents.entries()) {
      assert(
        expected[disk]?.equals(content.subarray(0, granules * granuleBytes)),
        `disk ${String(disk)} holds its share of the first ${String(count)} writes`,
      );
    }
    return count;
  }

  #place(write: number): { readonly disk: number; readonly granule: number } {
    const { length } = this.#disks;
    // Of five disks not in the order in which they are cut: that would hide cuts that are made one
    // after another.
    return { disk: (write * (length > 2 ? 2 : 1)) % length, granule: (write * 7) % granules };
  }
}

describe("a group", () => {
  for (const count of byDepth([3], [2, 5])) {
    test(`of ${String(count)} disks has points that hold no write without those that were acknowledged before it`, async () => {
      const disks = await begin(count);
      const client = new Client(disks);
      const running = client.run();
      const ids = new Set<string>();
      try {
        for (let round = 0; round < byDepth(5, 8); round += 1) {
          const points = await Promise.all(disks.map(async ({ protection }) => await protection.point()));
          for (const point of points) if (point.group !== null) ids.add(point.group.id);
        }
      } finally {
        client.end();
        await running;
      }
      let held = 0;
      let whole = 0;
      for (const id of ids) {
        const points = await pointsOf(disks, id);
        const contents = await Promise.all(
          points.map(async (point, index) => {
            const name = disks[index]?.name ?? "";
            return point === undefined ? undefined : await pointBytes(machine.plain, name, point);
          }),
        );
        const there = contents.filter((content) => content !== undefined);
        if (there.length < count) continue; // a member failed to commit its share
        whole += 1;
        held = Math.max(held, client.countIn(there));
        expect(points.map((point) => point?.group?.disks)).toEqual(disks.map(() => group.members));
      }
      expect(whole).toBeGreaterThanOrEqual(3);
      expect(held).toBeGreaterThan(count * 10);
      expect(disks.flatMap(({ failures }) => failures)).toEqual([]);
    });
  }

  test("in which nothing changes takes no points, and one in which one disk changes takes a point of all", async () => {
    const disks = await begin(2, { policy: { crashConsistentFrequencyMs: 30 } });
    const [one, two] = first(disks);
    const quiet = two.status.pointsCommitted;
    for (let ticks = 0, lagMs = 0; ticks < 3; ) {
      await setImmediate();
      const { committedMs } = two.status.lag;
      if ((committedMs ?? 0) < lagMs) ticks += 1;
      lagMs = committedMs ?? 0;
    }
    expect(two.status.pointsCommitted).toBe(quiet);
    const [common, other] = [one.nextPoint(), two.nextPoint()];
    await one.write(0, contentOf(granuleBytes, 1));
    expect((await common).group).not.toBeNull();
    expect((await other).group).toEqual((await common).group);
  });

  test("of which a member's store is away has points of their own for the others, and names the one that is missing", async () => {
    const disks = await begin(2);
    const [one, two] = first(disks);
    machine.cutOffDisk(two.name);
    const failed = two.nextFailure("STORE_UNREACHABLE");
    await one.write(0, contentOf(granuleBytes, 1));
    // Both are cut, and one of them cannot ship its share.
    const half = await one.point();
    const asked = two.protection.point();
    asked.catch(() => undefined); // looked at below
    await failed;
    expect(half.group).not.toBeNull();
    expect((await one.point()).group).toBeNull();
    expect(one.findings).toEqual(["GROUP_INCOMPLETE"]);
    expect(one.status.findings[0]?.cause).toContain(two.name);
    expect(two.findings).toContain("STORE_UNREACHABLE");
    machine.connect();
    await Promise.all([asked, one.point(), two.point()]);
    expect((await (await machine.vault()).point(one.name, half.point)).groupIncomplete).toBe(true);
    const last = await Promise.all([one.point(), two.point()]);
    expect(last[0].group).not.toBeNull();
    expect(last[1].group).toEqual(last[0].group);
    expect([...one.findings, ...two.findings]).toEqual([]);
  });

  test("goes on with those that are left, and with those that come", async () => {
    const disks = await begin(3);
    const [one, two] = first(disks);
    await disks[2]?.stop();
    const [a, b] = await Promise.all([one.point(), two.point()]);
    expect(a.group).not.toBeNull();
    expect(b.group).toEqual(a.group);
    const record = (await committedPoints(machine.plain, one.name)).at(-1);
    expect(record?.group?.disks).toEqual([one.name, two.name]);
    const late = machine.disk(sizeBytes, { group });
    await late.start();
    await late.point();
    const [c, d, e] = await Promise.all([one.point(), two.point(), late.point()]);
    expect([d.group, e.group]).toEqual([c.group, c.group]);
    expect(c.group).not.toBeNull();
  });

  test("does not wait for a member that is stopped in the meeting", async () => {
    const disks = await begin(2);
    const [one, two] = first(disks);
    // It waits for the other, whose cut has been left open.
    two.protection.pause();
    await two.next((event) => event.kind === "state" && event.state === "paused");
    const asked = one.point();
    await two.stop();
    await asked;
    expect(one.findings).toEqual([]);
    const alone = one.protection.point();
    alone.catch(() => undefined); // the stop may be faster
    await one.stop();
    expect(group.members).toEqual([]);
  });

  describe("with hooks", () => {
    const frozen = new Set<string>();
    const seen: string[][] = [];
    const hookOf = (name: string, fails = false): Hook =>
      functionHook({
        name,
        freeze: () => {
          frozen.add(name);
          return fails ? Promise.reject(new Error("it does not rest")) : Promise.resolve();
        },
        thaw: () => {
          seen.push([...frozen].sort());
          frozen.delete(name);
          return Promise.resolve();
        },
      });
    beforeEach(() => {
      frozen.clear();
      seen.length = 0;
    });

    async function beginWithHooks(fails: boolean): Promise<ProtectedImage[]> {
      const disks = [0, 1, 2].map((number) =>
        machine.disk(sizeBytes, {
          group,
          hook: number === 2 ? undefined : hookOf(`h${String(number)}`, fails && number === 1),
        }),
      );
      for (const disk of disks) await disk.start();
      await Promise.all(disks.map(async (disk) => await disk.point()));
      return disks;
    }

    test("has all applications at rest at the cut", async () => {
      const disks = await beginWithHooks(false);
      const [one] = first(disks);
      const points = disks.map(async (disk) => await disk.nextPoint());
      await one.point({ applicationConsistent: true });
      expect((await Promise.all(points)).map(({ consistency }) => consistency)).toEqual(["app", "app", "crash"]);
      expect(seen[0]).toEqual(["h0", "h1"]);
      expect(frozen.size).toBe(0);
    });

    test("has crash-consistent points that say why when one application does not rest", async () => {
      const disks = await beginWithHooks(true);
      const [one, two] = first(disks);
      const points = disks.map(async (disk) => await disk.nextPoint());
      await one.point({ applicationConsistent: true });
      const made = await Promise.all(points);
      expect(made.map(({ consistency }) => consistency)).toEqual(["crash", "crash", "crash"]);
      expect(new Set(made.map(({ group: of }) => of?.id)).size).toBe(1);
      const vault = await machine.vault();
      expect((await vault.point(one.name, "latest")).application?.reason).toContain("another disk");
      expect(JSON.stringify((await vault.point(two.name, "latest")).application)).toContain("it does not rest");
      expect(frozen.size).toBe(0);
    });
  });
});
