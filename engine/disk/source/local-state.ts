/**
 * Local state folder: caches that make the next cycle cheap. No point depends on them. One folder
 * per vault and disk:
 *
 *     STATE/<vault id>/dedup-index
 *     STATE/<vault id>/writer-key        what a machine that is enrolled to write to an encrypted vault needs
 *     STATE/<vault id>/<disk>/fingerprints-<point id>   what the disk held at that point
 *     STATE/<vault id>/<disk>/source.json               the source, so that no restore overwrites it unasked
 *     STATE/<vault id>/<disk>/newest-seen               the newest point that this machine has seen: see `head-watch.ts`
 *     STATE/<vault id>/<disk>/tracking                  protected disk: what may have changed since its newest points
 *     STATE/vaults/<checksum of the address>            copy of the vault's document, for an unreachable store
 *
 * Files and folders here are opened and made as `plain-file.ts` says, because the folder may lie
 * where other users can write.
 *
 * A failure here never fails a cycle: it is reported as a notice and the cycle goes on without the
 * cache.
 */
import { stat } from "node:fs/promises";
import path from "node:path";
import { systemCode, TidemarkError, unlessAbsent } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import { checksum, toHex } from "../../store/format/checksum.ts";
import type { VaultDocument } from "../../store/format/documents.ts";
import { decodeVault, documentBytesMax } from "../../store/format/documents.ts";
import { encodeDiskName } from "../../store/format/names.ts";
import type { WriterKeyFile } from "../../store/keys/unlock.ts";
import type { FileIdentity } from "./file-identity.ts";
import type { FingerprintReader as Reader } from "./fingerprints.ts";
import { FingerprintReader, FingerprintWriter, fingerprintPath, removeOthers } from "./fingerprints.ts";
import { makeFolders, readPlain, replacePlain } from "./plain-file.ts";
import { fileError } from "./positional-file.ts";

const sourceName = "source.json";

/** More than the identity of a file, with a path of 4 KiB, has. */
const sourceBytesMax = 65_536;

/** What a disk was last replicated from, and for a file its permissions. */
export interface RememberedSource extends FileIdentity {
  readonly mode?: number | undefined;
}

export interface LocalStateOptions {
  /** The state folder; absent, nothing is kept. */
  readonly folder: string | undefined;
  readonly vault: string;
  readonly disk: string;
  readonly onNotice: (notice: Notice) => void;
}

/** Takes fingerprints and stops taking them, once, when they cannot be kept. */
export interface PrintSink {
  put(firstGranule: number, bytes: Uint8Array): void;
  drain(): Promise<void>;
  /** Completes the file for a point that is about to be committed. */
  finish(about: { readonly point: string; readonly volumeBytes: number }): Promise<void>;
  discard(): Promise<void>;
}

export class LocalState {
  readonly #options: LocalStateOptions;
  readonly vaultFolder: string | undefined;
  readonly diskFolder: string | undefined;

  constructor(options: LocalStateOptions) {
    this.#options = options;
    this.vaultFolder = options.folder === undefined ? undefined : path.join(options.folder, options.vault);
    this.diskFolder =
      this.vaultFolder === undefined ? undefined : path.join(this.vaultFolder, encodeDiskName(options.disk));
  }

  /**
   * Fingerprints of exactly this point, or undefined, with a notice that says why when there should
   * have been some.
   */
  async openPrints(point: string): Promise<Reader | undefined> {
    const { vault, disk, onNotice } = this.#options;
    const reason = await this.#openPrints(point, vault, disk);
    if (typeof reason !== "string") return reason;
    const message = `no local fingerprints of the newest point (${reason}): the disk is compared with the vault instead`;
    onNotice({ code: "STATE_LOST", message });
    return undefined;
  }

