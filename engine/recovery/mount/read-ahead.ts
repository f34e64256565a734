/**
 * Read-ahead: tells sequential readers from random ones, and says what to fetch for the sequential
 * ones next. Pure bookkeeping: it notes reads and returns ranges.
 *
 * A stream is a place where the next read may begin. When two reads in a row begin where the one
 * before ended, the stream counts as sequential; random reads practically never do that, so they
 * cause no read-ahead. From then on reads may come a little out of order, as they do from clients
 * with several connections. The range that is fetched grows with the bytes read in a row, up to
 * `windowBytesMax` at a time and `windowsAhead` times that in all.
 */

export interface ReadAheadLimits {
  readonly sizeBytes: number;
  /** The smallest and the largest range that is fetched ahead at a time. */
  readonly windowBytesMin: number;
  readonly windowBytesMax: number;
  /**
   * Bytes that all streams together may have fetched ahead, so that they do not evict one another's
   * blocks.
   */
  readonly aheadBytesMax: number;
}

export interface Stream {
  /** Where the next read is expected. */
  position: number;
  /** Up to here everything is fetched or being fetched. */
  aheadTo: number;
  /** Reads that continued the one before, until it counts as sequential. */
  hits: number;
  /** Bytes that were read in a row. */
  runBytes: number;
  lastUse: number;
}

/** Random readers fill this table too: a stream that is not read for so many reads is dropped. */
const streamsMax = 32;
const hitsMin = 2;
const windowsAhead = 2;
/** How far a read of a sequential stream may lie from where it was expected. */
const disorderBytes: number = 1024 * 1024;
/** A stream that was not read for this many reads takes no share of `aheadBytesMax`. */
const idleReads = 1024;

export class ReadAhead {
  readonly #limits: ReadAheadLimits;
  /** Most recently used first, roughly. */
  readonly #streams: Stream[] = [];
  #reads = 0;

  constructor(limits: ReadAheadLimits) {
    this.#limits = limits;
  }

  /** Notes a read; gives the sequential stream that it belongs to, if any. */
  note(offset: number, length: number): Stream | undefined {
    this.#reads += 1;
    const end = offset + length;
    for (let index = 0; index < this.#streams.length; index += 1) {
      const stream = this.#streams[index];
      if (stream === undefined || !continues(stream, offset)) continue;
      stream.lastUse = this.#reads;
      if (offset === stream.position) {
        stream.hits += 1;
        stream.runBytes += length;
      }
      if (end > stream.position) stream.position = end;
      this.#toFront(index);
      return isSequential(stream) ? stream : undefined;
    }
    const fresh: Stream = { position: end, aheadTo: 0, hits: 0, runBytes: length, lastUse: this.#reads };
    if (this.#streams.length === streamsMax) this.#streams.pop();
    this.#streams.unshift(fresh);
    return undefined;
  }

  /**
   * What to fetch ahead for `stream` now: a whole window, or what is left of the disk. Undefined
   * when enough is fetched.
   */
  next(stream: Stream): { readonly from: number; readonly end: number } | undefined {
    const { sizeBytes } = this.#limits;
    const windowBytes = this.#windowBytes(stream);
    const from = Math.max(stream.aheadTo, stream.position);
    const wanted = Math.min(sizeBytes, stream.position + windowsAhead * windowBytes);
    if (from >= wanted) return undefined;
    if (wanted < sizeBytes && wanted - from < windowBytes) return undefined;
    return { from, end: Math.min(from + windowBytes, wanted) };
  }

  /** The sequential streams that are being read. */
  active(): readonly Stream[] {
    return this.#streams.filter((stream) => isSequential(stream) && this.#reads - stream.lastUse < idleReads);
  }

  #windowBytes({ runBytes }: Stream): number {
    const { windowBytesMin, windowBytesMax, aheadBytesMax } = this.#limits;
    const shareBytes = Math.floor(aheadBytesMax / (windowsAhead * Math.max(1, this.active().length)));
    return Math.max(Math.min(runBytes, windowBytesMax, shareBytes), windowBytesMin);
  }

  #toFront(index: number): void {
    if (index === 0) return;
    const [stream] = this.#streams.splice(index, 1);
    if (stream !== undefined) this.#streams.unshift(stream);
  }
}

function isSequential(stream: Stream): boolean {
  return stream.hits >= hitsMin;
}

function continues(stream: Stream, offset: number): boolean {
  if (!isSequential(stream)) return offset === stream.position;
  return offset >= stream.position - disorderBytes && offset <= stream.position + disorderBytes;
}
