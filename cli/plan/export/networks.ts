/**
 * Rules of networks at the target, as Azure Site Recovery has them: which network, subnet and address
 * a machine gets, and how many NICs.
 *
 *     network   of the mapping, else of the same name, else the first by name; of a test, the plan's own
 *     subnet    of the mapping, else of the same name, else the first by name
 *     NICs      as many as the source has, at most those of the size
 *     address   none written: a free one; written: that one, and it must be free
 *
 * What there is at the target stands in an inventory. Without one, names are believed as they are
 * written, and no address is known to be in use but those that the plan gives twice.
 */
import { BlockList, isIPv4 } from "node:net";
import type { WrittenNic } from "../plan-schema.ts";
import { isRefusal, type Refusal, refusal } from "./refusal.ts";

/** A subnet at the target. */
export interface Subnet {
  readonly name: string;
  /** Such as `10.0.0.0/24`; empty: not known. */
  readonly prefixes: readonly string[];
}

/** A virtual network at the target. */
export interface Network {
  readonly name: string;
  readonly subnets: readonly Subnet[];
}

/** What a network of the source is at the target. */
export interface Mapping {
  readonly vnet: string;
  readonly subnets: Readonly<Record<string, string>>;
}

/** What is at the target. */
export interface Inventory {
  readonly networks: readonly Network[];
  /** Addresses that are in use. */
  readonly used: readonly { readonly network: string; readonly address: string }[];
}

/** What NICs are placed by. */
export interface NetworkRules {
  readonly networks: Readonly<Record<string, Mapping>>;
  /** The network of a test; undefined: the run is none. */
  readonly testNetwork: string | undefined;
  /** Undefined: not known. */
  readonly inventory: Inventory | undefined;
}

/** Where a NIC is at the target. */
export interface PlacedNic {
  readonly network: string;
  readonly subnet: string;
  /** Null: any free one. */
  readonly address: string | null;
  /** The network or subnet is only the first by name. */
  readonly isFirst: boolean;
}

/** Applies all rules to a NIC. `others` are NICs that are placed already. */
export function placeNic(
  nic: WrittenNic,
  { networks, testNetwork, inventory }: NetworkRules,
  others: readonly PlacedNic[],
): PlacedNic | Refusal {
  const mapping = Object.hasOwn(networks, nic.network) ? networks[nic.network] : undefined;
  const recovery = placeIn(nic.network, nic.subnet, mapping, inventory);
  if (isRefusal(recovery)) return recovery;
  // The network of a test is entered by the name of the subnet that the machine has after a failover.
  const place =
    testNetwork === undefined
      ? recovery
      : placeIn(testNetwork, recovery.subnet.name, { vnet: testNetwork, subnets: {} }, inventory);
  if (isRefusal(place)) return place;
  const { network, subnet, isFirst } = place;
  const used = [...(inventory?.used ?? []), ...others].flatMap((other) =>
    isSame(other.network, network.name) && other.address !== null ? [other.address] : [],
  );
  const address = chooseAddress(nic.ip, subnet, new Set(used));
  return isRefusal(address) ? address : { network: network.name, subnet: subnet.name, address, isFirst };
}

function placeIn(
  name: string,
  subnetName: string | undefined,
  mapping: Mapping | undefined,
  inventory: Inventory | undefined,
): { readonly network: Network; readonly subnet: Subnet; readonly isFirst: boolean } | Refusal {
  const network = chooseNetwork(name, mapping, inventory?.networks);
  if (isRefusal(network)) return network;
  const subnet = chooseSubnet(subnetName, mapping?.subnets ?? {}, network.subnets);
  if (isRefusal(subnet)) return subnet;
  const wanted = subnetName === undefined ? undefined : (mapping?.subnets[subnetName] ?? subnetName);
  const isFirst = !isSame(network.name, mapping?.vnet ?? name) || wanted === undefined || !isSame(subnet.name, wanted);
  return { network, subnet, isFirst };
}

const addIt = "add it at the target, or write another name into the plan";

