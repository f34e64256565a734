/** What an agent does for a vault that its machine has registered with, on a clock that the test moves. */

import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { expect, it, onTestFinished, vi } from "vitest";
import type { DiskHealth } from "../../../cli/agent/ports.ts";
import { Registered } from "../../../cli/agent/registered.ts";
import { type Sink, Vault } from "../../../engine/index.ts";
import { findRegistration, keepRegistration, machineOf, readRegistrationKey } from "../../../engine/internal.ts";
import { MemorySink, MemoryStore } from "../../../sink/memory.ts";
import { expectCode } from "../../../sink/testing/expectations.ts";
import { modelEncryption } from "../../encrypted.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";
import { VirtualClock } from "./scripted.ts";

const address = "https://account.blob.core.windows.net/vault";

class Machine {
  readonly store: MemoryStore = new MemoryStore();
  readonly stateFolder: string;
  readonly vault: Vault;

  private constructor(stateFolder: string, store: MemoryStore, vault: Vault) {
    this.stateFolder = stateFolder;
    this.store = store;
    this.vault = vault;
  }

  static async make(): Promise<Machine> {
    const folder = createFolder("registered");
    const store = new MemoryStore();
    const vault = await Vault.create(new MemorySink({ store }), modelEncryption);
    onTestFinished(async () => {
      await vault.close();
      await removeFolder(folder);
    });
    return new Machine(join(folder, "state"), store, vault);
  }

  /** Issues a key with this SAS, registers with it and keeps it, as the commands do. */
  async register(sas: string, isRenewal = false): Promise<void> {
    const { bytes } = await this.vault.agents.issueKey({ agent: "web01", allowedDisks: ["web-*"], address, sas });
    const key = await readRegistrationKey(bytes, "key");
    await this.vault.agents.register(key, { machine: await machineOf(this.stateFolder), host: "host-a", isRenewal });
    await keepRegistration(this.stateFolder, key, bytes);
  }

  async registered(): Promise<Registered> {
    const found = await Registered.find(this.stateFolder, `${address}?sig=other`);
    if (found === undefined) throw new Error("it is not registered");
    return found;
  }
}

it("uses new credentials from the moment that they lie in the state folder, and keeps them when they are gone", async () => {
  vi.useFakeTimers({ toFake: ["performance"] });
  onTestFinished(() => {
    vi.useRealTimers();
  });
  const machine = await Machine.make();
  expect(await Registered.find(machine.stateFolder, address)).toBeUndefined();
  await machine.register("sig=first");
  const registered = await machine.registered();
  const sas = async (): Promise<string | undefined> => {
    vi.advanceTimersByTime(1_000);
    return await registered.sas?.();
  };
  expect(await sas()).toBe("sig=first");
  await machine.register("sig=second", true);
  expect(await registered.sas?.()).toBe("sig=first");
  expect(await sas()).toBe("sig=second");
  const bytes = await findRegistration(machine.stateFolder, address);
  await removeFolder(machine.stateFolder);
  expect(await sas()).toBe("sig=second");
  const key = await readRegistrationKey(bytes ?? Buffer.of(), "key");
  await keepRegistration(machine.stateFolder, key, Buffer.from("torn"));
  expect(await sas()).toBe("sig=second");
  await expectCode(Registered.find(machine.stateFolder, address), "KEY_ALTERED");
});

it("writes nothing to a vault from which the agent was removed, until it is registered again", async () => {
  const machine = await Machine.make();
  await machine.register("sig=x");
  const registered = await machine.registered();
  const clock = new VirtualClock();
  const gate: Sink = registered.gated(new MemorySink({ store: machine.store }));
  await using vault = await Vault.open(gate, modelEncryption);
  const disks: DiskHealth[] = [
    { disk: "web-1", health: "Normal" },
    { disk: "web-2", health: "Warning" },
  ];
  await registered.begin(vault, { disksOf: () => disks, clock, signal: new AbortController().signal });
  expect(await vault.agents.show("web01")).toMatchObject({ disks: ["web-1", "web-2"], health: "Warning" });
  const write = async (): Promise<unknown> => await gate.putObject("x", Buffer.of(1), { ifAbsent: true });
  await machine.vault.agents.remove("web01");
  await write();
  const waiting = delay(60_000, undefined, { signal: registered.whileRegistered(new AbortController().signal) });
  const ended = expect(waiting).rejects.toMatchObject({ cause: { code: "AGENT_REMOVED" } });
  await clock.advance(20_000);
  await ended;
  await vi.waitFor(() => {
    expect(registered.findings()).toMatchObject([{ level: "Critical", code: "AGENT_REMOVED" }]);
  });
  await expectCode(write(), "AGENT_REMOVED");
  await expectCode(gate.acquireLease("x", "00000000-0000-4000-8000-000000000001", 60), "AGENT_REMOVED");
  expect((await gate.getObject("x", 1)).bytes).toHaveLength(1);
  expect(registered.whileRegistered(new AbortController().signal).aborted).toBe(true);
  await machine.register("sig=y");
  await clock.advance(20_000);
  await vi.waitFor(() => {
    expect(registered.findings()).toEqual([]);
  });
  expect(registered.whileRegistered(new AbortController().signal).aborted).toBe(false);
  await gate.deleteObject("x");
  await registered.stop();
});

it("refuses another vault at the address, and disks that the key does not allow", async () => {
  const machine = await Machine.make();
  await machine.register("sig=x");
  const registered = await machine.registered();
  registered.refuseDisk("web-1");
  expect(() => {
    registered.refuseDisk("db");
  }).toThrow("the registration of web01 allows web-*, and not the disk db");
  const other = await Machine.make();
  const options = { disksOf: () => [], clock: new VirtualClock(), signal: new AbortController().signal };
  await expectCode(registered.begin(other.vault, options), "KEY_FOREIGN");
});
