/** What the agent asks of the engine, with the engine behind it. */

import { writeFileSync } from "node:fs";
import { expect, it, onTestFinished } from "vitest";
import { openEngineAdapter } from "../../../cli/agent/engine-adapter.ts";
import { parsePolicy } from "../../../engine/index.ts";
import { keyEnvironment } from "../../encrypted.ts";
import { ConfigFolder } from "./configuration.ts";

/** The vault and the disk of a configuration, with an image that is absent. */
async function opened(policy: string) {
  const folder = new ConfigFolder("web.img");
  const { vaults, disks, policies } = await folder.config(`vaults:
  main: {address: "dir:vault", stateFolder: state, scrub: {sharePerDay: 0%}, collect: off}
policies:
  gold: ${policy}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:a.sock"}
`);
  const [vaultConfig, disk, gold] = [vaults.get("main"), disks.get("web"), policies.get("gold")];
  if (vaultConfig === undefined || disk === undefined || gold === undefined) throw new Error("no such entry");
  const { signal } = new AbortController();
  const vault = await openEngineAdapter(keyEnvironment).openVault(vaultConfig, signal, () => []);
  onTestFinished(async () => await vault.close());
  const protect = async (): ReturnType<typeof vault.protect> =>
    await vault.protect({ disk, policy: gold, onEvent: () => undefined }, signal);
  return { folder, vault, protect, signal };
}

it("refuses an image of 0 bytes, and protects it once there is something", async () => {
  const { folder, protect, signal } = await opened("{}");
  writeFileSync(folder.path("web.img"), "");
  await expect(protect()).rejects.toMatchObject({ code: "SOURCE_UNREADABLE" });
  writeFileSync(folder.path("web.img"), "a disk");
  const protection = await protect();
  await protection.stop({ drain: false, signal });
});

it("lists the points of a disk, and which of them the next prune drops; none of a disk that has none yet", async () => {
  const { vault, protect, signal } = await opened("{crashConsistentFrequency: 1h}");
  expect(await vault.points("web", parsePolicy("days:1"), signal)).toEqual([]);
  const protection = await protect();
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
