/** One case from its options to its report: the folder that it works in, and the store that it is given. */
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Sink } from "../engine/index.ts";
import { makeFolder } from "../engine/internal.ts";
import { benchPeers } from "./cost/peers.ts";
import { benchBlocks, benchLanes, benchScaling } from "./cost/settings.ts";
import { benchDisks, benchSize } from "./cost/size.ts";
import { benchStart } from "./cost/start.ts";
import { benchInitial, benchRestore, benchScattered } from "./cycles.ts";
import { benchCollect } from "./keep/collect.ts";
import { benchCopy } from "./keep/copy.ts";
import { benchFailover } from "./keep/failover.ts";
import { benchInstant } from "./keep/instant.ts";
import { benchMount } from "./keep/mount.ts";
import { benchOpen } from "./keep/open.ts";
import { benchPrune } from "./keep/prune.ts";
import { benchKernels } from "./kernels.ts";
import { type BenchKind, isStoreless, type StorelessKind } from "./kinds.ts";
import { benchBurst } from "./live/burst.ts";
import { benchChurn } from "./live/churn.ts";
import { benchFront } from "./live/front.ts";
import { benchRestart } from "./live/restart.ts";
import { benchSoak } from "./live/soak.ts";
import { machineFacts } from "./machine.ts";
import type { BenchConfig, BenchOptions } from "./options.ts";
import { resolveOptions } from "./options.ts";
import { benchPipeline } from "./pipeline.ts";
import type { BenchReport, CaseOutcome } from "./report.ts";
import { isMet } from "./targets.ts";

/** As `runBench`. */
export async function runCase(options: BenchOptions): Promise<BenchReport> {
  const machine = machineFacts(new Date());
  await makeFolder(options.temporaryFolder);
  const folder = await mkdtemp(join(options.temporaryFolder, "bench-"));
  try {
    const config = await resolveOptions(options, folder);
    const { outcome, store } = await outcomeOf(config, options.openVaultSink);
    return {
      type: "bench",
      case: config.kind,
      machine,
      store,
      seed: config.seed,
      runs: config.runs,
      ...outcome,
      ...config.trace.toReport(),
      marks: outcome.marks.map((mark) => ({ ...mark, met: isMet(mark) })),
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

type StoreCase = (config: BenchConfig, store: Sink) => Promise<CaseOutcome>;

const storeless: Readonly<Record<StorelessKind, (config: BenchConfig) => Promise<CaseOutcome>>> = {
  kernels: benchKernels,
  start: benchStart,
  pipeline: benchPipeline,
  size: benchSize,
  disks: benchDisks,
  blocks: benchBlocks,
  scaling: benchScaling,
};

const stored: Readonly<Record<Exclude<BenchKind, StorelessKind>, StoreCase>> = {
  initial: benchInitial,
  scattered: benchScattered,
  restore: benchRestore,
  front: benchFront,
  burst: benchBurst,
  churn: benchChurn,
  restart: benchRestart,
  soak: benchSoak,
  mount: benchMount,
  instant: benchInstant,
  failover: benchFailover,
  copy: benchCopy,
  prune: benchPrune,
  open: benchOpen,
  collect: benchCollect,
  lanes: benchLanes,
  peers: benchPeers,
};

async function outcomeOf(
  config: BenchConfig,
  openStore: () => Promise<Sink>,
): Promise<{ outcome: CaseOutcome; store: string | null }> {
  const { kind } = config;
  if (isStoreless(kind)) return { outcome: await storeless[kind](config), store: null };
  await using store = await openStore();
  return { outcome: await stored[kind](config, store), store: store.description };
}
