/** The agent's replica of a disk: when points are applied, and what is told of it. */

import { readFileSync, writeFileSync } from "node:fs";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { openEngineAdapter } from "../../../cli/agent/engine-adapter.ts";
import type { DiskEvent } from "../../../cli/agent/ports.ts";
import { ReplicaKeeping } from "../../../cli/agent/replica-keeping.ts";
import { type ReplicaDone, type ReplicaOptions, TidemarkError } from "../../../engine/index.ts";
import { keyEnvironment } from "../../encrypted.ts";
import { contentOf } from "../../model-disk.ts";
import { ConfigFolder } from "./configuration.ts";
import { settled, VirtualClock } from "./scripted.ts";

const minuteMs = 60_000;

/** Replicas whose following the test ends. */
class Rig {
  readonly clock = new VirtualClock();
  readonly events: DiskEvent[] = [];
  readonly runs: { readonly options: ReplicaOptions; readonly fail: (error: Error) => void }[] = [];
  readonly keeping: ReplicaKeeping;

  constructor(to: string | undefined) {
    this.keeping = new ReplicaKeeping(to, {
      disk: "web",
      clock: this.clock,
      run: async (options) =>
        await new Promise<ReplicaDone>((resolve, reject) => {
          this.runs.push({ options, fail: reject });
          options.signal?.addEventListener("abort", () => resolve({} as ReplicaDone));
        }),
      onEvent: (event) => this.events.push(event),
    });
    onTestFinished(async () => await this.keeping.stop());
  }

  holds(sequence: number): void {
    this.runs.at(-1)?.options.onHolds?.({ sequence, point: "0".repeat(32), time: "2026-05-01T12:00:00.000Z" });
  }

  codes(): readonly string[] {
    return this.keeping.findings(15 * minuteMs).map(({ code }) => code);
  }
}

describe("a replica in the agent", () => {
  test("is woken by each point, and tells what it holds and how long it has been behind", async () => {
    const rig = new Rig("file:/srv/web.img");
    await settled();
    expect(rig.runs[0]?.options).toMatchObject({ disk: "web", to: "file:/srv/web.img" });
    expect(rig.keeping.facts()).toEqual({
      target: "file:/srv/web.img",
      state: "starting",
      sequence: null,
      time: null,
    });
    const wake = vi.fn();
    rig.runs[0]?.options.onIdle?.(wake);
    rig.holds(1);
    expect(rig.keeping.facts()).toMatchObject({ state: "current", sequence: 1 });
    rig.keeping.committed(2);
    expect(wake).toHaveBeenCalledTimes(1);
    expect(rig.keeping.facts()).toMatchObject({ state: "behind", sequence: 1 });
    await rig.clock.advance(16 * minuteMs);
    expect(rig.codes()).toEqual(["REPLICA_BEHIND"]);
    expect(rig.keeping.findings(undefined)).toEqual([]);
    rig.holds(2);
    expect(rig.keeping.facts()).toMatchObject({ state: "current", sequence: 2 });
    expect(rig.codes()).toEqual([]);
  });

  test("is tried again after a failure, which is a finding until a point is held", async () => {
    const rig = new Rig("file:/srv/web.img");
    await settled();
    // A new disk has no point yet: that is no failure.
    rig.runs[0]?.fail(new TidemarkError("DISK_NOT_FOUND", "no disk"));
    await settled();
    expect(rig.codes()).toEqual([]);
    rig.keeping.committed(1);
    await settled();
    rig.runs[1]?.fail(new TidemarkError("NO_SPACE", "no room is left"));
    await settled();
    expect(rig.keeping.facts()).toMatchObject({ state: "failed" });
    expect(rig.codes()).toEqual(["REPLICA_FAILED"]);
    expect(rig.events).toMatchObject([{ kind: "failure", disk: "web", code: "NO_SPACE" }]);
    await rig.clock.advance(1_000);
    expect(rig.runs).toHaveLength(3);
    expect(rig.codes()).toEqual(["REPLICA_FAILED"]);
    rig.holds(1);
    expect(rig.codes()).toEqual([]);
  });

  test("waits while a failover has it, and follows another target when its policy says so", async () => {
    const rig = new Rig("file:/srv/web.img");
    await settled();
    rig.holds(1);
    rig.runs[0]?.options.onNotice?.({ code: "REPLICA_TAKEN", message: "taken" });
    rig.keeping.committed(2);
    await rig.clock.advance(16 * minuteMs);
    expect(rig.keeping.facts()).toMatchObject({ state: "failed-over" });
    expect(rig.codes()).toEqual([]);
    rig.keeping.set("blob:copies/web.vhd");
    await settled();
    expect(rig.runs[0]?.options.signal?.aborted).toBe(true);
    expect(rig.runs[1]?.options.to).toBe("blob:copies/web.vhd");
    expect(rig.keeping.facts()).toMatchObject({ state: "starting", target: "blob:copies/web.vhd" });
    rig.keeping.set(undefined);
    await settled();
    expect(rig.keeping.facts()).toBeNull();
    expect(rig.runs).toHaveLength(2);
  });
});

