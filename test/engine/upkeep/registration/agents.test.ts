/** Registration of machines: keys that are issued and checked, records that are swapped, heartbeats. */
import { statSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { hasCode, TidemarkError } from "../../../../engine/errors.ts";
import { encodeRegistrationKey, type RegistrationKey } from "../../../../engine/store/format/registration.ts";
import type { RegisterOptions } from "../../../../engine/upkeep/registration/agents.ts";
import {
  isAllowedDisk,
  readRegistrationKey,
  signKey,
} from "../../../../engine/upkeep/registration/registration-key.ts";
import {
  findRegistration,
  keepRegistration,
  machineOf,
} from "../../../../engine/upkeep/registration/registration-state.ts";
import { Vault } from "../../../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { expectCode } from "../../../../sink/testing/expectations.ts";
import { runsOf } from "../../../depth.ts";
import { encryptedFor, testKeyPair } from "../../../encrypted.ts";
import { closeModelVaults, openModelVault, sampleDisk } from "../../../model-disk.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";

const dayMs = 86_400_000;
const here: RegisterOptions = { machine: "1".repeat(32), host: "host-a" };
const elsewhere: RegisterOptions = { machine: "2".repeat(32), host: "host-b" };

let memory: MemoryStore;
let vault: Vault;

beforeEach(async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  memory = new MemoryStore();
  vault = await openModelVault(new MemorySink({ store: memory }));
});

afterEach(async () => {
  vi.useRealTimers();
  await closeModelVaults();
});

const issue = async (
  more: Partial<Parameters<Vault["agents"]["issueKey"]>[0]> = {},
): Promise<{ readonly key: RegistrationKey; readonly bytes: Uint8Array }> =>
  await vault.agents.issueKey({ agent: "web01", allowedDisks: ["web-*"], address: "dir:/v", ...more });

const laterBy = (ms: number): void => {
  vi.setSystemTime(Date.now() + ms);
};

describe("a registration key", () => {
  it("is what it was issued as, and lets one machine register, as often as it likes", async () => {
    const credentialsUntilMs = Date.now() + 365 * dayMs;
    const { key, bytes } = await issue({ sas: "sig=x", credentialsUntilMs });
    expect(await readRegistrationKey(bytes, "web01.key")).toEqual(key);
    expect(key).toMatchObject({ vault: vault.id, sas: "sig=x", notAfterMs: key.issuedMs + 5 * dayMs });
    const first = await vault.agents.register(key, here);
    expect(first).toMatchObject({ agent: "web01", host: "host-a", lastSeen: null, health: "Normal", cause: null });
    laterBy(1000);
    expect(await vault.agents.register(key, here)).toEqual(first);
    await expectCode(vault.agents.register(key, elsewhere), "KEY_USED");
    await expectCode(vault.agents.register((await issue()).key, elsewhere), "KEY_USED");
  });

  it("is refused after its time, by another vault, and when it was signed with another secret", async () => {
    const { key } = await issue({ days: 1 });
    laterBy(dayMs);
    await vault.agents.register(key, here);
    laterBy(1);
    await expectCode(vault.agents.register(key, here), "KEY_EXPIRED");
    const other = await openModelVault(new MemorySink({ store: new MemoryStore() }));
    const { key: foreign } = await other.agents.issueKey({ agent: "web01", allowedDisks: ["*"], address: "dir:/v" });
    await expectCode(vault.agents.register(foreign, here), "KEY_FOREIGN");
    await expectCode(other.agents.register(key, here), "KEY_FOREIGN");
    const forged = signKey(Buffer.alloc(32, 7), (await issue()).key);
    expect(await readRegistrationKey(forged.bytes, "forged")).toEqual(forged.key);
    await expectCode(vault.agents.register(forged.key, here), "KEY_FOREIGN");
  });

  it("is refused whichever byte is altered, added or cut off, never by an internal error", async () => {
    const { bytes } = await issue({ sas: "sv=1&sig=abc%2B" });
    const altered = fc.oneof(
      fc.tuple(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 })).map(([at, mask]) => {
        const copy = Buffer.from(bytes);
        copy[at] = (copy[at] ?? 0) ^ mask;
        return copy;
      }),
      fc.nat(bytes.length - 1).map((length) => Buffer.from(bytes.subarray(0, length))),
      fc.uint8Array({ minLength: 1, maxLength: 40 }).map((more) => Buffer.concat([bytes, more])),
    );
    await fc.assert(
      fc.asyncProperty(altered, async (copy) => {
        const error: unknown = await readRegistrationKey(copy, "web01.key").catch((thrown: unknown) => thrown);
        expect(hasCode(error, "KEY_ALTERED", "FORMAT_UNSUPPORTED"), String(error)).toBe(true);
        expect(error instanceof TidemarkError && error.message).toContain("web01.key");
      }),
      { numRuns: runsOf(2_000) },
    );
  });

  it("is refused whichever field is changed, also with a right checksum", async () => {
    const { key } = await issue({ sas: "sig=x", credentialsUntilMs: Date.now() + dayMs });
    for (const [name, value] of Object.entries(key)) {
      const other = (): unknown => {
        if (typeof value === "number") return value + 1;
        if (Array.isArray(value)) return ["*"];
        return value === null ? "AAAA" : `${String(value).slice(0, -1)}${String(value).endsWith("0") ? "1" : "0"}`;
      };
      const changed = encodeRegistrationKey({ ...key, [name]: other() });
      await expectCode(readRegistrationKey(changed, "web01.key"), "KEY_ALTERED");
    }
  });

  it("is refused where it would allow nothing, or what is no name", async () => {
    for (const wrong of [
      { agent: "" },
      { agent: "a\n" },
      { agent: "ä".repeat(41) },
      { allowedDisks: [] },
      { allowedDisks: ["web\u0000"] },
      { allowedDisks: Array.from({ length: 65 }, (_, index) => String(index)) },
      { days: 0 },
      { days: 91 },
      { days: 1.5 },
    ])
      await expectCode(issue(wrong), "INVALID_ARGUMENT");
  });
});

