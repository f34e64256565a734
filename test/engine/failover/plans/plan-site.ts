/**
 * A vault with two points of each of three disks, and a plan for them, for runs that die: the store is
 * put back to where it was, and the process that worked is gone.
 */
import { readdirSync } from "node:fs";
import { expect } from "vitest";
import type { Plan } from "../../../../engine/store/format/plan-run.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import type { Vault } from "../../../../engine/vault.ts";
import type { FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../../sink/memory.ts";
import { openModelVault, redirected, sampleDisk, scribble } from "../../../model-disk.ts";
import { namesIn } from "../../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";
import { logged } from "./plan-rig.ts";

export const planDisks = ["data", "web", "app"] as const;

export class PlanSite {
  readonly memory: MemoryStore = new MemoryStore();
  readonly line: { current: MemorySink | FaultySink } = { current: new MemorySink({ store: this.memory }) };
  /** What each disk holds at its points. */
  readonly contents: Map<string, Buffer[]> = new Map<string, Buffer[]>();
  vault!: Vault;
  /** At this time every disk has its first point, and none its second one. */
  older = "";
  /** Of the targets, commands and logs of one run. */
  folder = "";
  #replicated!: MemorySnapshot;

  static async open(): Promise<PlanSite> {
    const site = new PlanSite();
    const vault = await openModelVault(redirected(site.line));
    const volumes = planDisks.map((name, index) => ({ name, volume: sampleDisk(60_000, index + 1) }));
    for (const seed of [1, 2]) {
      for (const { name, volume } of volumes) {
        await vault.replicate({ disk: name, volume });
        site.contents.set(name, [...(site.contents.get(name) ?? []), Buffer.from(volume.bytes)]);
        scribble(volume, seed);
      }
    }
    site.vault = vault;
    site.older = String((await vault.points("app"))[0]?.time);
    site.#replicated = site.memory.snapshot();
    return site;
  }

  /** As if nothing had run yet. */
  begin(): void {
    this.memory.restore(this.#replicated);
    this.reconnect();
    this.folder = createFolder("plan-site");
  }

  /** The process has died: its sessions are gone, and its calls end. */
  reconnect(): void {
    liveSessions().clear();
    this.line.current = new MemorySink({ store: this.memory });
  }

  async end(): Promise<void> {
    this.reconnect();
    await removeFolder(this.folder);
  }

  plan(more: Partial<Plan> = {}): Plan {
    return {
      name: "small",
      machines: planDisks.map((disk) => ({ name: `m-${disk}`, disks: [disk], source: null })),
      groups: [
        { machines: ["m-data"], before: [], after: [logged("after")] },
        { machines: ["m-web", "m-app"], before: [], after: [] },
      ],
      cleanup: [logged("cleanup")],
      target: `dir:${this.folder}`,
      testTarget: null,
      objectives: { rpoMs: null, rtoMs: null },
      folder: this.folder,
      text: "",
      ...more,
    };
  }

  /** Names of the store that match; by default pins, which nothing needs any more when a run has ended. */
  async namesLeft(pattern: RegExp = /\/pins\//): Promise<string[]> {
    return (await namesIn(new MemorySink({ store: this.memory }), "disks/")).filter((name) => pattern.test(name));
  }

  /** Fails unless a run that was given up has left nothing. */
  async checkUndone(): Promise<void> {
    expect(readdirSync(this.folder).filter((name) => name.includes(".img"))).toEqual([]);
    expect(await this.namesLeft(/pins|failover/)).toEqual([]);
  }
}
