/** `tidemark vault key`, `agent register` and `agents`, as an operator and a machine use them. */
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { expect, it } from "vitest";
import { isEncryptedRun, testKeyPair } from "../encrypted.ts";
import { writeImage } from "./images.ts";
import { type Line, Place } from "./tidemark.ts";

const issue = ["vault", "key", "--name", "web01", "--disks", "web-*", "db", "--out"];
const onMachine = (state: string, key = "web01.key"): readonly string[] => [
  "agent",
  "register",
  "--key",
  key,
  "--state",
  state,
];

async function placeWithKey(): Promise<Place> {
  const place = new Place();
  await place.json("vault", "init");
  expect(await place.json(...issue, "web01.key")).toMatchObject({ code: 0 });
  return place;
}

/** The permissions of group and others. */
const openness = (path: string): string => statSync(path).mode.toString(8).slice(-2);

it("makes a key for its owner only, registers a machine with it, and lists, shows and removes the agent", async () => {
  const place = new Place();
  const { last: vault } = await place.json("vault", "init");
  const made = await place.json(...issue, "web01.key", "--days", "2");
  expect(made.last).toMatchObject({
    command: "vault key",
    vault: vault["vault"],
    agent: "web01",
    address: `dir:${place.path("vault")}`,
    allowedDisks: ["web-*", "db"],
    credentialsUntil: null,
    enrollsWriter: isEncryptedRun,
    out: place.path("web01.key"),
  });
  expect(Date.parse(String(made.last["notAfter"])) - Date.now()).toBeGreaterThan(86_400_000);
  expect(openness(place.path("web01.key"))).toBe("00");
  expect(await place.json(...issue, "web01.key")).toMatchObject({ last: { code: "TARGET_EXISTS" } });

  const registered = await place.json(...onMachine("state"));
  expect(registered.last).toMatchObject({ command: "agent register", agent: "web01", config: null, vaultName: "main" });
  expect(openness(String(registered.last["credentials"]))).toBe("00");
  const listed = await place.json("agents", "list");
  expect(listed.lines).toMatchObject([
    { type: "agent", agent: "web01", lastSeen: null, disks: [], health: "Normal" },
    { type: "summary", command: "agents list", agents: 1, critical: 0 },
  ]);
  const table = await place.run(["agents", "list", "--vault", "dir:vault"]);
  expect(table.stdout).toMatch(/^AGENT +HEALTH +SEEN +MACHINE\nweb01 +Normal +never +\S+\n1 agent\n$/);
  const shown = await place.run(["agents", "show", "web01", "--vault", "dir:vault"]);
  expect(shown.stdout).toMatch(/agent +web01\n[^]*may protect +web-\*, db\n/);
  const removed = await place.json("agents", "remove", "web01");
  expect(removed.last).toMatchObject({ command: "agents remove", agent: "web01" });
  expect(await place.json("agents", "list")).toMatchObject({ last: { agents: 0 } });
  expect(await place.json("agents", "show", "web01")).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
  expect(await place.json(...onMachine("state"))).toMatchObject({ code: 12, last: { code: "AGENT_REMOVED" } });
});

it("refuses keys by name: used by another machine, altered, of another vault; and takes a new one with --renew", async () => {
  const place = await placeWithKey();
  const refused = async (words: readonly string[]): Promise<Line> => {
    const { code, last } = await place.json(...words);
    expect(code).toBe(12);
    expect(last["remedy"]).toContain("tidemark vault key");
    return last;
  };
  await place.json(...onMachine("state"));
  expect(await place.json(...onMachine("state"))).toMatchObject({ code: 0 });
  expect(await refused(onMachine("other"))).toMatchObject({ code: "KEY_USED" });
  const text = readFileSync(place.path("web01.key"), "utf8");
  writeFileSync(place.path("altered.key"), text.replace('"db"', '"*"'));
  expect(await refused(onMachine("state", "altered.key"))).toMatchObject({ code: "KEY_ALTERED" });

  await place.json(...issue, "new.key");
  expect(await place.json(...onMachine("state", "new.key"))).toMatchObject({ code: 2 });
  expect(await place.json(...onMachine("state", "new.key"), "--renew")).toMatchObject({ code: 0 });
  expect(await place.json(...onMachine("other", "new.key"), "--renew")).toMatchObject({ last: { code: "KEY_USED" } });

  const other = new Place();
  await other.json("vault", "init");
  writeFileSync(other.path("web01.key"), text);
  await place.run(["vault", "show", "--vault", "dir:vault"]);
  const moved = readFileSync(other.path("vault/vault.json"));
  writeFileSync(place.path("vault/vault.json"), moved);
  writeFileSync(place.path("vault/copy/vault.json"), moved);
  expect(await refused(onMachine("state"))).toMatchObject({ code: "KEY_FOREIGN" });
});

