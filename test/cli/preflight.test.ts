/** `tidemark check`: what it finds, and that it leaves nothing behind. */

import { readdirSync } from "node:fs";
import { describe, expect, it, onTestFinished } from "vitest";
import { judgeAccount, judgeClock, judgeTls } from "../../cli/preflight/account-rules.ts";
import type { Finding } from "../../cli/preflight/finding.ts";
import { preflight, wayTo } from "../../cli/preflight/preflight.ts";
import { type Sink, TidemarkError } from "../../engine/index.ts";
import { SinkDecorator } from "../../engine/internal.ts";
import { FaultySink } from "../../sink/faults.ts";
import { Azurite, openSink, parseVaultSpec } from "../../sink/index.ts";
import type { AccountFacts } from "../../sink/internal.ts";
import { MemorySink, MemoryStore } from "../../sink/memory.ts";
import { deepTest } from "../deep-test.ts";
import { namesOf } from "../engine-model.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { Place } from "./tidemark.ts";

const memory = parseVaultSpec("memory:");

async function findingsOf(sink: Sink, signal: AbortSignal = new AbortController().signal): Promise<Finding[]> {
  const findings: Finding[] = [];
  await preflight(sink, { spec: memory, proxy: undefined, signal, onFinding: (finding) => findings.push(finding) });
  return findings;
}

const outcomes = (findings: readonly Finding[]): string[] => findings.map(({ check, state }) => `${check} ${state}`);

async function newSink(): Promise<MemorySink> {
  const sink = new MemorySink({ store: new MemoryStore() });
  await sink.createContainer();
  return sink;
}

describe("the check of a store", () => {
  it("finds every right, and leaves nothing behind", async () => {
    const sink = await newSink();
    const findings = await findingsOf(sink);
    expect(outcomes(findings)).toEqual(
      ["endpoint", "list", "write", "read", "lease", "pages", "delete", "vault"].map((check) => `${check} ok`),
    );
    expect(await namesOf(sink)).toEqual([]);
  });

  const refused = new TidemarkError("ACCESS_REFUSED", "access is refused", { remedy: "ask for the right" });
  it.each([
    ["list", "list", []],
    ["putObject", "write", ["read", "lease"]],
    ["getObject", "read", []],
    ["acquireLease", "lease", []],
    ["createPages", "pages", []],
    ["writePages", "pages", []],
    ["clearPages", "pages", []],
  ] as const)("tells that %s is refused, and removes what it has made all the same", async (on, check, without) => {
    const inner = await newSink();
    const findings = await findingsOf(
      new FaultySink(inner, [{ on, when: 1, fault: { kind: "refused", error: refused } }]),
    );
    const failed = findings.filter(({ state }) => state === "failed");
    expect(failed).toEqual([{ check, state: "failed", fact: "access is refused", remedy: "ask for the right" }]);
    expect(findings.filter(({ state }) => state === "skipped").map((each) => each.check)).toEqual(without);
    expect(await namesOf(inner)).toEqual([]);
  });

  it("tells that deletes are refused", async () => {
    const sink = new FaultySink(await newSink(), [
      { on: "deleteObject", when: 1, fault: { kind: "refused", error: refused } },
    ]);
    expect(outcomes(await findingsOf(sink))).toContain("delete failed");
  });

  it("finds a store that lets late writers in, and one that gives back other bytes", async () => {
    class Unfenced extends SinkDecorator {
      override async raiseSequenceNumber(): Promise<{ etag: string; sequenceNumber: number }> {
        return await Promise.resolve({ etag: "", sequenceNumber: 2 });
      }
    }
    class Forgetful extends SinkDecorator {
      override async readPages(): Promise<void> {
        await Promise.resolve();
      }
    }
    for (const [Store, fact] of [
      [Unfenced, /fenced off/],
      [Forgetful, /not the one/],
    ] as const) {
      const inner = await newSink();
      const pages = (await findingsOf(new Store(inner))).find(({ check }) => check === "pages");
      expect(pages).toMatchObject({ state: "failed", fact: expect.stringMatching(fact) as string });
      expect(await namesOf(inner)).toEqual([]);
    }
  });

  it("ends at ^C in any step, and leaves nothing behind", async () => {
    for (const on of ["getObject", "acquireLease", "createPages", "clearPages"] as const) {
      const inner = await newSink();
      const interrupted = new TidemarkError("INTERRUPTED", "stopped", {});
      const sink = new FaultySink(inner, [{ on, when: 1, fault: { kind: "refused", error: interrupted } }]);
      await expect(findingsOf(sink), on).rejects.toBe(interrupted);
      expect(await namesOf(inner), on).toEqual([]);
    }
  });

  it("looks no further where the store is not reached, and at no right without a container", async () => {
    const unreachable = new TidemarkError("STORE_UNREACHABLE", "no answer", { remedy: "check the name" });
    const sink = new FaultySink(await newSink(), [
      { on: "statObject", when: 1, fault: { kind: "refused", error: unreachable } },
    ]);
    expect(await findingsOf(sink)).toEqual([
      { check: "endpoint", state: "failed", fact: "no answer", remedy: "check the name" },
    ]);
    const absent = new MemorySink({ store: new MemoryStore() });
    expect(outcomes(await findingsOf(absent))).toEqual(["endpoint ok", "container failed"]);
  });
});

