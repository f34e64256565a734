/**
 * What the tests of protections share: images that are written through their protections, an array
 * of bytes beside each that says what it must hold, a store that can be cut off or put back in
 * time, and processes that can die.
 *
 * A death is played in this process: the store stops answering, the tracking file is kept as it
 * lies, everything is ended in good order, and the tracking file is put back. What a clean end adds
 * to it is so taken away again, and the writer lease is still the dead one's.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach } from "vitest";
import type { BlockDevice } from "../../../../engine/device.ts";
import { type ErrorCode, TidemarkError } from "../../../../engine/errors.ts";
import type { Protection } from "../../../../engine/replication/protection/protection.ts";
import type { ProtectionEvent } from "../../../../engine/replication/protection/protection-state.ts";
import type { ProtectionStatus, ProtectOptions } from "../../../../engine/replication/protection/protection-status.ts";
import type { Sink } from "../../../../engine/sink.ts";
import { encodeDiskName } from "../../../../engine/store/format/names.ts";
import { readManifest } from "../../../../engine/store/points/manifest.ts";
import type { PointSummary } from "../../../../engine/store/points/points.ts";
import type { Vault } from "../../../../engine/vault.ts";
import type { VaultOptions } from "../../../../engine/vault-options.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import {
  closeModelVaults,
  committedPoints,
  modelStore,
  openModelVault,
  pointBytes,
  redirected,
} from "../../../model-disk.ts";

/**
 * No point is due by schedule within a test: a first one may be, once, up to 30 s after the start.
 */
const neverMs = 24 * 60 * 60 * 1000;

export type Settings = Omit<Partial<ProtectOptions>, "image" | "stateFolder" | "onEvent">;

/** Several disks in one vault, and the machine that they are on. */
export class Machine {
  readonly folder: string = mkdtempSync(path.join(tmpdir(), "tidemark-protection-"));
  readonly store: MemoryStore = new MemoryStore();
  /** A client of the store that nothing ever happens to. */
  readonly plain: MemorySink = new MemorySink({ store: this.store });
  readonly #line: { current: Sink } = { current: this.plain };
  readonly #disks: ProtectedImage[] = [];
  #vault: Vault | undefined;

  get stateFolder(): string {
    return path.join(this.folder, "state");
  }

  async vault(options: VaultOptions = {}): Promise<Vault> {
    this.#vault ??= await openModelVault(redirected(this.#line), { stateFolder: this.stateFolder, ...options });
    return this.#vault;
  }

  /** Every call goes through `sink` from now on. */
  connect(sink: Sink = this.plain): void {
    this.#line.current = sink;
  }

  /** The store does not answer any more. */
  cutOff(): void {
    this.#line.current = silentFrom(this.plain, () => "before");
  }

  /** The store does not answer any more where this disk is concerned. */
  cutOffDisk(disk: string): void {
    this.#line.current = silentFrom(this.plain, (_method, name) => (name.includes(`/${disk}/`) ? "before" : undefined));
  }

