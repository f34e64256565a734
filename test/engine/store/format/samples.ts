/**
 * One instance of everything that is stored, with fixed ids and times: the golden files are their
 * bytes.
 */
import { checksum, toHex } from "../../../../engine/store/format/checksum.ts";
import type {
  HeadDocument,
  ManifestDocument,
  PageDocument,
  PageReference,
  VaultDocument,
} from "../../../../engine/store/format/documents.ts";
import { encodePage, referTo } from "../../../../engine/store/format/documents.ts";
import type { FramePlace } from "../../../../engine/store/format/frame.ts";
import { FrameBuilder, storedLz4Flag } from "../../../../engine/store/format/frame.ts";
import type {
  CondemnedDocument,
  HoldDocument,
  LabelDocument,
  PinDocument,
} from "../../../../engine/store/format/keeping.ts";
import type { EntryColumns, LeafReference } from "../../../../engine/store/format/leaf.ts";
import { newColumns, zeroSegment } from "../../../../engine/store/format/leaf.ts";
import { segmentName } from "../../../../engine/store/format/names.ts";
import { decodePlanRun, encodePlanRun, type PlanRunDocument } from "../../../../engine/store/format/plan-run.ts";
import type { ProvedDocument, QuarantineDocument, ScrubbedDocument } from "../../../../engine/store/format/proof.ts";
import type { CollectedDocument, CollectionDocument, DeadDocument } from "../../../../engine/store/format/reclaim.ts";
import { decodeReplica, encodeReplica, type ReplicaDocument } from "../../../../engine/store/format/replica.ts";
import {
  type ClaimDocument,
  decodeRunRequest,
  encodeRunRequest,
  type RunDocument,
  type RunRequestDocument,
} from "../../../../engine/store/format/run.ts";
import type { EncryptedDocument } from "../../../../engine/store/format/vault-document.ts";
import { digestOf, randomBytes, vaultId } from "../../../engine-model.ts";
import { registrationRows } from "./registration-samples.ts";

const vault = toHex(vaultId);
const disk = "Büro Δ";
const id = (value: number): string => toHex(digestOf(value));

export const vaultSample: VaultDocument = {
  vault,
  createdMs: 1_790_000_000_123,
  blockBytes: 65_536,
  digest: "blake3",
  digestKey: id(1) + id(2),
  codec: "lz4",
  encryption: "none",
  writtenBy: "tidemark 0.1.0",
};

export const encryptedSample: EncryptedDocument = {
  ...vaultSample,
  digestKey: "",
  encryption: {
    cipher: "aes-256-gcm",
    revision: 3,
    generations: [
      { readingKey: id(3) + id(4), previous: null },
      { readingKey: id(5) + id(6), previous: id(7) + id(8) },
    ],
    recipients: [
      {
        id: id(9),
        kind: "passphrase",
        name: "Tresor",
        addedMs: 1_790_000_000_123,
        publicKey: id(10) + id(11),
        scrypt: { salt: id(12), logCost: 17 },
        wrapped: id(13) + id(14),
      },
    ],
    mac: id(15) + id(16),
  },
};

const group = { id: id(8), name: "Büro", disks: [disk, "other"] };

export const pageSample: PageDocument = {
  vault,
  disk,
  epoch: 2,
  ordinal: 0,
  pages: [],
  points: [
    {
      sequence: 1,
      epoch: 1,
      id: id(9),
      timeMs: 1_790_000_000_500,
      lagMs: 0,
      consistency: "app",
      group,
      volumeBytes: 1_048_577,
      changedBytes: 1_052_672,
      newBytes: 1_048_576,
      storedBytes: 524_800,
    },
    {
      sequence: 3,
      epoch: 2,
      id: id(14),
      timeMs: 1_790_000_000_900,
      lagMs: 3_600_000,
      consistency: "crash",
      group: null,
      volumeBytes: 1_048_577,
      changedBytes: 0,
      newBytes: 0,
      storedBytes: 0,
    },
  ],
};

export const pageReference: PageReference = referenceOf(pageSample);

export const indexSample: PageDocument = { ...pageSample, ordinal: 1, pages: [pageReference], points: [] };

function referenceOf(page: PageDocument): PageReference {
  const reference = referTo(page, encodePage(page));
  if (reference === undefined) throw new Error("the sample holds points");
  return reference;
}

export const indexReference: PageReference = referenceOf(indexSample);

