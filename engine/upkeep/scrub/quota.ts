/**
 * Scrub quota: a token bucket in the vault, shared by all scrubbers.
 *
 * Each vault has a daily read-back share (for example 10 % of its data). The document
 * `reclaim/scrubbed` stores the time up to which the share has been claimed. A scrubber claims
 * everything accrued since then with one compare-and-swap; if two scrubbers claim at once, one of
 * them gets nothing and tries again later. A claim that is not used is lost.
 *
 * The document also stores when the current pass over the vault began. A point proved since then
 * is skipped by every scrubber.
 *
 * Invariant: over any day, all scrubbers together read at most the share plus one minimum claim.
 */
import { hasCode } from "../../errors.ts";
import type { CallOptions } from "../../sink.ts";
import { decodeScrubbed, encodeScrubbed, type ScrubbedDocument, scrubbedName } from "../../store/format/proof.ts";
import { changeShared, type FoundDocument, readShared, type SharedDocument } from "../../store/shared-document.ts";
import type { Store } from "../../store/store.ts";

export interface Quota {
  /** The part of a day's share, from 0 to 1. */
  readonly dayPart: number;
  /** When the round began, in ms since 1970. */
  readonly roundMs: number;
}

export const dayMs: number = 24 * 3_600_000;
/** The first claim on a vault: the share of an hour. */
export const firstMs = 3_600_000;
/** Less is not worth a pass, which reads at least one range. */
const leastMs = 60_000;

/**
 * Claims the quota accrued by now. Undefined: another scrubber has just claimed it. Errors: those
 * of the store.
 */
export async function claimQuota(
  store: Store,
  vault: string,
  nowMs: number,
  options: CallOptions,
): Promise<Quota | undefined> {
  const { document, etag } = await readShared(store, scrubbed(vault), options);
  const sinceMs = nowMs - (document?.takenMs ?? nowMs - firstMs);
  // A time far in the future comes from a clock that was wrong.
  if (sinceMs < leastMs && sinceMs > -dayMs) return undefined;
  const quota = {
    dayPart: sinceMs < 0 ? firstMs / dayMs : Math.min(1, sinceMs / dayMs),
    roundMs: document?.roundMs ?? nowMs,
  };
  try {
    await store.replace(scrubbedName, encodeScrubbed({ vault, roundMs: quota.roundMs, takenMs: nowMs }), etag, options);
    return quota;
  } catch (error) {
    if (hasCode(error, "CONDITION_FAILED")) return undefined;
    if (hasCode(error, "ACCESS_REFUSED")) return quota; // read access is enough to prove points
    throw error;
  }
}

/** Begins the next round, unless another scrubber has. Errors: those of the store. */
export async function endRound(
  store: Store,
  vault: string,
  roundMs: number,
  nowMs: number,
  options: CallOptions,
): Promise<void> {
  const change = ({ document }: FoundDocument<ScrubbedDocument>): ScrubbedDocument | undefined =>
    document?.roundMs === roundMs ? { ...document, roundMs: nowMs } : undefined;
  try {
    await changeShared(store, scrubbed(vault), change, options);
  } catch (error) {
    if (!hasCode(error, "ACCESS_REFUSED")) throw error;
  }
}

function scrubbed(vault: string): SharedDocument<ScrubbedDocument> {
  return {
    name: scrubbedName,
    decode: (bytes) => decodeScrubbed(bytes, scrubbedName, vault),
    encode: encodeScrubbed,
  };
}