const text = `vaults:
  main: {address: "memory:", stateFolder: state}
policies:
  gold: {crashConsistentFrequency: 1h, replica: "dir:copies"}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:a.sock"}
`;

test("a policy with a replica keeps it at each point as soon as that is committed, and finishes what was torn", async () => {
  const folder = new ConfigFolder("web.img");
  folder.folders("copies");
  writeFileSync(folder.path("web.img"), contentOf(100_000, 1));
  const { vaults, disks, policies } = await folder.config(text);
  const [vaultConfig, disk, policy] = [vaults.get("main"), disks.get("web"), policies.get("gold")];
  if (vaultConfig === undefined || disk === undefined || policy === undefined) throw new Error("no such entry");
  const { signal } = new AbortController();
  const vault = await openEngineAdapter(keyEnvironment).openVault(vaultConfig, signal, () => []);
  onTestFinished(async () => await vault.close());
  const copy = (): Buffer => readFileSync(folder.path("copies/web.img"));
  const sameContent = (): boolean => copy().equals(readFileSync(folder.path("web.img")));
  const first = await vault.protect({ disk, policy, onEvent: () => undefined }, signal);
  await vi.waitFor(() => expect(first.replica()).toMatchObject({ state: "current", sequence: 1 }), 10_000);
  expect(sameContent()).toBe(true);
  await first.device.write(8192, contentOf(4096, 7));
  const { sequence } = await first.point({ applicationConsistent: false, signal });
  await vi.waitFor(() => expect(first.replica()).toMatchObject({ state: "current", sequence }), 10_000);
  expect(sameContent()).toBe(true);
  expect(first.status().health).toBe("Normal");
  await first.stop({ drain: false, signal });
  // Nothing follows the disk while it is stopped. What another program made of the copy is mended at the start.
  const torn = copy();
  torn.fill(0, 0, 50_000);
  writeFileSync(folder.path("copies/web.img"), torn);
  const second = await vault.protect({ disk, policy, onEvent: () => undefined }, signal);
  await vi.waitFor(() => expect(second.replica()).toMatchObject({ state: "current", sequence }), 10_000);
  expect(sameContent()).toBe(true);
  await second.stop({ drain: false, signal });
});

describe("a policy with a replica", () => {
  const config = (replica: string, more = ""): string =>
    text.replace("dir:copies", replica).replace('"memory:"', '"dir:vault"') + more;

  test("names a place for each disk, from the folder of the file", async () => {
    const folder = new ConfigFolder("web.img");
    folder.folders("copies");
    const { policies } = await folder.config(config("dir:copies"));
    expect(policies.get("gold")?.replica).toEqual({ kind: "dir", place: folder.path("copies") });
  });

  test.each([
    ["copies", "is no place of replicas", ""],
    ["dir:absent", "absent does not exist", ""],
    ["dir:vault", "lies inside the vault's own folder", ""],
    ["blob:copies", "does not hold page blobs", ""],
    [
      "file:web.copy",
      "has 2 disks",
      '  - {name: db, image: db.img, vault: main, policy: gold, listen: "unix:a.sock"}\n',
    ],
  ])("at %s has a fault at its line", async (replica, fact, more) => {
    const folder = new ConfigFolder("web.img", "db.img");
    folder.folders("vault");
    const faults = await folder.faults(config(replica, more));
    expect(faults).toHaveLength(1);
    expect(faults[0]).toContain(fact);
    expect(faults[0]).toMatch(/^agent\.yaml:4:/);
  });
});
