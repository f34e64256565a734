/**
 * Templates of the hand-over: golden files, the resource types that Azure's libraries publish, a JSON
 * schema, and the same resources in both languages. Nothing here calls Azure.
 */
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import type { ComputeManagementClientOptionalParams, Disk, VirtualMachine } from "@azure/arm-compute";
import type { NetworkInterface } from "@azure/arm-network";
import { Ajv } from "ajv";
import { describe, expect, it } from "vitest";
import { armTemplate } from "../../../cli/plan/export/arm.ts";
import { azureNames, azureTemplate, Expression, type Template } from "../../../cli/plan/export/azure-template.ts";
import { bicepTemplate } from "../../../cli/plan/export/bicep.ts";
import { libvirtDomain, qemuScript } from "../../../cli/plan/export/guests.ts";
import { azureMachines, localMachines } from "../../../cli/plan/export/machines.ts";
import { isRefusal } from "../../../cli/plan/export/refusal.ts";
import { deepTest } from "../../deep-test.ts";
import { golden } from "../../golden.ts";
import { Place } from "../tidemark.ts";
import { parseBicep } from "./bicep-text.ts";
import { blobs, images, shopHardware } from "./machines.ts";

const place = { containerUrl: "https://shop.blob.core.windows.net/vault", account: "shop" };

function shopTemplate(isTest = false): Template {
  const { machines, notes } = azureMachines(blobs, { hardware: shopHardware, isTest, inventory: undefined });
  const names = azureNames(machines, isTest);
  if (isRefusal(names)) throw new Error(names.what);
  const template = azureTemplate(machines, names, { place, run: "0badcafe", notes });
  if (isRefusal(template)) throw new Error(template.what);
  return template;
}

type ArmResource = {
  readonly type: string;
  readonly apiVersion: string;
  readonly name: string;
  readonly dependsOn?: readonly string[];
  readonly location: string;
} & Readonly<Record<string, unknown>>;

function armResources(template: Template): readonly ArmResource[] {
  return (JSON.parse(armTemplate(template)) as { resources: ArmResource[] }).resources;
}

