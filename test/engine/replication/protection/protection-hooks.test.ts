/**
 * Application-consistent points of a disk: what its hook does, and what the point then says of
 * itself.
 */
import { afterEach, describe, expect, test, vi } from "vitest";
import { functionHook, type Hook } from "../../../../engine/replication/protection/hooks.ts";
import type { PointDetail } from "../../../../engine/store/points/points.ts";
import { contentOf } from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { type Machine, machineForEachTest, type ProtectedImage } from "./protection-rig.ts";

let machine: Machine;
let disk: ProtectedImage;
/** What the application does next when it is to rest. */
let freeze: (signal: AbortSignal) => Promise<void>;
let thaws = 0;
let hook: Hook;
machineForEachTest((fresh) => {
  machine = fresh;
  disk = machine.disk(1024 * 1024);
  freeze = () => Promise.resolve();
  thaws = 0;
  hook = functionHook({
    name: "the application",
    freeze: async (signal) => {
      await freeze(signal);
    },
    thaw: () => {
      thaws += 1;
      return Promise.resolve();
    },
  });
});

async function newest(): Promise<PointDetail> {
  return await (await machine.vault()).point(disk.name, "latest");
}

describe("a point for which the application is to rest", () => {
  test("holds what the application wrote last before it rested, and is application-consistent", async () => {
    await disk.start({ hook });
    freeze = async () => {
      await disk.write(4096, contentOf(4096, 1));
    };
    expect((await disk.point({ applicationConsistent: true })).consistency).toBe("app");
    expect((await newest()).application).toMatchObject({ outcome: "frozen", reason: null });
    expect((await newest()).application?.steps.map(({ phase }) => phase)).toEqual(["pre", "post"]);
    expect(thaws).toBe(1);
    // The next one, which nobody asked it for, leaves the application alone.
    expect((await disk.point()).consistency).toBe("crash");
    expect((await newest()).application).toBeNull();
  });

  test("is crash-consistent and says why when it could not be brought to rest", async () => {
    await disk.start({ hook });
    freeze = () => Promise.reject(new Error("the database does not listen"));
    expect((await disk.point({ applicationConsistent: true })).consistency).toBe("crash");
    const { application } = await newest();
    expect(application?.outcome).toBe("failed");
    expect(JSON.stringify(application)).toContain("the database does not listen");
    expect(disk.findings).toEqual(["HOOK_FAILED"]);
    freeze = () => Promise.resolve();
    await disk.point({ applicationConsistent: true });
    expect(disk.findings).toEqual([]);
  });

  test("holds the application no longer than agreed", async () => {
    await disk.start({ hook, policy: { freezeTimeoutMs: 30 } });
    freeze = async (signal) => {
      await new Promise<void>((_resolve, reject) => {
        signal.addEventListener("abort", () => {
          reject(new Error("too late"));
        });
      });
    };
    expect((await disk.point({ applicationConsistent: true })).consistency).toBe("crash");
    expect((await newest()).application?.outcome).toBe("failed");
    expect(thaws).toBe(1);
  });

  test("is made by schedule", async () => {
    await disk.start({ hook, policy: { crashConsistentFrequencyMs: 20, appConsistentFrequencyMs: 40 } });
    await disk.next((event) => event.kind === "point" && event.point.consistency === "app");
    expect(disk.failures).toEqual([]);
  });

  test("is still owed when the store was away at its time", async () => {
    await disk.start({ hook });
    await disk.point();
    machine.cutOff();
    const failed = disk.nextFailure("STORE_UNREACHABLE");
    const asked = disk.protection.point({ applicationConsistent: true });
    await failed;
    machine.connect();
    disk.protection.resume();
    expect((await asked).consistency).toBe("app");
    expect(disk.findings).toEqual([]);
  });

  test("is refused with INVALID_ARGUMENT where there is no hook", async () => {
    await disk.start();
    await expectCode(disk.protection.point({ applicationConsistent: true }), "INVALID_ARGUMENT");
  });

  test("is not waited for by a pause that comes while it is being brought to rest, and it is woken", async () => {
    await disk.start({ hook });
    await disk.point();
    const isFreezing = new Promise<void>((resolve) => {
      freeze = async (signal) => {
        resolve();
        await new Promise<void>((wake) => {
          signal.addEventListener("abort", () => {
            wake();
          });
        });
      };
    });
    const asked = disk.protection.point({ applicationConsistent: true });
    await isFreezing;
    const paused = disk.next((event) => event.kind === "state" && event.state === "paused");
    disk.protection.pause();
    await paused;
    expect(thaws).toBe(1);
    freeze = () => Promise.resolve();
    disk.protection.resume();
    expect((await asked).consistency).toBe("app");
  });
});

describe("an application-consistent point that was missed while the agent was stopped", () => {
  const hour = 3_600_000;
  const noon = Date.UTC(2026, 0, 15, 12, 0, 0);
  afterEach(() => {
    vi.useRealTimers();
  });

  /** Sets the wall clock, and lets it stand. All other clocks and the timers go on. */
  function setWallClock(ms: number): void {
    vi.useFakeTimers({ toFake: ["Date"], now: ms });
  }

  /** Protects the disk with an application-consistent point a day; gives the first point by schedule. */
  async function firstPoint(): Promise<string> {
    const point = disk.nextPoint();
    await disk.start({ hook, policy: { crashConsistentFrequencyMs: 20, appConsistentFrequencyMs: 24 * hour } });
    await disk.write(0, contentOf(4096, Date.now()));
    return (await point).consistency;
  }

  /** A disk whose newest application-consistent point is of noon, and which has crash-consistent ones after it. */
  async function stoppedAtNoon(): Promise<void> {
    setWallClock(noon);
    await disk.start({ hook });
    await disk.point({ applicationConsistent: true });
    for (const seed of [1, 2]) {
      await disk.write(0, contentOf(4096, seed));
      await disk.point();
    }
    await machine.restart();
  }

  test("is taken at once after 25 hours with a frequency of 24", async () => {
    await stoppedAtNoon();
    setWallClock(noon + 25 * hour);
    expect(await firstPoint()).toBe("app");
    const next = disk.nextPoint();
    await disk.write(0, contentOf(4096, 3));
    expect((await next).consistency).toBe("crash");
  });

  test("is not taken when the disk is protected again within the period", async () => {
    await stoppedAtNoon();
    setWallClock(noon + hour);
    expect(await firstPoint()).toBe("crash");
  });

  test("is taken when no point of the disk was ever application-consistent", async () => {
    setWallClock(noon);
    await disk.start();
    await disk.point();
    await machine.restart();
    expect(await firstPoint()).toBe("app");
  });
});
