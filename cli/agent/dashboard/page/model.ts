/**
 * What the page knows: the newest status, the log, and for each disk that was looked at its points and
 * its series. Points and series are asked for when a disk is first shown, and go on from the status.
 *
 * Invariant: at most `loadsMax` requests are under way, those of the disks that were asked for last
 * first.
 */

import type { DiskStatus } from "../../disk-runner.ts";
import type { AgentPoint } from "../../ports.ts";
import type { AgentStatus } from "../../supervisor.ts";
import type { LogEntry, Sample, Series } from "../history.ts";
import { PointColumns } from "./points.ts";

const loadsMax = 3;
/** Points that a prune has dropped are asked for again at most this often. */
const reloadMsMin = 30_000;
const samplesMax = 360;
const logMax = 500;

export interface DiskData {
  points: PointColumns | undefined;
  samples: readonly Sample[];
  everyMs: number;
  /** The points are no longer those of the vault. */
  isStale: boolean;
  loadedAtMs: number;
  sampledAtMs: number;
}

export type Load = <Answer>(path: string) => Promise<Answer>;

export class Model {
  status: AgentStatus | undefined;
  statusAtMs = 0;
  readonly log: LogEntry[] = [];
  readonly #data = new Map<string, DiskData>();
  readonly #wanted: string[] = [];
  readonly #load: Load;
  #loads = 0;
  #onLoaded: () => void = () => undefined;

  constructor(load: Load) {
    this.#load = load;
  }

  /** `listener` is told when points of a disk have come. */
  set onLoaded(listener: () => void) {
    this.#onLoaded = listener;
  }

  takeStatus(status: AgentStatus, nowMs: number): void {
    const before = new Map(this.status?.disks.map((disk) => [disk.disk, disk]));
    this.status = status;
    this.statusAtMs = nowMs;
    for (const disk of status.disks) this.#advance(disk, before.get(disk.disk), nowMs);
    for (const disk of before.keys()) if (!status.disks.some((other) => other.disk === disk)) this.#data.delete(disk);
  }

  /** An entry that the page has already comes again when the stream is opened again. */
  takeEntry(entry: LogEntry): boolean {
    const last = this.log.at(-1);
    if (last !== undefined && entry.id === last.id) return false;
    // A smaller number is the first of an agent that was started again.
    if (last !== undefined && entry.id < last.id && entry.time <= last.time) return false;
    this.log.push(entry);
    if (this.log.length > logMax) this.log.shift();
    return true;
  }

  disk(name: string): DiskStatus | undefined {
    return this.status?.disks.find(({ disk }) => disk === name);
  }

