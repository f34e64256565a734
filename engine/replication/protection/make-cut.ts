/**
 * Making the cut of a cycle: with the group at its barrier, with the application frozen, or plain.
 */
import assert from "node:assert/strict";
import { throwIfAborted } from "../../errors.ts";
import { cutTogether, frozenCuts, type Group, type GroupMember, type MadeCut } from "./groups.ts";
import type { Step } from "./protection-state.ts";

export interface CutOptions extends GroupMember {
  /** Undefined: the disk is cut alone. */
  readonly group: Group | undefined;
  readonly step: Extract<Step, { kind: "cut" | "ship" }>;
  readonly signal: AbortSignal;
}

/** Makes the cut. Errors: CUT_TIMED_OUT, DEVICE_FAILED, INTERRUPTED. */
export async function makeCut(options: CutOptions): Promise<MadeCut> {
  const { group, step, signal, ...member } = options;
  const { isExact, wantsApp, requests } = step;
  if (!isExact) {
    const cut = await member.protectedDisk.cut({ exact: false });
    return { cut, cutAtMs: performance.now(), group: null, application: null };
  }
  if (group !== undefined) {
    const made = await group.join(member, { wantsApp, isAsked: requests.length > 0 }, signal);
    if (made !== undefined) return made;
    throwIfAborted(signal);
  }
  const { cuts, cutAtMs, applications } = wantsApp
    ? await frozenCuts([member], signal)
    : { ...(await cutTogether([member])), applications: [] };
  const [cut] = cuts;
  assert(cut !== undefined, "one disk makes one cut");
  return { cut, cutAtMs, group: null, application: applications[0] ?? null };
}
