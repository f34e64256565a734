/**
 * Inventory of a target: what `az network vnet list` and `az network nic list` print, as JSON.
 *
 * Both forms of a resource are read, with its fields in `properties` and beside them. Of a file that
 * holds anything else, nothing is believed.
 */
import { readFile } from "node:fs/promises";
import { systemCode, TidemarkError } from "../../../engine/index.ts";
import type { Inventory, Network } from "./networks.ts";

/** A subscription with many NICs. */
const fileBytesMax = 64 * 1024 * 1024;

/** Reads all files as one inventory. Errors: INVALID_ARGUMENT. */
export async function readInventory(paths: readonly string[]): Promise<Inventory> {
  const networks: Network[] = [];
  const used: Inventory["used"][number][] = [];
  for (const path of paths) {
    const resources: unknown = parsed(path, await textOf(path));
    const read = Array.isArray(resources) ? resources.map(readResource) : [undefined];
    if (read.includes(undefined)) throw unusable(path, "is no list of virtual networks or NICs");
    for (const each of read) {
      networks.push(...(each?.networks ?? []));
      used.push(...(each?.used ?? []));
    }
  }
  return { networks, used };
}

async function textOf(path: string): Promise<string> {
  try {
    const bytes = await readFile(path);
    if (bytes.length > fileBytesMax) throw unusable(path, "is larger than 64 MiB");
    return bytes.toString("utf8");
  } catch (error) {
    const code = systemCode(error);
    if (code === undefined) throw error;
    throw unusable(path, `cannot be read (${code})`);
  }
}

function parsed(path: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) throw unusable(path, "is no JSON");
    throw error;
  }
}

function unusable(path: string, what: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `the inventory ${path} ${what}`, {
    remedy: "make it with `az network vnet list > FILE` and `az network nic list > FILE`",
    detail: { path },
  });
}

/** Undefined: it is neither a virtual network nor a NIC. */
function readResource(resource: unknown): Inventory | undefined {
  const type = fieldOf(resource, "type");
  const name = fieldOf(resource, "name");
  if (typeof type !== "string" || typeof name !== "string") return undefined;
  switch (type.toLowerCase()) {
    case "microsoft.network/virtualnetworks":
      return { networks: [{ name, subnets: listOf(resource, "subnets").flatMap(readSubnet) }], used: [] };
    case "microsoft.network/networkinterfaces":
      return { networks: [], used: listOf(resource, "ipConfigurations").flatMap(readAddress) };
    default:
      return undefined;
  }
}

function readSubnet(subnet: unknown): Network["subnets"] {
  const name = fieldOf(subnet, "name");
  if (typeof name !== "string") return [];
  const one = fieldOf(subnet, "addressPrefix");
  const prefixes = [one, ...listOf(subnet, "addressPrefixes")].filter((each) => typeof each === "string");
  return [{ name, prefixes }];
}

function readAddress(configuration: unknown): Inventory["used"] {
  const address = fieldOf(configuration, "privateIPAddress") ?? fieldOf(configuration, "privateIpAddress");
  const id = fieldOf(fieldOf(configuration, "subnet"), "id");
  const network = typeof id === "string" ? /\/virtualNetworks\/([^/]+)\//i.exec(id)?.[1] : undefined;
  return typeof address === "string" && network !== undefined ? [{ network, address }] : [];
}

function listOf(resource: unknown, name: string): readonly unknown[] {
  const list = fieldOf(resource, name);
  return Array.isArray(list) ? list : [];
}

/** A field of a resource, beside or in its `properties`. */
function fieldOf(resource: unknown, name: string): unknown {
  if (typeof resource !== "object" || resource === null) return undefined;
  const own: unknown = Reflect.get(resource, name);
  if (own !== undefined && own !== null) return own;
  const properties: unknown = Reflect.get(resource, "properties");
  return typeof properties === "object" && properties !== null ? Reflect.get(properties, name) : undefined;
}
