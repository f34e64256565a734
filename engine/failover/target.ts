/**
 * Targets of a failover: where the disks of a run go, what belongs to the run there, and what is
 * left of it.
 *
 * A file or page blob gets an owner mark beside it before it is made: `<target>.tidemark-run`, which
 * names the run. So after any crash a file with a mark is the run's and may be removed or written over,
 * and a file without one is not. The mark goes last. That of a file is a symbolic link, which is there
 * as a whole or not at all.
 *
 *     the target's name is free  →  mark  →  target … target removed  →  mark removed
 *
 * A failback goes to an image or device that is there and stays. An image gets the mark, so that no
 * second run takes it; what the run makes beside it is its redo log. A device has no mark, and its log
 * is in the state folder.
 *
 * Invariant: nothing is written over or removed that the run has not made. A device, and the image of
 * a failback, are the exceptions: naming them as the target gives their content away.
 */
import { lstat, readlink, realpath, rm, stat, symlink } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { formatListen, parseListen } from "../disk/nbd/address.ts";
import { fileError } from "../disk/source/positional-file.ts";
import { quiescenceSignature, signatureText } from "../disk/source/quiescence.ts";
import { syncFolder } from "../disk/source/sync-folder.ts";
import { imageFolder } from "../disk/source/unfinished-image.ts";
import { hasCode, systemCode, TidemarkError } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import { partialsOf } from "../recovery/mount/image-files.ts";
import { journalsOf, partialPathOf } from "../recovery/restore/file-target.ts";
import { redoLogNames } from "../recovery/restore/redo-log.ts";
import { targetExists } from "../recovery/restore/target.ts";
import type { Sink } from "../sink.ts";
import { encodeDiskName } from "../store/format/names.ts";
import type { RunDocument, RunMember, TargetKind } from "../store/format/run.ts";
import { Store } from "../store/store.ts";

export type MemberTarget = RunMember["target"];

/** What `--to` names: a target for each disk, and where they are served. */
export interface Targets {
  readonly members: readonly MemberTarget[];
  readonly serving: RunDocument["serving"];
}

const markSuffix = ".tidemark-run";
/** A mark holds one line. */
const markBytesMax = 64;

/**
 * The targets that `text` names for these disks, local paths absolute. Errors: INVALID_ARGUMENT,
 * UNSUPPORTED, TARGET_FAILED when the folder does not exist.
 */