describe("a template", () => {
  it.each([
    ["plan-export.json", armTemplate(shopTemplate())],
    ["plan-export.bicep", bicepTemplate(shopTemplate())],
    ["plan-export-test.json", armTemplate(shopTemplate(true))],
  ])("is %s, byte for byte", (name, text) => {
    expect(text).toBe(Buffer.from(golden(name, Buffer.from(text))).toString());
  });

  it("keeps the JSON schema of templates", () => {
    const schema = JSON.parse(
      readFileSync(new URL("deployment-template.schema.json", import.meta.url), "utf8"),
    ) as object;
    const validate = new Ajv({ allErrors: true, strictTypes: false }).compile(schema);
    const check = (template: unknown): unknown => (validate(template) ? [] : validate.errors);
    const template = JSON.parse(armTemplate(shopTemplate())) as { resources: ArmResource[]; parameters: object };
    expect(check(template)).toEqual([]);
    expect(check(JSON.parse(armTemplate(shopTemplate(true))))).toEqual([]);
    // What the schema is for: it finds a resource without its name, and a parameter of no type.
    expect(check({ ...template, resources: [{ ...template.resources[0], name: undefined }] })).not.toEqual([]);
    expect(check({ ...template, parameters: { x: {} } })).not.toEqual([]);
  });

  it("refers only to parameters and resources that it has", () => {
    const text = armTemplate(shopTemplate());
    const { parameters } = JSON.parse(text) as { parameters: object };
    const used = new Set([...text.matchAll(/parameters\('(\w+)'\)/g)].map(([, name]) => name ?? ""));
    expect([...used].sort()).toEqual(Object.keys(parameters).sort());
    const resources = armResources(shopTemplate());
    const ids = resources.map(({ type, name }) => `[resourceId('${type}', '${name}')]`);
    for (const [index, { dependsOn = [] }] of resources.entries())
      for (const id of dependsOn) expect(ids.slice(0, index)).toContain(id);
    const names = resources.map(({ type, name }) => `${type}/${name}`.toLowerCase());
    expect(new Set(names).size).toBe(names.length);
  });

  it("starts the machines of a group after those of the group before", () => {
    const web = armResources(shopTemplate()).find(({ name }) => name === "web");
    expect(web?.dependsOn).toContain("[resourceId('Microsoft.Compute/virtualMachines', 'db')]");
  });

  it("says the same in both languages", () => {
    for (const isTest of [false, true]) {
      const template = shopTemplate(isTest);
      const bicep = parseBicep(bicepTemplate(template));
      const arm = JSON.parse(armTemplate(template)) as {
        parameters: Record<string, { defaultValue?: unknown }>;
        resources: ArmResource[];
      };
      const symbols = new Map(
        template.resources.map((each) => [`resourceId('${each.type}', '${each.name}')`, each.symbol]),
      );
      const inBicep = (value: unknown): unknown => spelledInBicep(value, symbols);
      expect(bicep.parameters).toEqual(
        Object.entries(arm.parameters).map(([name, { defaultValue }]) => [name, inBicep(defaultValue)]),
      );
      expect(
        bicep.resources.map(({ type, apiVersion, fields }) => ({ type, apiVersion, ...undirected(fields) })),
      ).toEqual(arm.resources.map((resource) => inBicep(undirected(resource))));
      // Bicep finds out what is used by its id. The rest is named.
      for (const [index, { fields }] of bicep.resources.entries()) {
        const used = [...JSON.stringify(fields).matchAll(/"expression":"(\w+)(?:\.id)?"/g)].map(
          ([, symbol]) => symbol ?? "",
        );
        const needed = (arm.resources[index]?.dependsOn ?? []).map((id) => symbols.get(id.slice(1, -1)));
        expect(used.filter((symbol) => [...symbols.values()].includes(symbol)).sort()).toEqual(needed.sort());
      }
    }
  });

  it("is refused where machines would have one name, and beyond what a deployment takes", () => {
    const named = (...names: string[]): unknown =>
      azureNames(
        names.map((machine) => ({ machine })),
        false,
      );
    expect(named("web.1", "db")).toEqual(new Map(Object.entries({ "web.1": "web-1", db: "db" })));
    for (const names of [
      ["web.1", "web-1"],
      ["Web", "web"],
    ])
      expect(named(...names)).toHaveProperty("remedy");
    const { machines } = azureMachines(blobs, { hardware: shopHardware, isTest: false, inventory: undefined });
    const many = (count: number): unknown =>
      azureTemplate(Array.from({ length: count }, () => machines.slice(1)).flat(), new Map([["web", "web"]]), {
        place,
        run: "0badcafe",
        notes: [],
      });
    expect(many(266)).toHaveProperty("resources");
    expect(many(267)).toHaveProperty("what", "a deployment has at most 800 resources, and these machines have 801");
  });

  it("quotes what users name", () => {
    const strange = "[it's ${x} \\ \n]";
    const resource = { symbol: "x", type: "T/t", apiVersion: "1", name: strange, uses: [], after: [] };
    const body = { text: strange, id: Expression.call("resourceId", "T/t", "it's") };
    const template = { notes: [], parameters: [], resources: [{ ...resource, body }] };
    expect(armResources(template)[0]).toMatchObject({ name: `[${strange}`, id: "[resourceId('T/t', 'it''s')]" });
    expect(parseBicep(bicepTemplate(template)).resources[0]?.fields).toEqual({
      name: strange,
      text: strange,
      id: { expression: "resourceId('T/t', 'it\\'s')" },
    });
  });
});

/** A resource without what has to be there before it. */
function undirected(fields: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  return Object.fromEntries(Object.entries(fields).filter(([name]) => name !== "dependsOn"));
}

/** A value of a template in JSON, as Bicep spells it. */
function spelledInBicep(value: unknown, symbols: ReadonlyMap<string, string>): unknown {
  if (Array.isArray(value)) return value.map((item) => spelledInBicep(item, symbols));
  if (typeof value === "object" && value !== null)
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, spelledInBicep(item, symbols)]));
  const [, arm] = /^\[(?!\[)(.*)\]$/.exec(String(value)) ?? [];
  if (arm === undefined) return value;
  const symbol = symbols.get(arm);
  const plain = arm.replace(/parameters\('(\w+)'\)/g, "$1").replace(/^concat\((\w+), '(.*)'\)$/, "'${$1}$2'");
  return { expression: symbol === undefined ? plain : `${symbol}.id` };
}

deepTest(
  "a resource is one that Azure's own libraries send: they know every field of it, and leave none out",
  async () => {
    for (const resource of armResources(shopTemplate())) {
      const { type, apiVersion, name } = resource;
      const body = Object.fromEntries(
        Object.entries(undirected(resource)).filter(([field]) => !["type", "apiVersion", "name"].includes(field)),
      );
      const sent = await sentBy(type, name, flattened(body) as Disk & VirtualMachine & NetworkInterface);
      expect(sent.body, name).toEqual(body);
      expect(sent.path).toContain(`/providers/${type}/${name}`);
      // A version that is newer than the library would have fields that it does not know.
      expect(apiVersion <= sent.apiVersion, `${type} ${apiVersion} ${sent.apiVersion}`).toBe(true);
    }
  },
);

