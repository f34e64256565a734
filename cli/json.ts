/**
 * The contract of `--json`: which object each command prints. `docs/json.md` is generated from
 * these types.
 *
 * A command prints items first, one object a line with its `type`, and one summary last, with
 * `type: "summary"` and the command's name. A command that goes on to serve the disks of a run
 * prints `ready` and `event` items after its summary. A command that is added gets an entry in
 * `JsonSummaries`, and one in `JsonItems` for each type of item that it adds.
 */
import type { BenchKind, BenchReport, SuiteCase, SuiteOutcome } from "../bench/index.ts";
import type {
  Application,
  CollectSummary,
  CopiedPoint,
  CopySummary,
  Damage,
  DisableSummary,
  DiskSummary,
  EnrollSummary,
  Extent,
  JobSummary,
  KeysSummary,
  ListedPoint,
  LostObject,
  MaterializeSummary,
  MountSummary,
  PinSummary,
  PlanAction,
  PlanRunDone,
  PlanRunSummary,
  PointDecision,
  PointDetail,
  PointSummary,
  ProtectionStatus,
  PruneSummary,
  RegisteredAgent,
  RemoveDiskSummary,
  RenameDiskSummary,
  RepairedObject,
  RepairSummary,
  ReplicaDone,
  ReplicaRemoved,
  ReplicaSummary,
  ReplicateSummary,
  ReplicaVerification,
  RunDone,
  RunSummary,
  VaultStats,
  VaultSummary,
  VerifySummary,
} from "../engine/index.ts";
import type { ConfigFault } from "./agent/config.ts";
import type { DiskStatus } from "./agent/disk-runner.ts";
import type { PlanPreviewSummary } from "./agent/failover-verbs.ts";
import type { DiskEvent } from "./agent/ports.ts";
import type { ReloadSummary, StopSummary } from "./agent/summaries.ts";
import type { AgentStatus } from "./agent/supervisor.ts";
import type { CapacityPlan } from "./capacity/plan.ts";
import type { Throughput } from "./capacity/throughput.ts";
import type { Finding } from "./preflight/finding.ts";
import type { StressSample } from "./stress/measures.ts";
import type { StressReport } from "./stress/report.ts";
import type { StoreReport } from "./stress/store-check.ts";

/** Items by their `type`. */
export interface JsonItems {
  /** `disks list`: a disk of the vault. `agent status` and `watch`: a disk of the agent. */
  readonly disk: DiskSummary | DiskStatus;
  /** `points list`: a point of the disk. `agent point`: a point that was committed for a group. */
  readonly point: ListedPoint | PointSummary;
  /** `copy`: a point is in the other vault. */
  readonly copied: CopiedPoint;
  /** `replica run`: a point was applied to the target. */
  readonly applied: Application;
  /** `replica show`: a replica of the vault. */
  readonly replica: ReplicaSummary;
  /** `agents list`: a registered agent. */
  readonly agent: RegisteredAgent;
  /** `verify` and `replica verify`: one thing that is damaged, or differs. */
  readonly damage: Damage;
  /** `points diff`: a range that differs. */
  readonly extent: Extent;
  /** `vault repair`: an object that was rebuilt. */
  readonly repaired: RepairedObject;
  /** `vault repair`: an object that cannot be rebuilt. */
  readonly lost: LostObject;
  /** `prune --dry-run`: what the policy decides about one point. */
  readonly decision: PointDecision;
  /** `agent --check`, and commands with a plan: one fault of the file, or of what the vault says of it. */
  readonly fault: ConfigFault;
  /** `protect` and `mount`, and commands that serve the disks of a run: the export answers. */
  readonly ready: ReadyItem;
  /** The same commands: something happened to the disk. */
  readonly event: DiskEvent;
  /** `failover list`: a failover or a test. */
  readonly run: RunSummary;
  /** `failover list`, `plan list` and `plan show --history`: a run of a recovery plan. */
  readonly planRun: PlanRunSummary;
  /** `failover test`, `planned` and `unplanned` with a plan: what the run is about to do. */
  readonly preview: PlanPreviewSummary;
  /** `jobs list` and `jobs export`: a job of a run. */
  readonly job: JobSummary;
  /** `check`: one thing of the store that was looked at. */
  readonly check: Finding;
  /** `demo`: a step is done. */
  readonly step: DemoStep;
  /** `bench`: the report of the case. */
  readonly bench: BenchReport;
  /** `bench suite`: a case is done. */
  readonly case: SuiteCase;
  /** `stress`: what was seen at one moment of the load, every 10 s. */
  readonly sample: StressSample;
}