export async function parseTarget(text: string, disks: readonly string[], sink: Sink): Promise<Targets> {
  const [, kind = "", rest = ""] = /^([a-z]+):(.+)$/s.exec(text) ?? [];
  if (kind === "instant") return await parseInstant(text, rest, disks);
  if (kind === "dir") {
    const folder = await absolute(join(rest, "disk.img"), text);
    return unserved(
      disks.map((disk) => ({ kind: "file", path: join(dirname(folder), `${encodeDiskName(disk)}.img`) })),
    );
  }
  if (kind === "blob") {
    if (!sink.capabilities.attachablePages) {
      throw new TidemarkError("UNSUPPORTED", `${sink.description} does not hold page blobs that can be attached`, {
        remedy: "name file:PATH, vhd:PATH, dir:FOLDER or device:PATH, or use a vault in Azure Storage",
      });
    }
    let prefix = rest;
    while (prefix.endsWith("/")) prefix = prefix.slice(0, -1);
    return unserved(disks.map((disk) => ({ kind: "blob", path: `${prefix}/${encodeDiskName(disk)}.vhd` })));
  }
  if (kind !== "file" && kind !== "vhd" && kind !== "device") {
    throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(text)} is not a target of a failover`, {
      remedy: `name instant:unix:PATH, instant:tcp:HOST:PORT, file:PATH, vhd:PATH, dir:FOLDER, device:PATH, blob:PREFIX or replica`,
    });
  }
  if (disks.length > 1) {
    throw new TidemarkError("INVALID_ARGUMENT", `${kind}: names one target, and the run has ${disks.length} disks`, {
      remedy: "name dir:FOLDER or blob:PREFIX",
    });
  }
  const path = await absolute(rest, text);
  if (kind === "device" && (await unlessAbsent(path, async () => await stat(path)))?.isBlockDevice() !== true) {
    throw new TidemarkError("INVALID_ARGUMENT", `the target ${text} is no block device`, {
      remedy: "name a block device, or file:PATH for a new image",
    });
  }
  return unserved([{ kind: kind === "file" && /\.vhd$/i.test(path) ? "vhd" : kind, path }]);
}

/**
 * `unix:PATH|tcp:HOST:PORT[,image=PATH]`. The image of a disk is `DISK.instant.img` in the folder
 * that `image=` names, else in the present one; of one disk, `image=` may name the file.
 */
async function parseInstant(text: string, rest: string, disks: readonly string[]): Promise<Targets> {
  const at = rest.indexOf(",image=");
  const listen = await parseServing(at < 0 ? rest : rest.slice(0, at));
  const named = at < 0 ? "." : rest.slice(at + ",image=".length);
  const isFolder = (await unlessAbsent(named, async () => await stat(resolve(named))))?.isDirectory() === true;
  if (!isFolder && (disks.length > 1 || named.endsWith("/"))) {
    throw new TidemarkError("INVALID_ARGUMENT", `image=${named} is no folder for the images of ${disks.join(", ")}`, {
      remedy: "name a folder that exists; it gets one image for each disk",
    });
  }
  const members: MemberTarget[] = [];
  for (const disk of disks) {
    const path = isFolder ? join(named, `${encodeDiskName(disk)}.instant.img`) : named;
    members.push({ kind: "instant", path: await absolute(path, text) });
  }
  return { members, serving: { listen, protects: false } };
}

/**
 * The address in the form in which a run keeps it. It must be the same each time that the disks are
 * served. Errors: INVALID_ARGUMENT, TARGET_FAILED when the folder of a socket does not exist.
 */
export async function parseServing(text: string): Promise<string> {
  const address = parseListen(text, process.cwd());
  if (typeof address === "string") {
    throw new TidemarkError("INVALID_ARGUMENT", `${text} ${address}`, { remedy: "write unix:PATH or tcp:HOST:PORT" });
  }
  if (address.kind === "tcp" && address.port === 0) {
    throw new TidemarkError("INVALID_ARGUMENT", `${text} names no port, and clients must find the disks again`, {
      remedy: "name a port",
    });
  }
  if (address.kind === "unix") await absolute(address.path, text);
  return formatListen(address);
}

function unserved(members: MemberTarget[]): Targets {
  return { members, serving: null };
}

/**
 * The images and devices to which disks go back, one for each disk. Errors: INVALID_ARGUMENT,
 * TARGET_FAILED.
 */
export async function parseImages(paths: readonly string[], disks: readonly string[]): Promise<MemberTarget[]> {
  if (paths.length !== disks.length) {
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `the run has ${disks.length} disks, and ${paths.length} images are named`,
      { remedy: `name one image or device for each of ${disks.join(", ")}, in this order` },
    );
  }
  const targets: MemberTarget[] = [];
  const images = new Map<string, string>();
  for (const [index, path] of paths.entries()) {
    const disk = disks[index] ?? "";
    const found = await unlessAbsent(path, async () => await realpath(path));
    const stats = found === undefined ? undefined : await stat(found);
    const identity = JSON.stringify(stats?.isBlockDevice() === true ? [stats.rdev] : [stats?.dev, stats?.ino]);
    const other = images.get(identity);
    if (stats !== undefined && other !== undefined) throw sameImage(path, [other, disk]);
    images.set(identity, disk);
    if (found !== undefined && stats?.isBlockDevice() === true)
      targets.push({ kind: "device", path: await absolute(path, path) });
    else if (found !== undefined && stats?.isFile() === true) targets.push({ kind: "image", path: found });
    else {
      throw new TidemarkError("INVALID_ARGUMENT", `${path} is no image and no block device to which a disk goes back`, {
        remedy: "name the old image; to make a new one, use `tidemark failover planned`",
        detail: { path },
      });
    }
  }
  return targets;
}

function sameImage(path: string, disks: readonly string[]): TidemarkError {
  const fact = `${path} is named for the disks ${disks.map((disk) => JSON.stringify(disk)).join(" and ")}`;
  return new TidemarkError("INVALID_ARGUMENT", fact, {
    remedy: "name another image for each disk, in the order of the run",
    detail: { path },
  });
}

/** The target of a member of a run, in the hand of the run. Errors: UNSUPPORTED. */
export function ownedTargetOf(
  { sink, stateFolder, document: { vault } }: VaultContext,
  { run, kind }: Pick<RunDocument, "run" | "kind">,
  { disk, target }: Pick<RunMember, "disk" | "target">,
): OwnedTarget {
  return new OwnedTarget(target, run, sink, kind === "failback" ? logBase() : undefined);

  function logBase(): string {
    if (target.kind !== "device") return target.path;
    if (stateFolder !== undefined) return join(stateFolder, vault, `failback-${run}-${encodeDiskName(disk)}`);
    throw new TidemarkError(
      "UNSUPPORTED",
      `without a state folder there is no room for the redo log of ${target.path}`,
      {
        remedy: "name a state folder",
      },
    );
  }
}

/** What `materialize` calls the target. */
export function materializeName({ kind, path }: MemberTarget): string {
  return kind === "blob" ? `blob:${path}` : path;
}

/** The target as users name it. */
export function targetName({ kind, path }: MemberTarget): string {
  return `${kind}:${path}`;
}

/** Looks and writes where one kind of target is. */
interface Ground {
  exists(name: string): Promise<boolean>;
  /** The content, or undefined. */
  readMark(name: string): Promise<string | undefined>;
  /** Errors: TARGET_EXISTS when there is one. */
  putMark(name: string, text: string): Promise<void>;
  /** Absent is fine. Durable when it returns. */
  remove(name: string): Promise<void>;
}

/** The hand of a run on one target. */
export class OwnedTarget {
  readonly #target: MemberTarget;
  readonly #owner: string;
  readonly #ground: Ground;
  /** Of a failback, what the names of its redo log begin with. */
  readonly logBase: string | undefined;

  constructor(target: MemberTarget, run: string, sink: Sink, logBase: string | undefined) {
    this.#target = target;
    this.logBase = logBase;
    this.#owner = run;
    this.#ground = target.kind === "blob" ? blobGround(sink) : fileGround;
  }

  /** Whether the target is there, with or without the mark of the run. */
  async exists(): Promise<boolean> {
    return await this.#ground.exists(this.#target.path);
  }

  /** The run whose mark is there; undefined: none. */
  async markedBy(): Promise<string | undefined> {
    return await this.#ground.readMark(this.#mark);
  }

  /** Errors: TARGET_EXISTS when something is there, or another run has the name. */
  async refuseTaken(): Promise<void> {
    if (this.#target.kind === "device") return;
    if ((await this.markedBy()) !== undefined) throw markTaken(this.#mark);
    await this.#refuseContent();
  }

  /** What a run that is forgotten may have made here, its mark included. */
  async remains(): Promise<string[]> {
    const names = [...(await this.#content()), this.#mark];
    const found = await Promise.all(names.map(async (name) => ((await this.#ground.exists(name)) ? [name] : [])));
    return found.flat();
  }

  /**
   * Makes the target's name the run's. Returns whether something of the run is there already.
   * Errors: TARGET_EXISTS.
   */
  async own(): Promise<boolean> {
    const { path, kind } = this.#target;
    if (kind === "device") return true;
    if (await this.isOwned()) return await this.#ground.exists(path);
    if (kind === "image") {
      await this.#ground.putMark(this.#mark, this.#owner);
      return true;
    }
    await this.#refuseContent();
    await this.#ground.putMark(this.#mark, this.#owner);
    try {
      await this.#refuseContent();
    } catch (error) {
      await this.#ground.remove(this.#mark);
      throw error;
    }
    return false;
  }

  /** Removes what the run has made. A device is left as it is. */
  async remove(): Promise<void> {
    if (this.#target.kind !== "device" && !(await this.isOwned())) return;
    await this.removeContent();
    if (this.#target.kind !== "device") await this.#ground.remove(this.#mark);
  }

  /** Removes everything but the mark, which must be there. */
  async removeContent(): Promise<void> {
    for (const name of await this.#content()) await this.#ground.remove(name);
  }

  /** Gives the target to the user: only the mark goes. */
  async handOver(): Promise<void> {
    if (this.#target.kind !== "device" && (await this.isOwned())) await this.#ground.remove(this.#mark);
  }

  /** What of the run is there, as users name it. `wasMade`: the run has finished the target once. */
  async leftovers(wasMade: boolean): Promise<string[]> {
    const { kind, path } = this.#target;
    const isOurs = kind === "device" || (await this.isOwned());
    const marks = kind === "device" ? [] : [this.#mark];
    const names = isOurs ? [...(await this.#content()), ...marks] : wasMade && kind !== "image" ? [path] : [];
    const left: string[] = [];
    for (const name of names)
      if (await this.#ground.exists(name))
        left.push(`${kind === "device" || kind === "image" ? "file" : kind}:${name}`);
    return left;
  }

  /**
   * What stands for the present content: if it is the same later, no program has written the target.
   * Null: not known.
   */
  async signature(): Promise<string | null> {
    const { kind, path } = this.#target;
    if (kind === "blob" || kind === "instant") return null;
    const isDevice = kind === "device";
    const image = { kind: isDevice ? "device" : "file", path, dev: "0", ino: "0", rdev: "0" } as const;
    const found = await quiescenceSignature(image);
    return found === undefined ? null : signatureText(found);
  }

  /** The names of what a run can make, but for the mark, which goes last: what has it is the run's. */
  async #content(): Promise<string[]> {
    const { kind, path } = this.#target;
    const log = this.logBase === undefined ? [] : redoLogNames(this.logBase);
    if (kind === "device" || kind === "image") return [...log];
    if (kind === "blob") return [path];
    if (kind === "instant") return [path, ...(await partialsOf(path)), imageFolder(path)];
    return [path, ...(await journalsOf(path)), partialPathOf(path)];
  }

  /** Errors: TARGET_EXISTS when the target is there, or what would be beside it. */
  async #refuseContent(): Promise<void> {
    const { kind, path } = this.#target;
    const names = kind === "image" ? [] : kind === "instant" ? [path, imageFolder(path)] : [path];
    for (const name of names) if (await this.#ground.exists(name)) throw taken({ kind, path: name });
  }

  get #mark(): string {
    return `${this.#target.path}${markSuffix}`;
  }

  /** Whether the target has the mark of the run. */
  async isOwned(): Promise<boolean> {
    return (await this.markedBy()) === this.#owner;
  }
}