it("enrols a machine to write to an encrypted vault, and refuses the key where another vault lies", async ({
  skip,
}) => {
  skip(isEncryptedRun, "its vault is encrypted in every run");
  const place = new Place();
  const { privateKey, publicKey } = testKeyPair();
  writeFileSync(place.path("ops.pem"), publicKey);
  writeFileSync(place.path("ops.key"), privateKey);
  await place.json("vault", "init", "--encrypt", "--certificate", "ops.pem");
  const made = await place.json(...issue, "web01.key", "--key", "ops.key");
  expect(made).toMatchObject({ last: { enrollsWriter: true } });
  const below = await place.json("vault", "keys", "enroll", "--key", "ops.key", "--state", "ops.key/below");
  expect(below).toMatchObject({ code: 1, last: { code: "TARGET_FAILED" } });
  expect(await place.json(...onMachine("state"))).toMatchObject({ code: 0 });
  writeImage(place.path("a.img"), 1);
  expect(await place.json("replicate", "a.img", "--disk", "web-1", "--state", "state")).toMatchObject({ code: 0 });
  expect(await place.json("verify", "--state", "state")).toMatchObject({ code: 12 });
  renameSync(place.path("vault"), place.path("gone"));
  expect(await place.json(...onMachine("other"))).toMatchObject({ code: 10, last: { code: "VAULT_NOT_FOUND" } });
  await place.json("vault", "init", "--state", "third");
  expect(await place.json(...onMachine("other"))).toMatchObject({ code: 12, last: { code: "KEY_FOREIGN" } });
});

it("writes the vault into a configuration, and leaves what is there", async () => {
  const place = await placeWithKey();
  const config = [...onMachine("state"), "--config", "agent.yaml"];
  expect((await place.json(...config)).last).toMatchObject({ config: place.path("agent.yaml"), vaultName: "main" });
  expect(readFileSync(place.path("agent.yaml"), "utf8")).toBe(
    `vaults:\n  main:\n    address: dir:${place.path("vault")}\n    stateFolder: ${place.path("state")}\n`,
  );
  const mine = "# mine\nvaults:\n  main: {address: 'dir:elsewhere'} # first\npolicies: {gold: {}}\n";
  writeFileSync(place.path("agent.yaml"), mine);
  chmodSync(place.path("agent.yaml"), 0o640);
  const { vaultName } = (await place.json(...config)).last as { readonly vaultName?: unknown };
  expect(vaultName).toMatch(/^vault-[0-9a-f]{8}$/);
  const written = readFileSync(place.path("agent.yaml"), "utf8");
  expect(written).toMatch(/^# mine\n[^]*dir:elsewhere[^]*# first\n[^]*policies/);
  expect(written).toContain(`  ${String(vaultName)}:\n    address: dir:${place.path("vault")}\n`);
  expect(statSync(place.path("agent.yaml")).mode % 0o1000).toBe(0o640);
  expect((await place.json(...config)).last).toMatchObject({ vaultName });
  expect(readFileSync(place.path("agent.yaml"), "utf8")).toBe(written);
  writeFileSync(place.path("agent.yaml"), "vaults: [1]\n");
  expect(await place.json(...config)).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
});

it("an agent's configuration may name only disks that the key allows", async () => {
  const place = await placeWithKey();
  await place.json(...onMachine("state"));
  writeImage(place.path("a.img"), 1);
  const config = (name: string): string => `vaults:
  main: {address: "dir:vault", stateFolder: state}
policies: {gold: {crashConsistentFrequency: 1h}}
disks:
  - {name: ${name}, image: a.img, vault: main, policy: gold, listen: "unix:nbd.sock"}
control: {socket: agent.sock}
`;
  writeFileSync(place.path("agent.yaml"), config("web-1"));
  expect(await place.json("agent", "--check", "--config", "agent.yaml")).toMatchObject({ code: 0 });
  writeFileSync(place.path("agent.yaml"), config("mail"));
  const checked = await place.json("agent", "--check", "--config", "agent.yaml");
  expect(checked.lines).toMatchObject([
    { type: "fault", line: 5, message: "the registration of web01 allows web-*, db, and not the disk mail" },
    { type: "error" },
  ]);
  const protect = ["protect", "a.img", "--disk", "mail", "--listen", "unix:nbd.sock", "--state", "state"];
  expect(await place.json(...protect)).toMatchObject({ code: 12, last: { code: "ACCESS_REFUSED" } });
  expect(existsSync(place.path("vault/disks/mail"))).toBe(false);
});

it("tells of a state folder that cannot be used, and of a store without an account key", async () => {
  const place = await placeWithKey();
  writeFileSync(place.path("file"), "");
  expect(await place.json(...onMachine("file/below"))).toMatchObject({ code: 1, last: { code: "TARGET_FAILED" } });
  mkdirSync(place.path("taken"));
  expect(await place.json(...issue, "taken")).toMatchObject({ last: { code: "TARGET_EXISTS" } });
  const there = ["--vault", "https://account.blob.core.windows.net/vault", "--json"];
  const without = await place.run([...issue, "x.key", ...there]);
  expect(without).toMatchObject({ code: 2 });
  expect(without.stdout).toContain("AZURE_STORAGE_KEY");
});
