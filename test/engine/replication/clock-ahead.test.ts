/** A clock that jumps ahead for a while: told by all that open points, and pruning goes on. */
import { afterEach, expect, test, vi } from "vitest";
import { SinkDecorator } from "../../../engine/sink-decorator.ts";
import { parsePolicy } from "../../../engine/upkeep/retention/policy.ts";
import { MemorySink } from "../../../sink/memory.ts";
import { closeModelVaults, openModelVault, sampleDisk } from "../../model-disk.ts";

const hourMs = 3_600_000;

afterEach(async () => {
  vi.restoreAllMocks();
  await closeModelVaults();
});

test("is a notice of each command while the newest point is dated ahead, and stops no prune", async () => {
  const disk = sampleDisk(60_000, 1);
  const vault = await openModelVault(new MemorySink());
  const told: string[] = [];
  const onNotice = ({ code }: { readonly code: string }): void => {
    if (code === "POINTS_DATED_AHEAD") told.push(code);
  };
  const startMs = Date.now();
  const clock = vi.spyOn(Date, "now");
  const pointAt = async (hours: number): Promise<void> => {
    clock.mockReturnValue(startMs + hours * hourMs);
    await vault.replicate({ disk: "d", volume: disk, onNotice });
  };
  for (const hours of [0, 1, 2]) await pointAt(hours);
  await pointAt(5 * 365 * 24);
  expect(told).toEqual([]);
  for (const hours of [3, 4, 5, 6, 7, 8]) await pointAt(hours);
  expect(told).toEqual(Array.from({ length: 6 }, () => "POINTS_DATED_AHEAD"));
  const times = (await vault.points("d", { onNotice })).map(({ time }) => Date.parse(time));
  expect(times.toSorted((one, other) => one - other)).toEqual(times);
  await vault.prune({ disk: "d", policy: parsePolicy("bands:2h=all"), onNotice });
  expect(told).toHaveLength(8);
  // The point of the clock that was ahead stays, and of the others those of the last two hours.
  expect((await vault.points("d")).map(({ sequence }) => sequence)).toEqual([4, 8, 9, 10]);
});

/** A store with a clock of its own, which is right. */
class ClockedSink extends SinkDecorator {
  aheadMs = 0;
  override get clockAheadMs(): number {
    return this.aheadMs;
  }
}

test("drops no point of the true past while the store's clock is behind this machine's", async () => {
  const disk = sampleDisk(60_000, 1);
  const sink = new ClockedSink(new MemorySink());
  const vault = await openModelVault(sink);
  const told: string[] = [];
  const onNotice = ({ code }: { readonly code: string }): void => {
    if (code === "POINTS_DATED_AHEAD") told.push(code);
  };
  const startMs = Date.now();
  const clock = vi.spyOn(Date, "now");
  for (const hours of [0, 1, 2]) {
    clock.mockReturnValue(startMs + hours * hourMs);
    await vault.replicate({ disk: "d", volume: disk, onNotice });
  }
  expect(told).toEqual([]);
  const aheadMs = 365 * 24 * hourMs;
  sink.aheadMs = aheadMs;
  for (const hours of [3, 4]) {
    clock.mockReturnValue(startMs + hours * hourMs + aheadMs);
    await vault.replicate({ disk: "d", volume: disk, onNotice });
    expect(told).not.toEqual([]);
  }
  const policy = parsePolicy("bands:2h=all");
  expect(await vault.prune({ disk: "d", policy, onNotice })).toMatchObject({ removedPoints: 0, keptPoints: 5 });
  // A store's clock that is ahead is not believed either: then this machine's is the lower one.
  sink.aheadMs = -aheadMs;
  clock.mockReturnValue(startMs + 4 * hourMs);
  expect(await vault.prune({ disk: "d", policy, onNotice })).toMatchObject({ removedPoints: 0, keptPoints: 5 });
});
