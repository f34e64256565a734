/**
 * Benchmark: whole cycles against a store, each with its yardstick in the same run.
 *
 * Every run has a fresh vault under a prefix of its own and a fresh state folder. In the first run
 * Tidemark goes first, so that its peak memory is its own. From the second run on Tidemark and its
 * yardstick take turns in going first, so that neither always meets the younger store.
 */
import { generateKeyPairSync, randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type {
  MaterializeSummary,
  ReplicateSummary,
  Sink,
  VaultOptions,
  VaultParameters,
  VerifySummary,
} from "../engine/index.ts";
import { FileVolume, TidemarkError, Vault } from "../engine/index.ts";
import { closing, granuleBytes } from "../engine/internal.ts";
import { contentHash, copySparsely, type ImageFacts, imageFacts, scatterWrites } from "./image.ts";
import { peakRssBytes } from "./machine.ts";
import { NestedSink } from "./nested-sink.ts";
import type { BenchConfig, PeerStep } from "./options.ts";
import type { CaseOutcome } from "./report.ts";
import { ours, StepLog, yardstick } from "./steps.ts";
import type { Mark } from "./targets.ts";
import { getCeiling, readOnce, storedSegments, uploadPlainly, writeDurably, yardstickLanes } from "./yardsticks.ts";

const disk = "bench";

/**
 * A first replication, against a plain upload of the same image, and into an encrypted vault. Both
 * are read back and proved.
 */
export async function benchInitial(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const replicateStep = "first replication, fresh vault";
  const uploadStep = `plain upload, ${yardstickLanes} lanes`;
  const encryptedStep = "first replication, encrypted";
  const [readStep, encryptedReadStep] = ["read back and prove", "read back and prove, encrypted"];
  const keys = makeKeys();
  const hashes = { image: await readImage(config) };
  let counts: Record<string, number> = {};
  let peakBytes = 0;
  const volume = await FileVolume.open(config.image);
  try {
    for (let run = 0; run < config.runs; run += 1) {
      await inTurns(
        run,
        async () => {
          await inFreshVault(config, store, async (place) => {
            const summary = await replicate(log, replicateStep, run, place, volume);
            if (run === 0) peakBytes = peakRssBytes();
            counts = replicateCounts(summary);
            await verify(log, readStep, run, place, {});
            if (config.check && run === 0)
              Object.assign(hashes, { point: await provePoint(config, place, hashes.image) });
          });
        },
        async () => {
          await inFreshVault(config, store, async (place) => {
            const encrypted = { ...place, ...keys };
            await replicate(log, encryptedStep, run, encrypted, volume);
            await verify(log, encryptedReadStep, run, encrypted, {});
          });
          await inFreshPlace(store, async (sink) => {
            await sink.createContainer({ signal: config.signal });
            const upload = async (): Promise<number> => await uploadPlainly(volume, sink, "image", config.signal);
            await log.time(uploadStep, yardstick, run, upload, (sentBytes) => sentBytes);
          });
        },
      );
    }
    const gain = log.medianMs(uploadStep) / log.medianMs(replicateStep);
    const marks: Mark[] = [
      config.mark("of the speed without encryption", log.medianMs(replicateStep) / log.medianMs(encryptedStep)),
      config.mark("of it, read back", log.medianMs(readStep) / log.medianMs(encryptedReadStep)),
      config.mark("faster than the plain upload", gain),
      ...peerMarks(config, "first-backup", log.medianMs(replicateStep)),
      config.mark("peak resident memory", peakBytes),
    ];
    return { image: await imageFacts(volume), steps: log.steps(), marks, counts, hashes, peakRssBytes: peakBytes };
  } finally {
    await volume.close();
  }
}

/**
 * A cycle after scattered writes, and one after none, against reading the image once. The image is
 * copied before it is written to.
 */
export async function benchScattered(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const [changedStep, unchangedStep, readStep, verifyStep, compareStep] = [
    "after scattered writes",
    "unchanged disk",
    "read what is allocated once",
    "verify the newest point",
    "verify it against the disk",
  ] as const;
  const copy = join(config.temporaryFolder, "scattered.img");
  config.begin("copy the image");
  await copySparsely(config.image, copy, config.signal);
  let counts: Record<string, number> = {};
  let image: ImageFacts | undefined;
  let peakBytes = 0;
  const volume = await FileVolume.open(copy);
  try {
    await inFreshVault(config, store, async (place) => {
      await replicate(log, "first replication, fresh vault", 0, place, volume);
      for (let run = 0; run < config.runs; run += 1) {
        config.begin("overwrite at random", run);
        const granules = await scatterWrites(copy, config.scatterWrites, config.seed + run, config.signal);
        const changed = await replicate(log, changedStep, run, place, volume);
        const unchanged = await replicate(log, unchangedStep, run, place, volume);
        if (run === 0) peakBytes = peakRssBytes();
        await log.time(
          readStep,
          yardstick,
          run,
          async () => await readOnce(volume, config.signal),
          (bytesRead) => bytesRead,
        );
        await verify(log, verifyStep, run, place, {});
        await verify(log, compareStep, run, place, { source: volume });
        counts = {
          writtenBytes: granules * granuleBytes,
          ...replicateCounts(changed),
          unchangedStoredBytes: unchanged.storedBytes,
        };
      }
    });
    image = await imageFacts(volume);
  } finally {
    await volume.close();
  }
  const { changedBytes = NaN, storedBytes = NaN, unchangedStoredBytes = NaN } = counts;
  const reading = log.medianMs(unchangedStep) / log.medianMs(readStep);
  const comparing = log.medianMs(compareStep) / (log.medianMs(verifyStep) + log.medianMs(readStep));
  const marks: Mark[] = [
    ...peerMarks(config, "scattered-backup", log.medianMs(changedStep)),
    config.mark("stored per changed byte", storedBytes / changedBytes),
    config.mark("unchanged disk, of reading it once", reading),
    config.mark("verify --source, of both apart", comparing),
    config.mark("data stored by the unchanged cycle", unchangedStoredBytes),
    config.mark("peak resident memory", peakBytes),
  ];
  const hashes = { "the overwritten image": await contentHash(copy, config.signal) };
  return {
    image: { ...image, path: config.image },
    steps: log.steps(),
    marks,
    counts,
    hashes,
    peakRssBytes: peakBytes,
  };
}

/**
 * Bringing a point back to a new raw file, against the slower of its two halves: reading the same
 * stored bytes from the store and dropping them, and writing the image's bytes durably.
 */
export async function benchRestore(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const [restoreStep, ceilingStep, writeStep] = [
    "restore to a new raw file",
    `Get ceiling, 4 MiB × ${yardstickLanes}`,
    "durable write of the same bytes",
  ] as const;
  const hashes = { image: await readImage(config), point: "" };
  const counts: Record<string, number> = {};
  let peakBytes = 0;
  const volume = await FileVolume.open(config.image);
  try {
    await inFreshVault(config, store, async (place) => {
      await replicate(log, "first replication, fresh vault", 0, place, volume);
      const segments = await storedSegments(place.sink, config.signal);
      counts["storedBytes"] = segments.reduce((sum, { writtenBytes }) => sum + writtenBytes, 0);
      const target = join(config.temporaryFolder, "restored.img");
      for (let run = 0; run < config.runs; run += 1) {
        await inTurns(
          run,
          async () => {
            const summary = await log.time(
              restoreStep,
              ours,
              run,
              async () => await materialize(place, target),
              (done) => done.bytesWritten,
            );
            if (run === 0) peakBytes = peakRssBytes();
            counts["bytesRead"] = summary.bytesRead;
            counts["bytesWritten"] = summary.bytesWritten;
            config.begin("compare with the image", run);
            hashes.point = await sameContent(config, target, hashes.image);
            await rm(target);
          },
          async () => {
            const read = async (): Promise<number> => await getCeiling(place.sink, segments, config.signal);
            await log.time(ceilingStep, yardstick, run, read, (bytesRead) => bytesRead);
            const write = async (): Promise<number> => await writeDurably(volume, target, config.signal);
            await log.time(writeStep, yardstick, run, write, (writtenBytes) => writtenBytes);
            await rm(target);
          },
        );
      }
    });
    const slowerMs = Math.max(log.medianMs(ceilingStep), log.medianMs(writeStep));
    const marks: Mark[] = [
      config.mark("of the slower of both ceilings", slowerMs / log.medianMs(restoreStep)),
      ...peerMarks(config, "restore", log.medianMs(restoreStep)),
      config.mark("peak resident memory", peakBytes),
    ];
    return { image: await imageFacts(volume), steps: log.steps(), marks, counts, hashes, peakRssBytes: peakBytes };
  } finally {
    await volume.close();
  }
}

/** A fresh vault's place: its sink, and how it is opened. */
interface VaultPlace {
  readonly config: BenchConfig;
  readonly sink: NestedSink;
  readonly stateFolder: string;
  /** Of an encrypted vault. */
  readonly keys?: VaultOptions["keys"];
  readonly encryption?: VaultParameters["encryption"];
}

/** Keys of an encrypted vault for this run. */
function makeKeys(): Pick<VaultPlace, "keys" | "encryption"> {
  const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const pem = publicKey.export({ format: "pem", type: "spki" }).toString();
  return {
    keys: { privateKey: privateKey.export({ format: "pem", type: "pkcs8" }).toString() },
    encryption: { certificates: [{ pem, name: "bench" }] },
  };
}

async function inFreshVault(
  config: BenchConfig,
  store: Sink,
  work: (place: VaultPlace) => Promise<void>,
): Promise<void> {
  const stateFolder = join(config.temporaryFolder, "state");
  try {
    await inFreshPlace(store, async (sink) => await work({ config, sink, stateFolder }));
  } finally {
    await rm(stateFolder, { recursive: true, force: true });
  }
}

/** Lends a part of the store in which nothing is, and empties it again. */
async function inFreshPlace(store: Sink, work: (sink: NestedSink) => Promise<void>): Promise<void> {
  const sink = new NestedSink(store, `bench-${randomUUID()}/`);
  await closing(sink, async () => await work(sink));
}

/** One cycle as the command line runs it: the vault is opened for it, or created. */
async function replicate(
  log: StepLog,
  step: string,
  run: number,
  place: VaultPlace,
  volume: FileVolume,
): Promise<ReplicateSummary> {
  const { signal } = place.config;
  const cycle = async (): Promise<ReplicateSummary> =>
    await inVault(place, async (vault) => await vault.replicate({ disk, volume, signal }));
  return await log.time(step, ours, run, cycle, ({ scannedBytes }) => scannedBytes);
}

async function verify(
  log: StepLog,
  step: string,
  run: number,
  place: VaultPlace,
  against: { readonly source?: FileVolume },
): Promise<void> {
  const { signal } = place.config;
  await log.time(
    step,
    ours,
    run,
    async () => {
      const proved = async (vault: Vault): Promise<VerifySummary> =>
        await vault.verify({ disk, point: "latest", ...against, signal });
      const summary = await inVault(place, proved);
      if (summary.damaged.length === 0) return summary;
      throw new TidemarkError("DAMAGED", "the point is not the disk that it was taken of", {
        remedy: "make sure that nothing writes to the image; if nothing does, this is a fault in Tidemark: report it",
      });
    },
    ({ checkedBytes }) => checkedBytes,
  );
}

async function materialize(place: VaultPlace, to: string): Promise<MaterializeSummary> {
  return await inVault(
    place,
    async (vault) => await vault.materialize({ disk, point: "latest", to, format: "raw", signal: place.config.signal }),
  );
}

async function inVault<Result>(place: VaultPlace, work: (vault: Vault) => Promise<Result>): Promise<Result> {
  const { config, sink, stateFolder, keys, encryption } = place;
  const vault = await Vault.openOrCreate(sink, {
    stateFolder,
    keys,
    encryption,
    workers: config.workers,
    lanes: config.lanes,
    signal: config.signal,
  });
  try {
    return await work(vault);
  } finally {
    await vault.close();
  }
}

/**
 * Hashes the image, which also brings it into the system's cache: the store is what is measured,
 * not the disk below the image.
 */
async function readImage(config: BenchConfig): Promise<string> {
  config.begin("read the image");
  return await contentHash(config.image, config.signal);
}

async function provePoint(config: BenchConfig, place: VaultPlace, wantedHash: string): Promise<string> {
  const target = join(config.temporaryFolder, "proved.img");
  config.begin("compare with the image");
  await materialize(place, target);
  const hash = await sameContent(config, target, wantedHash);
  await rm(target);
  return hash;
}

/**
 * The hash of `path`, which must be `wantedHash`: a figure for a wrong result is none. Errors:
 * DAMAGED.
 */
async function sameContent(config: BenchConfig, path: string, wantedHash: string): Promise<string> {
  const hash = await contentHash(path, config.signal);
  if (hash === wantedHash) return hash;
  throw new TidemarkError("DAMAGED", `the point that was brought back is not the image ${config.image}`, {
    remedy:
      "make sure that nothing writes to the image meanwhile; if nothing does, this is a fault in Tidemark: report it",
    detail: { wantedHash, hash },
  });
}

async function inTurns(run: number, first: () => Promise<void>, second: () => Promise<void>): Promise<void> {
  const turns = run % 2 === 0 ? [first, second] : [second, first];
  for (const turn of turns) await turn();
}

function replicateCounts(summary: ReplicateSummary): Record<string, number> {
  const { scannedBytes, changedBytes, zeroBytes, dedupedBytes, newBytes, storedBytes, metadataBytes, requests } =
    summary;
  return { scannedBytes, changedBytes, zeroBytes, dedupedBytes, newBytes, storedBytes, metadataBytes, requests };
}

/** A mark for each peer that was measured with `step`. */
export function peerMarks(config: BenchConfig, step: PeerStep, ownMs: number): Mark[] {
  const times = config.peers.filter((peer) => peer.step === step);
  return times.map(({ peer, seconds }) => {
    const label = `faster than ${peer} (${seconds.toFixed(1)} s)`;
    return config.mark("faster than a peer", (seconds * 1000) / ownMs, label);
  });
}
