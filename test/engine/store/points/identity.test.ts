/**
 * What a vault is stands in the store twice: either of the two comes back as it was, and no vault
 * is created over one that has lost both.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import type { Notice } from "../../../../engine/notice.ts";
import { decodeVault, encodeVault } from "../../../../engine/store/format/documents.ts";
import { identityFaults, mendIdentity } from "../../../../engine/store/points/identity.ts";
import { Store } from "../../../../engine/store/store.ts";
import type { RepairOptions, RepairSummary } from "../../../../engine/upkeep/repair/repair.ts";
import { Vault } from "../../../../engine/vault.ts";
import type { VaultOptions } from "../../../../engine/vault-options.ts";
import { CrashError, FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { callsOf } from "../../../depth.ts";
import { isEncryptedRun, modelEncryption } from "../../../encrypted.ts";
import {
  closeModelVaults,
  contentOf,
  Expected,
  ModelDisk,
  openModelVault,
  replicateNoted,
} from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";
import { tamperObject } from "../../upkeep/scrub/tamper.ts";

const name = "vault.json";
const copy = "copy/vault.json";

let store: MemoryStore;
let sink: MemorySink;
let vault: Vault;
let disk: ModelDisk;
let expected: Expected;
let original: string;
beforeEach(async () => {
  store = new MemoryStore();
  sink = new MemorySink({ store });
  vault = await openModelVault(sink);
  disk = new ModelDisk(contentOf(100_000, 1));
  expected = new Expected("d");
  await replicateNoted(vault, sink, expected, disk);
  original = textOf(name) ?? "";
});
afterEach(async () => {
  await closeModelVaults();
});

function textOf(object: string, of = store): string | undefined {
  const found = of.objects?.get(object);
  return found?.kind === "object" ? Buffer.from(found.bytes).toString("latin1") : undefined;
}

async function put(object: string, text: string): Promise<void> {
  store.objects?.delete(object);
  await sink.putObject(object, Buffer.from(text, "latin1"), { ifAbsent: true });
}

async function repaired(
  options: RepairOptions & VaultOptions = {},
  on: MemorySink | FaultySink = sink,
): Promise<RepairSummary> {
  const opened = await Vault.openForRepair(on, { ...modelEncryption, workers: 1, stateFolder: options.stateFolder });
  try {
    return await opened.repair(options);
  } finally {
    await opened.close();
  }
}

test("a new vault says what it is twice, in the same bytes", () => {
  expect(original).toContain(isEncryptedRun ? "readingKey" : "digestKey");
  expect(textOf(copy)).toBe(original);
});

describe("vault.json", () => {
  test.each(["removed", "flipped", "truncated"] as const)(
    "that is %s is told of, not created anew, and comes back bit for bit",
    async (how) => {
      tamperObject(store, name, how, store);
      for (const open of [
        async () => await openModelVault(sink),
        async () => await Vault.open(sink, modelEncryption),
        ...(how === "removed" ? [async () => await Vault.create(sink, modelEncryption)] : []),
      ]) {
        const error = await expectCode(open(), "DAMAGED");
        expect(error.message).toContain(name);
        expect(error.remedy).toContain("tidemark vault repair");
      }
      if (how !== "removed") await expectCode(Vault.create(sink, modelEncryption), "VAULT_EXISTS");
      const before = textOf(name);
      expect(await repaired({ dryRun: true })).toMatchObject({
        points: 1,
        repaired: [{ disk: null, object: name, kind: "vault" }],
        lost: [],
      });
      expect(textOf(name)).toBe(before);
      expect(await repaired()).toMatchObject({ repaired: [{ object: name }], lost: [] });
      expect(textOf(name)).toBe(original);
      await expected.check(sink);
      expect((await repaired()).repaired).toEqual([]);
    },
  );

  test("that nothing else is of may be created", async () => {
    const empty = new MemorySink({ store: new MemoryStore() });
    await empty.createContainer();
    await empty.putObject("somebody/else", Buffer.from("x"), { ifAbsent: true });
    await expectCode(Vault.open(empty), "VAULT_NOT_FOUND");
    await (await Vault.create(empty)).close();
  });

  test("that this machine has used is not created where it is gone, unless the store may have forgotten it", async () => {
    const stateFolder = createFolder("identity-state");
    onTestFinished(async () => await removeFolder(stateFolder));
    const description = "one address";
    const on = (settlingMs: number): MemorySink => new MemorySink({ settlingMs, description });
    await (await Vault.openOrCreate(on(0), { stateFolder })).close();
    await expectCode(Vault.openOrCreate(on(0), { stateFolder }), "VAULT_NOT_FOUND");
    await (await Vault.openOrCreate(on(1_000), { stateFolder })).close();
    const again = on(0);
    await (await Vault.create(again, { stateFolder })).close();
    await (await Vault.openOrCreate(again, { stateFolder })).close();
  });

  test("that is created while we look is opened", async () => {
    const fresh = new MemoryStore();
    const other = new MemorySink({ store: fresh });
    const looking = new MemorySink({ store: fresh });
    const inner = looking.statObject.bind(looking);
    looking.statObject = async (object, options) => {
      if (fresh.objects?.has(name) !== true) await (await Vault.create(other)).close();
      return await inner(object, options);
    };
    await other.createContainer();
    await (await Vault.open(looking)).close();
  });

  test("of a later version is left to it", async () => {
    tamperObject(store, name, "future", store);
    await expectCode(repaired(), "FORMAT_UNSUPPORTED");
  });

  test("comes back from what an open vault knows, though the copy is lost, too", async () => {
    for (const object of [name, copy]) tamperObject(store, object, "removed", store);
    expect((await vault.repair()).repaired).toMatchObject([{ object: name }, { object: copy }]);
    expect([textOf(name), textOf(copy)]).toEqual([original, original]);
  });

  test("comes back from what this machine kept, though the copy is lost, too", async () => {
    const stateFolder = mkdtempSync(join(tmpdir(), "identity-"));
    try {
      await (await Vault.open(sink, { ...modelEncryption, stateFolder })).close();
      for (const object of [name, copy]) tamperObject(store, object, "removed", store);
      await expectCode(repaired(), "DAMAGED");
      expect((await repaired({ stateFolder })).repaired).toMatchObject([{ object: name }, { object: copy }]);
      expect([textOf(name), textOf(copy)]).toEqual([original, original]);
    } finally {
      rmSync(stateFolder, { recursive: true });
    }
  });

  test("that is damaged does not come back without a copy: what is known is said", async () => {
    store.objects?.delete(copy);
    const cut = original.slice(0, -60);
    await put(name, cut);
    const error = await expectCode(repaired(), "DAMAGED");
    expect(error.message).toContain(`its frames name vault ${vault.id}`);
    expect(error.message).toContain("the key that proves chunks is in these copies only");
    expect(error.remedy).toContain("--state");
    expect(textOf(name)).toBe(cut);
  });
});

describe("a copy", () => {
  test("of another vault is not taken for the vault's", async () => {
    store.objects?.delete(name);
    const other = { ...decodeVault(Buffer.from(original), name), vault: "ab".repeat(16) };
    await put(copy, Buffer.from(encodeVault(other)).toString("latin1"));
    await expectCode(repaired(), "DAMAGED");
    expect(textOf(name)).toBeUndefined();
  });

  test("is believed where no frame names a vault", async () => {
    const blank = new MemoryStore();
    const of = new MemorySink({ store: blank });
    const opened = await openModelVault(of);
    await opened.replicate({ disk: "d", volume: new ModelDisk(Buffer.alloc(100_000)) });
    const before = textOf(name, blank);
    blank.objects?.delete(name);
    expect((await repaired({}, of)).repaired).toMatchObject([{ object: name }]);
    expect(textOf(name, blank)).toBe(before);
  });

  test.each(["removed", "flipped", "truncated"] as const)(
    "that is %s is restored by the next session, by a scrub, and by a repair",
    async (how) => {
      const menders = [
        async (notices: Notice[]) => {
          const opened = await openModelVault(sink);
          await opened.replicate({ disk: "d", volume: disk, onNotice: (notice) => notices.push(notice) });
        },
        async (notices: Notice[]) => await vault.scrub({ onNotice: (notice) => notices.push(notice) }),
        async () => expect((await repaired()).repaired).toMatchObject([{ disk: null, object: copy, kind: "vault" }]),
      ];
      for (const mend of menders) {
        tamperObject(store, copy, how, store);
        const notices: Notice[] = [];
        await mend(notices);
        expect(textOf(copy)).toBe(original);
        const told = notices.filter(({ code }) => code === "VAULT_AT_RISK");
        for (const { message } of told) expect(message).toMatch(/^copy\/vault\.json is .*: it has been restored$/);
      }
    },
  );

  test.each(["removed", "flipped", "truncated"] as const)(
    "that is %s is damage to a verification and to a scrub, healed where it may be",
    async (how) => {
      const code = how === "removed" ? "OBJECT_NOT_FOUND" : "DAMAGED";
      const found = { disk: "", sequence: null, object: copy, code };
      tamperObject(store, copy, how, store);
      expect((await vault.verify()).damaged).toMatchObject([{ ...found, healed: false }]);
      expect((await vault.verify({ heal: true })).damaged).toMatchObject([{ ...found, healed: true }]);
      expect(textOf(copy)).toBe(original);
      tamperObject(store, copy, how, store);
      expect(await vault.scrub()).toMatchObject({ damaged: [], healed: [{ ...found, healed: true }] });
      tamperObject(store, name, how, store);
      expect((await vault.scrub()).damaged).toMatchObject([{ ...found, object: name, healed: false }]);
    },
  );

  test("that is missing is told of by a verification, which writes nothing", async () => {
    tamperObject(store, copy, "removed", store);
    const notices: Notice[] = [];
    expect((await vault.verify({ onNotice: (notice) => notices.push(notice) })).damaged).toHaveLength(1);
    expect(notices).toEqual([
      { code: "VAULT_AT_RISK", message: `${copy} is gone: run \`tidemark vault repair\` to restore it` },
    ]);
    expect(textOf(copy)).toBeUndefined();
  });

  test("of another vault is left alone, and told of", async () => {
    const other = Buffer.from(
      encodeVault({ ...decodeVault(Buffer.from(original), name), vault: "ab".repeat(16) }),
    ).toString("latin1");
    await put(copy, other);
    await vault.replicate({ disk: "d", volume: disk });
    expect((await repaired()).lost).toMatchObject([
      { disk: null, object: copy, message: expect.stringContaining("left alone") as string },
    ]);
    expect(textOf(copy)).toBe(other);
  });

  test("is not given to a store that has forgotten the vault", async () => {
    tamperObject(store, name, "removed", store);
    tamperObject(store, copy, "removed", store);
    await vault.scrub();
    expect(textOf(copy)).toBeUndefined();
  });
});

test("two processes that put vault.json back at once do not get in each other's way", async () => {
  tamperObject(store, name, "flipped", store);
  const both = new Store(sink);
  const document = decodeVault(Buffer.from(original), name);
  const [fault] = await identityFaults(both, document, undefined);
  if (fault === undefined) throw new Error("vault.json is damaged");
  await mendIdentity(both, document, fault, undefined);
  await mendIdentity(both, document, fault, undefined);
  expect(textOf(name)).toBe(original);
});

test("a repair of both that is interrupted at any call is ended by the next one", async () => {
  tamperObject(store, name, "truncated", store);
  tamperObject(store, "disks/d/head", "removed", store);
  const damaged = store.snapshot();
  let nowMs = Date.now();
  const counted = new FaultySink(sink, []);
  await repaired({}, counted);
  for (const call of callsOf(1, counted.calls.length)) {
    for (const effect of ["before", "after"] as const) {
      store.restore(damaged);
      nowMs += 3_600_000; // the leases of dead processes have ended
      sink = new MemorySink({ store, clock: () => nowMs });
      const dying = new FaultySink(sink, [{ on: "any", when: call, fault: { kind: "crash", effect } }]);
      await repaired({}, dying).catch((error: unknown) => {
        if (!(error instanceof CrashError)) throw error;
      });
      nowMs += 3_600_000;
      expect((await repaired()).lost).toEqual([]);
      expect(textOf(name)).toBe(original);
      expect(await expected.check(sink)).toBe(1);
    }
  }
});