  async #openPrints(point: string, vault: string, disk: string): Promise<Reader | string> {
    if (this.diskFolder === undefined) return "there is no state folder";
    try {
      const opened = await FingerprintReader.open(fingerprintPath(this.diskFolder, point), {
        vaultId: vault,
        disk,
        point,
      });
      return "reader" in opened ? opened.reader : opened.reason;
    } catch (error) {
      if (error instanceof TidemarkError || systemCode(error) !== undefined)
        return error instanceof Error ? error.message : "unreadable";
      throw error;
    }
  }

  /**
   * Starts a fingerprint file. Without a folder, or when it cannot be written, what it is given is
   * dropped.
   */
  async createPrints(seed: readonly [number, number]): Promise<PrintSink> {
    const folder = this.diskFolder;
    if (folder === undefined) return noPrints;
    const { vault: vaultId, disk } = this.#options;
    let writer = await this.#tolerate("STATE_NOT_SAVED", async () => {
      await this.makeDiskFolder();
      return await FingerprintWriter.create(folder, { vaultId, disk, seed });
    });
    const attempt = async (work: (live: FingerprintWriter) => Promise<unknown>): Promise<void> => {
      const live = writer;
      if (live === undefined) return;
      const done = await this.#tolerate("STATE_NOT_SAVED", async () => {
        await work(live);
        return true;
      });
      if (done !== undefined) return;
      writer = undefined;
      await this.#tolerate("STATE_NOT_SAVED", async () => {
        await live.discard();
      });
    };
    return {
      put: (firstGranule, bytes) => writer?.put(firstGranule, bytes),
      drain: async () => {
        await attempt(async (live) => {
          await live.drain();
        });
      },
      finish: async (about) => {
        await attempt(async (live) => await live.finish(about));
      },
      discard: async () => {
        await attempt(async (live) => {
          await live.discard();
        });
      },
    };
  }

  /** After a commit: forgets the fingerprints of earlier points. */
  async keepOnly(point: string): Promise<void> {
    const folder = this.diskFolder;
    if (folder === undefined) return;
    await this.#tolerate("STATE_NOT_SAVED", async () => {
      await removeOthers(folder, point);
    });
  }

  /** Notes the source, and the mode of a file: a restored image gets it. */
  async rememberSource(identity: FileIdentity): Promise<void> {
    const folder = this.diskFolder;
    if (folder === undefined) return;
    await this.#tolerate("STATE_NOT_SAVED", async () => {
      const mode = identity.kind === "file" ? (await stat(identity.path)).mode & 0o777 : undefined;
      await this.makeDiskFolder();
      await replacePlain(path.join(folder, sourceName), `${JSON.stringify({ ...identity, mode })}\n`);
    });
  }

  /** What the disk was last replicated from on this machine, if that is known. */
  async source(): Promise<RememberedSource | undefined> {
    if (this.diskFolder === undefined) return undefined;
    let text: string;
    try {
      text = (await readPlain(path.join(this.diskFolder, sourceName), sourceBytesMax)).toString("utf8");
    } catch (error) {
      if (!(error instanceof TidemarkError) && systemCode(error) === undefined) throw error;
      return undefined;
    }
    return parseIdentity(text);
  }

  /**
   * Makes the disk's folder. Undefined when nothing is kept.
   *
   * @throws as `makeFolders`.
   */
  async makeDiskFolder(): Promise<string | undefined> {
    const { folder, vault, disk } = this.#options;
    return folder === undefined ? undefined : await makeFolders(folder, vault, encodeDiskName(disk));
  }

  /** Runs `work`; when the file system refuses, says so and returns undefined. */
  async #tolerate<Result>(code: Notice["code"], work: () => Promise<Result>): Promise<Result | undefined> {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof TidemarkError) && systemCode(error) === undefined) throw error;
      const why = error instanceof Error ? error.message : String(error);
      this.#options.onNotice({ code, message: `local state cannot be kept, so the next cycle will be slower: ${why}` });
      return undefined;
    }
  }

  /** As `tolerate`, for the vault's own cache. */
  async saveCache(save: (folder: string) => Promise<void>): Promise<void> {
    const { folder } = this.#options;
    if (folder === undefined) return;
    await this.#tolerate("STATE_NOT_SAVED", async () => {
      await save(await makeFolders(folder, this.#options.vault));
    });
  }
}

/** For cycles that keep no fingerprints. */
export const noPrints: PrintSink = {
  put: () => undefined,
  drain: () => Promise.resolve(),
  finish: () => Promise.resolve(),
  discard: () => Promise.resolve(),
};

/**
 * The copy of a vault's document that the state folder keeps. A folder that cannot be written keeps
 * none; a copy that is damaged is none.
 */
export function documentCopy(
  folder: string | undefined,
  address: string,
): { readonly keep: (bytes: Uint8Array) => Promise<void>; readonly read: () => Promise<VaultDocument | undefined> } {
  if (folder === undefined) return { keep: () => Promise.resolve(), read: () => Promise.resolve(undefined) };
  const vaults = path.join(folder, "vaults");
  const file = path.join(vaults, toHex(checksum(Buffer.from(address))));
  return {
    keep: async (bytes) => {
      try {
        await makeFolders(folder, "vaults");
        await replacePlain(file, bytes);
      } catch (error) {
        if (!(error instanceof TidemarkError) && systemCode(error) === undefined) throw error;
      }
    },
    read: async () => {
      try {
        return decodeVault(await readPlain(file, documentBytesMax), file);
      } catch (error) {
        if (!(error instanceof TidemarkError) && systemCode(error) === undefined) throw error;
        return undefined;
      }
    },
  };
}

const writerKeyName = "writer-key";

/** Where this machine keeps its writer key of an encrypted vault. */
export function writerKeyFile(folder: string, vault: string): WriterKeyFile {
  const file = path.join(folder, vault, writerKeyName);
  return {
    path: file,
    read: async () => await unlessAbsent(readPlain(file, documentBytesMax)),
  };
}

/** Keeps a writer key, readable by its owner only. Returns its path. Errors: as `inStateFolder`. */
export async function keepWriterKey(folder: string, vault: string, bytes: Uint8Array): Promise<string> {
  return await inStateFolder(folder, async () => {
    const file = path.join(await makeFolders(folder, vault), writerKeyName);
    await replacePlain(file, bytes);
    return file;
  });
}

/**
 * Runs `work`, which writes what is no cache into the state folder.
 *
 * @throws ACCESS_REFUSED, NO_SPACE or TARGET_FAILED for an error of the file system.
 */
export async function inStateFolder<Result>(folder: string, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof TidemarkError || systemCode(error) === undefined) throw error;
    const what = `cannot write in the state folder ${folder}`;
    throw fileError(error, { code: "TARGET_FAILED", what, remedy: "choose another state folder with --state" });
  }
}

function parseIdentity(text: string): RememberedSource | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
  const identity = value as Partial<RememberedSource> | null;
  const texts = [identity?.dev, identity?.ino, identity?.rdev, identity?.path];
  const whole =
    texts.every((field) => typeof field === "string") && (identity?.kind === "file" || identity?.kind === "device");
  const { mode } = identity ?? {};
  const isMode = mode === undefined || (Number.isInteger(mode) && mode >= 0 && mode <= 0o777);
  return whole && isMode ? (identity as RememberedSource) : undefined;
}
