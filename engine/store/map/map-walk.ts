/**
 * Map walk: visits the maps of a disk's points from the oldest to the newest, and each entry that
 * any of them shows once.
 *
 * A leaf may name chunks that no point shows, because newer runs hide them. Runs are only ever put
 * on top of others, and a merge keeps what is seen. So an entry that one point hides is hidden in
 * all younger points that have its leaf. Each leaf is therefore visited in the oldest point that
 * has it, with everything that lies on top of it there; in most points that is the topmost run
 * alone.
 *
 * A manifest that puts known runs in another order, or leaves one out, would show entries that were
 * hidden before, and the walk would miss them. Writers make none. A manifest is proved by the
 * checksum that its head names, so damage makes none either, and a forger may delete chunks anyway.
 */
import type { RunReference } from "../format/documents.ts";
import { mapName } from "../format/names.ts";
import { mapObjectKey, type PointMap } from "./point-map.ts";

/** The part of a point that no older point has. */
export interface NewRuns {
  /** Number of topmost runs to visit. */
  readonly depth: number;
  /** The leaves and roots that no older point had: `mapObjectKey` → name. */
  readonly objects: ReadonlyMap<string, string>;
}

export class MapWalk {
  readonly #disk: string;
  /** Names of all leaves and roots of the points so far. */
  readonly #objects: Set<string>;
  /** Their keys. A reference that gives an object another checksum is not known by its name. */
  readonly #keys = new Set<string>();

  /** `objects`: the set that the names are added to; it may hold others. */
  constructor(disk: string, objects: Set<string> = new Set()) {
    this.#disk = disk;
    this.#objects = objects;
  }

  /** The part of the next younger point that none before it had. Errors: as `PointMap.leavesOf`. */
  async newRuns(map: PointMap, runs: readonly RunReference[], signal?: AbortSignal): Promise<NewRuns> {
    const objects = new Map<string, string>();
    let depth = 0;
    for (const [index, run] of runs.entries()) {
      // With a root all of its leaves were there.
      if (this.#keys.has(mapObjectKey(run))) continue;
      const leaves = run.kind === "root" ? await map.leavesOf(index, signal) : [];
      const fresh = leaves.filter((leaf) => !this.#keys.has(mapObjectKey(leaf)));
      for (const object of [run, ...fresh])
        objects.set(mapObjectKey(object), mapName(this.#disk, object.epoch, object.ordinal));
      if (run.kind === "leaf" || fresh.length > 0) depth = index + 1;
    }
    return { depth, objects };
  }

  /** To be called when the point has been visited: from now on its part is not new. */
  pass({ objects }: NewRuns): void {
    for (const [key, name] of objects) {
      this.#keys.add(key);
      this.#objects.add(name);
    }
  }
}
