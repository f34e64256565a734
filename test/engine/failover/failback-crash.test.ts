/**
 * A failback dies at each of its calls of the store and of its files: after `resume` the old image is
 * the disk, and after a cancel it is untouched, or whole where the apply had begun.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { FileVolume } from "../../../engine/disk/source/file-volume.ts";
import { quiescenceSignature, signatureText } from "../../../engine/disk/source/quiescence.ts";
import { decodeRun, encodeRun, type RunMember } from "../../../engine/store/format/run.ts";
import { liveSessions } from "../../../engine/store/points/process-identity.ts";
import type { Vault } from "../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { byDepth, callsOf, inTurn } from "../../depth.ts";
import { closeModelVaults, modelSink, openModelVault, redirected, sampleDisk } from "../../model-disk.ts";
import { namesIn } from "../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";
import { type CrashPlace, combinations, dyingAt, endOf } from "./crash-rig.ts";

const sweepMsMax: number = byDepth(120_000, 1_200_000);

const memory = new MemoryStore();
const line: CrashPlace["line"] = { current: new MemorySink({ store: memory }) };
const place: CrashPlace = { memory, line };
let folder: string;
let vault: Vault;
/** The disk has moved from old.img to new.img, and was written there since. */
let moved: MemorySnapshot;
let run: string;
const old: Buffer = Buffer.from(sampleDisk(200_000, 1).bytes);
const now: Buffer = Buffer.from(old);

const path = (name: string): string => join(folder, name);

beforeAll(async () => {
  folder = createFolder("failback-crash");
  vault = await openModelVault(redirected(line));
  writeFileSync(path("old.img"), old);
  await replicate("old.img");
  const source = { kind: "image", path: path("old.img") } as const;
  const to = `file:${path("new.img")}`;
  ({ run } = await vault.failovers.start({ kind: "planned", disks: ["web"], to, source }));
  await vault.failovers.commit({ run });
  now.fill(0xaa, 20_000, 50_000);
  writeFileSync(path("new.img"), now);
  await vault.failovers.reprotect({ run });
  now.fill(0, 100_000, 130_000);
  writeFileSync(path("new.img"), now);
  moved = memory.snapshot();
});

afterEach(() => {
  vi.restoreAllMocks();
});

afterAll(async () => {
  await closeModelVaults();
  await removeFolder(folder);
});

async function replicate(name: string): Promise<void> {
  const volume = await FileVolume.open(path(name));
  await vault.replicate({ disk: "web", volume });
  await volume.close();
}

/** `isProved`: the run knows that the old image is unwritten. */
async function setUp(isProved: boolean): Promise<void> {
  reconnect();
  memory.restore(moved);
  writeFileSync(path("old.img"), old);
  for (const name of readdirSync(folder)) if (/tidemark/.test(name)) await removeFolder(path(name));
  const image = { kind: "file", path: path("old.img"), dev: "0", ino: "0", rdev: "0" } as const;
  const found = await quiescenceSignature(image);
  if (found === undefined) throw new Error("the old image has no signature");
  const sink = await modelSink(new MemorySink({ store: memory }));
  const name = `failover/runs/${run}`;
  const { bytes, etag } = await sink.getObject(name, 100_000);
  const document = decodeRun(bytes, name, vault.id);
  const members = document.members.map((member): RunMember => {
    const signature = isProved ? signatureText(found) : "another";
    return { ...member, origin: member.origin && { ...member.origin, signature } };
  });
  await sink.putObject(name, encodeRun({ ...document, members }), { ifMatch: etag });
}

function reconnect(): void {
  vi.restoreAllMocks();
  liveSessions().clear();
  line.current = new MemorySink({ store: memory });
}

const back = async (): Promise<unknown> => await vault.failovers.failback({ run, to: [path("old.img")] });

async function resume(): Promise<void> {
  const [found] = await vault.failovers.list();
  if (found?.kind !== "failback") await back();
  else if (found.state !== "PlannedFailoverCompleted") await vault.failovers.resume({ run: found.run });
  expect((await vault.failovers.list())[0]).toMatchObject({ kind: "failback", state: "PlannedFailoverCompleted" });
  expect(readFileSync(path("old.img")).equals(now)).toBe(true);
  expect(readdirSync(folder).sort()).toEqual(["new.img", "old.img", "old.img.tidemark-run"]);
  expect(await namesIn(new MemorySink({ store: memory }), "disks/web/pins/")).toEqual([]);
}

/** What the run says of the old image. */
async function isMixture(name: string): Promise<boolean> {
  const sink = await modelSink(new MemorySink({ store: memory }));
  const { bytes } = await sink.getObject(`failover/runs/${name}`, 100_000);
  return decodeRun(bytes, `failover/runs/${name}`, vault.id).members[0]?.isMixture === true;
}

