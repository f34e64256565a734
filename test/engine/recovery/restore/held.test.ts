/**
 * What is being read is held: a prune that comes meanwhile leaves it, and the next one does not.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { Notice } from "../../../../engine/notice.ts";
import type { Sink } from "../../../../engine/sink.ts";
import { condemnedName } from "../../../../engine/store/format/names.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { FaultySink, Gate } from "../../../../sink/faults.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { closeModelVaults, openModelVault, redirected, sampleDisk, scribble } from "../../../model-disk.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { tamperObject } from "../../upkeep/scrub/tamper.ts";

const policy = parsePolicy("keep:last=1");
let folder: string;
let plain: MemorySink;
let line: { current: Sink };
let vault: Vault;
const contents: Buffer[] = [];
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "held-"));
  plain = new MemorySink();
  line = { current: plain };
  vault = await openModelVault(redirected(line));
  const disk = sampleDisk(150_001, 1);
  contents.length = 0;
  for (const seed of [1, 2, 3]) {
    await vault.replicate({ disk: "d", volume: disk });
    contents.push(Buffer.from(disk.bytes));
    scribble(disk, seed);
  }
});
afterEach(async () => {
  await closeModelVaults();
  rmSync(folder, { recursive: true });
});

const listed = async (): Promise<number[]> => (await vault.points("d")).map(({ sequence }) => sequence);
const holds = async (): Promise<string[]> => await namesIn(plain, "disks/d/holds/");

/** Does `work` on a store whose first read of data waits until a whole prune is over. */
async function prunedMeanwhile<Result>(work: () => Promise<Result>): Promise<Result> {
  const gate = new Gate();
  line.current = new FaultySink(plain, [{ on: "readPages", when: 1, fault: { kind: "slow", gate } }]);
  const working = work();
  await gate.reached;
  line.current = plain;
  await vault.prune({ policy });
  gate.open();
  return await working;
}

test("a point that is being materialized outlives a prune", async () => {
  const to = join(folder, "back.img");
  await prunedMeanwhile(async () => await vault.materialize({ disk: "d", point: "2", to }));
  expect(readFileSync(to).equals(contents[1] ?? Buffer.alloc(0))).toBe(true);
  expect(await listed()).toEqual([2, 3]);
  expect(await holds()).toEqual([]);
  await vault.prune({ policy });
  expect(await listed()).toEqual([3]);
});

test("a point that is being proved outlives a prune, and those that are pruned before their turn are no damage", async () => {
  const summary = await prunedMeanwhile(async () => await vault.verify({ disk: "d" }));
  // The newest comes first; by the turn of the others they have gone.
  expect(summary).toMatchObject({ checkedPoints: 1, damaged: [] });
  expect(await listed()).toEqual([3]);
  const gone = await vault.verify({ disk: "d", point: "3" });
  expect(gone).toMatchObject({ checkedPoints: 1, damaged: [] });
  expect(await holds()).toEqual([]);
});

test("a point whose disk has a damaged list of condemned points can be materialized and mounted, and that it is not held is said", async () => {
  await vault.prune({ policy: parsePolicy("keep:last=2") });
  tamperObject(plain.store, condemnedName("d"), "flipped", plain.store);
  const notices: Notice[] = [];
  const onNotice = (notice: Notice): void => void notices.push(notice);
  await vault.materialize({ disk: "d", point: "2", to: join(folder, "back.img"), onNotice });
  expect(readFileSync(join(folder, "back.img")).equals(contents[1] ?? Buffer.alloc(0))).toBe(true);
  const mounted = await vault.mount({ disk: "d", point: "2", onNotice });
  await mounted[Symbol.asyncDispose]();
  expect(notices.map(({ code }) => code)).toEqual(["HOLD_REFUSED", "HOLD_REFUSED"]);
  // What it does to a pin is another thing: a pin that might be missed is none.
  await expectCode(vault.pin({ disk: "d", point: "2" }), "DAMAGED");
  await vault.prune({ policy: parsePolicy("keep:last=1") });
  await vault.pin({ disk: "d", point: "3" });
});

test("a vault without space can be read, and that nothing is held is said", async () => {
  const error = new TidemarkError("NO_SPACE", "the vault's folder has no space left");
  line.current = new FaultySink(plain, [
    { on: "putObject", when: { probability: 1 }, fault: { kind: "refused", error } },
  ]);
  const notices: Notice[] = [];
  await vault.materialize({
    disk: "d",
    point: "1",
    to: join(folder, "back.img"),
    onNotice: (notice) => void notices.push(notice),
  });
  expect(notices).toMatchObject([
    { code: "HOLD_REFUSED", message: expect.stringContaining("no space left") as string },
  ]);
});

test("a vault that may only be read is read without holding anything, and that is said once", async () => {
  const error = new TidemarkError("ACCESS_REFUSED", "this SAS may only read");
  line.current = new FaultySink(plain, [
    { on: "putObject", when: { probability: 1 }, fault: { kind: "refused", error } },
  ]);
  const notices: Notice[] = [];
  const onNotice = (notice: Notice): void => void notices.push(notice);
  expect(await vault.verify({ onNotice })).toMatchObject({ checkedPoints: 3, damaged: [] });
  expect(notices.map(({ code }) => code)).toEqual(["HOLD_REFUSED"]);
  await vault.materialize({ disk: "d", point: "1", to: join(folder, "back.img") });
});
