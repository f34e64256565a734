/** The built program as a service manager and an operator use it. */
import { existsSync, truncateSync, writeFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { Place, parseLines } from "../tidemark.ts";

const configuration = `vaults:
  main: {address: "dir:vault", stateFolder: state}
policies:
  gold: {crashConsistentFrequency: 1s}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:nbd.sock", hooks: {pre: "true", post: "true"}}
control: {socket: agent.sock}
logging: {format: pretty}
`;

/** A place with an image of 1 MiB and a configuration. */
function placeWith(text: string = configuration): Place {
  const place = new Place();
  writeFileSync(place.path("web.img"), "content of the disk");
  truncateSync(place.path("web.img"), 1024 * 1024);
  writeFileSync(place.path("agent.yaml"), text);
  return place;
}

const socket = ["--socket", "agent.sock"];

describe("tidemark agent", () => {
  it("--check says what is sound, and every fault with its line", async () => {
    const place = placeWith();
    const sound = await place.json("agent", "--config", "agent.yaml", "--check");
    expect(sound).toMatchObject({
      code: 0,
      last: { type: "summary", command: "agent", disks: 1, vaults: 1, policies: 1 },
    });
    writeFileSync(
      place.path("agent.yaml"),
      configuration.replace("vault: main", "vault: man").replace("web.img", "none.img"),
    );
    const faulty = await place.json("agent", "--config", "agent.yaml", "--check");
    expect(faulty).toMatchObject({
      code: 2,
      lines: [
        { type: "fault", file: "agent.yaml", line: 6, column: 24 },
        { type: "fault", line: 6, remedy: "did you mean main?" },
        { type: "error", code: "INVALID_ARGUMENT", message: "agent.yaml has 2 faults", detail: { faults: 2 } },
      ],
    });
    const shown = await place.run(["agent", "--config", "agent.yaml", "--check"]);
    expect(shown.stdout).toContain("agent.yaml:6:41: the vault man is not defined · did you mean main?");
  });

  it("needs a configuration, and a running agent for its commands", async () => {
    const place = placeWith();
    expect(await place.json("agent")).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
    expect(await place.json("agent", "status", ...socket)).toMatchObject({
      code: 1,
      last: { code: "AGENT_UNREACHABLE" },
    });
    expect(await place.json("agent", "limit", "fast", "--vault", "main", ...socket)).toMatchObject({ code: 2 });
  });

  it("protects, answers its commands, drains at SIGTERM and goes on where it stopped", async () => {
    const place = placeWith();
    const agent = place.start(["agent", "--config", "agent.yaml"]);
    await agent.says("web: exported as web");
    const app = await place.json("agent", "point", "--disk", "web", "--app-consistent", ...socket);
    expect(app).toMatchObject({
      code: 0,
      last: { type: "summary", command: "agent point", disk: "web", consistency: "app" },
    });
    const sequence = Number(app.last["sequence"]);
    const status = await place.json("agent", "status", ...socket);
    expect(status.lines[0]).toMatchObject({
      type: "disk",
      disk: "web",
      state: "protecting",
      health: "Normal",
      vault: "main",
    });
    const table = await place.run(["agent", "status", ...socket]);
    expect(table.stdout).toMatch(/^agent running for .*health Normal\n\nDISK +STATE +HEALTH +COMMITTED/);
    expect((await place.json("agent", "status", "--disk", "web", ...socket)).lines).toMatchObject([
      { disk: "web" },
      { disks: 1 },
    ]);
    expect(await place.json("agent", "status", "--group", "web", ...socket)).toMatchObject({
      code: 10,
      last: { code: "DISK_NOT_FOUND" },
    });
    expect(await place.json("agent", "pause", ...socket)).toMatchObject({ last: { disks: ["web"] } });
    expect(await place.json("agent", "resume", "--disk", "web", ...socket)).toMatchObject({ last: { disks: ["web"] } });
    expect(await place.json("agent", "stop", "--disk", "web", ...socket)).toMatchObject({
      last: { disks: ["web"], notDrained: [] },
    });
    expect((await place.json("agent", "status", ...socket)).lines[0]).toMatchObject({
      disk: "web",
      state: "stopped",
      health: "Warning",
    });
    expect(await place.json("agent", "point", "--disk", "web", ...socket)).toMatchObject({
      code: 2,
      last: { code: "INVALID_ARGUMENT" },
    });
    writeFileSync(place.path("agent.yaml"), configuration.replace("nbd.sock", "new.sock"));
    expect(await place.json("agent", "reload", ...socket)).toMatchObject({ last: { changed: ["web"] } });
    expect((await place.json("agent", "status", ...socket)).lines[0]).toMatchObject({ state: "stopped" });
    expect(await place.json("agent", "start", "--disk", "web", ...socket)).toMatchObject({ last: { disks: ["web"] } });
    await agent.says(`exported as web on unix:${place.path("new.sock")}`);
    expect(await place.json("agent", "limit", "5MiB/s", "--vault", "main", ...socket)).toMatchObject({
      last: { bytesPerSecond: 5 * 1024 ** 2 },
    });
    expect(await place.json("agent", "point", "--disk", "wob", ...socket)).toMatchObject({
      code: 10,
      last: { code: "DISK_NOT_FOUND" },
    });
    const second = await place.json("agent", "--config", "agent.yaml").catch((error: unknown) => String(error));
    expect(JSON.stringify(second)).toContain("WRITER_ACTIVE");
    agent.child.kill("SIGTERM");
    expect(await agent.ended).toMatchObject({ code: 0 });

    const again = place.start(["agent", "--config", "agent.yaml"]);
    await again.says("web: exported as web");
    const point = await place.json("agent", "point", "--disk", "web", ...socket);
    expect(Number(point.last["sequence"])).toBeGreaterThan(sequence);
    const stopped = await place.json("agent", "stop", ...socket);
    const left = await again.ended;
    expect(stopped, JSON.stringify(left)).toMatchObject({ code: 0, last: { stopped: true } });
    expect(left, JSON.stringify(left)).toMatchObject({ code: 0 });
    const verified = await place.json("verify", "--disk", "web", "--source", "web.img");
    expect(verified).toMatchObject({ code: 0, last: { damaged: [] } });
  });

  it("reads its configuration again at SIGHUP, and refuses one with faults", async () => {
    const place = placeWith();
    const agent = place.start(["agent", "--config", "agent.yaml"]);
    await agent.says("web: exported as web");
    writeFileSync(place.path("agent.yaml"), configuration.replace("1s", "2s"));
    agent.child.kill("SIGHUP");
    await agent.says("configuration read again: changed web");
    writeFileSync(place.path("agent.yaml"), configuration.replace("1s", "soon"));
    agent.child.kill("SIGHUP");
    await agent.says("the old configuration goes on");
    agent.child.kill("SIGINT");
    expect(await agent.ended).toMatchObject({ code: 0 });
  });
});

describe("a group", () => {
  it("gets one point of all of its disks", async () => {
    const second =
      '  - {name: db, image: db.img, vault: main, policy: gold, group: shop, listen: "unix:nbd.sock"}\ncontrol:';
    const place = placeWith(
      configuration.replace("policy: gold,", "policy: gold, group: shop,").replace("control:", second),
    );
    writeFileSync(place.path("db.img"), Buffer.alloc(65_536, "db"));
    const agent = place.start(["agent", "--config", "agent.yaml"]);
    await agent.says("web: exported as web");
    await agent.says("db: exported as db");
    // The first points of new disks are each disk's own; once they are there, the group comes
    // together.
    await place.json("agent", "point", "--disk", "web", ...socket);
    await place.json("agent", "point", "--disk", "db", ...socket);
    const point = await place.json("agent", "point", "--group", "shop", "--app-consistent", ...socket);
    expect(point).toMatchObject({ code: 0, last: { type: "summary", group: "shop", points: 2 } });
    const groups = point.lines.slice(0, 2).map((line) => line["group"] as { readonly id: string } | null);
    expect(groups[0]).toMatchObject({ name: "shop" });
    expect(groups[1]).toEqual(groups[0]);
    agent.child.kill("SIGTERM");
    expect(await agent.ended).toMatchObject({ code: 0 });
  });
});

describe("tidemark protect", () => {
  it("serves a disk, tells of its points, and drains at the first ^C", async () => {
    const place = placeWith();
    const words = ["protect", "web.img", "--disk", "web", "--listen", "unix:nbd.sock", "--cycle", "1s", "--json"];
    const running = place.start(words, { TIDEMARK_VAULT: "dir:vault" });
    await running.says('"type":"ready"');
    await running.says('"kind":"point"');
    running.child.kill("SIGINT");
    const ended = await running.ended;
    expect(ended).toMatchObject({ code: 0, stderr: "" });
    const last = parseLines(ended.stdout).at(-1);
    expect(last).toMatchObject({ type: "summary", command: "protect", disk: "web", state: "stopped" });
    expect(await place.json("verify", "--disk", "web", "--source", "web.img")).toMatchObject({ code: 0 });
  });

  it.each([
    [["--listen", "10809"], "is neither unix:PATH nor tcp:HOST:PORT"],
    [["--listen", "unix:a.sock", "--cycle", "5"], "It is not a duration such as 5s"],
    [["--listen", "unix:a.sock", "--cycle", "10ms"], "--cycle 10ms is not a time between points"],
    [["--listen", "unix:a.sock", "--pre", "true"], "--pre and --post belong together"],
  ])("refuses %s", async (words, says) => {
    const place = placeWith();
    const refused = await place.json("protect", "web.img", "--disk", "web", ...words);
    expect(refused.code).toBe(2);
    expect(String(refused.last["message"])).toContain(says);
  });

  it("makes no vault when there is no such image", async () => {
    const place = placeWith();
    const refused = await place.json(
      "protect",
      "none.img",
      "--disk",
      "web",
      "--listen",
      "unix:nbd.sock",
      "--vault",
      "dir:new",
    );
    expect([refused.code, refused.last["code"]]).toEqual([1, "SOURCE_NOT_FOUND"]);
    expect(existsSync(place.path("new"))).toBe(false);
  });
});
