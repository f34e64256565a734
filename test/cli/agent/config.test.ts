import { chmodSync, writeFileSync } from "node:fs";
import process from "node:process";
import { describe, expect, it } from "vitest";
import { loadConfig } from "../../../cli/agent/config-file.ts";
import { ConfigFolder } from "./configuration.ts";

const sound = `vaults:
  main: {address: "dir:vault"}
policies:
  gold: {}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:web.sock"}
`;

describe("a configuration", () => {
  it("has the defaults of the original, and paths that start at the file", async () => {
    const folder = new ConfigFolder("web.img");
    const config = await folder.config(sound);
    expect(config.policies.get("gold")).toEqual({
      name: "gold",
      crashConsistentFrequency: 5_000,
      appConsistentFrequency: undefined,
      recoveryPointRetention: { kind: "days", days: 1 },
      recoveryPointThreshold: 900_000,
      multiVmConsistency: false,
      startTime: { kind: "immediately" },
      freezeTimeout: 60_000,
      barrierTimeout: 300,
    });
    expect(config.vaults.get("main")?.address).toBe(`dir:${folder.path("vault")}`);
    expect(config.disks.get("web")).toMatchObject({
      image: folder.path("web.img"),
      listen: { address: { kind: "unix", path: folder.path("web.sock") } },
      group: undefined,
      readOnly: false,
    });
    expect(config.control.socket).toBe(folder.path("tidemark/agent.sock"));
    expect(config.logging).toMatchObject({ level: "info", format: "auto" });
  });

  it("lets hooks run in its own folder", async () => {
    const folder = new ConfigFolder("web.img");
    const config = await folder.config(
      sound.replace("vault: main,", "vault: main, hooks: {pre: ./freeze, post: ./thaw},"),
    );
    expect(config.disks.get("web")?.hooks).toEqual({ pre: "./freeze", post: "./thaw", cwd: folder.path("") });
  });

  it("may be JSON", async () => {
    const folder = new ConfigFolder("web.img");
    const disk = { name: "web", image: "web.img", vault: "main", policy: "gold", listen: "tcp:[::1]:10809" };
    const text = JSON.stringify(
      { vaults: { main: { address: "dir:v", limit: "off" } }, policies: { gold: {} }, disks: [disk] },
      null,
      2,
    );
    expect((await folder.config(text)).disks.get("web")?.listen.address).toEqual({
      kind: "tcp",
      host: "::1",
      port: 10_809,
    });
  });

  it("that writes no threshold has one that fits the time between points", async () => {
    const folder = new ConfigFolder("web.img");
    const config = await folder.config(sound.replace("gold: {}", "gold: {crashConsistentFrequency: 1h}"));
    expect(config.policies.get("gold")).toMatchObject({ recoveryPointThreshold: 3 * 3_600_000 });
  });

  it("with names of any length is judged at once", async () => {
    const folder = new ConfigFolder("web.img");
    const long = sound
      .replace("vault: main", `vault: ${"x".repeat(60_000)}`)
      .replace("gold: {}", `${"y".repeat(60_000)}: {}`);
    const startedAt = performance.now();
    await expect(folder.config(long)).rejects.toThrow();
    expect(performance.now() - startedAt).toBeLessThan(1_000);
  });

  it.runIf(process.platform !== "win32")("that other users may write is refused", async () => {
    const folder = new ConfigFolder("web.img");
    await folder.config(sound);
    chmodSync(folder.path("agent.yaml"), 0o646);
    await expect(loadConfig(folder.path("agent.yaml"), {})).rejects.toMatchObject({ code: "ACCESS_REFUSED" });
  });

  it("reads durations, rates, days and start times", async () => {
    const folder = new ConfigFolder("web.img");
    const config = await folder.config(
      sound
        .replace(
          "gold: {}",
          'gold: {crashConsistentFrequency: 1.5m, recoveryPointThreshold: off, startTime: "18:30", multiVmConsistency: on}',
        )
        .replace(
          '"dir:vault"}',
          '"dir:vault", timeZone: Europe/Berlin, limit: 50 MiB/s, bandwidth: [{from: "08:00", to: "24:00", days: "fri-mon", limit: 1MiB/s}]}',
        ),
    );
    expect(config.policies.get("gold")).toMatchObject({
      crashConsistentFrequency: 90_000,
      recoveryPointThreshold: undefined,
      startTime: { kind: "daily", minutes: 18 * 60 + 30 },
    });
    expect(config.vaults.get("main")).toMatchObject({
      limit: 50 * 1024 ** 2,
      bandwidth: [{ from: 480, to: 1440, days: [0, 1, 5, 6], limit: 1024 ** 2 }],
    });
    expect(config.disks.get("web")?.group).toBe("gold");
  });
});

