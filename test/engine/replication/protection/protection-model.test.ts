/**
 * A disk under protection and a store to which anything happens, in any order. Every point that
 * comes about is what the disk was between two writes; every point that was requested while no client
 * wrote is what the disk is.
 */

import fc from "fast-check";
import { afterEach, expect, test } from "vitest";
import { FaultySink } from "../../../../sink/faults.ts";
import type { MemorySnapshot } from "../../../../sink/memory.ts";
import { runsOf } from "../../../depth.ts";
import { closeModelVaults, contentOf } from "../../../model-disk.ts";
import { Machine, type ProtectedImage, unreachable } from "./protection-rig.ts";

/** Two regions and a piece, which ends inside a granule. */
const sizeBytes: number = 8 * 1024 * 1024 + 137 * 512;
const seed = 20_261_121;

type Step =
  | { readonly kind: "write" | "zero" | "trim"; readonly at: number; readonly sectors: number; readonly seed: number }
  | {
      readonly kind:
        | "point"
        | "flush"
        | "pause"
        | "resume"
        | "outage"
        | "back"
        | "snapshot"
        | "crash"
        | "restart"
        | "loseTracking";
    }
  | { readonly kind: "regress"; readonly snapshot: number }
  | { readonly kind: "dieWithin" | "outageWithin"; readonly calls: number }
  | {
      readonly kind: "unacknowledged" | "refused" | "late";
      readonly on: "putObject" | "writePages";
      readonly nth: number;
    };

// Places cluster around borders of granules, blocks and regions, where mistakes live.
const place = fc.oneof(
  fc.nat(sizeBytes / 512 - 1),
  fc.nat(40).map((granule) => granule * 8),
  fc.constantFrom(8192 - 8, 8192, 8192 + 1, 16_384 - 1, 16_384, sizeBytes / 512 - 3),
);
const sectors = fc.oneof(fc.integer({ min: 1, max: 12 }), fc.constantFrom(8, 16, 32, 80, 600));
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      kind: fc.constantFrom("write" as const, "write" as const, "zero" as const, "trim" as const),
      at: place,
      sectors,
      seed: fc.nat(5),
    }),
  },
  { weight: 6, arbitrary: fc.record({ kind: fc.constant("point" as const) }) },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        "flush",
        "pause",
        "resume",
        "outage",
        "back",
        "snapshot",
        "crash",
        "restart",
        "loseTracking",
      ),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("regress" as const), snapshot: fc.nat(3) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constantFrom("dieWithin" as const, "outageWithin" as const),
      calls: fc.integer({ min: 1, max: 40 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constantFrom("unacknowledged" as const, "refused" as const, "late" as const),
      on: fc.constantFrom("putObject" as const, "writePages" as const),
      nth: fc.integer({ min: 1, max: 5 }),
    }),
  },
);

afterEach(async () => {
  await closeModelVaults();
});

test("every point holds exactly the writes before its cut, whatever happens to the store and to the process", async () => {
  console.log(`seed ${String(seed)}`);
  await fc.assert(fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 30 }), run), {
    seed,
    numRuns: runsOf(15),
    endOnFailure: true,
  });
}, 120_000);

async function run(steps: readonly Step[]): Promise<void> {
  const world = new World();
  try {
    await world.begin();
    for (const [number, each] of steps.entries()) {
      await world.take(each).catch((error: unknown) => {
        throw new Error(`step ${String(number)}, ${JSON.stringify(each)}`, { cause: error });
      });
    }
    await world.end();
  } finally {
    await world.machine.dispose();
  }
}

class World {
  readonly machine: Machine = new Machine();
  readonly #disk: ProtectedImage = this.machine.disk(sizeBytes);
  readonly #snapshots: MemorySnapshot[] = [];
  #isPaused = false;
  #isAway = false;

  async begin(): Promise<void> {
    await this.#disk.start();
    await this.#disk.point();
    this.#snapshots.push(this.machine.store.snapshot());
  }