  /**
   * From the first call on that `isLast` is true of, no call is answered any more, and only
   * that call may still have its effect there. Resolves at that moment.
   */
  async cutOffAt(effect: "before" | "after", isLast: (method: string, name: string) => boolean): Promise<void> {
    await new Promise<void>((resolve) => {
      let isSilent = false;
      this.#line.current = silentFrom(this.plain, (method, name) => {
        if (isSilent) return "before";
        isSilent = isLast(method, name);
        if (!isSilent) return undefined;
        resolve();
        return effect;
      });
    });
  }

  disk(sizeBytes: number, settings: Settings = {}): ProtectedImage {
    const disk = new ProtectedImage(this, settings.disk ?? `d${String(this.#disks.length)}`, sizeBytes, settings);
    this.#disks.push(disk);
    return disk;
  }

  /** Ends every protection, without a last point. */
  async restart(): Promise<void> {
    for (const disk of this.#disks) await disk.stop();
    await this.#vault?.close();
    this.#vault = undefined;
  }

  /** The process dies and the machine lives on. */
  async crash(): Promise<void> {
    this.cutOff();
    const left = this.#disks.map((disk) => disk.trackingBytes());
    await this.restart();
    for (const [index, disk] of this.#disks.entries()) disk.putTracking(left[index]);
    this.connect();
  }

  async dispose(): Promise<void> {
    await this.restart();
    rmSync(this.folder, { recursive: true });
  }
}

/** Gives every test of a file a machine of its own, and ends it after the test. */
export function machineForEachTest(begin: (machine: Machine) => void): void {
  let machine: Machine;
  beforeEach(() => {
    machine = new Machine();
    begin(machine);
  });
  afterEach(async () => {
    await machine.dispose();
    await closeModelVaults();
  });
}

export class ProtectedImage {
  readonly name: string;
  readonly image: string;
  /** What the disk holds now. */
  content: Buffer;
  readonly events: ProtectionEvent[] = [];
  readonly #machine: Machine;
  readonly #settings: Settings;
  #protection: Protection | undefined;
  #tracking = "";
  /** Everything that the disk has been, between two writes. */
  readonly #states = new Set<string>();
  #watchers: {
    readonly sees: (event: ProtectionEvent) => boolean;
    readonly resolve: (event: ProtectionEvent) => void;
  }[] = [];

  constructor(machine: Machine, name: string, sizeBytes: number, settings: Settings) {
    this.#machine = machine;
    this.name = name;
    this.image = path.join(machine.folder, `${name}.img`);
    this.#settings = settings;
    writeFileSync(this.image, "");
    truncateSync(this.image, sizeBytes);
    this.content = Buffer.alloc(sizeBytes);
  }

  async start(more: Settings = {}): Promise<Protection> {
    const vault = await this.#machine.vault();
    this.#protection = await vault.protect({
      disk: this.name,
      image: this.image,
      stateFolder: this.#machine.stateFolder,
      ...this.#settings,
      ...more,
      policy: { crashConsistentFrequencyMs: neverMs, barrierMsMax: 10_000, ...this.#settings.policy, ...more.policy },
      onEvent: (event) => {
        this.#note(event);
      },
    });
    this.#tracking = path.join(this.#machine.stateFolder, vault.id, encodeDiskName(this.name), "tracking");
    this.#noteState();
    return this.#protection;
  }

  get protection(): Protection {
    assert(this.#protection !== undefined, "the disk is being protected");
    return this.#protection;
  }

  get device(): BlockDevice {
    return this.protection.device;
  }

  get status(): ProtectionStatus {
    return this.protection.status();
  }

  /** Codes of what is wrong. */
  get findings(): string[] {
    return this.status.findings.map(({ code }) => code);
  }

  /** Codes of the notices so far. */
  get notices(): string[] {
    return this.events.flatMap((event) => (event.kind === "notice" ? [event.code] : []));
  }

  /** Codes of the failures so far. */
  get failures(): string[] {
    return this.events.flatMap((event) => (event.kind === "failure" ? [event.error.code] : []));
  }

  /** Resolves with the next event that `sees` is true of. */
  async next(sees: (event: ProtectionEvent) => boolean): Promise<ProtectionEvent> {
    return await new Promise<ProtectionEvent>((resolve) => {
      this.#watchers.push({ sees, resolve });
    });
  }

  async nextFailure(code: ErrorCode): Promise<void> {
    await this.next((event) => event.kind === "failure" && event.error.code === code);
  }

  async nextPoint(): Promise<PointSummary> {
    const event = await this.next(({ kind }) => kind === "point");
    assert(event.kind === "point");
    return event.point;
  }

  /** Writes as a front end does: at once if that is possible. */
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    if (!this.device.tryWrite(offset, bytes)) await this.device.write(offset, bytes);
    this.content.set(bytes, offset);
    this.#noteState();
  }

  async zero(offset: number, length: number): Promise<void> {
    await this.device.zero(offset, length, true);
    this.content.fill(0, offset, offset + length);
    this.#noteState();
  }

  /** What has been trimmed is zeros or what it was. */
  async trim(offset: number, length: number): Promise<void> {
    await this.device.trim(offset, length);
    await this.device.read(offset, this.content.subarray(offset, offset + length));
    this.#noteState();
  }

  /** Requests a point while no client writes, and fails unless it holds the disk. */
  async point(options: Parameters<Protection["point"]>[0] = {}): Promise<PointSummary> {
    const point = await this.protection.point(options);
    await this.checkNewest(point.point);
    return point;
  }

  /** Fails unless the newest point, and it is `id`, is exactly what the disk is. */
  async checkNewest(id?: string): Promise<void> {
    const newest = (await committedPoints(this.#machine.plain, this.name)).at(-1);
    assert(newest !== undefined && (id === undefined || newest.id === id), "the newest point is the one that was told");
    assert.notEqual(newest.consistency, "fuzzy");
    assert(
      (await pointBytes(this.#machine.plain, this.name, newest)).equals(this.content),
      `${this.name}: the newest point is the disk`,
    );
  }

  /**
   * Fails unless every point can be read and is, unless it is fuzzy, what the disk was between two
   * writes. Returns how many there are.
   */
  async checkAll(): Promise<number> {
    const points = await committedPoints(this.#machine.plain, this.name);
    for (const point of points) {
      const bytes = await pointBytes(this.#machine.plain, this.name, point);
      if (point.consistency === "fuzzy") continue;
      assert(
        this.#states.has(stateOf(bytes)),
        `point ${String(point.sequence)} of ${this.name} is something that the disk was`,
      );
    }
    return points.length;
  }

  /** How much of the disk was looked at for the newest point. */
  async scannedBytes(): Promise<number> {
    const newest = (await committedPoints(this.#machine.plain, this.name)).at(-1);
    assert(newest !== undefined, "there is a point");
    const { id } = await this.#machine.vault();
    const manifest = await readManifest(await modelStore(this.#machine.plain), id, this.name, newest, undefined);
    return manifest.statistics.scannedBytes;
  }

  async stop(): Promise<void> {
    await this.#protection?.stop({ drain: false });
    this.#protection = undefined;
  }

  get trackingPath(): string {
    return this.#tracking;
  }

  /** What a death of the process would leave of the tracking file. */
  trackingBytes(): Buffer | undefined {
    return this.#protection === undefined ? undefined : readFileSync(this.#tracking);
  }

  putTracking(bytes: Buffer | undefined): void {
    if (bytes !== undefined) writeFileSync(this.#tracking, bytes);
  }

  #noteState(): void {
    this.#states.add(stateOf(this.content));
  }

  #note(event: ProtectionEvent): void {
    this.events.push(event);
    const seeing = this.#watchers.filter(({ sees }) => sees(event));
    this.#watchers = this.#watchers.filter((watcher) => !seeing.includes(watcher));
    for (const { resolve } of seeing) resolve(event);
  }
}

function stateOf(content: Uint8Array): string {
  return createHash("sha256").update(content).digest("hex"); // by the processor: hash-wasm takes four times as long
}

/** A sink that is silent from where `silence` says, before or after the effect of that call. */
function silentFrom(inner: Sink, silence: (method: string, name: string) => "before" | "after" | undefined): Sink {
  return new Proxy(inner, {
    get(sink, property) {
      const value: unknown = Reflect.get(sink, property, sink);
      if (typeof value !== "function" || typeof property !== "string") return value;
      return (...given: unknown[]): unknown => {
        const [name] = given;
        const when = silence(property, typeof name === "string" ? name : "");
        const answer: unknown = when === "before" ? undefined : Reflect.apply(value, sink, given);
        if (when === undefined) return answer;
        return property === "list" ? noList() : unheard(property, answer);
      };
    },
  });
}

/** Waits for the effect, and does not report it. */
async function unheard(method: string, effect: unknown): Promise<never> {
  await Promise.allSettled([effect]);
  throw unreachable(method);
}

function noList(): AsyncIterable<never> {
  return { [Symbol.asyncIterator]: () => ({ next: async () => await unheard("list", undefined) }) };
}

export function unreachable(method: string): TidemarkError {
  return new TidemarkError("STORE_UNREACHABLE", `${method}: no answer`, { remedy: "connect it again" });
}
