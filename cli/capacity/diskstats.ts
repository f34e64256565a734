/**
 * Counters of writes that Linux keeps for a block device (Documentation/block/stat.rst).
 *
 * They tell how many writes there were and how large, of all programs, exactly. They do not tell
 * where these writes went, so a granule that is written twice counts twice.
 */
import { readFile } from "node:fs/promises";
import { systemCode, TidemarkError } from "../../engine/index.ts";

/** Writes to a device since it was attached. */
export interface WriteCounts {
  readonly writes: number;
  readonly writtenBytes: number;
}

const sectorBytes = 512;
/** Fields of the file: writes completed, sectors written. */
const writesAt = 4;
const sectorsAt = 6;

/** The counts in a file `stat` of sysfs; undefined when there is none. */
export async function readWriteCounts(path: string): Promise<WriteCounts | undefined> {
  const text = await readSysfs(path);
  const fields = text?.trim().split(/\s+/).map(Number) ?? [];
  const [writes, sectors] = [fields[writesAt], fields[sectorsAt]];
  return writes === undefined || sectors === undefined ? undefined : { writes, writtenBytes: sectors * sectorBytes };
}

/** Folder of a device by its name, such as `sda` or `dm-0`. Errors: SOURCE_NOT_FOUND. */
export async function deviceFolder(name: string): Promise<{ readonly folder: string; readonly sizeBytes: number }> {
  const folder = `/sys/class/block/${name}`;
  const sectors = /^[\w!.:-]+$/.test(name) ? await readSysfs(`${folder}/size`) : undefined;
  if (sectors !== undefined) return { folder, sizeBytes: Number(sectors) * sectorBytes };
  throw new TidemarkError("SOURCE_NOT_FOUND", `Linux knows no block device ${JSON.stringify(name)}`, {
    remedy: "name one that `lsblk` lists, without /dev/, such as sda",
    detail: { device: name },
  });
}

async function readSysfs(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return undefined;
  }
}