  async end(): Promise<void> {
    this.#reconnect();
    this.#resume();
    await this.#disk.point();
    expect(this.#disk.status.state).toBe("protecting");
    expect(await this.#disk.checkAll()).toBeGreaterThan(0);
  }

  async take(step: Step): Promise<void> {
    const disk = this.#disk;
    switch (step.kind) {
      case "write":
        await disk.write(...within(step));
        break;
      case "zero":
        await disk.zero(...rangeOf(step));
        break;
      case "trim":
        await disk.trim(...rangeOf(step));
        break;
      case "flush":
        await disk.device.flush();
        break;
      case "point":
        if (!this.#isPaused && !this.#isAway) await disk.point();
        break;
      case "pause":
        this.#isPaused = true;
        disk.protection.pause();
        break;
      case "resume":
        this.#resume();
        break;
      case "outage":
        this.#isAway = true;
        this.machine.cutOff();
        break;
      case "back":
        this.#reconnect();
        break;
      case "snapshot":
        this.#snapshots.push(this.machine.store.snapshot());
        break;
      case "regress":
        await this.#regress(this.#snapshots.at(-1 - step.snapshot) ?? this.#snapshots[0]);
        break;
      case "crash":
        await this.machine.crash();
        await this.#begun();
        break;
      case "restart":
        await this.machine.restart();
        this.machine.connect();
        await this.#begun();
        break;
      case "loseTracking":
        await this.machine.restart();
        this.machine.connect();
        disk.putTracking(Buffer.alloc(0));
        await this.#begun();
        break;
      case "dieWithin":
        await this.#cutOffWithin(step.calls);
        await this.machine.crash();
        await this.#begun();
        break;
      case "outageWithin":
        await this.#cutOffWithin(step.calls);
        break;
      case "unacknowledged":
      case "late":
      case "refused":
        await this.#suffer(step);
        break;
    }
  }

  async #begun(): Promise<void> {
    this.#isPaused = false;
    this.#isAway = false;
    await this.#disk.start();
  }

  /**
   * A store that goes back does not tell; what is checked is that nothing is lost of what is written
   * afterwards or was before.
   */
  async #regress(snapshot: MemorySnapshot | undefined): Promise<void> {
    if (snapshot === undefined) return;
    this.machine.store.restore(snapshot);
    await this.#disk.checkAll();
  }

  /**
   * Asks for a point that the store, or the process, does not live to see; unless it is quicker.
   */
  async #cutOffWithin(calls: number): Promise<void> {
    if (this.#isPaused || this.#isAway) return;
    let left = calls;
    const isSilent = this.machine.cutOffAt("after", () => {
      left -= 1;
      return left === 0;
    });
    const asked = this.#disk.point();
    asked.catch(() => undefined); // whoever is interrupted gets no point
    await Promise.race([isSilent, asked]);
    this.machine.cutOff();
    this.#isAway = true;
  }

  async #suffer({ kind, on, nth }: Extract<Step, { readonly nth: number }>): Promise<void> {
    if (this.#isPaused || this.#isAway) return;
    const fault = kind === "refused" ? { kind, error: unreachable(on) } : { kind };
    const sink = new FaultySink(this.machine.plain, [{ on, when: nth, fault }]);
    this.machine.connect(sink);
    await this.#disk.point();
    await sink.releaseLate();
    await this.#disk.checkAll();
    this.machine.connect();
  }

  #reconnect(): void {
    this.#isAway = false;
    this.machine.connect();
  }

  #resume(): void {
    this.#isPaused = false;
    this.#disk.protection.resume();
  }
}

type Ranged = Extract<Step, { readonly at: number }>;

function rangeOf({ at, sectors: count }: Ranged): [number, number] {
  return [at * 512, Math.min(count, sizeBytes / 512 - at) * 512];
}

function within(step: Ranged): [number, Buffer] {
  const [offset, length] = rangeOf(step);
  return [offset, contentOf(length, step.seed)];
}