async function cancel(): Promise<void> {
  const found = (await vault.failovers.list()).find(({ kind }) => kind === "failback");
  const hasBegun = found !== undefined && ((await isMixture(found.run)) || found.disks[0]?.complete === true);
  if (found !== undefined) await vault.failovers.cancel({ run: found.run });
  // A run that was never put into the vault has not touched anything.
  expect(readdirSync(folder).sort()).toEqual(["new.img", "old.img"]);
  const held = readFileSync(path("old.img"));
  expect(held.equals(hasBegun ? now : old)).toBe(true);
  expect(await namesIn(new MemorySink({ store: memory }), "disks/web/pins/")).toEqual([]);
  await replicate("new.img");
}

describe.each([
  ["an image that is known to be unwritten", true],
  ["an image that has to be compared", false],
])("a failback to %s that dies", (_, isProved) => {
  test(
    "at any call of the store goes on, or is cancelled",
    async () => {
      await setUp(isProved);
      const counting = new FaultySink(new MemorySink({ store: memory }), []);
      line.current = counting;
      await back();
      reconnect();
      await resume();
      let died = 0;
      for (const [index, call] of callsOf(1, counting.calls.length, 4).entries()) {
        for (const [effect, way] of inTurn(combinations, index)) {
          await setUp(isProved);
          const fault = { kind: "crash", effect } as const;
          const sink = new FaultySink(new MemorySink({ store: memory }), [{ on: "any", when: call, fault }]);
          line.current = sink;
          const end = await endOf(back());
          reconnect();
          // A slow job looks for a request to stop: it has calls that a fast one has not.
          if (end === undefined) await resume();
          else {
            expect(end, `call ${call}, ${effect}`).toBeInstanceOf(CrashError);
            died += 1;
            await (way === "resume" ? resume() : cancel());
          }
        }
      }
      expect(died).toBeGreaterThan(0);
    },
    sweepMsMax,
  );

  test(
    "at any call of a file goes on, or is cancelled",
    async () => {
      await setUp(isProved);
      const count = dyingAt(place, 0);
      await back();
      vi.restoreAllMocks();
      for (const [index, call] of callsOf(1, count(), 4).entries()) {
        for (const way of inTurn([resume, cancel], index)) {
          await setUp(isProved);
          dyingAt(place, call);
          expect(await endOf(back()), `file call ${call}`).toBeInstanceOf(CrashError);
          reconnect();
          await way();
        }
      }
    },
    sweepMsMax,
  );
});

const [redo, data] = ["old.img.tidemark-redo", "old.img.tidemark-data"];
const cut = (bytes: Buffer): Buffer => bytes.subarray(0, -1);
const damages: readonly (readonly [fact: string, damage: () => unknown])[] = [
  ["is gone", async () => await Promise.all([redo, data].map(async (name) => await removeFolder(path(name))))],
  ["has lost its end", () => writeFileSync(path(redo), cut(readFileSync(path(redo))))],
  ["has lost its beginning", () => writeFileSync(path(redo), readFileSync(path(redo)).fill(0, 0, 40))],
  ["has other data", () => writeFileSync(path(data), readFileSync(path(data)).fill(0x77))],
];

/** Lets a failback die wherever its image is then a mixture, and gives its run to `work`. */
async function atMixtures(work: (run: string) => Promise<void>): Promise<void> {
  let mixtures = 0;
  await setUp(true);
  const count = dyingAt(place, 0);
  await back();
  for (let call = 1; call <= count(); call += 1) {
    await setUp(true);
    dyingAt(place, call);
    await endOf(back());
    reconnect();
    const held = readFileSync(path("old.img"));
    if (!existsSync(path(redo)) || held.equals(old) || held.equals(now)) continue;
    mixtures += 1;
    const [found] = await vault.failovers.list();
    await work(found?.run ?? "");
    expect((await vault.failovers.list())[0]).toMatchObject({ kind: "failback", state: "Protected" });
  }
  expect(mixtures).toBeGreaterThan(0);
}

test.each(damages)(
  "an image that is a mixture is whole after a cancel, also when its redo log %s",
  async (_, damage) => {
    await atMixtures(async (name) => {
      await damage();
      for (let left = 2; left > 0; left -= 1) await endOf(vault.failovers.cancel({ run: name }));
      expect(readFileSync(path("old.img")).equals(now)).toBe(true);
      expect(readdirSync(folder).sort()).toEqual(["new.img", "old.img"]);
    });
  },
);

test("an image that is gone keeps no run from being cancelled, and that it was a mixture is said", async () => {
  await atMixtures(async (name) => {
    await removeFolder(path("old.img"));
    const notices: string[] = [];
    await vault.failovers.cancel({ run: name, onNotice: ({ message }) => void notices.push(message) });
    expect(notices.join()).toContain("a mixture of two points");
    expect(readdirSync(folder)).toEqual(["new.img"]);
  });
});
