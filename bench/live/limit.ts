/**
 * Search for the highest load that a case holds (`--find-limit`): it doubles the load while all marks
 * are reached, and halves the rest from the first load on that misses one. It stops when the limit is
 * known to a tenth.
 */
import type { BenchConfig } from "../options.ts";
import { isMet, type Mark } from "../targets.ts";

/** The length of a load that is searched with, unless a case needs longer ones. */
export const searchSecondsMax = 20;
const precision = 1.1;
/** If less than this part of the first load does not hold, none does. */
const partMin = 1 / 100;

/** The load that the case has measured already. */
export interface FirstLoad {
  readonly value: number;
  readonly marks: readonly Mark[];
  /** The largest load that can be told from a smaller one. */
  readonly most?: number;
}

/**
 * The highest load that holds, under the name `count` of a report; 0 for none. Nothing if it is not asked for.
 * `marksOf`: of the case under a given load.
 */
export async function findLimit(
  { live }: BenchConfig,
  count: string,
  { value: first, marks, most = Infinity }: FirstLoad,
  marksOf: (value: number) => Promise<readonly Mark[]>,
): Promise<Readonly<Record<string, number>>> {
  if (!live.findLimit) return {};
  const holds = (found: readonly Mark[]): boolean => found.every((mark) => isMet(mark) !== false);
  let [held, missed] = holds(marks) ? [first, Infinity] : [0, first];
  while (held < most && missed > Math.max(precision * Math.max(held, first * partMin), held + 1)) {
    const next = Math.round(missed === Infinity ? Math.min(most, held * 2) : (held + missed) / 2);
    if (holds(await marksOf(next))) held = next;
    else missed = next;
  }
  return { [count]: Math.min(held, most) };
}

/** The name of a limit in bytes a second, in a report. */
export const highestRate = "highestBytesPerSecondThatHold";

/** `100 MB/s`. */
export function megabytes(bytesPerSecond: number): string {
  return `${(bytesPerSecond / 1e6).toFixed(0)} MB/s`;
}