const fileGround: Ground = {
  async exists(name) {
    return (await unlessAbsent(name, async () => await lstat(name))) !== undefined;
  },
  async readMark(name) {
    return await unlessAbsent(name, async () => await readlink(name));
  },
  async putMark(name, text) {
    try {
      await symlink(text, name);
      await syncFolder(dirname(name));
    } catch (error) {
      throw systemCode(error) === "EEXIST" ? markTaken(name, error) : failed(name, error);
    }
  },
  async remove(name) {
    try {
      await rm(name, { force: true });
      await syncFolder(dirname(name));
    } catch (error) {
      if (systemCode(error) !== "ENOENT") throw failed(name, error);
    }
  },
};

function blobGround(sink: Sink): Ground {
  return {
    async exists(name) {
      try {
        await sink.statObject(name);
        return true;
      } catch (error) {
        if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
      }
      try {
        await sink.statPages(name);
        return true;
      } catch (error) {
        if (hasCode(error, "OBJECT_NOT_FOUND")) return false;
        throw error;
      }
    },
    async readMark(name) {
      try {
        const { bytes } = await sink.getObject(name, markBytesMax);
        return Buffer.from(bytes).toString("utf8");
      } catch (error) {
        if (hasCode(error, "OBJECT_NOT_FOUND")) return undefined;
        throw error;
      }
    },
    async putMark(name, text) {
      try {
        await new Store(sink).putOnce(name, Buffer.from(text));
      } catch (error) {
        throw hasCode(error, "OBJECT_EXISTS") ? markTaken(name, error) : error;
      }
    },
    async remove(name) {
      await sink.deleteObject(name);
    },
  };
}

