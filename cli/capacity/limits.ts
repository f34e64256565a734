/**
 * Limits on the way of a load, and how near it comes to each.
 *
 * Published limits of Azure Storage hold for what a writer has in flight: as many page blobs as it
 * has lanes. The figures of Tidemark's own parts are measured: of a core by the profiler on the
 * disk's own content, or else as docs/benchmarks.md has them.
 */
import type { Load } from "./load.ts";
import type { Shipping } from "./shipping.ts";

export interface PlanLimit {
  /** What binds: `line`, `page-blob-bytes`, `page-blob-requests`, `account-bytes`, `account-requests`, `core`, `nbd-writes`. */
  readonly limit:
    | "line"
    | "page-blob-bytes"
    | "page-blob-requests"
    | "account-bytes"
    | "account-requests"
    | "core"
    | "nbd-writes";
  readonly unit: "bytes/s" | "requests/s" | "writes/s";
  readonly capacity: number;
  /** The load's highest need. */
  readonly peak: number;
  /** How many times the load could grow before the limit binds; null when the load needs nothing of it. */
  readonly headroom: number | null;
}

/** Lanes of a writer, each with a page blob of its own: the default of `--lanes`. */
const lanes = 5;
const pageBlobBytesPerSecond: number = 60 * 1024 * 1024;
const pageBlobRequestsPerSecond = 500;
/** General-purpose v2 account: 25 Gbit/s in. */
const accountBytesPerSecond = 3_125_000_000;
const accountRequestsPerSecond = 20_000;
const frameBytes: number = 4 * 1024 * 1024;
/** 3 ns a byte: fingerprint, digest, compression. */
const coreBytesPerSecondDefault = 330_000_000;
/** Random writes of 4 KiB through the NBD server, docs/benchmarks.md. */
const nbdWritesPerSecond = 76_000;

/** Bytes a second that a writer stores at most in a first replication, if the line is not what limits it. */
export function uploadBytesPerSecond(load: Load): number {
  const data = load.disks.reduce((sum, disk) => sum + disk.first.dataBytes, 0);
  const stored = load.disks.reduce((sum, disk) => sum + disk.first.storedBytes, 0);
  const byCore = data === 0 ? Number.POSITIVE_INFINITY : (coreBytesPerSecond(load) * stored) / data;
  return Math.min(lanes * pageBlobBytesPerSecond, accountBytesPerSecond, byCore);
}

/** The limits, the one that binds first before all others. */
export function limitsOf(shipping: Shipping, cycleSlots: number, bandwidths: readonly number[]): readonly PlanLimit[] {
  const { load, growth } = shipping;
  const stored = shipping.peakBytesPerSecond(cycleSlots);
  const cycleSeconds = (cycleSlots * load.slotMs) / 1_000;
  const requests = stored === 0 ? 0 : stored / frameBytes + load.disks.length / cycleSeconds;
  const changed = peakOf(load, cycleSlots, (from, end) =>
    load.disks.reduce((sum, disk) => sum + disk.changedBytes(from, end), 0),
  );
  const writes = load.disks.some((disk) => disk.writes !== undefined)
    ? peakOf(load, 1, (from) => load.disks.reduce((sum, disk) => sum + (disk.writes?.[from] ?? 0), 0))
    : 0;
  const limit = (name: PlanLimit["limit"], unit: PlanLimit["unit"], capacity: number, peak: number): PlanLimit => ({
    limit: name,
    unit,
    capacity,
    peak,
    headroom: peak === 0 ? null : capacity / peak,
  });
  return [
    ...bandwidths.map((bandwidth) => limit("line", "bytes/s", bandwidth, stored)),
    limit("page-blob-bytes", "bytes/s", lanes * pageBlobBytesPerSecond, stored),
    limit("page-blob-requests", "requests/s", lanes * pageBlobRequestsPerSecond, requests),
    limit("account-bytes", "bytes/s", accountBytesPerSecond, stored),
    limit("account-requests", "requests/s", accountRequestsPerSecond, requests),
    limit("core", "bytes/s", coreBytesPerSecond(load), changed * (1 + growth)),
    limit("nbd-writes", "writes/s", nbdWritesPerSecond, writes * (1 + growth)),
  ].sort((a, b) => (a.headroom ?? Number.POSITIVE_INFINITY) - (b.headroom ?? Number.POSITIVE_INFINITY));
}

function coreBytesPerSecond({ disks }: Load): number {
  const measured = disks.flatMap((disk) => disk.coreBytesPerSecond ?? []);
  return measured.length === 0 ? coreBytesPerSecondDefault : Math.min(...measured);
}

/** The highest rate a second over spans of so many slots. */
function peakOf({ slots, slotMs }: Load, width: number, of: (from: number, end: number) => number): number {
  let most = 0;
  for (let from = 0; from + width <= slots; from += width) most = Math.max(most, of(from, from + width));
  return most / ((width * slotMs) / 1_000);
}