export const headSample: HeadDocument = {
  vault,
  disk,
  epoch: 7,
  writer: { session: id(3), machine: "machine 4026531836", pid: 4321, startTicks: 987_654, host: "host-a" },
  collection: "00112233445566778899aabbccddeeff",
  pages: [indexReference],
  points: [
    {
      sequence: 4,
      epoch: 3,
      id: id(4),
      timeMs: 1_790_000_001_000,
      lagMs: null,
      consistency: "fuzzy",
      group: null,
      volumeBytes: 1_048_577,
      changedBytes: 1_052_672,
      newBytes: 1_048_576,
      storedBytes: 524_800,
    },
    {
      sequence: 5,
      epoch: 7,
      id: id(5),
      timeMs: 1_790_000_002_000,
      lagMs: 412,
      consistency: "crash",
      group,
      volumeBytes: 17_592_186_044_416,
      changedBytes: 4096,
      newBytes: 0,
      storedBytes: 0,
    },
  ],
};

export const manifestSample: ManifestDocument = {
  vault,
  disk,
  sequence: 5,
  epoch: 7,
  parent: id(4),
  timeMs: 1_790_000_002_000,
  consistency: "app",
  application: {
    outcome: "frozen",
    reason: null,
    steps: [
      { phase: "pre", command: "fsfreeze -f /srv", exitCode: 0, signal: null, elapsedMs: 12, output: "" },
      {
        phase: "post",
        command: "fsfreeze -u /srv",
        exitCode: null,
        signal: "SIGTERM",
        elapsedMs: 60_000,
        output: "waiting\n\tstill",
      },
    ],
  },
  group,
  volumeBytes: 1_048_577,
  statistics: {
    scannedBytes: 1_048_577,
    changedBytes: 12_288,
    zeroBytes: 4096,
    dedupedBytes: 4096,
    newBytes: 4096,
    storedBytes: 4608,
  },
  runs: [
    { kind: "leaf", epoch: 7, ordinal: 0, bytes: 200, checksum: id(6), entries: 3, leaves: 1, totalBytes: 200 },
    {
      kind: "root",
      epoch: 3,
      ordinal: 9,
      bytes: 152,
      checksum: id(7),
      entries: 40_000,
      leaves: 2,
      totalBytes: 1_440_652,
    },
  ],
  writtenBy: "tidemark 0.1.0",
};

export const holdSample: HoldDocument = {
  vault,
  disk,
  sequence: 5,
  point: id(5),
  purpose: "mount",
  pid: 4321,
  host: "host-a",
};

export const pinSample: PinDocument = {
  vault,
  disk,
  sequence: 4,
  point: id(4),
  name: "Jahresabschluß",
  createdMs: 1_790_000_003_000,
  untilMs: 1_990_000_000_000,
};

export const labelSample: LabelDocument = {
  vault,
  disk,
  sequence: 4,
  point: id(4),
  text: "vor dem Umzug, Büro",
  createdMs: 1_790_000_003_000,
};

export const condemnedSample: CondemnedDocument = {
  vault,
  disk,
  epoch: 7,
  ranges: [
    { first: 1, last: 1 },
    { first: 3, last: 4 },
  ],
};

export const claimSample: ClaimDocument = {
  vault,
  disk,
  run: "5f03c2aa",
  place: null,
  former: { run: "00aa11bb", host: "host-b", path: "/srv/disk.img" },
  disabled: null,
};

export const replicaSample: ReplicaDocument = {
  vault,
  disk,
  replica: "0123456789abcdef",
  epoch: 3,
  worker: { session: id(3), machine: "machine 4026531836", pid: 4321, startTicks: 987_654, host: "host-a" },
  target: { kind: "vhd", path: "/srv/disk.vhd" },
  host: "host-a",
  point: { sequence: 3, id: id(3), timeMs: 1_790_000_002_000, volumeBytes: 1_048_576 },
  next: { sequence: 4, id: id(4), timeMs: 1_790_000_003_000, volumeBytes: 1_048_576 },
  signature: null,
};

export const failedOverSample: ReplicaDocument = { ...replicaSample, next: null, run: "5f03c2aa" };

/** The row of a replica among the formats that are fuzzed. */
export function replicaRow(): { readonly bytes: Uint8Array; readonly decode: (bytes: Uint8Array) => ReplicaDocument } {
  const object = `failover/replicas/${replicaSample.replica}`;
  return { bytes: encodeReplica(replicaSample), decode: (bytes) => decodeReplica(bytes, object, vault) };
}

