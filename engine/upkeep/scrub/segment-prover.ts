/**
 * Proof of a segment as a whole: its length, and the frames that lead through it.
 *
 * A segment that was cut short, or whose object is damaged, gets its length back, so that what is
 * left of it can be read and the rest can be healed. Headers and tables of frames are read and
 * compared with their checksums. They are not rebuilt: no point needs them, only deduplication and
 * collections do, and both use the frames before the damaged one. Such damage is therefore a notice
 * and no damage of any point.
 *
 * Cost: a read for each frame.
 */
import { hasCode, type TidemarkError } from "../../errors.ts";
import { fromHex } from "../../store/format/checksum.ts";
import { frameHeaderBytes } from "../../store/format/frame.ts";
import { decodeDiskName, parseSegmentName } from "../../store/format/names.ts";
import { deadName } from "../../store/format/reclaim.ts";
import { readDead } from "../../store/segments/dead-pages.ts";
import type { WalkedFrame } from "../../store/segments/frame-walk.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import { readableFrames } from "../../store/segments/readable-frames.ts";
import type { DamageFinding } from "./damage.ts";
import type { PatchOptions } from "./page-patch.ts";
import { mendSegment } from "./page-patch.ts";

export interface SegmentProofOptions extends PatchOptions {
  /**
   * Called with the length of each read before it counts; an error that it throws ends the proof.
   */
  readonly pace?: ((bytes: number) => Promise<void>) | undefined;
}

/**
 * What is, or was, wrong with a segment as a whole, under the disk whose writer made it. A frame
 * that cannot be read is told of in a notice. Of a segment that is gone nothing is told here: its
 * points tell.
 *
 * @throws the errors of the store, and what `pace` throws.
 */
export async function proveSegment(options: SegmentProofOptions, segment: string): Promise<readonly DamageFinding[]> {
  const disk = decodeDiskName(parseSegmentName(segment)?.encodedDisk ?? "") ?? "";
  const findings: DamageFinding[] = [];
  const add = (what: string, unhealed: string | undefined): void => {
    const place = { disk, sequence: null, point: null, extent: null, object: segment, code: "DAMAGED" } as const;
    findings.push({
      ...place,
      cause: { kind: "object", what },
      chunk: undefined,
      unhealed,
      healed: unhealed === undefined,
    });
  };
  const mended = await mendSegment(options, segment);
  if (mended !== undefined) add(mended.fault, mended.refusal);
  try {
    const fault = await faultOfFrames(options, segment);
    if (fault !== undefined) {
      const fate =
        "New points do not share the chunks behind it, and its space is freed when no point needs anything of the segment";
      options.onNotice({
        code: "SEGMENT_DAMAGED",
        message: `${fault.message}. No point needs that to be read. ${fate}`,
      });
    }
  } catch (error) {
    if (hasCode(error, "OBJECT_NOT_FOUND")) return findings;
    if (!hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED")) throw error;
    if (mended === undefined) add(error.message, "the segment cannot be read as a whole");
  }
  return findings;
}

/** Why the segment's frames cannot be read to its end; undefined when they can. */
async function faultOfFrames(options: SegmentProofOptions, segment: string): Promise<TidemarkError | undefined> {
  const { store, vault, pace, signal } = options;
  // Without the key of payloads this is all that is read of a frame, so the whole of it counts.
  const bytesOf = ({ header }: WalkedFrame): number =>
    store.keys?.canRead === false ? header.frameBytes : frameHeaderBytes + header.tableBytes;
  const onFrame = async (frame: WalkedFrame): Promise<void> => await pace?.(bytesOf(frame));
  const { writtenBytes, sizeBytes } = await store.statPages(segment, { signal });
  for (let record = await readDead(store, vault, deadName(segment), { signal }); ; ) {
    const dead = PageSet.ofRuns(record?.document.dead ?? []);
    const { fault } = await readableFrames(
      store,
      fromHex(vault),
      { name: segment, sizeBytes, writtenBytes, dead },
      { onFrame, signal },
    );
    if (fault === undefined) return undefined;
    // A collection may have freed the frame since the record was read.
    const now = await readDead(store, vault, deadName(segment), { signal });
    if (now?.etag === record?.etag) return fault;
    record = now;
  }
}