interface FixedSummaries {
  readonly version: VersionSummary;
  readonly demo: DemoSummary;
  readonly "vault keys list": KeysSummary;
  readonly "vault keys add": KeysSummary;
  readonly "vault keys remove": KeysSummary;
  readonly "vault keys rotate": KeysSummary;
  readonly "vault keys enroll": EnrollSummary;
  readonly "vault key": IssuedKey;
  readonly "vault init": VaultSummary;
  readonly "vault show": VaultSummary;
  readonly "vault stats": VaultStats;
  readonly "vault repair": RepairSummary;
  readonly replicate: ReplicateSummary;
  readonly copy: CopySummary;
  readonly protect: ProtectionStatus;
  readonly agent: AgentSummary;
  readonly "agent status": AgentStatusSummary;
  readonly "agent register": RegisteredMachine;
  readonly watch: AgentStatusSummary;
  readonly "agent point": PointSummary | GroupPointSummary;
  readonly "agent pause": NamedDisks;
  readonly "agent resume": NamedDisks;
  readonly "agent reload": ReloadSummary;
  readonly "agent stop": StopSummary | AgentStopped;
  readonly "agent limit": LimitSummary;
  readonly "agents list": AgentsSummary;
  readonly "agents show": RegisteredAgent;
  readonly "agents remove": RegisteredAgent;
  readonly "disks list": DisksSummary;
  readonly "disks remove": RemoveDiskSummary;
  readonly "disks rename": RenameDiskSummary;
  readonly "disks disable": DisableSummary;
  readonly "disks enable": EnabledDisk;
  readonly "points list": PointsSummary;
  readonly "points diff": PointsDiffSummary;
  readonly "points show": PointDetail;
  readonly "points label": LabelledPoint;
  readonly "points pin": PinnedPoint;
  readonly "points unpin": UnpinnedPoint;
  readonly materialize: MaterializeSummary;
  readonly mount: MountSummary;
  readonly "replica run": ReplicaDone;
  readonly "replica show": ReplicaSummary | ReplicasSummary;
  readonly "replica verify": ReplicaVerification;
  readonly "replica remove": ReplicaRemoved;
  readonly "failover test": RunDone | PlanRunDone | PlanPreviewSummary;
  readonly "failover unplanned": RunDone | PlanRunDone | PlanPreviewSummary;
  readonly "failover planned": RunDone | PlanRunDone | PlanPreviewSummary;
  readonly "failover list": RunsSummary;
  readonly "failover show": RunSummary | PlanRunSummary;
  readonly "failover change-point": RunDone | PlanRunDone;
  readonly "failover commit": RunDone | PlanRunDone;
  readonly "failover cancel": RunDone | PlanRunDone;
  readonly "failover cleanup": RunDone | PlanRunDone;
  readonly reprotect: RunDone | PlanRunDone;
  readonly failback: RunDone | PlanRunDone;
  readonly "migrate complete": RunDone | PlanRunDone;
  readonly "plan check": CheckedPlan;
  readonly "plan show": ShownPlan;
  readonly "plan graph": PlanGraph;
  readonly "plan list": PlanRunsSummary;
  readonly "plan report": PlanReport;
  readonly "plan export": PlanExport;
  readonly "jobs list": JobsSummary;
  readonly "jobs show": JobSummary;
  readonly "jobs resume": RunDone | PlanRunDone;
  readonly "jobs cancel": RunSummary | PlanRunSummary;
  readonly "jobs export": JobsSummary;
  readonly verify: VerifySummary;
  readonly prune: PruneSummary | PointDecision;
  readonly collect: CollectSummary;
  readonly "retention simulate": SimulationSummary;
  readonly "bench suite": Omit<SuiteOutcome, "report">;
  readonly check: CheckSummary;
  readonly "capacity profile": ProfileSummary;
  readonly "capacity report": CapacityPlan;
  readonly "capacity throughput": Throughput;
  readonly stress: StressReport;
  readonly "stress store": StoreReport;
}

