/**
 * A source machine from its registration key to its removal, on an Azurite with two account keys: the
 * key is made with the first one, which is replaced while the agent runs.
 */
import { randomBytes } from "node:crypto";
import { appendFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { expect, vi } from "vitest";
import { writeImage } from "../cli/images.ts";
import { type Line, Place, parseLines } from "../cli/tidemark.ts";
import { deepTest } from "../deep-test.ts";
import { AzuriteProcess } from "./azurite-process.ts";

const [firstKey, secondKey] = [randomBytes(64).toString("base64"), randomBytes(64).toString("base64")];
const rest = `policies:
  gold: {crashConsistentFrequency: 1h}
disks:
  - {name: web-1, image: web.img, vault: main, policy: gold, listen: "unix:nbd.sock"}
control: {socket: agent.sock}
logging: {format: json}
`;
const noticedMsMax = 90_000;

deepTest(
  "a machine registers, replicates through a replaced account key, and is refused when it is removed",
  {
    timeout: 300_000,
  },
  async () => {
    const place = new Place();
    writeImage(place.path("web.img"), 3);
    const azurite = await AzuriteProcess.forTest(place.path("store"), `shop:${firstKey}:${secondKey}`);
    const vault = `http://127.0.0.1:${azurite.port}/shop/vault`;
    const run = async (accountKey: string | undefined, ...words: readonly string[]): Promise<Line> => {
      const credentials = accountKey === undefined ? {} : { TIDEMARK_VAULT: vault, AZURE_STORAGE_KEY: accountKey };
      const { stdout, stderr } = await place.run([...words, "--json"], credentials);
      const last = parseLines(stdout).at(-1);
      if (last === undefined) throw new Error(stderr);
      return last;
    };
    const issue = async (accountKey: string, out: string): Promise<Line> =>
      await run(accountKey, "vault", "key", "--name", "web01", "--disks", "web-*", "--out", out);
    const register = async (key: string, ...more: readonly string[]): Promise<Line> =>
      await run(undefined, "agent", "register", "--key", key, "--state", "state", ...more);
    const point = async (): Promise<Line> =>
      await run(undefined, "agent", "point", "--disk", "web-1", "--socket", "agent.sock");

    await run(firstKey, "vault", "init");
    const issued = await issue(firstKey, "web01.key");
    expect(Date.parse(String(issued["credentialsUntil"]))).toBeGreaterThan(Date.now() + 360 * 86_400_000);
    expect(await register("web01.key", "--config", "agent.yaml")).toMatchObject({ agent: "web01", vaultName: "main" });
    appendFileSync(place.path("agent.yaml"), rest);
    const agent = place.start(["agent", "--config", "agent.yaml"]);
    await agent.says("exported as web-1");
    const first = await point();
    expect(first).toMatchObject({ command: "agent point", disk: "web-1" });
    const seen = await run(firstKey, "agents", "show", "web01");
    expect(seen).toMatchObject({ disks: ["web-1"], health: "Normal", lastSeen: expect.stringMatching(/Z$/) as string });

    // The account key is replaced: new credentials first, then the old key ends.
    await issue(secondKey, "new.key");
    expect(await register("new.key", "--renew")).toMatchObject({ agent: "web01", machine: seen["machine"] });
    await delay(1_500);
    await azurite.stop();
    await azurite.restart(`shop:${secondKey}`);
    expect(await run(firstKey, "agents", "list")).toMatchObject({ type: "error", code: "ACCESS_REFUSED" });
    const second = await point();
    expect(second).toMatchObject({ command: "agent point", changedBytes: 0 });
    expect(Number(second["sequence"])).toBeGreaterThan(Number(first["sequence"]));

    await run(secondKey, "agents", "remove", "web01");
    const refused = async (): Promise<unknown> => (await point())["code"];
    await vi.waitUntil(async () => (await refused()) === "AGENT_REMOVED", { timeout: noticedMsMax, interval: 1_000 });
    const status = await place.run(["agent", "status", "--socket", "agent.sock", "--json"]);
    expect(parseLines(status.stdout)[0]).toMatchObject({
      health: "Critical",
      findings: expect.arrayContaining([expect.objectContaining({ code: "AGENT_REMOVED" })]) as unknown,
    });
    for (const old of ["web01.key", "new.key"])
      expect(await register(old), old).toMatchObject({
        type: "error",
        code: old === "new.key" ? "AGENT_REMOVED" : "ACCESS_REFUSED",
      });

    // Registered again, it goes on where it was.
    await issue(secondKey, "again.key");
    await register("again.key");
    await vi.waitUntil(async () => (await refused()) === undefined, { timeout: noticedMsMax, interval: 1_000 });
    // A heartbeat, and what it says of the disks, is up to a minute old.
    const health = async (): Promise<unknown> => (await run(secondKey, "agents", "show", "web01"))["health"];
    await vi.waitUntil(async () => (await health()) === "Normal", { timeout: noticedMsMax, interval: 2_000 });
    agent.child.kill("SIGTERM");
    expect(await agent.ended).toMatchObject({ code: 0 });
    expect(await run(secondKey, "verify")).toMatchObject({ damaged: [] });
  },
);