describe("faults", () => {
  it("are reported all at once, each with its line, its column and a remedy", async () => {
    const folder = new ConfigFolder("b.img");
    const faults = await folder.faults(`vaults:
  main: {adress: "dir:v"}
  hot:
    address: https://acc.blob.core.windows.net/vault?sv=1&sig=abc
    bandwidth:
      - {from: "25:00", to: "18:00", days: mon-fry, limit: 20}
policies:
  gold: {crashConsistentFrequency: 5, recoveryPointThreshold: 2s}
  silver:
    crashConsistentFrequency: 1m
    appConsistentFrequency: 1d
    recoveryPointThreshold: 10s
disks:
  - {name: web, image: none.img, vault: man, policy: gold, listen: "tcp:nowhere"}
  - name: db
    image: b.img
    vault: hot
    policy: silver
    listen: unix:db.sock
    tls: {key: k, cert: c}
  - 5
loging: {level: loud}
metrics: {listen: "unix:x"}
dashboard: {listen: "tcp:0.0.0.0:9181", tokn: t}
notify: [{webhook: "ftp://h", on: all}]
`);
    expect(faults).toEqual([
      "agent.yaml:2:9: address is missing · add it",
      "agent.yaml:2:10: adress is no field here · did you mean address?",
      "agent.yaml:4:14: the address holds a SAS, and others can read this file · write ${ENV:NAME} and set that variable, or chmod 600 the file",
      "agent.yaml:6:16: from is no time of day · write it as 08:00",
      "agent.yaml:6:44: days is no list of days · write daily, mon-fri, or [sat, sun]",
      "agent.yaml:6:60: limit is no rate · write a size a second, as in 20MiB/s, at least 1KiB/s, or off",
      "agent.yaml:8:36: crashConsistentFrequency is no duration that it may have · write a number and a unit, as in 5s, from 1s to 1d",
      "agent.yaml:11:29: appConsistentFrequency is not shorter than recoveryPointRetention (24 h 00 min) · make it shorter, or keep points longer",
      "agent.yaml:12:29: recoveryPointThreshold is shorter than crashConsistentFrequency (1 min 00 s), so it is always exceeded · make it longer",
      "agent.yaml:14:24: none.img does not exist · correct the path",
      "agent.yaml:14:41: the vault man is not defined · did you mean main?",
      "agent.yaml:14:68: listen is neither unix:PATH nor tcp:HOST:PORT · write unix:PATH or tcp:HOST:PORT",
      "agent.yaml:15:5: the policy silver wants application-consistent points, and the disk has no hooks that bring its application to rest" +
        " · add hooks with pre and post, or use a policy with appConsistentFrequency: off",
      "agent.yaml:20:10: ca is missing · add it",
      "agent.yaml:21:5: it is not a section with fields · correct it",
      "agent.yaml:22:1: loging is no section · did you mean logging?",
      "agent.yaml:23:19: metrics are served on a TCP address · write tcp:127.0.0.1:9180; the control socket serves them too",
      "agent.yaml:24:21: tcp:0.0.0.0:9181 can be reached from other machines, and anybody there could see the disks" +
        " · add `token: FILE` or `tls` with `ca`, or listen on tcp:127.0.0.1:9181",
      "agent.yaml:24:41: tokn is no field here · did you mean token?",
      "agent.yaml:25:35: on is not one of warning, critical · correct it",
    ]);
  });

  it("serves the dashboard to other machines only with a token or certificates", async () => {
    const folder = new ConfigFolder("web.img");
    const faults = async (fields: string): Promise<readonly string[]> =>
      await folder.faults(`${sound}dashboard: {listen: "${fields}}\n`);
    const refused = "can be reached from other machines, and anybody there could see the disks";
    for (const host of ["0.0.0.0", "[::]", "192.0.2.1", "example.org"])
      expect(await faults(`tcp:${host}:9181"`)).toEqual([expect.stringContaining(refused)]);
    for (const host of ["127.0.0.1", "127.8.8.8", "[::1]", "localhost"])
      expect(await faults(`tcp:${host}:9181"`)).toEqual([]);
    expect(await faults('tcp:0.0.0.0:9181", token: t')).toEqual([]);
    for (const name of ["k", "c", "a"]) writeFileSync(folder.path(name), "");
    expect(await faults('tcp:0.0.0.0:9181", tls: {key: k, cert: c, ca: a}')).toEqual([]);
    expect(await faults('tcp:0.0.0.0:9181", tls: {key: k, cert: c}')).toEqual([expect.stringContaining(refused)]);
    expect(await faults('tcp:127.0.0.1:9181", tls: {key: k, cert: none}')).toEqual([
      expect.stringContaining("none cannot be read (ENOENT) · name a PEM file that this user may read"),
    ]);
    writeFileSync(folder.path("t"), "", { mode: 0o644 });
    expect(await faults('tcp:127.0.0.1:9181", token: t')).toEqual([
      "agent.yaml:7:50: other users can read the token in t · take their right away with `chmod 600 t`",
    ]);
  });

  it("sends notifications to one place an entry, whose key is no secret of the file's readers", async () => {
    const folder = new ConfigFolder("web.img");
    const faults = async (entry: string, mode?: number): Promise<readonly string[]> =>
      await folder.faults(`${sound}notify: [{${entry}}]\n`, { HOOK: "https://h/0123456789abcdef" }, mode);
    expect(await faults("webhook: x, command: y")).toEqual([
      "agent.yaml:7:10: a notification goes to exactly one of webhook and command · write one entry for each",
    ]);
    expect(await faults("on: warning")).toHaveLength(1);
    expect(await faults("webhook: mailto:a")).toEqual([expect.stringContaining("the webhook's url is none")]);
    const secret = "webhook: https://hooks.example/services/T0/B0/0123456789abcdefABCD";
    expect(await faults(secret)).toEqual([
      expect.stringContaining("the webhook's url holds a key, and others can read"),
    ]);
    expect(await faults(secret, 0o600)).toEqual([]);
    expect(await faults('webhook: "${ENV:HOOK}"')).toEqual([]);
    expect(await faults("webhook: http://alerts.lan/tidemark")).toEqual([]);
    const config = await folder.config(`${sound}notify: [{command: ./tell.sh}, {webhook: "http://h/", on: warning}]\n`);
    expect(config.notify).toEqual([
      { kind: "command", command: "./tell.sh", cwd: folder.folder, on: "critical" },
      { kind: "webhook", url: "http://h/", on: "warning" },
    ]);
  });

  it.each([
    ["a file that is no YAML", "vaults: [", "agent.yaml:1:10: "],
    [
      "a file that holds nothing",
      "",
      "agent.yaml:1:1: the file holds no sections · begin with `vaults:`, `policies:` and `disks:`",
    ],
    ["a key twice", `${sound}policies: {}\n`, "agent.yaml:7:1: Map keys must be unique · correct the YAML"],
    ["sections that are absent", "vaults: {}\n", "agent.yaml:1:1: the section policies is missing · add it"],
    [
      "a disk twice",
      `${sound}  - {name: web, image: b.img, vault: main, policy: gold, listen: "unix:b.sock"}\n`,
      "agent.yaml:7:12: there is another disk web · give each disk a name of its own",
    ],
    [
      "an image twice, under another name",
      `${sound}  - {name: b, image: ./x/../web.img, vault: main, policy: gold, listen: "unix:b.sock"}\n`,
      "agent.yaml:7:22: the disk web has the same image · protect each image as one disk",
    ],
    [
      "one address with two kinds of tls",
      `${sound}  - {name: b, image: b.img, vault: main, policy: gold, listen: "unix:web.sock", tls: {key: b.img, cert: b.img, ca: b.img}}\n`,
      "with other tls files · use the same tls for both, or another address",
    ],
    ["an image inside the vault", sound.replace("dir:vault", "dir:."), "lies inside the vault's own folder"],
    [
      "one vault under two names",
      sound.replace("policies:", '  two: {address: "dir:vault/"}\npolicies:'),
      "the vault main has the same address",
    ],
    ["a vault's address that is none", sound.replace("dir:vault", "ftp:x"), "is not a vault's address"],
    [
      "app-consistent points more often than crash-consistent ones",
      sound.replace(
        "gold: {}",
        "gold: {crashConsistentFrequency: 2h, recoveryPointThreshold: off, appConsistentFrequency: 1h}",
      ),
      "appConsistentFrequency is shorter than",
    ],
    [
      "a group over two policies",
      sound.replace("gold: {}", "gold: {}\n  tin: {}").replace("policy: gold", "policy: gold, group: g") +
        '  - {name: b, image: b.img, vault: main, policy: tin, group: g, listen: "unix:b.sock"}\n',
      "the group g has disks with different policies (web, b) · give all disks of a group one policy",
    ],
    [
      "an alias bomb",
      `a: &a [1,1,1,1,1,1,1,1,1]\n${["ab", "bc", "cd", "de"].map(([from = "", to = ""]) => `${to}: &${to} [${`*${from},`.repeat(9)}]`).join("\n")}\n`,
      "write it out instead of repeating aliases",
    ],
  ])("name %s", async (_what, text, expected) => {
    const faults = await new ConfigFolder("web.img", "b.img").faults(text);
    expect(faults.join("\n")).toContain(expected);
  });

  it("let exports share an address, and disks of one policy a group", async () => {
    const folder = new ConfigFolder("web.img", "b.img");
    const second = '  - {name: b, image: b.img, vault: main, policy: gold, group: g, listen: "unix:web.sock"}\n';
    const config = await folder.config(sound.replace("policy: gold", "policy: gold, group: g") + second);
    expect([...config.disks.values()].map(({ group }) => group)).toEqual(["g", "g"]);
  });
});

describe("secrets", () => {
  const withSas = sound.replace("dir:vault", "https://acc.blob.core.windows.net/vault?sv=1&sig=abc");

  it("may stand in a file that only its owner can read", async () => {
    expect(await new ConfigFolder("web.img").faults(withSas, {}, 0o600)).toEqual([]);
  });

  it("come from the environment, whose variables have to be set", async () => {
    const folder = new ConfigFolder("web.img");
    const text = sound.replace("dir:vault", "https://acc.blob.core.windows.net/vault?${ENV:SAS}");
    const config = await folder.config(text, { SAS: "sv=1&sig=abc" });
    expect(config.vaults.get("main")?.address).toBe("https://acc.blob.core.windows.net/vault?sv=1&sig=abc");
    expect((await folder.faults(text)).join("\n")).toContain("agent.yaml:2:19: the variable SAS is not set");
  });

  it("are not repeated by a fault", async () => {
    const folder = new ConfigFolder("web.img");
    const text = sound.replace("dir:vault", "https://acc.blob.core.windows.net/a/b/c?sv=1&sig=topsecret");
    expect((await folder.faults(text)).join("\n")).not.toContain("topsecret");
  });
});