export const runSample: RunDocument = {
  vault,
  run: "5f03c2aa",
  epoch: 3,
  worker: { session: id(3), machine: "machine 4026531836", pid: 4321, startTicks: 987_654, host: "host-a" },
  kind: "planned",
  direction: "PrimaryToRecovery",
  state: "PlannedFailoverCompletionFailed",
  host: "host-a",
  group: "Büro",
  selector: "latest",
  target: "dir:/srv",
  serving: { listen: "unix:/run/other.sock", protects: true },
  check: null,
  shutdown: "systemctl stop db",
  source: { kind: "agent", path: "/run/tidemark/agent.sock" },
  discardPoints: false,
  ending: { action: "rollback", afterMs: 3_600_000 },
  createdMs: 1_790_000_020_000,
  ttlMs: null,
  notes: [{ timeMs: 1_790_000_020_000, text: "Umzug" }],
  members: [
    {
      disk,
      point: { sequence: 5, id: id(5), timeMs: 1_790_000_002_000, consistency: "crash", volumeBytes: 1_048_577 },
      target: { kind: "file", path: "/srv/disk.img" },
      held: { point: id(5), signature: "1048577 modified 17 changed 18" },
      origin: { path: "/old/disk.img", point: id(5), signature: "1048577 modified 15 changed 16" },
    },
    {
      disk: "other",
      point: { sequence: 9, id: id(15), timeMs: 1_790_000_002_000, consistency: "app", volumeBytes: 4096 },
      target: { kind: "instant", path: "/srv/other.img" },
      held: null,
      origin: null,
    },
  ],
  jobs: [
    {
      operation: "PlannedFailover",
      state: "Failed",
      startMs: 1_790_000_020_001,
      endMs: 1_790_000_020_500,
      tasks: [
        {
          name: "PlannedFailoverInitiated",
          state: "Succeeded",
          startMs: 1_790_000_020_002,
          endMs: 1_790_000_020_100,
          output: "stopped\n",
          exitCode: 0,
          error: null,
        },
        {
          name: "PlannedFailoverCompleting",
          state: "Failed",
          startMs: 1_790_000_020_101,
          endMs: 1_790_000_020_500,
          output: null,
          exitCode: null,
          error: { code: "NO_SPACE", message: "cannot write the target /srv/other.img", remedy: null },
        },
      ],
    },
  ],
};

export const replicaRunSample: RunDocument = {
  ...runSample,
  target: "replica",
  serving: { listen: "unix:/run/other.sock", protects: true, byAgent: true },
  members: runSample.members.slice(0, 1).map((member) => ({
    ...member,
    target: { kind: "vhd", path: "/srv/disk.vhd", replica: "0123456789abcdef" },
  })),
};

const segment: string = segmentName(disk, 7, 0, 0);
export const framePlace: FramePlace = { vaultId, segmentId: checksum(Buffer.from(segment)), offset: 4096 };

export interface SampleChunk {
  readonly payload: Uint8Array;
  readonly storedWord: number;
  readonly digest: Uint8Array;
  readonly granule: number;
  readonly granules: number;
}

export const frameChunks: readonly SampleChunk[] = [
  {
    payload: randomBytes(301, 1),
    storedWord: (301 | storedLz4Flag) >>> 0,
    digest: digestOf(10),
    granule: 0,
    granules: 16,
  },
  { payload: randomBytes(4096, 2), storedWord: 4096, digest: digestOf(11), granule: 77, granules: 1 },
  {
    payload: randomBytes(18, 3),
    storedWord: (18 | storedLz4Flag) >>> 0,
    digest: digestOf(12),
    granule: 0xffff_ff00,
    granules: 256,
  },
];

/** A frame of `frameChunks`, in memory of its own. */
export function sealFrame(place: FramePlace = framePlace, chunks: readonly SampleChunk[] = frameChunks): Uint8Array {
  const builder = new FrameBuilder();
  for (const { payload, storedWord, digest, granule, granules } of chunks)
    builder.append(payload, storedWord, digest, 0, granule, granules);
  return new Uint8Array(builder.seal(place));
}

/** A window into a chunk, a ZERO, and a whole chunk of another disk's segment. */
export function leafSample(): EntryColumns {
  const leaf = newColumns(3);
  leaf.starts.set([3, 16, 0xffff_ff00]);
  leaf.lengths.set([2, 100_000, 256]);
  leaf.offsets.set([128, 0, 1_072_693_248]);
  leaf.storedWords.set([(301 | storedLz4Flag) >>> 0, 0, 1_048_576]);
  leaf.segments.set([0, zeroSegment, 1]);
  leaf.chunkOffsets.set([14, 0, 0]);
  leaf.chunkLengths.set([15, 0, 255]);
  leaf.digests.set(digestOf(10), 0);
  leaf.digests.set(digestOf(13), 32);
  leaf.names.push(segment, segmentName("other", 12, 3, 1));
  leaf.count = 3;
  return leaf;
}