/** The network for NICs of `network`. `existing` undefined: not known. */
export function chooseNetwork(
  network: string,
  mapping: Mapping | undefined,
  existing: readonly Network[] | undefined,
): Network | Refusal {
  const wanted = mapping?.vnet ?? network;
  if (existing === undefined) return { name: wanted, subnets: [] };
  const found = named(existing, wanted) ?? (mapping === undefined ? firstByName(existing) : undefined);
  return found ?? refusal(`there is no virtual network ${wanted} at the target`, addIt);
}

/** The subnet for NICs of `subnet`; undefined: the NIC names none. `existing` empty: not known. */
export function chooseSubnet(
  subnet: string | undefined,
  mapped: Readonly<Record<string, string>>,
  existing: readonly Subnet[],
): Subnet | Refusal {
  const mappedTo = subnet === undefined ? undefined : mapped[subnet];
  const known = existing.length > 0 ? existing : Object.values(mapped).map((name) => ({ name, prefixes: [] }));
  const same = subnet === undefined ? undefined : named(known, subnet);
  if (mappedTo !== undefined)
    return named(known, mappedTo) ?? refusal(`there is no subnet ${mappedTo} at the target`, addIt);
  if (same !== undefined) return same;
  // Without an inventory the name that the plan has is as good as any.
  if (existing.length === 0 && subnet !== undefined) return { name: subnet, prefixes: [] };
  return (
    firstByName(known) ??
    refusal("the NIC names no subnet, and the subnets of the target are not known", "add `subnet:`, or `--inventory`")
  );
}

/** The NICs that a machine keeps on a size of at most `nicsMax`; null: not known. */
export function nicsOf<Nic>(source: readonly Nic[], nicsMax: number | null): readonly Nic[] {
  return nicsMax === null ? source : source.slice(0, nicsMax);
}

/** `ip` as a static address in `subnet`; null: the target gives any free one. `used`: in this network. */
export function chooseAddress(
  ip: string | undefined,
  { name, prefixes }: Subnet,
  used: ReadonlySet<string>,
): string | null | Refusal {
  if (ip === undefined) return null;
  const another = "write another address, or leave `ip` out for any that is free";
  if (!isIPv4(ip)) return refusal(`${ip} is no IPv4 address, and Azure gives each NIC one first`, another);
  if (used.has(ip)) return refusal(`the address ${ip} is in use`, another);
  if (prefixes.length === 0) return ip;
  const prefix = prefixes.find((each) => isWithin(ip, each));
  if (prefix === undefined) return refusal(`${ip} is not in ${prefixes.join(", ")} of subnet ${name}`, another);
  return isReserved(ip, prefix) ? refusal(`Azure keeps the address ${ip} of subnet ${name} for itself`, another) : ip;
}

function named<Item extends { readonly name: string }>(items: readonly Item[], name: string): Item | undefined {
  return items.find((item) => isSame(item.name, name));
}

/** Names of Azure are the same in capital and small letters. */
function isSame(name: string, other: string): boolean {
  return name.toLowerCase() === other.toLowerCase();
}

function firstByName<Item extends { readonly name: string }>(items: readonly Item[]): Item | undefined {
  const key = ({ name }: Item): string => name.toLowerCase();
  return [...items].sort((a, b) => (key(a) < key(b) ? -1 : 1))[0];
}

function isWithin(ip: string, prefix: string): boolean {
  const [network = "", bits = ""] = prefix.split("/");
  if (!isIPv4(network) || !/^\d{1,2}$/.test(bits) || Number(bits) > 32) return false;
  const list = new BlockList();
  list.addSubnet(network, Number(bits), "ipv4");
  return list.check(ip, "ipv4");
}

/** The first four addresses of a subnet and the last one. */
function isReserved(ip: string, prefix: string): boolean {
  const addresses = 2 ** (32 - Number(prefix.split("/")[1]));
  const place = numberOf(ip) % addresses;
  return place < 4 || place === addresses - 1;
}

function numberOf(ip: string): number {
  return ip.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
}