deepTest("a resource with a field that they do not know is found", async () => {
  const sent = await sentBy("Microsoft.Compute/disks", "x", { location: "here", nosuch: 1 } as unknown as Disk);
  expect(sent.body).toEqual({ location: "here" });
});

/** The libraries have the fields of `properties` beside the others. */
function flattened(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(flattened);
  if (typeof value !== "object" || value === null) return value;
  const { properties = {}, ...fields } = value as Readonly<Record<string, unknown>>;
  return Object.fromEntries(
    Object.entries({ ...fields, ...(properties as object) }).map(([name, item]) => [name, flattened(item)]),
  );
}

/** The libraries add `properties` to what is only a reference. */
function withoutEmptyProperties(name: string, value: unknown): unknown {
  return name === "properties" && Object.keys(value as object).length === 0 ? undefined : value;
}

interface Sent {
  readonly path: string;
  readonly apiVersion: string;
  readonly body: unknown;
}

/** What the library of Azure sends to create a resource. No request leaves this process. */
async function sentBy(type: string, name: string, resource: Disk & VirtualMachine & NetworkInterface): Promise<Sent> {
  let sent: Sent | undefined;
  const httpClient: NonNullable<ComputeManagementClientOptionalParams["httpClient"]> = {
    sendRequest: (request) => {
      const url = new URL(request.url);
      if (typeof request.body !== "string") throw new TypeError("the library sends another kind of body");
      const body = JSON.parse(request.body, withoutEmptyProperties) as unknown;
      sent = { path: url.pathname, apiVersion: url.searchParams.get("api-version") ?? "", body };
      return Promise.reject(new Error("kept"));
    },
  };
  // The libraries take seconds to load.
  const { ComputeManagementClient } = await import("@azure/arm-compute");
  const { NetworkManagementClient } = await import("@azure/arm-network");
  const credential = {
    getToken: async () => await Promise.resolve({ token: "none", expiresOnTimestamp: Date.now() + 3_600_000 }),
  };
  const options = { httpClient, retryOptions: { maxRetries: 0 } };
  const compute = new ComputeManagementClient(credential, "subscription", options);
  const network = new NetworkManagementClient(credential, "subscription", options);
  const send = async (): Promise<unknown> => {
    switch (type) {
      case "Microsoft.Compute/disks":
        return await compute.disks.createOrUpdate("group", name, resource);
      case "Microsoft.Compute/virtualMachines":
        return await compute.virtualMachines.createOrUpdate("group", name, resource);
      default:
        return await network.networkInterfaces.beginCreateOrUpdate("group", name, resource);
    }
  };
  await expect(send()).rejects.toThrow("kept");
  if (sent === undefined) throw new Error("nothing was sent");
  return sent;
}

describe("guests of this host", () => {
  const options = { plan: "shop", run: "0badcafe", isTest: false, notes: ["a -- note"] };
  const { machines } = localMachines(images, { hardware: shopHardware, isTest: false, inventory: undefined });
  it.each([
    ["plan-export.sh", qemuScript(machines, options)],
    ["plan-export.xml", machines.map((machine, index) => libvirtDomain(machine, options, index === 0)).join("")],
  ])("are %s, byte for byte", (name, text) => {
    expect(text).toBe(Buffer.from(golden(name, Buffer.from(text))).toString());
  });

  it("get the words of qemu as they are, from any shell", async () => {
    const place = new Place();
    writeFileSync(place.path("shop.sh"), qemuScript(machines, options));
    writeFileSync(place.path("qemu-system-x86_64"), '#!/bin/sh\nprintf "%s\\n" "$@"\n', { mode: 0o755 });
    const run = (
      ...words: string[]
    ): { readonly status: number | null; readonly stdout: string; readonly stderr: string } =>
      spawnSync("/bin/sh", [place.path("shop.sh"), ...words], {
        encoding: "utf8",
        env: { PATH: `${place.folder}:${process.env["PATH"] ?? ""}` },
      });
    const words = run("db", "-nographic", "two words").stdout.split("\n");
    expect(words).toContain("if=none,id=disk0,file=/srv/dr,, it's/pg-os.vhd,format=raw");
    expect(words.slice(-3)).toEqual(["-nographic", "two words", ""]);
    expect(run("nosuch")).toMatchObject({ status: 2, stderr: expect.stringContaining("db|web") as string });
    expect(run()).toMatchObject({ status: 2 });
  });
});