  /** What is known of a disk that is shown; what is not known is asked for. */
  data(name: string): DiskData {
    const known = this.#data.get(name);
    const data = known ?? {
      points: undefined,
      samples: [],
      everyMs: 10_000,
      isStale: true,
      loadedAtMs: -Infinity,
      sampledAtMs: 0,
    };
    this.#data.set(name, data);
    const isDue = data.points === undefined ? known === undefined : this.statusAtMs - data.loadedAtMs > reloadMsMin;
    if (data.isStale && isDue && !this.#wanted.includes(name)) {
      this.#wanted.push(name);
      // What was asked for long ago is no longer shown.
      if (this.#wanted.length > 64) this.#forget(this.#wanted.shift());
      void this.#next();
    }
    return data;
  }

  /** The points of all disks may have changed while the stream was lost. */
  doubt(): void {
    for (const data of this.#data.values()) data.isStale = true;
  }

  #forget(name: string | undefined): void {
    if (name !== undefined && this.#data.get(name)?.points === undefined) this.#data.delete(name);
  }

  async #next(): Promise<void> {
    if (this.#loads >= loadsMax) return;
    const name = this.#wanted.pop();
    const data = name === undefined ? undefined : this.#data.get(name);
    if (name === undefined || data === undefined) return;
    this.#loads += 1;
    data.loadedAtMs = this.statusAtMs;
    data.isStale = false;
    const path = encodeURIComponent(name);
    try {
      const [listing, series] = await Promise.all([
        this.#load<{ readonly points: readonly AgentPoint[] }>(`/v1/points/${path}`),
        this.#load<Series>(`/v1/series/${path}`),
      ]);
      data.points = new PointColumns(listing.points);
      data.samples = series.samples;
      data.everyMs = series.everyMs;
      data.sampledAtMs = this.statusAtMs;
    } catch (error) {
      // The status shows what is wrong; the points are asked for again when they are next shown.
      data.isStale = error instanceof Error;
      data.points ??= new PointColumns([]);
    } finally {
      this.#loads -= 1;
    }
    this.#onLoaded();
    await this.#next();
  }

  #advance(disk: DiskStatus, before: DiskStatus | undefined, nowMs: number): void {
    const data = this.#data.get(disk.disk);
    if (data?.points === undefined) return;
    const { latest, lastPrune, lag } = disk;
    if (latest !== null && latest.sequence === data.points.lastSequence + 1) data.points.push(latest);
    else if (latest !== null && latest.sequence !== data.points.lastSequence) data.isStale = true;
    if ((lastPrune?.ageMs ?? Infinity) < (before?.lastPrune?.ageMs ?? 0) && (lastPrune?.removedPoints ?? 0) > 0)
      data.isStale = true;
    if (nowMs - data.sampledAtMs < data.everyMs) return;
    data.sampledAtMs = nowMs;
    const sample: Sample = [lag.committedMs, disk.churnBytesPerSecond, disk.uploadBytesPerSecond];
    data.samples = [...data.samples.slice(1 - samplesMax), sample];
  }
}

/** Disks of one filter, in one order. */
export interface Choice {
  readonly text: string;
  readonly health: DiskStatus["health"] | "";
  readonly order: "group" | "name" | "health" | "lag" | "churn" | "backlog";
}

/** A row of the list: a heading of a group, or a disk. */
export type Row =
  | { readonly kind: "group"; readonly name: string; readonly count: number }
  | { readonly kind: "disk"; readonly status: DiskStatus };

const worseFirst = { Critical: 0, Warning: 1, Normal: 2 } as const;

/** What the list says of itself beside its rows. */
export function countWords(shown: number, all: number): string {
  if (all === 0) return "The agent has no disks. Add them to its configuration.";
  return shown === all ? "" : `${shown} of ${all} disks`;
}

export function rowsOf(disks: readonly DiskStatus[], { text, health, order }: Choice): readonly Row[] {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = disks.filter((status) => {
    const { disk, group, vault, policy, state } = status;
    const searched = [disk, group ?? "", vault, policy, state, ...status.findings.map(({ code }) => code)]
      .join(" ")
      .toLowerCase();
    return (health === "" || status.health === health) && words.every((word) => searched.includes(word));
  });
  const byName = (a: DiskStatus, b: DiskStatus): number => a.disk.localeCompare(b.disk, undefined, { numeric: true });
  const largest = (of: (status: DiskStatus) => number) => (a: DiskStatus, b: DiskStatus) =>
    of(b) - of(a) || byName(a, b);
  const row = (status: DiskStatus): Row => ({ kind: "disk", status });
  switch (order) {
    case "group":
      return grouped(chosen);
    case "name":
      return chosen.toSorted(byName).map(row);
    case "health":
      return chosen.toSorted((a, b) => worseFirst[a.health] - worseFirst[b.health] || byName(a, b)).map(row);
    case "lag":
      return chosen.toSorted(largest(({ lag }) => lag.committedMs ?? Infinity)).map(row);
    case "churn":
      return chosen.toSorted(largest(({ churnBytesPerSecond }) => churnBytesPerSecond)).map(row);
    case "backlog":
      return chosen.toSorted(largest(({ backlogBytes }) => backlogBytes)).map(row);
  }
}

/** Groups in the order of their first disk, then the disks without a group. */
function grouped(disks: readonly DiskStatus[]): readonly Row[] {
  const groups = new Map<string, DiskStatus[]>();
  for (const status of disks) {
    const name = status.group ?? "";
    groups.set(name, [...(groups.get(name) ?? []), status]);
  }
  const alone = groups.get("") ?? [];
  groups.delete("");
  const rows = [...groups].flatMap(([name, members]): Row[] => [
    { kind: "group", name, count: members.length },
    ...members.map((status): Row => ({ kind: "disk", status })),
  ]);
  const heading: Row[] = rows.length > 0 && alone.length > 0 ? [{ kind: "group", name: "", count: alone.length }] : [];
  return [...rows, ...heading, ...alone.map((status): Row => ({ kind: "disk", status }))];
}
