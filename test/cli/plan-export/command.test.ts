/** `tidemark plan export` as users meet it. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { expect, it } from "vitest";
import { deepTest } from "../../deep-test.ts";
import { writeImage } from "../images.ts";
import { type Line, Place } from "../tidemark.ts";

const shop = `plan: shop
machines:
  - {name: db, disks: [data], os: linux, size: {vcpus: 4, memoryGiB: 16}, nics: [{network: corp, subnet: data, ip: 10.0.0.4}]}
  - {name: web, disks: [web], os: linux, size: Standard_D2s_v5, nics: [{network: corp, subnet: front}]}
groups:
  - machines: [db]
    after: [{manual: "is it up?"}]
  - machines: [web]
networks: {corp: {vnet: dr-vnet, subnets: {data: dr-data}}}
testNetwork: drill
target: dir:dr
`;

async function replicated(vault = "dir:vault"): Promise<Place> {
  const place = new Place();
  mkdirSync(place.path("dr"));
  for (const [index, name] of ["data", "web"].entries()) {
    writeImage(place.path(`${name}.img`), index + 1);
    await place.run(["replicate", `${name}.img`, "--disk", name], { TIDEMARK_VAULT: vault });
  }
  writeFileSync(place.path("shop.yaml"), shop);
  return place;
}

const faultsIn = (lines: readonly Line[]): readonly string[] =>
  lines.filter(({ type }) => type === "fault").map(({ line, message }) => `${String(line)}: ${String(message)}`);

it("hands a run over to the hypervisors of this host, and names what keeps it from Azure", async () => {
  const place = await replicated();
  const plan = ["plan", "export", "--plan", "shop.yaml"];
  expect(await place.json(...plan, "--format", "qemu")).toMatchObject({ code: 2, last: { code: "INVALID_ARGUMENT" } });
  const waiting = await place.json("failover", "test", "--plan", "shop.yaml");
  const run = String(waiting.last["run"]);

  // The first machine is there while the run waits for a person.
  const first = await place.json(...plan, "--format", "qemu");
  expect(first.last).toMatchObject({ run, format: "qemu", machines: [{ machine: "db" }] });
  expect(first.last["notes"]).toContain("not at the target yet: web");
  await place.json("jobs", "resume", run, "--step", "2");
  const script = await place.json(...plan, run, "--format", "qemu", "--out", "shop.sh");
  expect(script.last).toMatchObject({ machines: [{ machine: "db" }, { machine: "web" }], text: null });
  expect(readFileSync(place.path("shop.sh"), "utf8")).toContain(`file=${place.path("dr/web.img")},format=raw`);
  expect(await place.json(...plan, "--format", "qemu", "--out", "shop.sh")).toMatchObject({
    last: { code: "TARGET_EXISTS" },
  });

  expect((await place.json(...plan, "--format", "libvirt")).last).toMatchObject({ remedy: "add `--machine db`" });
  const domain = await place.run([...plan, "--format", "libvirt", "--machine", "web", "--vault", "dir:vault"]);
  expect(domain.stdout).toContain("<name>web-test</name>");
  expect(domain.stdout).toContain('<source network="drill"/>');

  expect((await place.json(...plan, "--format", "bicep")).last).toMatchObject({
    code: "INVALID_ARGUMENT",
    remedy: expect.stringContaining("blob:PREFIX") as string,
  });
  for (const words of [["--machine", "nosuch"], ["--inventory", "absent.json"], ["00000000"]])
    expect((await place.json(...plan, ...words, "--format", "qemu")).last, words.join(" ")).toMatchObject({
      code: "INVALID_ARGUMENT",
    });
  writeFileSync(
    place.path("shop.yaml"),
    shop
      .replace("size: {vcpus: 4, memoryGiB: 16}, ", "")
      .replace("name: web", "name: app")
      .replace("machines: [web]", "machines: [app]"),
  );
  const faulty = await place.json(...plan, "--format", "qemu");
  expect(faultsIn(faulty.lines)).toEqual(["3: the plan lacks machine web of the run", "3: machine db has no `size`"]);
  await place.json("failover", "cleanup", run);
  expect((await place.json(...plan, "--format", "qemu")).last).toMatchObject({ code: "INVALID_ARGUMENT" });
}, 60_000);

deepTest(
  "hands a run over to Azure whose targets are page blobs or replicas",
  async () => {
    const place = await replicated("azurite:vault");
    const variables = { TIDEMARK_VAULT: "azurite:vault" };
    const started = await place.run(
      ["failover", "unplanned", "--plan", "shop.yaml", "--to", "blob:dr", "--json"],
      variables,
    );
    expect(started.stdout).toContain('"waiting"');
    const words = ["plan", "export", "--plan", "shop.yaml", "--format", "arm"];
    const printed = await place.run(words, variables);
    expect(printed).toMatchObject({ code: 0, stderr: "" });
    const template = JSON.parse(printed.stdout) as { parameters: Record<string, object>; resources: object[] };
    expect(template.resources).toHaveLength(3);
    // Azure cannot read an Azurite: the operator says where the blobs are.
    expect(template.parameters["containerUri"]).not.toHaveProperty("defaultValue");
    expect(printed.stdout).toContain("concat(parameters('containerUri'), '/dr/data.vhd')");
    const networks = [
      {
        type: "Microsoft.Network/virtualNetworks",
        name: "dr-vnet",
        subnets: [{ name: "dr-data", addressPrefix: "10.0.0.0/24" }],
      },
    ];
    const nics = [
      {
        type: "Microsoft.Network/networkInterfaces",
        name: "other",
        ipConfigurations: [
          { privateIPAddress: "10.0.0.4", subnet: { id: "/x/virtualNetworks/dr-vnet/subnets/dr-data" } },
        ],
      },
    ];
    writeFileSync(place.path("vnets.json"), JSON.stringify(networks));
    writeFileSync(place.path("nics.json"), JSON.stringify(nics));
    const free = await place.run([...words, "--inventory", "vnets.json"], variables);
    expect(free.code).toBe(0);
    const taken = await place.run([...words, "--inventory", "vnets.json", "nics.json"], variables);
    expect(taken).toMatchObject({ code: 2, stdout: expect.stringContaining("shop.yaml:3") as string });
    expect(taken.stdout).toContain("the address 10.0.0.4 is in use");
    const local = await place.run([...words.slice(0, -1), "qemu"], variables);
    expect(local).toMatchObject({ code: 2, stderr: expect.stringContaining("dir:FOLDER") as string });
  },
  120_000,
);