/** Summaries by the command's name. */
export type JsonSummaries = FixedSummaries & Readonly<Record<`bench ${BenchKind}`, BenchSummary>>;

export interface VersionSummary {
  readonly version: string;
  /** The version of Node.js. */
  readonly node: string;
  /** Operating system and processor, such as `linux-x64`. */
  readonly platform: string;
}

export interface ReadyItem {
  readonly disk: string;
  /** `unix:PATH` or `tcp:HOST:PORT`. */
  readonly listen: string;
  /** Id of the mounted point; `mount` only. */
  readonly point?: string;
  /** Sequence number of the mounted point; `mount` only. */
  readonly sequence?: number;
  /** NBD URI of the export; not of `protect`. */
  readonly uri?: string;
}

interface DoneStep {
  readonly step: string;
  readonly what: string;
  readonly elapsedMs: number;
}

/** A step, with the summary of the point or image that it made. */
export type DemoStep =
  | DoneStep
  | (DoneStep & ReplicateSummary)
  | (DoneStep & MaterializeSummary & { readonly equal: boolean });

export interface DemoSummary {
  /** Whether all that came back was equal. */
  readonly equal: boolean;
  readonly points: number;
  readonly volumeBytes: number;
  readonly scannedBytes: number;
  readonly changedBytes: number;
  readonly dedupedBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
  readonly replicateMs: number;
  readonly checkedChunks: number;
  readonly damaged: readonly Damage[];
  readonly elapsedMs: number;
}

export interface AgentSummary {
  /** Path of the configuration. */
  readonly config: string;
  readonly vaults: number;
  readonly policies: number;
  readonly disks: number;
}

export type AgentStatusSummary = Omit<AgentStatus, "disks"> & {
  /** Number of disks; each is an item before. */
  readonly disks: number;
};

export interface GroupPointSummary {
  readonly group: string | null;
  /** Number of points; each is an item before. */
  readonly points: number;
}

export interface NamedDisks {
  readonly disks: readonly string[];
}

/** A registration key that was made. */
export interface IssuedKey {
  readonly vault: string;
  /** 32 hexadecimal digits that name the key. */
  readonly key: string;
  /** Friendly name of the agent that it is for. */
  readonly agent: string;
  readonly address: string;
  readonly allowedDisks: readonly string[];
  /** No machine can register after this: ISO 8601 in UTC, as the times below. */
  readonly notAfter: string;
  /** When the SAS in it ends; null: there is none, or it does not say. */
  readonly credentialsUntil: string | null;
  /** Whether it lets its machine write to an encrypted vault. */
  readonly enrollsWriter: boolean;
  /** The file that was written. It is secret. */
  readonly out: string;
}

/** What `agent register` has done. */
export type RegisteredMachine = RegisteredAgent & {
  readonly vault: string;
  readonly address: string;
  /** The file with the credentials. It is secret. */
  readonly credentials: string;
  /** The configuration that names the vault; null: none was given. */
  readonly config: string | null;
  /** What the configuration calls the vault. */
  readonly vaultName: string;
};

export interface AgentsSummary {
  /** Number of agents; each is an item before. */
  readonly agents: number;
  /** Those whose health is Critical. */
  readonly critical: number;
}

export interface AgentStopped {
  readonly stopped: true;
}

export interface LimitSummary {
  readonly vault: string;
  /** `off`: no limit. Null: the limits of the configuration hold. */
  readonly bytesPerSecond: number | "off" | null;
}

export interface RunsSummary {
  /** Number of runs of disks; each is an item before. */
  readonly runs: number;
  /** Those that have not ended. */
  readonly open: number;
  /** Number of runs of recovery plans; each is an item before. */
  readonly plans: number;
}

/** A plan without faults. */
export interface CheckedPlan {
  readonly plan: string;
  readonly machines: number;
  readonly disks: number;
  readonly groups: number;
  /** Whether the vault was asked, too. */
  readonly withVault: boolean;
}

