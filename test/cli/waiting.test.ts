/** Waiting that is told: what a store or a source lets a command wait for, and how often that is said. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { beforeEach, expect, test, vi } from "vitest";
import { told, toldWhile } from "../../cli/waiting.ts";
import { FileVolume } from "../../engine/disk/source/file-volume.ts";
import { Vault } from "../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../sink/memory.ts";
import { modelEncryption } from "../encrypted.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";

const afterMs = 30;
/** Something slow, with what a store and a source have: private fields, errors, lists. */
class Slow {
  readonly description = "slow";
  #calls = 0;

  async answer(ms: number): Promise<number> {
    this.#calls += 1;
    await delay(ms);
    return this.#calls;
  }

  async fail(): Promise<never> {
    await delay(1);
    throw new Error(`failed after ${String(this.#calls)} calls`);
  }

  async *list(...pauses: readonly number[]): AsyncGenerator<number> {
    try {
      for (const ms of pauses) yield await this.answer(ms);
    } finally {
      this.#calls = -1;
    }
  }
}

let notices: string[] = [];
let slow: Slow;
beforeEach(() => {
  notices = [];
  slow = told(new Slow(), "the store", ({ code }) => notices.push(code), afterMs);
});

test("a call that waits long is told, and the next notice comes after twice the time", async () => {
  const answer = slow.answer(700);
  const startedMs = performance.now();
  await vi.waitUntil(() => notices.length === 2, { interval: 5, timeout: 2_000 });
  expect(performance.now() - startedMs).toBeGreaterThan(3 * afterMs - 2);
  expect(await answer).toBe(1);
  expect(notices.length).toBeLessThan(6); // after 30, 90, 210, 450 and 930 ms
  expect(new Set(notices)).toEqual(new Set(["NO_ANSWER"]));
});

test("calls that are answered one after another are not told, however many wait", async () => {
  const quick = told(new Slow(), "the store", ({ code }) => notices.push(code), 10_000);
  await Promise.all(Array.from({ length: 100 }, async (_, index) => await quick.answer(index % 7)));
  expect(notices).toEqual([]);
});

test("answers, errors, lists and fields are those of the thing, and it stays what it is", async () => {
  expect(slow.description).toBe("slow");
  expect(slow).toBeInstanceOf(Slow);
  await expect(slow.fail()).rejects.toThrow("failed after 0 calls");
  const seen: number[] = [];
  for await (const item of slow.list(1, 1, 200, 1)) {
    seen.push(item);
    if (item === 3) break;
  }
  expect(seen).toEqual([1, 2, 3]);
  expect(notices).toContain("NO_ANSWER");
  expect(await slow.answer(0)).toBe(0); // the list has been ended
});

test("a source that is opened late is told", async () => {
  const messages: string[] = [];
  expect(await toldWhile(delay(100, "open"), "nbd://x", ({ message }) => messages.push(message), afterMs)).toBe("open");
  expect(messages[0]).toBe("nbd://x has not answered for 0 s; waiting for it");
});

test("a file that threads read by themselves is told like any other source", async () => {
  const folder = createFolder("waiting");
  const path = join(folder, "disk.img");
  writeFileSync(path, Buffer.alloc(65_536, 1));
  const file = await FileVolume.open(path);
  const vault = await Vault.create(new MemorySink({ store: new MemoryStore() }), { workers: 1, ...modelEncryption });
  try {
    // The read of the thread is answered, and comes back late.
    const late = new Proxy(file, {
      get: (target, key) => {
        if (key === "reading") return async (work: Promise<unknown>) => await delay(200, await work);
        const member: unknown = Reflect.get(target, key, target);
        return typeof member === "function" ? (member.bind(target) as unknown) : member;
      },
    });
    const volume = told(late, path, ({ code, message }) => notices.push(`${code} ${message}`), 100);
    await vault.replicate({ disk: "web", volume });
    expect(notices[0]).toBe(`NO_ANSWER ${path} has not answered for 0 s; waiting for it`);
  } finally {
    await vault.close();
    await file.close();
    await removeFolder(folder);
  }
});
