/** What the agent asks of the engine, with the engine behind it. */
import { writeFileSync } from "node:fs";
import { expect, it, onTestFinished } from "vitest";
import { openEngineAdapter } from "../../../cli/agent/engine-adapter.ts";
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