/** A plan as it is written. */
export interface ShownPlan {
  readonly plan: string;
  readonly machines: readonly { readonly machine: string; readonly disks: readonly string[] }[];
  readonly groups: readonly {
    readonly machines: readonly string[];
    readonly before: readonly PlanAction[];
    readonly after: readonly PlanAction[];
  }[];
  readonly cleanup: readonly PlanAction[];
  readonly target: string | null;
  readonly testTarget: string | null;
  readonly objectives: { readonly rpoMs: number | null; readonly rtoMs: number | null };
  /** Number of runs with `--history`; each is an item before. */
  readonly runs: number | null;
}

/** Numbers of checks by their outcome; each is an item before. */
export interface CheckSummary {
  /** The vault's address, without a SAS. */
  readonly vault: string;
  readonly ok: number;
  readonly advice: number;
  readonly failed: number;
  readonly skipped: number;
}

export interface PlanGraph {
  readonly plan: string;
  /** A flowchart of Mermaid. */
  readonly mermaid: string;
}

export interface PlanRunsSummary {
  /** Number of runs; each is an item before. */
  readonly runs: number;
}

export type PlanReport = PlanRunSummary & {
  /** The file of the plan, as it was when the run began. */
  readonly planFile: string;
  /** The page that was written; null: none. */
  readonly page: string | null;
};

/** Machines of a run of a recovery plan, ready for Azure or for a hypervisor of this host. */
export interface PlanExport {
  readonly plan: string;
  readonly run: string;
  readonly format: "arm" | "bicep" | "qemu" | "libvirt";
  readonly machines: readonly {
    readonly machine: string;
    /** Its name at the target. */
    readonly name: string;
    readonly osDisk: string;
    /** 1: BIOS, 2: UEFI. */
    readonly generation: 1 | 2;
    readonly size: string;
    /** False: the size is the nearest one. */
    readonly exact: boolean;
    readonly nics: readonly {
      readonly network: string;
      /** Null: not said. */
      readonly subnet: string | null;
      /** Static address; null: any free one. */
      readonly address: string | null;
    }[];
  }[];
  /** What the rules decided that the plan does not say. */
  readonly notes: readonly string[];
  /** The file that was written; null: none. */
  readonly file: string | null;
  /** The text; null: it is in the file. */
  readonly text: string | null;
}

export interface ReplicasSummary {
  /** Number of replicas; each is an item before. */
  readonly replicas: number;
}

export interface JobsSummary {
  /** Number of jobs; each is an item before. */
  readonly jobs: number;
}

export interface EnabledDisk {
  readonly disk: string;
}

export interface DisksSummary {
  readonly disks: number;
}

/** Totals of the points that were listed. */
export interface PointsSummary {
  readonly disk: string;
  readonly points: number;
  readonly pinnedPoints: number;
  readonly changedBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
}

/** How much two points of a disk differ. Each extent is an item before. */
export interface PointsDiffSummary {
  readonly disk: string;
  readonly from: PointSummary;
  readonly to: PointSummary;
  readonly extents: number;
  readonly differingBytes: number;
}

export type LabelledPoint = PointSummary & { readonly label: string | null };
export type PinnedPoint = PointSummary & { readonly pin: PinSummary };
export type UnpinnedPoint = PointSummary & { readonly removedPins: number };

export interface SimulationSummary {
  readonly policy: string;
  readonly days: number;
  readonly everyMs: number;
  readonly pointsMade: number;
  /** Points that the policy keeps. */
  readonly points: number;
  readonly oldestAgeMs: number;
  readonly bands: readonly AgeBand[];
}

/**
 * Points older than `fromMs`, up to and including `toMs`. The newest point, whose age is 0, counts
 * in the first band.
 */
export interface AgeBand {
  readonly fromMs: number;
  readonly toMs: number;
  readonly points: number;
}

export interface ProfileSummary {
  /** Path of the profile. */
  readonly out: string;
  /** Samples that this command has added. */
  readonly samples: number;
}

export interface BenchSummary {
  readonly case: BenchReport["case"];
  readonly marks: BenchReport["marks"];
}
