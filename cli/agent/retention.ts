/**
 * Retention policy from a configuration: a time, as in Azure Site Recovery, or a policy in full.
 *
 * Azure Site Recovery has 0 to 15 days. Any other time extends its table: everything for 2 hours,
 * then one point an hour up to a day, or one per 2 hours up to 7 days, or one per 2 hours for 7
 * days and one per 4 hours from there.
 */
import { parsePolicy, type RetentionPolicy } from "../../engine/index.ts";
import { parseDuration } from "../quantities.ts";

const hour = 3_600_000;
const day = 24 * hour;
const daysMax = 36_500;

/** Errors: INVALID_ARGUMENT, with what is wrong and what to write instead. */
export function parseRetention(text: string): RetentionPolicy {
  const lengthMs = text === "0" ? 0 : parseDuration(text);
  if (text === "off" || text === "false") return { kind: "everything" };
  return lengthMs === undefined || lengthMs > daysMax * day ? parsePolicy(text) : tableOf(lengthMs);
}

/**
 * The age beyond which the policy keeps nothing but the newest point; undefined when it names none.
 */
export function retentionMs(policy: RetentionPolicy): number | undefined {
  switch (policy.kind) {
    case "days":
      return policy.days * day;
    case "bands":
      return policy.bands.at(-1)?.ageMsMax;
    case "keep":
    case "everything":
      return undefined;
  }
}

function tableOf(lengthMs: number): RetentionPolicy {
  const days = lengthMs / day;
  if (Number.isInteger(days) && days <= 15) return { kind: "days", days };
  const rows: { readonly ageMsMax: number; readonly everyMs: number | null }[] = [];
  const bands = [
    { ageMsMax: 2 * hour, everyMs: null },
    ...(lengthMs <= day ? [{ ageMsMax: day, everyMs: hour }] : [{ ageMsMax: 7 * day, everyMs: 2 * hour }]),
    { ageMsMax: daysMax * day, everyMs: 4 * hour },
  ];
  for (const { ageMsMax, everyMs } of bands) {
    const from = rows.at(-1)?.ageMsMax ?? 0;
    if (from >= lengthMs) break;
    const last = rows.pop();
    const end = Math.min(ageMsMax, lengthMs);
    // A remainder shorter than one interval joins the band before it.
    if (last !== undefined && everyMs !== null && end - from < everyMs) rows.push({ ...last, ageMsMax: end });
    else rows.push(...(last === undefined ? [] : [last]), { ageMsMax: end, everyMs });
  }
  return { kind: "bands", bands: rows };
}
