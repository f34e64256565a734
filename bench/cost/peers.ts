/**
 * Benchmark: peers. Programs that people use for the same job do it with the same image, and, where
 * they can, in the same store: a first backup, a backup after scattered writes, and a restore.
 *
 *     restic              through rclone into the same Azurite, or into a local folder
 *     borg                into a local folder: it knows no object store
 *     qemu-img            to a compressed qcow2 in a local folder, in full each time
 *     plain upload        every 4 MiB that is not zero, in full each time, through Tidemark's client
 *
 * A program that is not installed is left out. Each restore is compared with the image.
 */
import { createHmac } from "node:crypto";
import { rename, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import type { Sink } from "../../engine/index.ts";
import { FileVolume, TidemarkError, Vault } from "../../engine/index.ts";
import { makeFolder } from "../../engine/internal.ts";
import { Azurite, parseVaultSpec } from "../../sink/index.ts";
import { contentHash, copySparsely, imageFacts, scatterWrites } from "../image.ts";
import { sameHash } from "../keep/place.ts";
import { isInstalled, runProgram } from "../live/programs.ts";
import { peakRssBytes } from "../machine.ts";
import { NestedSink } from "../nested-sink.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { StepLog } from "../steps.ts";
import { uploadPlainly } from "../yardsticks.ts";

/** One way to back up an image, and to restore its newest state to a new file. */
interface Peer {
  readonly name: string;
  readonly backup: (number: number) => Promise<unknown>;
  /** It keeps points in the same store, so Tidemark is held against it. The others are only shown. */
  readonly isHeldAgainst?: true;
  /** Absent where it keeps no points. */
  readonly restore?: (target: string) => Promise<unknown>;
  readonly end?: () => Promise<void>;
}

const own = "tidemark";
const [firstStep, scatteredStep, restoreStep] = ["first backup", "scattered writes", "restore"] as const;

export async function benchPeers(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { temporaryFolder, signal, begin } = config;
  const image = join(temporaryFolder, "peers.img");
  begin("copy the image");
  await copySparsely(config.image, image, signal);
  const volume = await FileVolume.open(image);
  const sink = new NestedSink(store, `bench-peers-${process.pid}/`);
  const peers: Peer[] = [
    tidemark(config, sink, volume),
    plainUpload(config, sink, volume),
    ...(await installed(config, image)),
  ];
  try {
    const facts = { ...(await imageFacts(volume)), path: config.image };
    const time = async ({ name }: Peer, step: string, work: () => Promise<unknown>): Promise<unknown> => {
      const role = name === own ? "tidemark" : "yardstick";
      return await log.time(`${name}: ${step}`, { role, unit: "bytes" }, 0, work, () => facts.allocatedBytes);
    };
    await contentHash(image, signal); // into the page cache
    for (const peer of peers) await time(peer, firstStep, async () => await peer.backup(1));
    begin("overwrite at random");
    await scatterWrites(image, config.scatterWrites, config.seed, signal);
    const hash = await contentHash(image, signal);
    for (const peer of peers) await time(peer, scatteredStep, async () => await peer.backup(2));
    const target = join(temporaryFolder, "restored.img");
    for (const peer of peers) {
      const { name, restore } = peer;
      if (restore === undefined) continue;
      await time(peer, restoreStep, async () => await restore(target));
      sameHash(await contentHash(target, signal), hash, `what ${name} restored`);
      await rm(target);
    }
    const held = peers.filter(({ isHeldAgainst }) => isHeldAgainst);
    return {
      image: facts,
      steps: log.steps(),
      marks: held.flatMap(({ name }) =>
        [firstStep, scatteredStep, restoreStep].map((step) =>
          config.mark(step, log.medianMs(`${name}: ${step}`) / log.medianMs(`${own}: ${step}`), `${step}, of ${name}`),
        ),
      ),
      counts: { scatteredWrites: config.scatterWrites },
      hashes: { image: hash },
      peakRssBytes: peakRssBytes(),
    };
  } finally {
    await volume.close();
    for (const { end } of peers) await end?.();
    await sink[Symbol.asyncDispose]();
  }
}

function tidemark({ temporaryFolder, workers, lanes, signal }: BenchConfig, sink: Sink, volume: FileVolume): Peer {
  const stateFolder = join(temporaryFolder, "state");
  const inVault = async <Result>(work: (vault: Vault) => Promise<Result>): Promise<Result> => {
    const vault = await Vault.openOrCreate(sink, { stateFolder, workers, lanes, signal });
    try {
      return await work(vault);
    } finally {
      await vault.close();
    }
  };
  const disk = "bench";
  return {
    name: own,
    backup: async () => await inVault(async (vault) => await vault.replicate({ disk, volume, signal })),
    restore: async (to) =>
      await inVault(async (vault) => await vault.materialize({ disk, point: "latest", to, format: "raw", signal })),
  };
}

function plainUpload({ signal }: BenchConfig, sink: Sink, volume: FileVolume): Peer {
  const backup = async (number: number): Promise<number> => {
    await sink.createContainer({ signal });
    return await uploadPlainly(volume, sink, `plain-${number}`, signal);
  };
  return { name: "upload", backup };
}

/** The programs that are installed here. */
async function installed(config: BenchConfig, image: string): Promise<Peer[]> {
  const { temporaryFolder } = config;
  const makers = [
    [["restic", "rclone"], restic],
    [["borg"], borg],
    [["qemu-img"], qemuImg],
  ] as const;
  const peers: Peer[] = [];
  for (const [programs, make] of makers) {
    const here = await Promise.all(programs.map(async (program) => await isInstalled(program, temporaryFolder)));
    if (here.every(Boolean)) peers.push(await make(config, image));
  }
  return peers;
}

async function restic(config: BenchConfig, image: string): Promise<Peer> {
  const { temporaryFolder, live } = config;
  const spec = parseVaultSpec(live.storeAddress.address);
  // One more user of the Azurite that has the vault.
  const azurite = spec.kind === "azurite" ? await Azurite.start(spec.dir, { signal: config.signal }) : undefined;
  const container = `:azureblob:peers-${process.pid}`;
  const environment = {
    RESTIC_PASSWORD: "bench",
    RESTIC_CACHE_DIR: join(temporaryFolder, "restic-cache"),
    RCLONE_CONFIG: "/dev/null",
    ...(azurite === undefined
      ? { RESTIC_REPOSITORY: join(temporaryFolder, "restic") }
      : {
          RESTIC_REPOSITORY: `rclone:${container}/restic`,
          // Of an endpoint by its IP address, all versions of rclone understand this form alone.
          RCLONE_AZUREBLOB_SAS_URL: `${azurite.endpoint}?${accountSas(azurite)}`,
        }),
  };
  const run = async (...words: string[]): Promise<void> => await runPeer(config, "restic", words, environment);
  if (azurite !== undefined) await runPeer(config, "rclone", ["mkdir", container], environment);
  await run("init");
  return {
    name: "restic",
    isHeldAgainst: true,
    backup: async () => await run("backup", image),
    restore: async (target) => {
      const folder = join(temporaryFolder, "restic-restored");
      await run("restore", "latest", "--target", folder);
      await rename(join(folder, image), target);
    },
    end: async () => {
      if (azurite === undefined) return;
      await runPeer(config, "rclone", ["purge", container], environment);
      await azurite.stop();
    },
  };
}

/** A signature for all of the account, for a day (Create an account SAS, version 2019-12-12). */
function accountSas({ endpoint, key }: Azurite): string {
  const account = new URL(endpoint).pathname.slice(1);
  const expiry = `${new Date(Date.now() + 24 * 3_600_000).toISOString().slice(0, 19)}Z`;
  const fields = { sv: "2019-12-12", ss: "b", srt: "sco", sp: "rwdlac", se: expiry };
  const { sv, ss, srt, sp, se } = fields;
  const signed = `${[account, sp, ss, srt, "", se, "", "", sv].join("\n")}\n`;
  const sig = createHmac("sha256", Buffer.from(key, "base64")).update(signed).digest("base64");
  return new URLSearchParams({ ...fields, sig }).toString();
}

async function borg(config: BenchConfig, image: string): Promise<Peer> {
  const { temporaryFolder } = config;
  const repository = join(temporaryFolder, "borg");
  const environment = {
    BORG_REPO: repository,
    BORG_BASE_DIR: join(temporaryFolder, "borg-base"),
    BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: "yes",
  };
  const run = async (...words: string[]): Promise<void> => await runPeer(config, "borg", words, environment);
  await run("init", "--encryption=none");
  return {
    name: "borg",
    backup: async (number) => await run("create", `::${number}`, image),
    restore: async (target) => {
      const folder = join(temporaryFolder, "borg-restored");
      await makeFolder(folder);
      await runPeer(config, "borg", ["extract", "--sparse", "::2"], environment, folder);
      await rename(join(folder, image), target);
    },
  };
}

async function qemuImg(config: BenchConfig, image: string): Promise<Peer> {
  const path = (number: number): string => join(config.temporaryFolder, `${basename(image)}-${number}.qcow2`);
  const convert = async (...words: string[]): Promise<void> =>
    await runPeer(config, "qemu-img", ["convert", ...words], {});
  return await Promise.resolve({
    name: "qemu-img",
    backup: async (number) => await convert("-c", "-f", "raw", "-O", "qcow2", image, path(number)),
    restore: async (target) => await convert("-f", "qcow2", "-O", "raw", path(2), target),
  });
}

/** Runs a peer to its end. Errors: INTERNAL with what it said. */
async function runPeer(
  { temporaryFolder, signal }: BenchConfig,
  program: string,
  words: readonly string[],
  environment: Readonly<Record<string, string>>,
  folder: string = temporaryFolder,
): Promise<void> {
  const { exitCode, stderr } = await runProgram(program, words, folder, signal, environment);
  if (exitCode === 0) return;
  throw new TidemarkError("INTERNAL", `${program} ended with ${String(exitCode)}: ${stderr.trim().slice(0, 300)}`, {
    remedy: `try ${program} by hand`,
  });
}
