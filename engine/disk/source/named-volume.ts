/** Volume of named extents: a cycle reads only the ranges that a change list names. */
import { granuleBytes } from "../../limits.ts";
import type { Extent, Volume } from "../../volume.ts";

/**
 * `volume`, of which only `extents` are looked at, and what it has grown by since the parent.
 * Extents are widened to granules and cut off at the volume's end.
 */
export function namedVolume(
  volume: Volume,
  extents: Iterable<Extent> | AsyncIterable<Extent>,
  parentBytes: number,
): Volume {
  const amend = volume.amend?.bind(volume);
  const reading = volume.reading?.bind(volume);
  return {
    description: volume.description,
    descriptor: volume.descriptor,
    sizeBytes: async () => await volume.sizeBytes(),
    read: async (offset, into) => {
      await volume.read(offset, into);
    },
    ...(amend === undefined ? {} : { amend }),
    ...(reading === undefined ? {} : { reading }),
    allocated: async function* allocated(sizeBytes) {
      const grownFrom = sizeBytes > parentBytes ? parentBytes - (parentBytes % granuleBytes) : sizeBytes;
      let end = 0;
      for await (const extent of extents) {
        const from = Math.max(end, extent.offset - (extent.offset % granuleBytes));
        end = Math.max(
          end,
          Math.min(grownFrom, Math.ceil((extent.offset + extent.length) / granuleBytes) * granuleBytes),
        );
        if (end > from) yield { offset: from, length: end - from };
      }
      if (sizeBytes > grownFrom) yield { offset: grownFrom, length: sizeBytes - grownFrom };
    },
  };
}