export const rootSample: readonly LeafReference[] = [
  { first: 0, last: 99_999, entries: 32_768, bytes: 1_179_748, epoch: 3, ordinal: 0, checksum: digestOf(20) },
  {
    first: 100_000,
    last: 0xffff_ffff,
    entries: 1,
    bytes: 136,
    epoch: 2 ** 36,
    ordinal: 4_000_000_000,
    checksum: digestOf(21),
  },
];

export const collectedSample: CollectedDocument = { vault, collectedMs: 1_790_000_019_000 };
export const collectionSample: CollectionDocument = {
  vault,
  collection: "ffeeddccbbaa99887766554433221100",
  startedMs: 1_790_000_009_000,
};

export const deadSample: DeadDocument = {
  vault,
  collection: collectionSample.collection,
  segment: "segments/web/00000007-0-00000003",
  clearing: true,
  kept: 17,
  dead: [
    { from: 0, end: 8 },
    { from: 12, end: 20 },
  ],
  condemned: [{ from: 2_000_000, end: 2_097_152 }],
};

export const provedSample: ProvedDocument = {
  vault,
  disk,
  ranges: [
    { first: 1, last: 5, provedMs: 1_790_000_010_000 },
    { first: 7, last: 7, provedMs: 1_790_000_011_000 },
  ],
};

export const scrubbedSample: ScrubbedDocument = { vault, roundMs: 1_767_225_600_000, takenMs: 1_767_312_000_123 };

export const quarantineSample: QuarantineDocument = {
  vault,
  segment: deadSample.segment,
  offsets: [128, 4_224, 1_073_741_312],
};

export const runRequestSample: RunRequestDocument = {
  vault,
  run: "5f03c2aa",
  epoch: 3,
  requestedMs: 1_790_000_021_000,
  host: "host-b",
};

export const planRunSample: PlanRunDocument = {
  vault,
  run: "0badcafe",
  epoch: 2,
  worker: null,
  kind: "failback",
  direction: "RecoveryToPrimary",
  host: "host-a",
  plan: {
    name: "shop",
    machines: [{ name: "db", disks: [disk], source: { kind: "agent", path: "/run/agent.sock" } }],
    groups: [
      {
        machines: ["db"],
        before: [
          {
            kind: "run",
            command: "./fence.sh",
            timeoutMs: 60_000,
            retries: 3,
            pauseMs: 5_000,
            onFailure: "continue",
          },
        ],
        after: [{ kind: "manual", text: "DNS points here?" }],
      },
    ],
    cleanup: [],
    target: "dir:/srv/dr",
    testTarget: null,
    objectives: { rpoMs: 60_000, rtoMs: null },
    folder: "/etc/tidemark",
    text: "plan: shop\n",
  },
  selector: "latest",
  target: "/srv/web.img",
  discardPoints: false,
  createdMs: 1_790_000_020_000,
  ttlMs: null,
  notes: [{ timeMs: 1_790_000_020_000, text: "back home" }],
  machines: [
    {
      name: "db",
      run: "5f03c2aa",
      group: "database",
      points: runSample.members.slice(0, 1).map(({ point }) => point),
      back: { run: "01234567", images: ["/srv/web.img"] },
    },
  ],
  jobs: [
    {
      operation: "Failback",
      state: "Failed",
      startMs: 1_790_000_020_000,
      endMs: 1_790_000_021_000,
      steps: [
        {
          stage: 1,
          group: 1,
          phase: "machines",
          action: null,
          machine: "db",
          state: "Failed",
          tries: 1,
          startMs: 1_790_000_020_000,
          endMs: 1_790_000_021_000,
          output: null,
          exitCode: null,
          error: { code: "STORE_UNREACHABLE", message: "the store does not answer", remedy: null },
        },
      ],
    },
  ],
};

interface Row {
  readonly kind: string;
  readonly bytes: Uint8Array;
  readonly decode: (bytes: Uint8Array) => unknown;
}

/** What is stored beside runs, for the fuzzer. */
export const besideRuns: readonly Row[] = [
  {
    kind: "request to a run",
    bytes: encodeRunRequest(runRequestSample),
    decode: (bytes) => decodeRunRequest(bytes, "failover/requests/5f03c2aa", vault),
  },
  {
    kind: "run of a plan",
    bytes: encodePlanRun(planRunSample),
    decode: (bytes) => decodePlanRun(bytes, "failover/plans/0badcafe", vault),
  },
  ...registrationRows,
];