async function unlessAbsent<Value>(name: string, look: () => Promise<Value>): Promise<Value | undefined> {
  try {
    return await look();
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw failed(name, error, "look at");
  }
}

async function absolute(path: string, text: string): Promise<string> {
  const folder = dirname(resolve(path));
  try {
    return join(await realpath(folder), basename(path));
  } catch (error) {
    throw fileError(error, {
      code: "TARGET_FAILED",
      what: `cannot look at the folder of the target ${text}`,
      remedy: "make the folder first",
      detail: { target: text },
    });
  }
}

function taken(target: MemberTarget): TidemarkError {
  return new TidemarkError("TARGET_EXISTS", targetExists(targetName(target), false).message, {
    remedy: "name another target; a failover writes over none",
    detail: { target: targetName(target) },
  });
}

function markTaken(name: string, cause?: unknown): TidemarkError {
  return new TidemarkError("TARGET_EXISTS", `${name} marks the target of another failover run`, {
    remedy: "name another target, or end that run: `tidemark failover list` shows it",
    detail: { target: name },
    cause,
  });
}

function failed(name: string, cause: unknown, work: "look at" | "write" = "write"): TidemarkError {
  return fileError(cause, {
    code: "TARGET_FAILED",
    what: `cannot ${work} ${name}`,
    remedy: "check the disk that holds it, then run the command again",
    detail: { target: name },
  });
}

/** The form in which the target holds the disk. */
export function formatOf(kind: TargetKind): "raw" | "vhd" {
  return kind === "vhd" || kind === "blob" ? "vhd" : "raw";
}
