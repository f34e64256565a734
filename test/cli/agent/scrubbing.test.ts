/** The agent's scrubbing: when it reads how much, and what becomes of what it finds. */
import { describe, expect, test } from "vitest";
import type { DiskEvent } from "../../../cli/agent/ports.ts";
import type { ScrubEntry } from "../../../cli/agent/schema.ts";
import { Scrubbing } from "../../../cli/agent/scrubbing.ts";
import { type Damage, type ScrubOptions, type ScrubSummary, TidemarkError } from "../../../engine/index.ts";
import { ConfigFolder } from "./configuration.ts";
import { settled, VirtualClock } from "./scripted.ts";

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;

class Rig {
  readonly clock = new VirtualClock();
  readonly passes: ScrubOptions[] = [];
  readonly events: DiskEvent[] = [];
  next: Partial<ScrubSummary> | Error = {};
  readonly scrubbing: Scrubbing;

  constructor(entry: ScrubEntry | undefined) {
    this.scrubbing = new Scrubbing(entry, {
      clock: this.clock,
      scrub: (options) => {
        this.passes.push(options);
        if (this.next instanceof Error) return Promise.reject(this.next);
        return Promise.resolve({
          provedPoints: 0,
          readBytes: 0,
          readsPayloads: true,
          damaged: [],
          healed: [],
          roundEnded: false,
          elapsedMs: 0,
          ...this.next,
        });
      },
      onEvent: (event) => this.events.push(event),
    });
  }
}

const damage = (sequence: number, healed = false): Damage => ({
  disk: "web",
  sequence,
  point: "0".repeat(32),
  extent: { offset: 0, length: 4096 },
  object: "segments/web/00000001-0-00000000",
  code: "DAMAGED",
  message: `bytes of point ${sequence}`,
  healed,
});

describe("scrubbing", () => {
  test("asks every hour for what has come together of the day's share", async () => {
    const rig = new Rig({ sharePerDay: 0.1, rate: undefined });
    await rig.clock.advance(5 * minuteMs);
    expect(rig.passes).toHaveLength(1);
    for (let hour = 0; hour < 24; hour += 1) await rig.clock.advance(hourMs);
    expect(rig.passes).toHaveLength(25);
    expect(new Set(rig.passes.map(({ sharePerDay }) => sharePerDay))).toEqual(new Set([0.1]));
    await rig.scrubbing.stop();
  });

  test.each([undefined, { sharePerDay: 0, rate: undefined }])(
    "is off when nothing is to be read: %j",
    async (entry) => {
      const rig = new Rig(entry);
      for (let hour = 0; hour < 5; hour += 1) await rig.clock.advance(hourMs);
      expect(rig.passes).toEqual([]);
      await rig.scrubbing.stop();
    },
  );

  test("goes at the pace of a changed configuration from then on", async () => {
    const rig = new Rig({ sharePerDay: 0, rate: undefined });
    await rig.clock.advance(5 * minuteMs);
    rig.scrubbing.set({ sharePerDay: 1, rate: 1024 * 1024 });
    await settled();
    await rig.clock.advance(hourMs);
    expect(rig.passes.map(({ sharePerDay }) => sharePerDay)).toEqual(Array.from(rig.passes, () => 1));
    expect(rig.passes.length).toBeGreaterThan(0);
    expect(rig.passes.at(-1)?.bandwidth?.bytesPerSecond).toBe(1024 * 1024);
    await rig.scrubbing.stop();
  });

  test("tells of damage as a finding of its disk until it is found whole", async () => {
    const rig = new Rig({ sharePerDay: 0.1, rate: undefined });
    rig.next = { damaged: [damage(7), damage(3)] };
    await rig.clock.advance(5 * minuteMs);
    expect(rig.scrubbing.findings("web")).toMatchObject([{ level: "Critical", code: "POINT_DAMAGED" }]);
    expect(rig.scrubbing.findings("web")[0]?.cause).toContain(
      "points 3, 7 of web cannot be read back in full: bytes of point 7",
    );
    expect(rig.scrubbing.findings("db")).toEqual([]);
    rig.next = { healed: [damage(3, true), damage(7, true)] };
    await rig.clock.advance(hourMs);
    expect(rig.scrubbing.findings("web")).toEqual([]);
    expect(rig.events).toMatchObject([
      { kind: "notice", disk: "web", code: "DAMAGE_HEALED", message: "2 damages of the vault healed" },
    ]);
    await rig.scrubbing.stop();
  });

  test("without a key that reads payloads says so once, and finds nothing critical", async () => {
    const rig = new Rig({ sharePerDay: 0.1, rate: undefined });
    rig.next = { readsPayloads: false };
    for (let hour = 0; hour < 3; hour += 1) await rig.clock.advance(hourMs);
    expect(rig.passes.length).toBeGreaterThan(1);
    expect(rig.events).toMatchObject([{ kind: "notice", disk: "", code: "PAYLOADS_NOT_READ" }]);
    expect(rig.scrubbing.findings("web")).toEqual([]);
    await rig.scrubbing.stop();
  });

  test("goes on after a store that did not answer", async () => {
    const rig = new Rig({ sharePerDay: 0.1, rate: undefined });
    rig.next = new TidemarkError("STORE_UNREACHABLE", "no answer");
    await rig.clock.advance(5 * minuteMs);
    rig.next = {};
    await rig.clock.advance(hourMs);
    expect(rig.passes).toHaveLength(2);
    expect(rig.events).toEqual([]);
    await rig.scrubbing.stop();
  });
});

describe("a configuration", () => {
  const text = (scrub: string): string => `vaults:
  main: {address: "dir:vault"${scrub}}
policies:
  gold: {}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:web.sock"}
`;
  const scrubOf = async (written: string): Promise<ScrubEntry | undefined> =>
    (await new ConfigFolder("web.img").config(text(written))).vaults.get("main")?.scrub;

  test("without a word about it reads a tenth of the vault a day, slowly", async () => {
    expect(await scrubOf("")).toEqual({ sharePerDay: 0.1, rate: 10 * 1024 * 1024 });
  });

  test("says the share as a percentage, and the rate as all rates", async () => {
    expect(await scrubOf(", scrub: {sharePerDay: 2.5%, rate: 1MiB/s}")).toEqual({
      sharePerDay: 0.025,
      rate: 1024 * 1024,
    });
    expect(await scrubOf(", scrub: {sharePerDay: 0, rate: off}")).toEqual({ sharePerDay: 0, rate: undefined });
  });

  test.each([
    [", scrub: {sharePerDay: 120%}", "sharePerDay is no share of a vault"],
    [", scrub: {rate: 10}", "rate is no rate"],
    [", scrub: {shareperday: 1%}", "did you mean sharePerDay?"],
    [", scrub: 5%", "scrub is not a section with fields"],
  ])("that says it wrongly is refused: %s", async (written, fault) => {
    expect((await new ConfigFolder("web.img").faults(text(written))).join("\n")).toContain(fault);
  });

  test.each(["SEGMENT_DAMAGED", "VAULT_AT_RISK"] as const)(
    "passes on the notice %s, and no repeated one",
    async (code) => {
      const rig = new Rig({ sharePerDay: 0.1, rate: undefined });
      await rig.clock.advance(5 * minuteMs);
      rig.passes[0]?.onNotice?.({ code, message: "a segment" });
      rig.passes[0]?.onNotice?.({ code: "HOLD_REFUSED", message: "no hold" });
      expect(rig.events).toEqual([{ kind: "notice", disk: "", code, message: "a segment" }]);
      await rig.scrubbing.stop();
    },
  );
});
