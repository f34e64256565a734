/**
 * How much of a vault is read back a day, whoever does it. Several processes may scrub one vault, each of them from time to time: in `reclaim/scrubbed` stands
 * until when the share of the day has been taken. Whoever comes takes what has come together since, by swapping the document, and of two who come at once one
 * goes without. What the one who took it then does not read is lost; the next one takes the next.
 *
 * It also says when the round began that they are all in: what one of them has proved since, no other reads again.
 */
import { hasCode, isUnreadable } from "../../errors.ts";
import type { CallOptions } from "../../sink.ts";
import { documentBytesMax } from "../../store/format/documents.ts";
import { decodeScrubbed, encodeScrubbed, type ScrubbedDocument, scrubbedName } from "../../store/format/proof.ts";
import type { Store } from "../../store/store.ts";
import { unknownOutcomesMax } from "../../store/store.ts";

export interface Quota {
  /** What part of a day's share it is, from 0 to 1. */
  readonly dayPart: number;
  /** When the round began, in ms since 1970. */
  readonly roundMs: number;
}

const dayMs = 24 * 3_600_000;
/** What the first one takes who comes to a vault. */
const firstMs = 3_600_000;
/** Less is not worth a pass, which reads a range at least. */
const leastMs = 60_000;

/** Takes what has come together by now. Undefined: somebody else has just taken it. Errors: those of the store. */
export async function claimQuota(store: Store, vault: string, nowMs: number, options: CallOptions): Promise<Quota | undefined> {
  const { document, etag } = await readScrubbed(store, vault, options);
  const sinceMs = nowMs - (document?.takenMs ?? nowMs - firstMs);
  // A time that is far in the future was some clock's that has been set right since.
  if (sinceMs < leastMs && sinceMs > -dayMs) return undefined;
  const quota = { dayPart: sinceMs < 0 ? firstMs / dayMs : Math.min(1, sinceMs / dayMs), roundMs: document?.roundMs ?? nowMs };
  try {
    await store.replace(scrubbedName, encodeScrubbed({ vault, roundMs: quota.roundMs, takenMs: nowMs }), etag, options);
    return quota;
  } catch (error) {
    if (hasCode(error, "CONDITION_FAILED")) return undefined;
    if (hasCode(error, "ACCESS_REFUSED")) return quota; // who may only read may prove, too
    throw error;
  }
}

/** Begins the next round, unless somebody else has. Errors: those of the store. */
export async function endRound(store: Store, vault: string, roundMs: number, nowMs: number, options: CallOptions): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    const { document, etag } = await readScrubbed(store, vault, options);
    if (document?.roundMs !== roundMs) return;
    try {
      await store.replace(scrubbedName, encodeScrubbed({ ...document, roundMs: nowMs }), etag, options);
      return;
    } catch (error) {
      if (hasCode(error, "ACCESS_REFUSED")) return;
      if (!hasCode(error, "CONDITION_FAILED") || attempt >= unknownOutcomesMax) throw error;
    }
  }
}

/** One that cannot be read tells nothing, and is written anew. */
async function readScrubbed(
  store: Store,
  vault: string,
  options: CallOptions,
): Promise<{ readonly document: ScrubbedDocument | undefined; readonly etag: string | undefined }> {
  const there = await store.find(scrubbedName, documentBytesMax, options);
  if (there === undefined) return { document: undefined, etag: undefined };
  try {
    return { document: decodeScrubbed(there.bytes, scrubbedName, vault), etag: there.etag };
  } catch (error) {
    if (!isUnreadable(error)) throw error;
    return { document: undefined, etag: there.etag };
  }
}