describe("the rules of the check", () => {
  const url = new URL("https://shop.blob.core.windows.net/vault");
  const proxy = { url: "http://me:secret@proxy.example:3128", setBy: "HTTPS_PROXY" };
  it.each([
    [url, undefined, "directly to shop.blob.core.windows.net; no proxy is set"],
    [url, proxy, "to shop.blob.core.windows.net through the proxy proxy.example:3128 (HTTPS_PROXY)"],
    [url, { ...proxy, bypass: [".core.windows.net"] }, "directly to shop.blob.core.windows.net; the bypass list"],
    [new URL("http://127.0.0.1:10000/a/b"), proxy, "directly to 127.0.0.1:10000; this machine is never"],
  ])("tell the way to %s by %o", (to, by, expected) => {
    const way = wayTo(to, by);
    expect(way.startsWith(expected), way).toBe(true);
    expect(way).not.toContain("secret");
  });

  it.each([
    [400, "ok"],
    [-4_000, "ok"],
    [-6_000, "advice"],
    [60_000, "advice"],
    [901_000, "failed"],
    [-1_000_000, "failed"],
  ])("judge a clock that is %i ms ahead: %s", (aheadMs, state) => {
    const { state: found, remedy } = judgeClock(aheadMs);
    expect(found).toBe(state);
    expect(remedy === null).toBe(state === "ok");
  });

  const nowMs = Date.parse("2026-01-01T00:00:00Z");
  it.each([
    ["https://x/y", { protocol: "TLSv1.3", validToMs: nowMs + 30 * 86_400_000 }, "ok"],
    ["https://x/y", { protocol: "TLSv1.3", validToMs: nowMs + 86_400_000 }, "advice"],
    ["https://x/y", { protocol: "TLSv1.2", validToMs: null }, "ok"],
    ["https://x/y", null, "skipped"],
    ["http://127.0.0.1/y", null, "ok"],
  ])("judge TLS to %s of %o: %s", (to, tls, state) => {
    expect(judgeTls(new URL(to), tls, nowMs).state).toBe(state);
  });

  const plain: AccountFacts = {
    tls: null,
    kind: "StorageV2",
    sku: "Standard_GRS",
    isHierarchical: false,
    isImmutable: false,
    isPublic: false,
    softDeleteDays: 0,
  };
  it.each([
    ["a plain account", {}, []],
    ["one in one place", { sku: "Standard_LRS" }, ["redundancy advice"]],
    ["premium block blobs", { kind: "BlockBlobStorage", sku: "Premium_ZRS" }, ["account failed"]],
    ["premium page blobs", { sku: "Premium_LRS" }, ["account failed", "redundancy advice"]],
    ["a hierarchical namespace", { isHierarchical: true }, ["account failed"]],
    ["soft delete", { softDeleteDays: 7 }, ["soft delete advice"]],
    ["a legal hold", { isImmutable: true }, ["immutability failed"]],
    ["public access", { isPublic: true }, ["access advice"]],
    [
      "one that tells nothing",
      { kind: null, sku: null, isImmutable: null, isPublic: null, softDeleteDays: null },
      ["account", "redundancy", "soft delete", "immutability", "access"].map((check) => `${check} skipped`),
    ],
  ] as const)("judge %s", (_case, more, expected) => {
    const findings = judgeAccount({ ...plain, ...more });
    expect(outcomes(findings.filter(({ state }) => state !== "ok"))).toEqual(expected);
    for (const { state, remedy } of findings) expect(remedy === null).toBe(state === "ok" || state === "skipped");
  });
});

deepTest("looks at the account, the clock and the way of a store that is spoken to over HTTP", async () => {
  const folder = createFolder("check");
  onTestFinished(async () => await removeFolder(folder));
  await using azurite = await Azurite.start(folder);
  const address = `${azurite.endpoint}/checked`;
  await using sink = await openSink(address, { credentials: { accountKey: azurite.key } });
  await sink.createContainer();
  const findings: Finding[] = [];
  const signal = new AbortController().signal;
  await preflight(sink, {
    spec: parseVaultSpec(address),
    proxy: { url: "http://proxy.example:3128" },
    signal,
    onFinding: (finding) => findings.push(finding),
  });
  expect(outcomes(findings)).toEqual(
    expect.arrayContaining([
      "way ok",
      "tls ok",
      "clock ok",
      "pages ok",
      "account ok",
      "redundancy ok",
      "region skipped",
    ]),
  );
  expect(findings.filter(({ state }) => state === "failed")).toEqual([]);
  expect(await namesOf(sink)).toEqual([]);
});

it("prints one line each for people, and the same for programs", async () => {
  const place = new Place();
  await place.json("vault", "init");
  const before = readdirSync(place.path("vault"), { recursive: true });
  const { stdout, code } = await place.run(["check", "--vault", "dir:vault"]);
  expect(code).toBe(0);
  expect(stdout).toMatch(/^ok {7}endpoint {6}.*answers\n/);
  expect(stdout).toMatch(/a vault can be there\n$/);
  const asJson = await place.json("check");
  expect(asJson).toMatchObject({ code: 0, last: { vault: "dir:vault", failed: 0, advice: 0 } });
  expect(asJson.lines).toHaveLength(stdout.trimEnd().split("\n").length);
  expect(readdirSync(place.path("vault"), { recursive: true })).toEqual(before);
  const absent = await place.run(["check", "--vault", "dir:absent"]);
  expect(absent).toMatchObject({ code: 1, stdout: expect.stringMatching(/failed {3}container/) as string });
}, 60_000);
