/** Rules of the hand-over: sizes, networks, subnets, addresses, boot records. Each is a pure function. */
import { writeFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { bootRecordBytes, bootRecordOf, chooseOsDisk, generationOf } from "../../../cli/plan/export/boot.ts";
import { readInventory } from "../../../cli/plan/export/inventory.ts";
import { azureMachines, localMachines } from "../../../cli/plan/export/machines.ts";
import {
  chooseAddress,
  chooseNetwork,
  chooseSubnet,
  type Network,
  nicsOf,
  placeNic,
} from "../../../cli/plan/export/networks.ts";
import { chooseSize, sizes } from "../../../cli/plan/export/sizes.ts";
import { Place } from "../tidemark.ts";
import { blobs, hardware, images, shopHardware } from "./machines.ts";

describe("the size", () => {
  const plain = { dataDisks: 0, generation: 1 } as const;
  it.each([
    [{ vcpus: 2, memoryGiB: 8 }, plain, "Standard_D2s_v5", true],
    [{ vcpus: 4, memoryGiB: 16 }, plain, "Standard_D4s_v5", true],
    [{ vcpus: 2, memoryGiB: 16 }, plain, "Standard_E2s_v5", true],
    [{ vcpus: 2, memoryGiB: 4 }, plain, "Standard_F2s_v2", true],
    [{ vcpus: 1, memoryGiB: 0.5 }, plain, "Standard_F2s_v2", false],
    [{ vcpus: 3, memoryGiB: 12 }, plain, "Standard_D4s_v5", false],
    [{ vcpus: 6, memoryGiB: 40 }, plain, "Standard_E8s_v5", false],
    [{ vcpus: 2, memoryGiB: 100 }, plain, "Standard_E16s_v5", false],
    [{ vcpus: 16, memoryGiB: 700 }, plain, "Standard_M32ms", false],
    [{ vcpus: 2, memoryGiB: 8 }, { ...plain, dataDisks: 5 }, "Standard_F4s_v2", false],
    [{ vcpus: 2, memoryGiB: 8 }, { ...plain, dataDisks: 63 }, "Standard_E104is_v5", false],
    ["standard_d2s_v5", plain, "Standard_D2s_v5", true],
    ["Standard_B2s_v2", { ...plain, generation: 2 }, "Standard_B2s_v2", true],
    ["Standard_L8s_v9", plain, "Standard_L8s_v9", true],
  ] as const)("for %o with %o is %s", (written, needs, name, isExact) => {
    expect(chooseSize(written, needs)).toMatchObject({ name, isExact });
  });

  it.each([
    ["Standard_D2s_v5", { dataDisks: 5, generation: 1 }, /takes 4 data disks/, /size: Standard_F4s_v2/],
    ["Standard_B2s_v2", { dataDisks: 0, generation: 1 }, /generation 1/, /size: Standard_D2s_v5/],
    ["D2s_v5", plain, /no size/, /did you mean Standard_D2s_v5/],
    ["huge machine", plain, /no size/, /such as/],
    [{ vcpus: 500, memoryGiB: 8 }, plain, /500 vCPUs/, /less/],
    [{ vcpus: 2, memoryGiB: 8 }, { dataDisks: 65, generation: 1 }, /65 data disks/, /less/],
  ] as const)("for %o with %o is refused", (written, needs, what, remedy) => {
    expect(chooseSize(written, needs)).toEqual({
      what: expect.stringMatching(what) as string,
      remedy: expect.stringMatching(remedy) as string,
    });
  });

  it("of every row of the table is found by name and by what it has", () => {
    expect(new Set(sizes.map(({ name }) => name)).size).toBe(sizes.length);
    for (const { name, vcpus, memoryGiB, nicsMax, dataDisksMax, generations } of sizes) {
      const [generation = 2] = generations;
      expect(chooseSize(name, { dataDisks: dataDisksMax, generation })).toEqual({ name, isExact: true, nicsMax });
      const chosen = chooseSize({ vcpus, memoryGiB }, { dataDisks: 0, generation: 2 });
      const size = sizes.find((each) => "name" in chosen && each.name === chosen.name);
      expect(size && size.vcpus >= vcpus && size.memoryGiB >= memoryGiB, name).toBe(true);
    }
  });
});

const subnet = (name: string, ...prefixes: string[]): Network["subnets"][number] => ({ name, prefixes });
const vnets: readonly Network[] = [
  { name: "prod", subnets: [] },
  { name: "DR-vnet", subnets: [subnet("front", "10.0.1.0/24"), subnet("dr-data", "10.0.0.0/28"), subnet("Back")] },
];

describe("the network", () => {
  const mapping = { vnet: "dr-vnet", subnets: {} };
  it.each([
    ["of the mapping, whatever there is", "corp", mapping, undefined, "dr-vnet"],
    ["of the same name, where nothing is known", "corp", undefined, undefined, "corp"],
    ["of the mapping, as Azure spells it", "corp", mapping, vnets, "DR-vnet"],
    ["of the same name before the first", "prod", undefined, vnets, "prod"],
    ["else the first by name", "corp", undefined, vnets, "DR-vnet"],
  ])("is the one %s", (_case, network, mapped, existing, name) => {
    expect(chooseNetwork(network, mapped, existing)).toMatchObject({ name });
  });

  it("that the mapping names and the target lacks is refused, and so is any where there is none", () => {
    expect(chooseNetwork("corp", { vnet: "gone", subnets: {} }, vnets)).toMatchObject({
      what: "there is no virtual network gone at the target",
    });
    expect(chooseNetwork("corp", undefined, [])).toHaveProperty("remedy");
  });
});

describe("the subnet", () => {
  const { subnets } = vnets[1] ?? { subnets: [] };
  it.each([
    ["of the mapping", "data", { data: "dr-data" }, subnets, "dr-data"],
    ["of the mapping, where nothing is known", "data", { data: "dr-data" }, [], "dr-data"],
    ["of the same name", "FRONT", {}, subnets, "front"],
    ["of the same name, where nothing is known", "front", {}, [], "front"],
    ["else the first by name", "other", {}, subnets, "Back"],
    ["the first by name, if none is written", undefined, {}, subnets, "Back"],
    ["the first of the mapping, if nothing else is known", undefined, { b: "two", a: "one" }, [], "one"],
  ])("is the one %s", (_case, wanted, mapped, existing, name) => {
    expect(chooseSubnet(wanted, mapped, existing)).toMatchObject({ name });
  });

  it("is refused where the mapping names none that exists, and where nothing is known", () => {
    expect(chooseSubnet("data", { data: "gone" }, subnets)).toHaveProperty("remedy");
    expect(chooseSubnet(undefined, {}, [])).toMatchObject({ remedy: expect.stringContaining("--inventory") as string });
  });
});

it("keeps as many NICs as the source has, at most those of the size", () => {
  expect([1, 2, 3].map((max) => nicsOf(["a", "b"], max).length)).toEqual([1, 2, 2]);
  expect(nicsOf(["a", "b"], null)).toEqual(["a", "b"]);
});

describe("the address", () => {
  const data = subnet("data", "fd00::/64", "10.0.0.0/28");
  it.each([
    ["any, where none is written", undefined, null],
    ["the one that is written, if it is free", "10.0.0.4", "10.0.0.4"],
    ["refused where it is in use", "10.0.0.5", /in use/],
    ["refused outside of the subnet", "10.0.0.16", /not in fd00::\/64, 10.0.0.0\/28/],
    ["refused where Azure keeps it: first", "10.0.0.3", /keeps/],
    ["refused where Azure keeps it: last", "10.0.0.15", /keeps/],
    ["refused as IPv6", "fd00::4", /IPv4/],
  ] as const)("is %s", (_case, ip, expected) => {
    const address = chooseAddress(ip, data, new Set(["10.0.0.5"]));
    if (expected instanceof RegExp) expect(address).toMatchObject({ what: expect.stringMatching(expected) as string });
    else expect(address).toBe(expected);
  });

  it("that the plan gives twice is in use", () => {
    const rules = { networks: {}, testNetwork: undefined, inventory: undefined };
    const nic = { network: "corp", subnet: "data", ip: "10.0.0.4" };
    const first = placeNic(nic, rules, []);
    if ("what" in first) throw new Error(first.what);
    expect(placeNic(nic, rules, [first])).toHaveProperty("what", "the address 10.0.0.4 is in use");
    expect(placeNic({ ...nic, network: "other" }, rules, [first])).toMatchObject({ address: "10.0.0.4" });
  });
});

it("puts the machines of a test into the network of tests, by the subnet that they have at the target", () => {
  const rules = { networks: shopHardware.networks, testNetwork: "drill", inventory: undefined };
  expect(placeNic({ network: "corp", subnet: "data", ip: "10.0.0.4" }, rules, [])).toMatchObject({
    network: "drill",
    subnet: "dr-data",
    address: "10.0.0.4",
  });
  const inventory = { networks: [...vnets, { name: "drill", subnets: [subnet("only", "10.9.0.0/24")] }], used: [] };
  expect(placeNic({ network: "corp", subnet: "data" }, { ...rules, inventory }, [])).toMatchObject({
    subnet: "only",
    isFirst: true,
  });
});

it("reads what Azure's command line lists, in both of its forms, and refuses other files", async () => {
  const place = new Place();
  const id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/dr-vnet/subnets/data";
  const networks = [
    {
      type: "Microsoft.Network/virtualNetworks",
      name: "dr-vnet",
      subnets: [{ name: "a", addressPrefix: "10.0.0.0/24" }],
    },
    {
      type: "microsoft.network/virtualNetworks",
      name: "other",
      properties: { subnets: [{ name: "b", properties: { addressPrefixes: ["10.1.0.0/24", "fd00::/64"] } }] },
    },
  ];
  const nics = [
    {
      type: "Microsoft.Network/networkInterfaces",
      name: "one",
      ipConfigurations: [{ privateIPAddress: "10.0.0.9", subnet: { id } }, { privateIpAddress: null }],
    },
    {
      type: "Microsoft.Network/networkInterfaces",
      name: "two",
      properties: { ipConfigurations: [{ properties: { privateIPAddress: "10.0.0.10", subnet: { id } } }] },
    },
  ];
  writeFileSync(place.path("vnets.json"), JSON.stringify(networks));
  writeFileSync(place.path("nics.json"), JSON.stringify(nics));
  expect(await readInventory([place.path("vnets.json"), place.path("nics.json")])).toEqual({
    networks: [
      { name: "dr-vnet", subnets: [{ name: "a", prefixes: ["10.0.0.0/24"] }] },
      { name: "other", subnets: [{ name: "b", prefixes: ["10.1.0.0/24", "fd00::/64"] }] },
    ],
    used: [
      { network: "dr-vnet", address: "10.0.0.9" },
      { network: "dr-vnet", address: "10.0.0.10" },
    ],
  });
  for (const text of ["no json", "{}", '[{"name": "x"}]', '[{"type": "Microsoft.Compute/disks", "name": "x"}]']) {
    writeFileSync(place.path("bad.json"), text);
    await expect(readInventory([place.path("bad.json")]), text).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  }
  await expect(readInventory([place.path("absent.json")])).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
});

/** The beginning of a disk with a master boot record: partitions of these types, the first one active or not. */
function mbrDisk(types: readonly number[], isActive: boolean, code = ""): Buffer {
  const head = Buffer.alloc(bootRecordBytes);
  head.write(code, "latin1");
  for (const [index, type] of types.entries()) head[446 + index * 16 + 4] = type;
  if (isActive) head[446] = 0x80;
  head.writeUInt16LE(0xaa55, 510);
  return head;
}

/** The same with a GUID partition table. */
function gptDisk(...types: readonly Buffer[]): Buffer {
  const head = mbrDisk([0xee], false);
  head.write("EFI PART", 512, "latin1");
  head.writeBigUInt64LE(2n, 512 + 72);
  head.writeUInt32LE(128, 512 + 80);
  head.writeUInt32LE(128, 512 + 84);
  for (const [index, type] of types.entries()) type.copy(head, 1024 + index * 128);
  return head;
}

describe("the boot record", () => {
  // The first three fields of a GUID lie on the disk with their bytes turned.
  const esp = Buffer.from("28732ac11ff8d211ba4b00a0c93ec93b", "hex");
  const biosBoot = Buffer.from("Hah!IdontNeedEFI", "latin1");
  const linux = Buffer.from("af3dc60f838472478e793d69d8477de4", "hex");
  const fileSystem = mbrDisk([], false);
  fileSystem.fill(0x41, 446, 510);
  it.each([
    ["nothing", Buffer.alloc(bootRecordBytes), "none"],
    ["a disk that is smaller than a sector", Buffer.alloc(100), "none"],
    ["a boot sector of a file system", fileSystem, "none"],
    ["an empty table", mbrDisk([], false, "code"), "none"],
    ["partitions of data", mbrDisk([0x83], false), "none"],
    ["an active partition", mbrDisk([0x07], true), "bios"],
    ["boot code", mbrDisk([0x83], false, "GRUB"), "bios"],
    ["an EFI system partition in a master boot record", mbrDisk([0x83, 0xef], false), "uefi"],
    ["a GUID partition table of data", gptDisk(linux), "none"],
    ["a BIOS boot partition", gptDisk(linux, biosBoot), "bios"],
    ["an EFI system partition", gptDisk(biosBoot, linux, esp), "uefi"],
    ["a GUID partition table that was cut off", gptDisk(esp).subarray(0, 600), "none"],
    ["a protective record alone", mbrDisk([0xee], false), "none"],
  ])("of %s is %s", (_case, head, expected) => {
    expect(bootRecordOf(head)).toBe(expected);
  });

  it("decides the disk of the operating system and the generation, unless the plan does", () => {
    const [data, bios, uefi] = (["none", "bios", "uefi"] as const).map((boot) => ({ disk: boot, boot }));
    if (data === undefined || bios === undefined || uefi === undefined) throw new Error("unreachable");
    expect(chooseOsDisk([data, uefi], undefined)).toBe(uefi);
    expect(chooseOsDisk([data, uefi, bios], undefined)).toBe(data);
    expect(chooseOsDisk([data, uefi], "none")).toBe(data);
    expect(chooseOsDisk([data, uefi], "other")).toMatchObject({ what: "the machine has no disk other" });
    expect([data, bios, uefi].map((disk) => generationOf(disk, undefined))).toEqual([1, 1, 2]);
    expect(generationOf(uefi, 1)).toBe(1);
  });
});

describe("the machines of a run", () => {
  it("get what the rules say, with notes about what the plan does not", () => {
    const { machines, faults, notes } = azureMachines(blobs, {
      hardware: shopHardware,
      isTest: false,
      inventory: undefined,
    });
    expect(faults).toEqual([]);
    expect(notes).toMatchInlineSnapshot(`
      [
        "machine db gets the nearest size: Standard_D4s_v5",
        "machine db loses 1 NIC: Standard_D4s_v5 has 2",
      ]
    `);
    expect(
      machines.map(({ osDisk, generation, size, nics }) => [osDisk.disk, generation, size.name, nics.length]),
    ).toEqual([
      ["pg-os", 2, "Standard_D4s_v5", 2],
      ["web", 1, "Standard_D2s_v5", 1],
    ]);
  });

  it("name every fault with its place in the plan", () => {
    const bare = hardware({ machines: [{ name: "web", disks: ["web"] }] });
    const azure = azureMachines(blobs, { hardware: bare, isTest: true, inventory: undefined });
    const faults = azure.faults.map(({ path, what, remedy }) => `${path.join(".")}: ${what} · ${remedy}`);
    expect(faults).toMatchInlineSnapshot(`
      [
        ": the run is a test, and the plan names no network for one · add \`testNetwork:\` with a network at the target",
        "machines: the plan lacks machine db of the run · add it",
        "machines.0.os: machine web has no \`os\` · add \`os: linux\`",
        "machines.0.size: machine web has no \`size\` · add \`size: {vcpus: 2, memoryGiB: 8}\`",
        "machines.0.nics: machine web has no \`nics\` · add \`nics: [{network: NAME}]\`",
      ]
    `);
    const local = localMachines(images, { hardware: bare, isTest: true, inventory: undefined });
    expect(local.faults.map(({ path }) => path.join("."))).toEqual(["machines", "machines.0.size"]);
  });
});
