/**
 * Frames of a damaged segment: those from its beginning up to the first that cannot be read.
 *
 * A frame's header says where the next frame begins, so one damaged header or table hides every
 * frame behind it. Points are not affected: their maps name each chunk's place. A client that needs
 * frames (deduplication, a collection) uses those before the fault and leaves the rest of the
 * segment as it is.
 *
 * Cost: as `walkFrames`. Memory: the tables of the segment, 26 bytes a chunk.
 */
import { hasCode, type TidemarkError } from "../../errors.ts";
import { type CallOptions, pageAlignmentBytes } from "../../sink.ts";
import { damaged } from "../format/fields.ts";
import type { Store } from "../store.ts";
import { type WalkedFrame, type WalkedSegment, walkFrames } from "./frame-walk.ts";

export interface ReadableFrames {
  readonly frames: readonly WalkedFrame[];
  /** The byte of the segment at which the frames that can be read end. */
  readonly endBytes: number;
  /** Why frames behind `endBytes` cannot be read; undefined: there are none. */
  readonly fault: TidemarkError | undefined;
}

export interface FrameReadOptions extends CallOptions {
  /** Called after each frame; an error that it throws ends the reading. */
  readonly onFrame?: ((frame: WalkedFrame) => Promise<void>) | undefined;
}

/**
 * Reads the frames' headers and tables. `writtenBytes`: how far the segment has been written.
 *
 * @throws `OBJECT_NOT_FOUND` when the segment is gone, `INTERRUPTED`, and the errors of the store.
 */
export async function readableFrames(
  store: Store,
  vaultId: Uint8Array,
  segment: WalkedSegment & { readonly writtenBytes: number },
  { onFrame, ...options }: FrameReadOptions,
): Promise<ReadableFrames> {
  const { name, dead, writtenBytes } = segment;
  const frames: WalkedFrame[] = [];
  let endBytes = 0;
  try {
    for await (const frame of walkFrames(store, vaultId, segment, options)) {
      frames.push(frame);
      endBytes = frame.offset + frame.header.frameBytes;
      await onFrame?.(frame);
    }
  } catch (error) {
    if (!hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED")) throw error;
    return { frames, endBytes, fault: error };
  }
  // Frames that a collection has freed end with the run of dead pages that begins here.
  if (dead !== undefined) endBytes = dead.endOfRun(endBytes / pageAlignmentBytes) * pageAlignmentBytes;
  const fault =
    endBytes < writtenBytes ? damaged(`${name} at byte ${String(endBytes)}`, "no frame begins here") : undefined;
  return { frames, endBytes, fault };
}
