/** What the agent asks of the engine, with the engine behind it. */
import { writeFileSync } from "node:fs";
import { expect, it, onTestFinished } from "vitest";
import { openEngineAdapter } from "../../../cli/agent/engine-adapter.ts";
import { parsePolicy } from "../../../engine/index.ts";
import { ConfigFolder } from "./configuration.ts";

it("refuses an image of 0 bytes, and protects it once there is something", async () => {
  const folder = new ConfigFolder("web.img");
  const { vaults, disks, policies } = await folder.config(`vaults:
  main: {address: "dir:vault", stateFolder: state}
policies:
  gold: {}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:a.sock"}
`);
  const [vaultConfig, disk, policy] = [vaults.get("main"), disks.get("web"), policies.get("gold")];
  if (vaultConfig === undefined || disk === undefined || policy === undefined) throw new Error("no such entry");
  const { signal } = new AbortController();
  const vault = await openEngineAdapter({}).openVault(vaultConfig, signal);
  onTestFinished(async () => await vault.close());
  const protect = async (): ReturnType<typeof vault.protect> =>
    await vault.protect({ disk, policy, onEvent: () => undefined }, signal);
  writeFileSync(folder.path("web.img"), "");
  await expect(protect()).rejects.toMatchObject({ code: "SOURCE_UNREADABLE" });
  writeFileSync(folder.path("web.img"), "a disk");
  const protection = await protect();
  await protection.stop({ drain: false, signal });
});

it("lists the points of a disk, and which of them the next prune drops; none of a disk that has none yet", async () => {
  const folder = new ConfigFolder("web.img");
  const { vaults, disks, policies } = await folder.config(`vaults:
  main: {address: "dir:vault", stateFolder: state, scrub: {sharePerDay: 0%}, collect: off}
policies:
  gold: {crashConsistentFrequency: 1h}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:a.sock"}
`);
  const [vaultConfig, disk, policy] = [vaults.get("main"), disks.get("web"), policies.get("gold")];
  if (vaultConfig === undefined || disk === undefined || policy === undefined) throw new Error("no such entry");
  const { signal } = new AbortController();
  const vault = await openEngineAdapter({}).openVault(vaultConfig, signal);
  onTestFinished(async () => await vault.close());
  expect(await vault.points("web", parsePolicy("days:1"), signal)).toEqual([]);
  const protection = await vault.protect({ disk, policy, onEvent: () => undefined }, signal);
  for (let count = 0; count < 2; count += 1) await protection.point({ applicationConsistent: false, signal });
  const dropped = async (text: string): Promise<readonly boolean[]> =>
    (await vault.points("web", parsePolicy(text), signal)).map((point) => point.dropped);
  const keeping = await dropped("none");
  expect(keeping.length).toBeGreaterThan(1);
  expect(keeping).not.toContain(true);
  expect(await dropped("keep:last=1")).toEqual(keeping.map((_, index) => index < keeping.length - 1));
  expect(await vault.points("web", parsePolicy("none"), signal)).toMatchObject(
    keeping.map((_, index) => ({ sequence: index + 1, damaged: false, pinned: false, proved: null })),
  );
  expect(await vault.stats(signal)).toMatchObject({ points: keeping.length, disks: [{ disk: "web" }] });
  await protection.stop({ drain: false, signal });
});