describe("an agent", () => {
  it("gets new credentials with --renew only, and only where it is registered", async () => {
    const { key } = await issue();
    await expectCode(vault.agents.register(key, { ...here, isRenewal: true }), "INVALID_ARGUMENT");
    await vault.agents.register(key, here);
    await vault.agents.heartbeat("web01", here.machine, { disks: ["web-1"], health: "Warning" });
    const { key: next } = await issue({ allowedDisks: ["web-*", "db"] });
    await expectCode(vault.agents.register(next, here), "INVALID_ARGUMENT");
    await expectCode(vault.agents.register(next, { ...elsewhere, isRenewal: true }), "KEY_USED");
    const renewed = await vault.agents.register(next, { ...here, isRenewal: true });
    expect(renewed).toMatchObject({ allowedDisks: ["web-*", "db"], disks: ["web-1"], health: "Warning" });
  });

  it("that was removed is refused, with every key that was issued before; a new key registers any machine", async () => {
    const { key } = await issue();
    const { key: unused } = await issue();
    await vault.agents.register(key, here);
    laterBy(1000);
    await vault.agents.remove("web01");
    expect(await vault.agents.list()).toEqual([]);
    const about = { disks: [], health: "Normal" } as const;
    await expectCode(vault.agents.heartbeat("web01", here.machine, about), "AGENT_REMOVED");
    for (const old of [key, unused]) {
      await expectCode(vault.agents.register(old, here), "AGENT_REMOVED");
      await expectCode(vault.agents.register(old, elsewhere), "AGENT_REMOVED");
    }
    await expectCode(vault.agents.show("web01"), "INVALID_ARGUMENT");
    for (const name of ["web01", "a\n"]) await expectCode(vault.agents.remove(name), "INVALID_ARGUMENT");
    await vault.agents.register((await issue()).key, elsewhere);
    await expectCode(vault.agents.heartbeat("web01", here.machine, about), "AGENT_REMOVED");
    await vault.agents.heartbeat("web01", elsewhere.machine, about);
  });

  it("writes a heartbeat at most once a minute, and is Critical when it is not seen for 15 minutes", async () => {
    await vault.agents.register((await issue()).key, here);
    const beat = async (health: "Normal" | "Warning"): Promise<void> =>
      await vault.agents.heartbeat("web01", here.machine, { disks: ["web-1"], health });
    await beat("Normal");
    laterBy(59_999);
    await beat("Warning");
    expect(await vault.agents.show("web01")).toMatchObject({ health: "Normal", lastSeenAgeMs: 59_999 });
    laterBy(1);
    await beat("Warning");
    expect(await vault.agents.show("web01")).toMatchObject({ health: "Warning", lastSeenAgeMs: 0, disks: ["web-1"] });
    laterBy(15 * 60_000);
    expect(await vault.agents.show("web01")).toMatchObject({ health: "Warning", cause: null });
    laterBy(1);
    expect(await vault.agents.show("web01")).toMatchObject({ health: "Critical", cause: "not seen for 15 minutes" });
  });

  it("whose credentials end is told of before they do", async () => {
    const { key } = await issue({ sas: "sig=x", credentialsUntilMs: Date.now() + 20 * dayMs });
    await vault.agents.register(key, here);
    const beat = async (): Promise<string> => {
      await vault.agents.heartbeat("web01", here.machine, { disks: [], health: "Normal" });
      return (await vault.agents.show("web01")).health;
    };
    expect(await beat()).toBe("Normal");
    laterBy(6 * dayMs + 1);
    expect(await beat()).toBe("Warning");
    laterBy(14 * dayMs);
    expect(await beat()).toBe("Critical");
  });

  it("is one, of machines that register at the same time", async () => {
    const { key } = await issue();
    const outcomes = await Promise.allSettled(
      Array.from({ length: 6 }, async (_, index) => {
        const machine = String(index).repeat(32);
        return await vault.agents.register(key, { machine, host: machine });
      }),
    );
    expect(outcomes.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    for (const outcome of outcomes)
      if (outcome.status === "rejected") expect(hasCode(outcome.reason, "KEY_USED"), String(outcome.reason)).toBe(true);
    const [first, second] = await Promise.all([issue({ agent: "a" }), issue({ agent: "b" })]);
    expect(first.key.issuer).toBe(second.key.issuer);
  });

  it("is left alone by collections and scrubs, and told of when its record cannot be read", async () => {
    await vault.agents.register((await issue()).key, here);
    await vault.agents.register((await issue({ agent: "db01" })).key, here);
    await vault.replicate({ disk: "web-1", volume: sampleDisk(300_000, 1) });
    await vault.collect({});
    expect(await vault.verify({})).toMatchObject({ damaged: [] });
    await vault.scrub({});
    expect(await vault.repair({})).toMatchObject({ lost: [], repaired: [] });
    expect((await vault.agents.list()).map(({ agent }) => agent)).toEqual(["db01", "web01"]);
    const found = memory.objects?.get("agents/db01");
    if (found?.kind === "object") memory.objects?.set("agents/db01", { ...found, bytes: Buffer.from("junk") });
    const told: string[] = [];
    const listed = await vault.agents.list({ onNotice: ({ code }) => told.push(code) });
    expect([listed.map(({ agent }) => agent), told]).toEqual([["web01"], ["AGENT_DAMAGED"]]);
    const beat = vault.agents.heartbeat("db01", here.machine, { disks: [], health: "Normal" });
    await expectCode(beat, "DAMAGED");
    await vault.agents.register((await issue({ agent: "db01" })).key, here);
    expect((await vault.agents.list()).map(({ agent }) => agent)).toEqual(["db01", "web01"]);
  });
});

it("in an encrypted vault only a recipient issues keys, and a key enrols its machine to write", async () => {
  const folder = createFolder("registration");
  const store = new MemoryStore();
  const owner = encryptedFor(testKeyPair());
  await using sealed = await Vault.openOrCreate(new MemorySink({ store }), owner);
  const options = { agent: "web01", allowedDisks: ["*"], address: "dir:/v" };
  const { key, bytes } = await sealed.agents.issueKey(options);
  expect(await readRegistrationKey(bytes, "web01.key")).toEqual(key);
  const stateFolder = join(folder, "state");
  const machine = await machineOf(stateFolder);
  const file = await keepRegistration(stateFolder, key, bytes);
  await using writer = await Vault.open(new MemorySink({ store }), { stateFolder });
  await writer.agents.register(key, { machine, host: "host-a" });
  await writer.replicate({ disk: "web-1", volume: sampleDisk(100_000, 1) });
  await expectCode(writer.agents.issueKey(options), "ACCESS_REFUSED");
  const registration = store.objects?.get("registration");
  expect(registration?.kind === "object" && Buffer.from(registration.bytes).toString("latin1", 0, 4)).toBe("TMSE");
  await sealed.keys.rotate();
  await using rotated = await Vault.open(new MemorySink({ store }), owner);
  await rotated.agents.issueKey(options);
  await expectCode(rotated.agents.register(key, { machine, host: "host-a" }), "KEY_FOREIGN");
  expect(await machineOf(stateFolder)).toBe(machine);
  expect(await findRegistration(stateFolder, "dir:/v")).toEqual(Buffer.from(bytes));
  expect(await findRegistration(stateFolder, "dir:/other")).toBeUndefined();
  // The octal digits of group and others.
  for (const path of [file, join(stateFolder, "machine"), join(stateFolder, key.vault, "writer-key")])
    expect(statSync(path).mode.toString(8), path).toMatch(/600$/);
  await removeFolder(folder);
});

it("a pattern allows the names that it stands for", () => {
  for (const [pattern, disk, isAllowed] of [
    ["web-*", "web-1", true],
    ["web-*", "web-", true],
    ["web-*", "db", false],
    ["web", "web-1", false],
    ["*", "anything", true],
    ["*-data", "pg-data", true],
    ["a*a", "a", false],
    ["a*b*a", "aba", true],
    ["a*b*a", "acca", false],
    ["w*b*", "wb", true],
    ["**", "x", true],
    ["web.*", "web-1", false],
    ["é", "e\u0301", true],
  ] as const)
    expect(isAllowedDisk([pattern], disk), `${pattern} ${disk}`).toBe(isAllowed);
  expect(isAllowedDisk(["db", "web-*"], "web-1")).toBe(true);
});
