/** Replicas: they equal the newest point at the price of what differs, and never claim more than that. */
import { appendFileSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { PositionalFile } from "../../../engine/disk/source/positional-file.ts";
import { TidemarkError } from "../../../engine/errors.ts";
import type { Application, ReplicaSummary } from "../../../engine/failover/replica-summary.ts";
import { parseFixedVhdFooter } from "../../../engine/recovery/restore/vhd.ts";
import { decodeReplica, encodeReplica } from "../../../engine/store/format/replica.ts";
import { putClaim, settleClaim } from "../../../engine/store/points/failover-claim.ts";
import { liveSessions } from "../../../engine/store/points/process-identity.ts";
import { parsePolicy } from "../../../engine/upkeep/retention/policy.ts";
import type { Vault } from "../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { byDepth, runsOf } from "../../depth.ts";
import { attachLoop } from "../../loop-device.ts";
import {
  closeModelVaults,
  type ModelDisk,
  modelSink,
  modelStore,
  openModelVault,
  redirected,
  sampleDisk,
  scribble,
} from "../../model-disk.ts";
import { namesIn } from "../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";

const diskBytes = 200_000;
const propertyMsMax: number = byDepth(120_000, 1_200_000);

const memory = new MemoryStore();
const plainSink = (): MemorySink => new MemorySink({ store: memory, attachablePages: true });
const line: { current: MemorySink | FaultySink } = { current: plainSink() };
let vault: Vault;
let begun: MemorySnapshot;
let disk: ModelDisk;
let folder: string;
let seed = 0;

beforeAll(async () => {
  vault = await openModelVault(redirected(line));
  disk = sampleDisk(diskBytes, 1);
  await point();
  begun = memory.snapshot();
});

beforeEach(begin);

afterEach(async () => {
  vi.restoreAllMocks();
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
});

/** A vault with one point of the disk, and an empty folder. */
function begin(): void {
  memory.restore(begun);
  liveSessions().clear();
  line.current = plainSink();
  disk = sampleDisk(diskBytes, 1);
  folder = createFolder("replica");
}

async function point(): Promise<void> {
  await vault.replicate({ disk: "web", volume: disk });
}

async function nextPoint(): Promise<void> {
  seed += 1;
  scribble(disk, 1 + (seed % 8));
  await point();
}

const file = (): string => `file:${join(folder, "web.img")}`;
const vhd = (): string => `file:${join(folder, "WEB.VHD")}`;
const blob = (): string => "blob:replicas/web.vhd";

/** What a target holds; undefined: there is none. */
async function contentOf(to: string): Promise<Buffer | undefined> {
  if (!to.startsWith("blob:")) {
    const path = to.slice("file:".length);
    return existsSync(path) ? readFileSync(path) : undefined;
  }
  const sink = plainSink();
  const name = to.slice("blob:".length);
  const found = await sink.statPages(name).catch(() => undefined);
  if (found === undefined) return undefined;
  const bytes = Buffer.alloc(found.sizeBytes);
  await sink.readPages(name, 0, bytes);
  return bytes;
}

async function expectContent(to: string, bytes: Uint8Array): Promise<void> {
  const there = (await contentOf(to)) ?? Buffer.alloc(0);
  expect(there.subarray(0, bytes.length).equals(bytes), `${to} holds what it must`).toBe(true);
  if (/\.vhd$/i.test(to)) expect(parseFixedVhdFooter(there.subarray(-512))).toBeDefined();
  else expect(there.length).toBe(bytes.length);
}

/** Applies once. Gives what each application did. */
async function apply(to: string): Promise<Application[]> {
  const applied: Application[] = [];
  await vault.replicas.run({ disk: "web", to, once: true, onApplied: (one) => applied.push(one) });
  return applied;
}

async function shown(): Promise<ReplicaSummary> {
  const [summary] = await vault.replicas.list();
  if (summary === undefined) throw new Error("there is no replica");
  return summary;
}

const pins = async (): Promise<string[]> => await namesIn(plainSink(), "disks/web/pins/");

describe.each([
  ["a raw file", file],
  ["a VHD file", vhd],
  ["a page blob", blob],
])("a replica that is %s", (_name, toOf) => {
  test("equals each newest point, and gets what differs only", async () => {
    const to = toOf();
    expect(await apply(to)).toMatchObject([{ sequence: 1, isWhole: true }]);
    await expectContent(to, disk.bytes);
    expect(await apply(to)).toEqual([]);
    await nextPoint();
    expect(await shown()).toMatchObject({ state: "behind", sequence: 1, behindPoints: 1, disk: "web", target: to });
    const [application] = await apply(to);
    expect(application).toMatchObject({ sequence: 2, isWhole: false });
    expect(application?.bytesWritten).toBeLessThan(diskBytes / 2);
    expect(application?.bytesRead).toBeLessThan(diskBytes / 2);
    await expectContent(to, disk.bytes);
    expect(await shown()).toMatchObject({
      state: "current",
      sequence: 2,
      behindPoints: 0,
      isSeen: true,
      isRunning: false,
    });
  });

  test("that another program has written is not believed, but compared whole", async () => {
    const to = toOf();
    await apply(to);
    await spoil(to);
    expect(await shown()).toMatchObject({ state: "changed", point: null, sequence: null });
    await nextPoint();
    expect(await apply(to)).toMatchObject([{ sequence: 2, isWhole: true }]);
    await expectContent(to, disk.bytes);
  });

  test("is made anew when its target has gone, and when its disk has another size", async () => {
    const to = toOf();
    await apply(to);
    if (to.startsWith("blob:")) await plainSink().deleteObject(to.slice("blob:".length));
    else rmSync(to.slice("file:".length));
    expect(await shown()).toMatchObject({ state: "missing", point: null });
    await apply(to);
    await expectContent(to, disk.bytes);
    disk.bytes = Buffer.concat([disk.bytes, Buffer.alloc(2_000_000, 7)]);
    await point();
    await apply(to);
    await expectContent(to, disk.bytes);
  });

  test("is compared with its point, and what differs is mended", async () => {
    const to = toOf();
    await apply(to);
    const { replica } = await shown();
    expect(await vault.replicas.verify({ replica })).toMatchObject({ equal: true, damaged: [], checkedPoints: 1 });
    await spoil(to);
    const { equal, damaged } = await vault.replicas.verify({ replica });
    expect(equal).toBe(false);
    expect(damaged[0]).toMatchObject({ code: "SOURCE_DIFFERS" });
    expect(await apply(to)).toMatchObject([{ sequence: 1, isWhole: true }]);
    await expectContent(to, disk.bytes);
    expect(await vault.replicas.verify({ replica })).toMatchObject({ equal: true });
  });

  test("is removed with its target and pin, or without its target", async () => {
    const to = toOf();
    await apply(to);
    await vault.replicas.remove({ replica: (await shown()).replica, keepTarget: true });
    await expectContent(to, disk.bytes);
    expect(await vault.replicas.list()).toEqual([]);
    expect(await pins()).toEqual([]);
    // What is there now is the user's.
    await expect(apply(to)).rejects.toMatchObject({ code: "TARGET_EXISTS" });
    expect(await vault.replicas.list()).toEqual([]);
    if (to.startsWith("blob:")) await plainSink().deleteObject(to.slice("blob:".length));
    else rmSync(to.slice("file:".length));
    await apply(to);
    await vault.replicas.remove({ replica: (await shown()).replica });
    expect(await contentOf(to)).toBeUndefined();
    expect(readdirSync(folder)).toEqual([]);
    expect(await pins()).toEqual([]);
  });
});

/** Changes a byte, as another program does. */
async function spoil(to: string): Promise<void> {
  if (to.startsWith("blob:")) {
    const name = to.slice("blob:".length);
    const { sequenceNumber } = await plainSink().statPages(name);
    await plainSink().writePages(name, 4096, Buffer.alloc(512, 0xee), { sequenceNumber });
    return;
  }
  const path = to.slice("file:".length);
  const bytes = readFileSync(path);
  bytes.fill(0xee, 4096, 4608);
  writeFileSync(path, bytes);
}

test("the point that a replica holds is pinned until it holds the next one, so a prune leaves the difference small", async () => {
  await apply(file());
  for (let more = 0; more < 3; more += 1) await nextPoint();
  const { removedPoints } = await vault.prune({ disk: "web", policy: parsePolicy("keep:last=1") });
  expect(removedPoints).toBe(2);
  expect(await apply(file())).toMatchObject([{ sequence: 4, isWhole: false }]);
  await expectContent(file(), disk.bytes);
  expect(await pins()).toHaveLength(1);
  await nextPoint();
  await vault.prune({ disk: "web", policy: parsePolicy("keep:last=1") });
  expect((await vault.points("web")).map(({ sequence }) => sequence)).toEqual([4, 5]);
});

test("a replica follows its disk until it is stopped, also over an outage of the store", async () => {
  const stop = new AbortController();
  const applied: Application[] = [];
  const notices: string[] = [];
  const following = vault.replicas.run({
    disk: "web",
    to: file(),
    pollMs: 5,
    onApplied: (one) => applied.push(one),
    onNotice: ({ code }) => notices.push(code),
    signal: stop.signal,
  });
  await vi.waitFor(() => expect(applied).toHaveLength(1), 20_000);
  expect(await shown()).toMatchObject({ isRunning: true, state: "current" });
  await expect(apply(file())).rejects.toMatchObject({ code: "WRITER_ACTIVE" });
  await expect(vault.replicas.remove({ replica: (await shown()).replica })).rejects.toMatchObject({
    code: "WRITER_ACTIVE",
  });
  const away = new TidemarkError("STORE_UNREACHABLE", "the store is away");
  line.current = new FaultySink(plainSink(), [
    { on: "statObject", prefix: "disks/web/head", when: 1, fault: { kind: "refused", error: away } },
  ]);
  await vi.waitFor(() => expect(notices).toContain("STORE_AWAY"), 20_000);
  line.current = plainSink();
  await nextPoint();
  await vi.waitFor(() => expect(applied).toHaveLength(2), 20_000);
  await expectContent(file(), disk.bytes);
  stop.abort();
  expect(await following).toMatchObject({ sequence: 2, applications: 2 });
  expect(await shown()).toMatchObject({ isRunning: false, state: "current" });
});

test("an application that is stopped is shown as torn, and goes on by the same difference", async () => {
  await apply(file());
  await nextPoint();
  const stop = new AbortController();
  beforeFileCalls(async (call) => {
    await call();
    stop.abort();
  });
  const following = vault.replicas.run({ disk: "web", to: file(), pollMs: 5, signal: stop.signal });
  expect(await following).toMatchObject({ point: null, sequence: null, applications: 0 });
  vi.restoreAllMocks();
  expect(await shown()).toMatchObject({ state: "torn", point: null });
  await expect(vault.replicas.verify({ replica: (await shown()).replica })).rejects.toMatchObject({
    code: "TARGET_FAILED",
  });
  await nextPoint();
  expect(await apply(file())).toMatchObject([
    { sequence: 2, isWhole: false },
    { sequence: 3, isWhole: false },
  ]);
  await expectContent(file(), disk.bytes);
});

test("a torn replica that another program has written since is compared whole", async () => {
  await apply(file());
  await nextPoint();
  const stop = new AbortController();
  beforeFileCalls(async (call) => {
    await call();
    stop.abort();
  });
  await vault.replicas.run({ disk: "web", to: file(), signal: stop.signal });
  vi.restoreAllMocks();
  await spoil(file());
  expect(await apply(file())).toMatchObject([{ sequence: 2, isWhole: true }]);
  await expectContent(file(), disk.bytes);
});

test("a block device is written over, follows its disk, and stays when the replica is removed", async ({ skip }) => {
  writeFileSync(join(folder, "backing"), Buffer.alloc(262_144, 5));
  const loop = attachLoop(join(folder, "backing"));
  if ("reason" in loop) {
    skip(loop.reason);
    return;
  }
  try {
    const to = `device:${loop.path}`;
    const content = (): Buffer => readFileSync(loop.path).subarray(0, diskBytes);
    expect(await apply(to)).toMatchObject([{ sequence: 1, isWhole: true }]);
    expect(content().equals(disk.bytes)).toBe(true);
    await nextPoint();
    expect(await apply(to)).toMatchObject([{ sequence: 2 }]);
    expect(content().equals(disk.bytes)).toBe(true);
    const { replica } = await shown();
    expect(await vault.replicas.verify({ replica })).toMatchObject({ equal: true, damaged: [] });
    expect(await vault.replicas.remove({ replica })).toMatchObject({ keptTarget: true });
    expect(content().equals(disk.bytes)).toBe(true);
    expect(await pins()).toEqual([]);
  } finally {
    loop.detach();
  }
});

test("a device that is gone hides no other replica", async ({ skip }) => {
  writeFileSync(join(folder, "backing"), Buffer.alloc(262_144, 5));
  const loop = attachLoop(join(folder, "backing"));
  if ("reason" in loop) return skip(loop.reason);
  await apply(`device:${loop.path}`);
  loop.detach();
  await apply(vhd());
  const states = Object.fromEntries((await vault.replicas.list()).map(({ target, state }) => [target, state]));
  expect(states).toEqual({ [`device:${loop.path}`]: "missing", [vhd()]: "current" });
});

test("a target at which the disk itself is written by now is left alone", async () => {
  await apply(file());
  const place = { store: await modelStore(plainSink()), vault: vault.id, disk: "web" };
  await putClaim(place, "0123abcd");
  await settleClaim(place, { run: "0123abcd", host: hostname(), path: join(folder, "web.img") });
  await spoil(file());
  const there = await contentOf(file());
  const { replica } = await shown();
  await expect(apply(file())).rejects.toMatchObject({ code: "TARGET_IS_SOURCE" });
  await expect(vault.replicas.remove({ replica })).rejects.toMatchObject({ code: "TARGET_IS_SOURCE" });
  expect((await contentOf(file()))?.equals(there ?? Buffer.alloc(0))).toBe(true);
  await vault.replicas.remove({ replica, keepTarget: true });
});

test("a target that exists, that is another disk's replica, or that is none, is refused", async () => {
  await vault.replicate({ disk: "db", volume: sampleDisk(50_000, 9) });
  appendFileSync(join(folder, "web.img"), "mine");
  await expect(apply(file())).rejects.toMatchObject({ code: "TARGET_EXISTS" });
  expect(readFileSync(join(folder, "web.img"), "utf8")).toBe("mine");
  expect(await vault.replicas.list()).toEqual([]);
  await apply(vhd());
  await expect(vault.replicas.run({ disk: "db", to: vhd(), once: true })).rejects.toMatchObject({
    code: "TARGET_EXISTS",
  });
  for (const [to, code] of [
    ["web.img", "INVALID_ARGUMENT"],
    ["dir:/srv", "INVALID_ARGUMENT"],
    [`device:${join(folder, "web.img")}`, "INVALID_ARGUMENT"],
    ["blob:disks/x", "INVALID_ARGUMENT"],
    [`file:${join(folder, "none", "web.img")}`, "TARGET_FAILED"],
  ] as const)
    await expect(apply(to), to).rejects.toMatchObject({ code });
  await expect(vault.replicas.run({ disk: "none", to: file(), once: true })).rejects.toMatchObject({
    code: "DISK_NOT_FOUND",
  });
  expect(await vault.replicas.list()).toHaveLength(1);
  await expect(vault.replicas.show("0123456789abcdef")).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
});

test("a replica of another host is shown by what the vault says, and forgotten from here", async () => {
  await apply(file());
  const name = (await namesIn(plainSink(), "failover/replicas/"))[0] ?? "";
  const { bytes, etag } = await (await modelSink(plainSink())).getObject(name, 65_536);
  const document = decodeReplica(bytes, name, vault.id);
  expect(document.host).toBe(hostname());
  await (await modelSink(plainSink())).putObject(name, encodeReplica({ ...document, host: "elsewhere" }), {
    ifMatch: etag,
  });
  rmSync(join(folder, "web.img"));
  const { replica } = await shown();
  expect(await shown()).toMatchObject({ state: "current", isSeen: false, host: "elsewhere" });
  for (const verb of ["verify", "remove"] as const)
    await expect(vault.replicas[verb]({ replica })).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  await vault.replicas.remove({ replica, keepTarget: true });
  expect(await pins()).toEqual([]);
});

/** What one step of a history does. */
const steps = fc.array(
  fc.oneof(
    { weight: 3, arbitrary: fc.constant("point" as const) },
    { weight: 2, arbitrary: fc.constant("apply" as const) },
    { weight: 1, arbitrary: fc.constant("prune" as const) },
    { weight: 1, arbitrary: fc.constant("spoil" as const) },
    {
      weight: 4,
      arbitrary: fc.record({
        on: fc.constantFrom("store" as const, "file" as const),
        call: fc.integer({ min: 1, max: 45 }),
        effect: fc.constantFrom("before" as const, "after" as const),
      }),
    },
  ),
  { minLength: 4, maxLength: 12 },
);

test.each([
  ["a file", file],
  ["a page blob", blob],
])(
  "%s that dies at any call is never offered torn, and equals the newest point after the next run",
  async (_name, toOf) => {
    await fc.assert(
      fc.asyncProperty(steps, async (history) => {
        await removeFolder(folder);
        begin();
        const contents = new Map([[1, Buffer.from(disk.bytes)]]);
        const to = toOf();
        for (const step of history) {
          if (step === "point") {
            await nextPoint();
            contents.set((await vault.point("web", "latest")).sequence, Buffer.from(disk.bytes));
          } else if (step === "apply") await apply(to);
          else if (step === "prune") await vault.prune({ disk: "web", policy: parsePolicy("keep:last=1") });
          else if (step === "spoil") {
            if ((await contentOf(to)) !== undefined) await spoil(to);
          } else await dieIn(step, async () => await apply(to));
          for (const { sequence } of await vault.replicas.list()) {
            const offered = sequence === null ? undefined : contents.get(sequence);
            if (offered !== undefined) await expectContent(to, offered);
          }
        }
        await apply(to);
        await expectContent(to, disk.bytes);
        expect(await shown()).toMatchObject({ state: "current" });
        expect(await pins()).toHaveLength(1);
      }),
      { numRuns: runsOf(40) },
    );
  },
  propertyMsMax,
);

/** Does the work in a process that dies at a call of the store or of a file. */
async function dieIn(
  { on, call, effect }: { readonly on: "store" | "file"; readonly call: number; readonly effect: "before" | "after" },
  work: () => Promise<unknown>,
): Promise<void> {
  if (on === "store") {
    line.current = new FaultySink(plainSink(), [{ on: "any", when: call, fault: { kind: "crash", effect } }]);
  } else {
    let count = 0;
    beforeFileCalls(async (made) => {
      count += 1;
      if (count < call || (count === call && effect === "after")) await made();
      if (count < call) return;
      // The whole process dies: no call of it reaches the store any more.
      line.current = new FaultySink(plainSink(), [{ on: "any", when: 1, fault: { kind: "crash", effect: "before" } }]);
      throw new CrashError(`file call ${count}`);
    });
  }
  await work().catch(() => undefined);
  vi.restoreAllMocks();
  liveSessions().clear();
  line.current = plainSink();
}

/** Each call that changes a file is given to `answer`, which makes it or does not. */
function beforeFileCalls(answer: (call: () => Promise<unknown>) => Promise<void>): void {
  const prototype = PositionalFile.prototype as unknown as Record<string, (...given: unknown[]) => Promise<unknown>>;
  for (const method of ["write", "truncate", "sync"]) {
    const real = prototype[method];
    if (real === undefined) throw new Error(`files have no ${method}`);
    vi.spyOn(prototype, method).mockImplementation(async function (this: unknown, ...given: unknown[]) {
      await answer(async () => await Reflect.apply(real, this, given));
    });
  }
}
