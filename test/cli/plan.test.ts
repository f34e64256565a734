/** `tidemark plan`, and `tidemark failover` with a plan, as users meet them. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { expect, it } from "vitest";
import { planJsonSchema } from "../../cli/plan/plan-schema.ts";
import { deepTest } from "../deep-test.ts";
import { sameFiles, writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

const shop = `plan: shop
machines:
  - {name: db, disks: [data, log], size: {vcpus: 4, memoryGiB: 16}, os: linux, nics: [{network: corp, subnet: data, ip: 10.0.0.4}]}
  - {name: web, disks: [web], source: "image:web.img", size: Standard_D2s_v5, nics: [{network: corp}]}
groups:
  - machines: [db]
    before: [{run: 'echo "fence <$TIDEMARK_MACHINES>"', timeout: 60s}]
    after: [{run: test "$TIDEMARK_DISKS" = 2, retries: 3, pause: 1s}]
  - machines: [web]
    after: [{manual: "DNS points here?"}]
cleanup: [{run: echo removed}]
networks: {corp: {vnet: dr-vnet, subnets: {data: dr-data}}}
target: dir:dr
objectives: {rpo: 1h, rto: 15m}
`;

async function replicated(): Promise<Place> {
  const place = new Place();
  mkdirSync(place.path("dr"));
  for (const [index, name] of ["data", "log", "web"].entries()) {
    writeImage(place.path(`${name}.img`), index + 1);
    await place.json("replicate", `${name}.img`, "--disk", name);
  }
  writeFileSync(place.path("shop.yaml"), shop);
  return place;
}

it("runs a drill from the check to the report, and waits for a person meanwhile", async () => {
  const place = await replicated();
  const plan = ["--plan", "shop.yaml"];
  expect((await place.json("plan", "check", ...plan)).last).toMatchObject({ machines: 2, disks: 3, withVault: true });
  const dry = await place.json("failover", "test", ...plan, "--dry-run");
  expect(dry.last).toMatchObject({ plan: "shop", spreadMs: expect.any(Number) as number, machines: [{}, {}] });
  expect(readdirSync(place.path("dr"))).toEqual([]);
  const waiting = await place.json("failover", "test", ...plan, "--ttl", "14d", "--note", "drill");
  expect(waiting).toMatchObject({ code: 0, last: { waiting: { step: 5, text: "DNS points here?" } } });
  expect(waiting.lines.map(({ type }) => type)).toContain("preview");
  const run = String(waiting.last["run"]);
  expect(sameFiles(place.path("dr/log.img"), place.path("log.img"))).toBe(true);
  const shown = await place.run(["failover", "show", run, "--vault", "dir:vault"]);
  expect(shown.stdout).toMatch(/waits +DNS points here\?/);
  expect(shown.stdout).toMatch(new RegExp(`tidemark jobs resume ${run} --step 5`));
  expect(shown.stdout).toMatch(/step 1: fence <db>/);
  expect(await place.json("jobs", "resume", run)).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
  const machine = String((waiting.last["machines"] as { run: string }[])[0]?.run);
  expect(await place.json("jobs", "resume", machine, "--step", "1")).toMatchObject({ code: 2 });
  expect((await place.json("jobs", "resume", run, "--step", "5")).last).toMatchObject({
    state: "TestFailoverCompleted",
    met: true,
  });
  expect((await place.json("failover", "cleanup", run, "--note", "fine")).last).toMatchObject({
    state: "None",
    successful: true,
  });
  expect(readdirSync(place.path("dr"))).toEqual([]);
  const listed = await place.json("failover", "list");
  expect(listed.last).toMatchObject({ runs: 2, open: 0, plans: 1 });
  expect((await place.run(["failover", "list", "--vault", "dir:vault"])).stdout).toMatch(
    /plan shop: db, web[^]*1 run, 0 of them open/,
  );
  const jobs = await place.json("jobs", "list");
  expect(jobs.lines.filter((line) => line["run"] === run).map(({ operation }) => operation)).toEqual([
    "TestFailoverCleanup",
    "TestFailover",
  ]);
  expect((await place.run(["plan", "list", "--vault", "dir:vault", ...plan])).stdout).toMatch(/shop.*None.*yes/);
  expect((await place.json("plan", "show", ...plan, "--history")).last).toMatchObject({ plan: "shop", runs: 1 });
  expect((await place.run(["plan", "show", ...plan])).stdout).toMatch(
    /group 1[^]*db: data, log[^]*group 2[^]*after: DNS/,
  );
  expect((await place.run(["plan", "graph", ...plan])).stdout).toMatch(/^flowchart TD\n {2}n1\[\["echo #quot;fence/);
  const report = await place.json("plan", "report", run, "--out", "drill.html");
  expect(report.last).toMatchObject({ planFile: shop, page: place.path("drill.html") });
  const page = readFileSync(place.path("drill.html"), "utf8");
  expect(page).toContain("fence &#60;db&#62;");
  expect(page).not.toMatch(/<script|<db>/);
  expect(page).toMatch(/objective 1 h: <span class="yes">yes|objective .*<span class="yes">yes/);
  expect(page).toContain("Confirmed");
  expect(await place.json("plan", "report", run, "--out", "drill.html")).toMatchObject({
    last: { code: "TARGET_EXISTS" },
  });
}, 60_000);

deepTest(
  "moves machines away and back by one run, with the verbs of a single one",
  async () => {
    const place = await replicated();
    writeFileSync(
      place.path("move.yaml"),
      shop
        .replace("disks: [data, log],", "disks: [data], source: image:data.img,")
        .replace(/ {4}(before|after):.*\n/g, ""),
    );
    expect(await place.json("failover", "planned", "--plan", "move.yaml", "--check", "true")).toMatchObject({
      code: 2,
    });
    const done = await place.json("failover", "planned", "--plan", "move.yaml");
    expect(done).toMatchObject({ code: 0, last: { state: "PlannedFailoverCompleted" } });
    const run = String(done.last["run"]);
    expect((await place.json("failover", "commit", run)).last).toMatchObject({ state: "CommitFailoverCompleted" });
    expect((await place.json("reprotect", run)).last).toMatchObject({ state: "Protected" });
    expect(await place.json("failback", run, "--to", "data.img", "web.img", "--shutdown", "true")).toMatchObject({
      code: 2,
    });
    const back = await place.json("failback", run, "--to", "data.img", "web.img");
    expect(back).toMatchObject({ code: 0, last: { kind: "failback", state: "PlannedFailoverCompleted" } });
    expect(await place.json("failover", "cancel", String(back.last["run"]))).toMatchObject({
      last: { state: "Protected" },
    });
  },
  60_000,
);

deepTest(
  "runs the machines of a drill at once, and serves them until the command ends, and again",
  async () => {
    const place = await replicated();
    writeFileSync(place.path("now.yaml"), shop.replace("target: dir:dr", "target: instant:unix:dr"));
    const words = ["--vault", "dir:vault"];
    const drill = place.start(["failover", "test", "--plan", "now.yaml", ...words]);
    await drill.says("disk log is served at nbd+unix:///log?socket=");
    const [{ run = "" } = {}] = (await place.json("plan", "list")).lines as readonly { readonly run?: string }[];
    expect(await place.json("failover", "cleanup", run)).toMatchObject({ last: { code: "WRITER_ACTIVE" } });
    drill.child.kill("SIGINT");
    expect((await drill.ended).stdout).toMatch(/machines +db \(run [^]*waits +DNS points here\?/);
    const again = place.start(["jobs", "resume", run, "--step", "5", ...words]);
    for (const disk of ["data", "log", "web"]) await again.says(`disk ${disk} is served at`);
    again.child.kill("SIGINT");
    expect(await again.ended).toMatchObject({ code: 0 });
    expect((await place.json("failover", "cleanup", run)).last).toMatchObject({ state: "None", successful: true });
    expect(readdirSync(place.path("dr"))).toEqual([]);
  },
  60_000,
);

it("names every fault of a plan with its line and a remedy, before anything has changed", async () => {
  const place = await replicated();
  const faulty = `plan: my shop
machines:
  - {name: db, disks: [data, data], source: web.img}
  - {name: db, disks: []}
  - {name: web, disks: [web, log], source: "image:web.img", sise: big, nics: [{network: a, ip: 10.0.0}]}
  - {name: idle, disks: [data]}
groups:
  - machines: [dv, db, db]
    before: [{run: ./x, timeout: soon, onFailure: ignore}, {manual: 3}]
  - machines: []
target: file:x
testTarget: replica
objectives: {rpo: fast}
`;
  writeFileSync(place.path("faulty.yaml"), faulty);
  const first = await place.json("plan", "check", "--plan", "faulty.yaml");
  const faultsIn = (lines: readonly (typeof first.last)[]): string[] =>
    lines
      .filter(({ type }) => type === "fault")
      .map(({ line, message, remedy }) => `${String(line)}: ${String(message)} · ${String(remedy)}`);
  expect(faultsIn(first.lines)).toMatchInlineSnapshot(`
    [
      "1: plan is no name · use letters, digits, \`.\`, \`_\` and \`-\`, at most 63",
      "5: sise is no field here · did you mean size?",
      "5: ip is no address · write it as 10.0.0.4 or fd00::4",
      "9: timeout is no duration that it may have · write a number and a unit, as in 60s, up to 24h",
      "9: onFailure is not one of stop, continue · correct it",
      "9: manual is not text · put it in quotes",
      "13: rpo is no duration that it may have · write a number and a unit, as in 60s, up to 720h",
    ]
  `);
  expect(first).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
  const sound = faulty
    .replace("my shop", "shop")
    .replace(", sise: big, nics: [{network: a, ip: 10.0.0}]", "")
    .replace(/ {4}before:.*\n/, "")
    .replace("rpo: fast", "rpo: 1m");
  writeFileSync(place.path("faulty.yaml"), sound);
  expect(faultsIn((await place.json("plan", "check", "--plan", "faulty.yaml")).lines)).toMatchInlineSnapshot(`
    [
      "3: disk data is named already, at machine db · remove it here or there",
      "3: web.img is no source · write agent:SOCKET or image:PATH",
      "4: there is another machine db · give it another name",
      "4: machine db has 0 disks · name 1 to 64",
      "5: machine web is in no group · add it to \`machines\` of a group",
      "5: one image is the source of one disk · let an agent protect the disks, and write agent:SOCKET",
      "6: machine idle is in no group · add it to \`machines\` of a group",
      "6: disk data is named already, at machine db · remove it here or there",
      "8: there is no machine dv · did you mean db?",
      "8: machine db is in a group already · remove it here or there",
      "9: the group has no machine · add one",
      "10: file:x is not a target for a plan · write dir:FOLDER, blob:PREFIX or instant:unix:FOLDER; of failovers, or replica",
      "11: replica is not a target for a plan · write dir:FOLDER, blob:PREFIX or instant:unix:FOLDER; of failovers, or replica",
    ]
  `);
  const unknown = shop.replace("[data, log]", "[data, new]").replace("dir:dr", "dir:none");
  writeFileSync(place.path("unknown.yaml"), unknown);
  const asked = await place.json("failover", "test", "--plan", "unknown.yaml");
  expect(faultsIn(asked.lines).map((line) => line.replaceAll(place.folder, ""))).toMatchInlineSnapshot(`
    [
      "3: the vault holds no disk "new" · \`tidemark disks list\` shows the disks that it holds",
      "13: cannot look at the folder of the target dir:/none: ENOENT: no such file or directory, realpath '/none' · make the folder first",
    ]
  `);
  expect((await place.json("failover", "list")).last).toMatchObject({ runs: 0, plans: 0 });
  for (const words of [
    ["failover", "test", "--plan", "shop.yaml", "--disk", "web"],
    ["failover", "test", "--disk", "web", "--to", "file:x", "--dry-run"],
    ["failover", "test", "--disk", "web"],
    ["failover", "test", "--plan", "shop.yaml", "--to", "dir:vault"],
    ["plan", "check", "--plan", "absent.yaml"],
  ])
    expect(await place.json(...words), words.join(" ")).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
}, 60_000);

it("prints a JSON schema that knows every field", async () => {
  const place = new Place();
  const printed = (await place.run(["plan", "schema"])).stdout;
  expect(JSON.parse(printed)).toEqual(planJsonSchema());
  const names = new Set<string>();
  const collect = (value: unknown): void => {
    if (typeof value !== "object" || value === null) return;
    for (const [key, item] of Object.entries(value)) {
      if (key === "properties") for (const name of Object.keys(item as object)) names.add(name);
      collect(item);
    }
  };
  collect(planJsonSchema());
  // The checker lists the fields of a section when it meets an unknown one.
  const used = [...shop.matchAll(/\b([a-zA-Z]+): /g)].map(([, name]) => name ?? "");
  const userNames = ["corp", "data"];
  expect(used.filter((name) => !names.has(name) && !userNames.includes(name))).toEqual([]);
});
