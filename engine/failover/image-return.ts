/**
 * Return of a disk to an old image: the differences are staged beside the image, then applied.
 *
 *     image at rest as at its last point  →  the differences between that point and this one
 *     image of which that is not known    →  compared with the whole point, block by block
 *     log that holds a point already      →  the differences between that point and this one
 *
 * A log is good for the image whose signature it bears. If the image was written since, the log goes
 * and the image is compared. An image without a signature (a device that does not count its writes)
 * is compared each time.
 *
 * Invariant: until `apply` the image has not been touched. From then on the redo log alone brings it
 * to the point, as often as it takes.
 */
import { dirname } from "node:path";
import { makeFolder } from "../disk/source/plain-file.ts";
import { hasCode, TidemarkError } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import { materialize } from "../recovery/restore/materialize.ts";
import { isApplyUnderWay, RedoLog, removeRedoLog } from "../recovery/restore/redo-log.ts";
import { StagedTarget } from "../recovery/restore/staged-target.ts";
import { openTarget } from "../recovery/restore/targets.ts";
import type { RunMember } from "../store/format/run.ts";
import { materializeName, type OwnedTarget } from "./target.ts";

interface ReturnOptions extends OperationOptions {
  readonly disk: string;
  readonly target: RunMember["target"];
  readonly owned: OwnedTarget;
}

/** A log whose image has no signature is good for no later process. */
const unknownSignature = "";

/** The way back of one disk in one process. Its log stays open, so that what it stages is proved once. */
export class ImageReturn implements AsyncDisposable {
  readonly #context: VaultContext;
  readonly #options: ReturnOptions;
  readonly #base: string;
  #log: RedoLog | undefined;

  constructor(context: VaultContext, options: ReturnOptions) {
    this.#context = context;
    this.#options = options;
    const { logBase } = options.owned;
    if (logBase === undefined) throw new TidemarkError("INTERNAL", "the target has no redo log");
    this.#base = logBase;
  }

  /** Whether an apply has begun and has not ended. */
  async isUnderWay(): Promise<boolean> {
    return await isApplyUnderWay(this.#base);
  }

  /** Whether the log holds anything for the image. */
  async isFilled(): Promise<boolean> {
    return (await this.#openLog())?.staged !== undefined;
  }

  /**
   * Brings the log to the point of `member`. `comparable` gives a point's id, if it can be compared
   * with this one. Errors: those of `materialize`.
   */
  async stage(
    { point, held }: Pick<RunMember, "point" | "held">,
    comparable: (id: string) => Promise<string | undefined>,
  ): Promise<{ readonly bytesRead: number }> {
    const { disk, target, owned, onProgress, onNotice, signal } = this.#options;
    const now = await owned.signature();
    const log = (await this.#goodLog(now)) ?? (await this.#newLog(now));
    const isUntouched = held !== null && now !== null && held.signature === now;
    const from = log.staged?.point ?? (isUntouched ? held.point : undefined);
    if (from === point.id) return { bytesRead: 0 };
    const since = from === undefined ? undefined : await comparable(from);
    // The log's own point is gone: what is staged is of no use.
    if (since === undefined && log.staged !== undefined) {
      await this.discard();
      return await this.stage({ point, held }, comparable);
    }
    const { bytesRead } = await materialize(this.#context, {
      onProgress,
      onNotice,
      signal,
      disk,
      point: point.id,
      to: materializeName(target),
      since,
      into: async ({ id, volumeBytes }) =>
        await StagedTarget.open(target.path, log, { point: id, volumeBytes }, since === undefined),
    });
    return { bytesRead };
  }

  /**
   * Writes what is staged to the image. Before the first write `begin` notes that the image is a
   * mixture from now on. Gives what the image holds at the end. Errors: TARGET_FAILED, NO_SPACE, DAMAGED.
   */
  async apply(
    begin: () => Promise<void>,
  ): Promise<{ readonly bytesWritten: number; readonly held: RunMember["held"] }> {
    const {
      owned,
      target: { path },
      signal,
    } = this.#options;
    const log = await this.#openLog();
    const staged = log?.staged;
    if (log === undefined || staged === undefined) throw new TidemarkError("INTERNAL", "nothing is staged");
    const isGood = (await this.isUnderWay()) || (await this.#isUnwritten(log.signature));
    if (!isGood) throw writtenMeanwhile(path);
    const target = await openTarget({
      to: path,
      format: undefined,
      mode: "in-place",
      volumeBytes: staged.volumeBytes,
      vaultId: this.#context.document.vault,
      point: staged.point,
      sink: this.#context.sink,
      overwriteSource: true,
      isKnownToDiffer: true,
      // What cannot be written stays untouched: a cancel has nothing to end then.
      beforeChange: async () => {
        await begin();
        await log.commit();
      },
      signal,
    });
    try {
      await log.apply(target, signal);
      await target.finish();
    } catch (error) {
      await target.abandon();
      // The image is compared with the vault next time.
      if (hasCode(error, "DAMAGED")) await this.discard();
      throw error;
    }
    return {
      bytesWritten: target.bytesWritten,
      held: { point: staged.point, signature: await owned.signature() },
    };
  }

  /** Removes the log. */
  async discard(): Promise<void> {
    await this[Symbol.asyncDispose]();
    await removeRedoLog(this.#base);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const log = this.#log;
    this.#log = undefined;
    await log?.[Symbol.asyncDispose]();
  }

  async #openLog(): Promise<RedoLog | undefined> {
    this.#log ??= await RedoLog.open(this.#base);
    return this.#log;
  }

  /** Nothing has written the image since the log was begun, as far as that can be known. */
  async #isUnwritten(signature: string): Promise<boolean> {
    return signature === unknownSignature || signature === (await this.#options.owned.signature());
  }

  async #goodLog(now: string | null): Promise<RedoLog | undefined> {
    const log = await this.#openLog();
    return log !== undefined && now !== null && log.signature === now ? log : undefined;
  }

  async #newLog(now: string | null): Promise<RedoLog> {
    await this[Symbol.asyncDispose]();
    await makeFolder(dirname(this.#base));
    this.#log = await RedoLog.begin(this.#base, now ?? unknownSignature);
    return this.#log;
  }
}

function writtenMeanwhile(path: string): TidemarkError {
  return new TidemarkError("TARGET_FAILED", `${path} was written while the way back to it was prepared`, {
    remedy: "stop the programs that write it",
    detail: { target: path },
  });
}
