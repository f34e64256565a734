/**
 * Proof of a run, when nothing writes any more: past the fault proxy, and without local caches.
 *
 *     image:   holds every acknowledged write
 *     newest:  point of each disk equals its image
 *     bytes:   every chunk of every point has the bytes of its digest
 *     points:  each listed one holds exactly the writes before one instant; those of a group, one instant for all
 *     at rest: a bit that is flipped in the store is found and healed from the disk
 */
import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import {
  type Damage,
  FileVolume,
  hasCode,
  type ListedPoint,
  pageAlignmentBytes,
  type Sink,
  type TidemarkError,
  Vault,
  type VaultOptions,
} from "../../engine/index.ts";
import { imageIn } from "./agent-process.ts";
import { isOneInstant, type PointJudgement, type StampLog } from "./stamps.ts";

/** Longer than a collection's lease. */
const leaseMsMax = 90_000;
const lookMs = 2_000;

export interface ProofParts {
  readonly sink: Sink;
  /** Of an encrypted vault. */
  readonly keys: VaultOptions["keys"];
  readonly folder: string;
  readonly logs: ReadonlyMap<string, StampLog>;
  readonly onStep: (text: string) => void;
  readonly signal: AbortSignal;
}

export interface Proof {
  readonly damage: readonly string[];
  readonly listed: number;
  readonly exact: number;
  readonly fuzzy: number;
  readonly checkedChunks: number;
  readonly storedBytes: number;
}

/** Proves everything. Damage is no error. Errors: INTERRUPTED, and those of the store. */
export async function prove(parts: ProofParts): Promise<Proof> {
  const { sink, keys, folder, logs, onStep, signal } = parts;
  const vault = await Vault.open(sink, { keys, signal });
  try {
    onStep("collecting what nothing needs");
    const damage = await unlessDamaged(async () => await collect(vault, signal));
    onStep("proving every byte");
    const verified = await vault.verify({ signal });
    damage.push(...verified.damaged.map(damageText));
    const points = (
      await Promise.all([...logs.keys()].map(async (disk) => await vault.points(disk, { signal })))
    ).flat();
    const groups = new Map<string, PointJudgement[]>();
    const counts = { exact: 0, fuzzy: 0 };
    for (const [index, point] of points.entries()) {
      onStep(`holding points against the acknowledged writes: ${index + 1} of ${points.length}`);
      const { disk, sequence, time, consistency, group } = point;
      if (consistency === "fuzzy") {
        counts.fuzzy += 1;
        continue;
      }
      const log = logs.get(disk);
      if (log === undefined) continue;
      const judge = async (): Promise<void> => {
        const judgement = log.judgePoint(await bytesOf(vault, point, signal), Date.parse(time));
        damage.push(...judgement.faults.map((fault) => `point ${sequence} of ${disk}: ${fault}`));
        if (judgement.faults.length === 0) counts.exact += 1;
        if (group !== null) groups.set(group.id, [...(groups.get(group.id) ?? []), judgement]);
      };
      damage.push(...(await unlessDamaged(judge)));
    }
    for (const [id, judgements] of groups)
      if (!isOneInstant(judgements)) damage.push(`the group point ${id} is not one instant of its disks`);
    for (const [disk, log] of logs) {
      const image = await readFile(imageIn(folder, disk));
      damage.push(...log.faultsOfDisk(image).map((fault) => `disk ${disk}: ${fault}`));
      const newest = points.filter((point) => point.disk === disk).at(-1);
      const compare = async (): Promise<void> => {
        if (newest === undefined) damage.push(`disk ${disk} has no point`);
        else if (!image.equals(await bytesOf(vault, newest, signal)))
          damage.push(`disk ${disk}: its newest point ${newest.sequence} is not what the disk holds`);
      };
      damage.push(...(await unlessDamaged(compare)));
    }
    const storedBytes = await vault.segmentBytes(signal);
    return { damage, listed: points.length, ...counts, checkedChunks: verified.checkedChunks, storedBytes };
  } finally {
    await vault.close();
  }
}

/** Does a part of the proof; gives what it says when the vault is damaged. */
async function unlessDamaged(part: () => Promise<void>): Promise<string[]> {
  try {
    await part();
    return [];
  } catch (error) {
    if (!hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND", "FORMAT_UNSUPPORTED")) throw error;
    return [damageText(error)];
  }
}

/** Waits for the lease of a collection that was killed, or that the store had when it went back. */
async function collect(vault: Vault, signal: AbortSignal): Promise<void> {
  for (const deadlineMs = performance.now() + leaseMsMax; ; ) {
    try {
      await vault.collect({ signal });
      return;
    } catch (error) {
      if (!hasCode(error, "COLLECTION_ACTIVE") || performance.now() > deadlineMs) throw error;
    }
    await delay(lookMs, undefined, { signal });
  }
}

async function bytesOf(vault: Vault, { disk, point, volumeBytes }: ListedPoint, signal: AbortSignal): Promise<Buffer> {
  await using handle = await vault.openPoint({ disk, point, signal });
  const bytes = Buffer.alloc(volumeBytes);
  await handle.read(0, bytes);
  return bytes;
}

function damageText({ code, message }: Pick<Damage | TidemarkError, "code" | "message">): string {
  return `${message} (${code})`;
}

/** How far each segment of a disk is written, in bytes. */
export async function writtenSegments(sink: Sink, disk: string): Promise<ReadonlyMap<string, number>> {
  const written = new Map<string, number>();
  for await (const { name } of sink.list(`segments/${disk}/`)) {
    const { writtenBytes } = await sink.statPages(name);
    written.set(name, writtenBytes);
  }
  return written;
}

/** In the first payload of a frame, which stands behind its header of 128 bytes (FORMAT.md). */
const flippedByte = 128 + 8;

/**
 * Flips a bit of the first payload of a frame that was written since `before`, at rest. The disk
 * still holds its content. Gives what went wrong: not found, or not healed.
 */
export async function flipAtRest(
  { sink, keys, folder, signal }: Pick<ProofParts, "sink" | "keys" | "folder" | "signal">,
  disk: string,
  before: ReadonlyMap<string, number>,
): Promise<readonly string[]> {
  const grown = [...(await writtenSegments(sink, disk))].find(([name, bytes]) => bytes > (before.get(name) ?? 0));
  if (grown === undefined) return [`no frame was written for the last writes of ${disk}`];
  const [segment] = grown;
  const offset = before.get(segment) ?? 0;
  const page = new Uint8Array(pageAlignmentBytes);
  await sink.readPages(segment, offset, page);
  page.set([(page[flippedByte] ?? 0) ^ 1], flippedByte);
  const { sequenceNumber } = await sink.statPages(segment);
  await sink.writePages(segment, offset, page, { sequenceNumber });
  const vault = await Vault.open(sink, { keys, signal });
  const source = await FileVolume.open(imageIn(folder, disk));
  try {
    const found = await vault.verify({ disk, point: "latest", signal });
    const healed = await vault.verify({ disk, source, heal: true, signal });
    const left = healed.damaged.filter((damage) => !damage.healed);
    if (found.damaged.length === 0) return [`a bit that was flipped at rest in ${segment} at ${offset} was not found`];
    return left.map((damage) => `a bit that was flipped at rest was found and not healed: ${damageText(damage)}`);
  } finally {
    await source.close();
    await vault.close();
  }
}
