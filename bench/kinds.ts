/**
 * The cases, apart from what they do: the command line lists them without loading any. Their options and
 * defaults stand here once, for the command line, for the checks and for the suite.
 */

/**
 * In the order of a suite: what is bare first, whole cycles next, live disks, kept points, and last what
 * costs depend on. A case that needs the processors' caches cold or warm makes them so itself.
 */
export const benchKinds = [
  "kernels",
  "start",
  "pipeline",
  "initial",
  "scattered",
  "restore",
  "front",
  "burst",
  "churn",
  "restart",
  "soak",
  "mount",
  "instant",
  "failover",
  "copy",
  "prune",
  "open",
  "collect",
  "size",
  "disks",
  "lanes",
  "blocks",
  "scaling",
  "peers",
] as const;
export type BenchKind = (typeof benchKinds)[number];

/** Cases without a store, or with one that discards. */
export const storelessKinds = ["kernels", "start", "pipeline", "size", "disks", "blocks", "scaling"] as const;
export type StorelessKind = (typeof storelessKinds)[number];

export function isStoreless(kind: BenchKind): kind is StorelessKind {
  return (storelessKinds as readonly BenchKind[]).includes(kind);
}

/** What a case takes. An option that is absent here does not concern it. */
interface CaseTraits {
  readonly description: string;
  /** `optional`: the case works on a copy of it, or on a disk that it makes. */
  readonly image?: "required" | "optional";
  /** A part is done by a process of its own, which opens the store too. */
  readonly isShared?: true;
  readonly isMeasuredOnce?: true;
  /** It can be compared with what other programs needed. */
  readonly takesPeers?: true;
  /** Defaults: random writes of 4 KiB; length of the load; what is written a second; points of the chain. */
  readonly writes?: number;
  readonly seconds?: number;
  readonly bytesPerSecond?: number;
  readonly points?: number;
  /** What `--find-limit` looks for the highest of. */
  readonly limit?: string;
  /** Default size of the disk that it makes, and of the part of it that is written. */
  readonly diskBytes?: number;
  readonly hotBytes?: number;
}

const gibibyte = 2 ** 30;
/** A sparse disk of 1 TiB, of which 1 GiB is written. */
const sparse = { diskBytes: 1024 * gibibyte, hotBytes: gibibyte };

export const cases: Readonly<Record<BenchKind, CaseTraits>> = {
  kernels: { description: "the inner loops, bare" },
  start: { description: "a command that lists the points of a small vault, and an import of the library" },
  pipeline: { description: "a cycle into a store that discards, beside its bare kernels", image: "required" },
  initial: {
    description: "first replication of an image, beside a plain upload of its data",
    image: "required",
    takesPeers: true,
  },
  scattered: {
    description: "after scattered 4 KiB writes, and once more unchanged, beside reading the disk",
    image: "required",
    takesPeers: true,
  },
  restore: {
    description: "bring a point back, beside fetching what it is stored as",
    image: "required",
    takesPeers: true,
  },
  front: {
    description: "fio at a protected disk, beside qemu-nbd; how long a cut holds writes",
    image: "optional",
    isShared: true,
    seconds: 2,
    limit: "rate of changes that a cycle drains while 4 KiB writes keep their marks",
    diskBytes: gibibyte,
  },
  burst: {
    description: "after scattered writes over NBD, from the cut to the commit",
    image: "optional",
    isShared: true,
    takesPeers: true,
    writes: 20_000,
    limit: "number of writes that are committed in time",
    diskBytes: 8 * gibibyte,
  },
  churn: {
    description: "random writes without a pause: points, lag and memory",
    isShared: true,
    isMeasuredOnce: true,
    seconds: 60,
    bytesPerSecond: 100_000_000,
    limit: "rate that keeps all marks",
    diskBytes: 8 * gibibyte,
  },
  restart: {
    description: "kill -9 under writes: until there is a point again",
    isShared: true,
    isMeasuredOnce: true,
    seconds: 5,
    ...sparse,
  },
  soak: {
    description: "random writes for an hour: memory and open handles stay flat",
    isShared: true,
    isMeasuredOnce: true,
    seconds: 3_600,
    bytesPerSecond: 20_000_000,
    limit: "rate that keeps all marks, with a load as long as this for each",
    diskBytes: gibibyte,
  },
  mount: {
    description: "a point mounted: first read, all of it once, and from the cache",
    image: "optional",
    isShared: true,
    seconds: 3,
    ...sparse,
  },
  instant: {
    description: "a disk that runs at once from a point: first read and flush, copying, and fio meanwhile",
    isShared: true,
    seconds: 20,
    limit: "rate of a guest that is kept while copying",
    ...sparse,
  },
  failover: {
    description: "planned, change-point and failback, beside what they move",
    ...sparse,
    hotBytes: 2 * gibibyte,
  },
  copy: { description: "points copied to another vault, beside the bare transfers", ...sparse },
  prune: { description: "1,000 points thinned in one go", isMeasuredOnce: true, points: 1_000, ...sparse },
  open: { description: "the newest of 5,000 points opened and read", points: 5_000, ...sparse },
  collect: {
    description: "dead bytes given back beside a disk that is written",
    isShared: true,
    isMeasuredOnce: true,
    seconds: 60,
    bytesPerSecond: 20_000_000,
    diskBytes: gibibyte,
  },
  size: { description: "the same changes on disks of 8 GiB, 1 TiB and 8 TiB", writes: 20_000 },
  disks: { description: "as many changes on 1, 10 and 100 disks in one process", writes: 102_400 },
  lanes: { description: "first replication with 2 to 8 lanes", image: "required" },
  blocks: {
    description: "first replication with blocks of 16 KiB to 1 MiB, into a store that discards",
    image: "required",
  },
  scaling: {
    description: "first replication with 1 to 16 workers: at how many cores the main thread is busy",
    image: "required",
  },
  peers: {
    description: "what restic, borg and qemu-img need for the same, where they are installed",
    image: "required",
    isShared: true,
    isMeasuredOnce: true,
    writes: 20_000,
  },
};
