/** One case from its options to its report: the folder that it works in, and the store that it is given. */
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
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
    const { outcome, store } = await outcomeOf(config, options);
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

type StoreCase = (
  config: BenchConfig,
  store: Awaited<ReturnType<BenchOptions["openVaultSink"]>>,
) => Promise<CaseOutcome>;

async function outcomeOf(
  config: BenchConfig,
  options: BenchOptions,
): Promise<{ outcome: CaseOutcome; store: string | null }> {
  switch (config.kind) {
    case "kernels":
      return { outcome: await benchKernels(config), store: null };
    case "pipeline":
      return { outcome: await benchPipeline(config), store: null };
    case "start":
      return { outcome: await benchStart(config), store: null };
    case "size":
      return { outcome: await benchSize(config), store: null };
    case "disks":
      return { outcome: await benchDisks(config), store: null };
    case "blocks":
      return { outcome: await benchBlocks(config), store: null };
    case "scaling":
      return { outcome: await benchScaling(config), store: null };
    case "lanes":
      return await withStore(config, options, benchLanes);
    case "peers":
      return await withStore(config, options, benchPeers);
    case "initial":
      return await withStore(config, options, benchInitial);
    case "scattered":
      return await withStore(config, options, benchScattered);
    case "restore":
      return await withStore(config, options, benchRestore);
    case "front":
      return await withStore(config, options, benchFront);
    case "burst":
      return await withStore(config, options, benchBurst);
    case "churn":
      return await withStore(config, options, benchChurn);
    case "soak":
      return await withStore(config, options, benchSoak);
    case "restart":
      return await withStore(config, options, benchRestart);
    case "mount":
      return await withStore(config, options, benchMount);
    case "instant":
      return await withStore(config, options, benchInstant);
    case "failover":
      return await withStore(config, options, benchFailover);
    case "copy":
      return await withStore(config, options, benchCopy);
    case "prune":
      return await withStore(config, options, benchPrune);
    case "open":
      return await withStore(config, options, benchOpen);
    case "collect":
      return await withStore(config, options, benchCollect);
  }
}

async function withStore(
  config: BenchConfig,
  options: BenchOptions,
  run: StoreCase,
): Promise<{ outcome: CaseOutcome; store: string }> {
  const store = await options.openVaultSink();
  try {
    return { outcome: await run(config, store), store: store.description };
  } finally {
    await store[Symbol.asyncDispose]();
  }
}
