/**
 * Goes through the maps of a disk's points from the oldest to the newest and looks at each entry that any of them shows once.
 *
 * Not every chunk that a leaf names is shown: newer runs hide it. Runs are only ever put on top of others, and a merge keeps what is seen, so an entry that is
 * hidden in one point is hidden in all younger ones that have its leaf. It is therefore looked at in the oldest point that has its leaf, with
 * everything that lies on top of it there; of most points that is the topmost run alone.
 */
import type { RunReference } from "../format/documents.ts";
import { mapName } from "../format/names.ts";
import type { PointMap } from "./point-map.ts";

/** What is new in a point. */
export interface NewRuns {
  /** So many of the topmost runs are to be looked at. */
  readonly depth: number;
  /** Names of the leaves and roots that no older point had. */
  readonly objects: readonly string[];
}

export class MapWalk {
  readonly #disk: string;
  /** Names of all leaves and roots of the points so far. */
  readonly #objects: Set<string>;

  /** `objects`: where their names are kept; it may hold others. */
  constructor(disk: string, objects: Set<string> = new Set()) {
    this.#disk = disk;
    this.#objects = objects;
  }

  /** What the next younger point has that none before it had. Errors: those of `PointMap.leavesOf`. */
  async newRuns(map: PointMap, runs: readonly RunReference[], signal?: AbortSignal): Promise<NewRuns> {
    const objects: string[] = [];
    let depth = 0;
    for (const [index, run] of runs.entries()) {
      const name = mapName(this.#disk, run.epoch, run.ordinal);
      // With a root all of its leaves were there.
      if (this.#objects.has(name)) continue;
      objects.push(name);
      const leaves = run.kind === "root" ? await map.leavesOf(index, signal) : [];
      const isNew = leaves.map(({ epoch, ordinal }) => mapName(this.#disk, epoch, ordinal)).filter((leaf) => !this.#objects.has(leaf));
      objects.push(...isNew);
      if (run.kind === "leaf" || isNew.length > 0) depth = index + 1;
    }
    return { depth, objects };
  }

  /** The point has been looked at: from now on what it has is not new. */
  pass({ objects }: NewRuns): void {
    for (const name of objects) this.#objects.add(name);
  }
}
