/**
 * A recovery point as bytes: random reads, an async iterable, a Node stream. For programs that
 * check, copy or index a point and need no file and no NBD.
 *
 *     read ─┐
 *     stream ─► Mount (read-only): hold, cache, read-ahead, proofs
 *     readable ─► stream
 *
 * A stream is a sequential reader of the mount, so what it will ask for next is fetched while its
 * consumer works. The cache bounds what is fetched ahead: a consumer that stops taking pieces stops
 * the fetching. Holes are not fetched, they are answered from the map.
 *
 * Invariant: no byte is handed out that has not been proved against its chunk's digest.
 *
 * Memory: the cache, and one piece for each stream.
 */
import { Readable } from "node:stream";
import type { BlockDevice } from "../../device.ts";
import { TidemarkError, throwIfAborted } from "../../errors.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { PointSummary } from "../../store/points/points.ts";
import { Mount, type MountOptions } from "./mount.ts";

/**
 * Memory for blocks unless the caller says otherwise: enough that a sequential reader never waits
 * for a single request.
 */
const cacheBytesDefault: number = 64 * 1024 * 1024;
const pieceBytesDefault: number = 1024 * 1024;
const pieceBytesMax: number = 64 * 1024 * 1024;

/** How `Vault.openPoint` works. */
export interface OpenPointOptions extends Pick<MountOptions, "disk" | "point" | "onNotice" | "signal"> {
  /** Memory for blocks in bytes, at least 16 of the vault's blocks. Default: 64 MiB. */
  readonly cacheBytes?: number | undefined;
}

/** A range of a point, and how it is handed out. */
export interface StreamOptions {
  /** First byte. Default: 0. */
  readonly offset?: number | undefined;
  /** Bytes. Default: up to the end of the point. */
  readonly length?: number | undefined;
  /** Bytes of a piece, 1 to 64 MiB; the last piece may be shorter. Default: 1 MiB. */
  readonly pieceBytes?: number | undefined;
  /** Ends the stream with INTERRUPTED. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * An open point. It is held against pruning and collection until `close`, or until its vault is
 * closed. Reads and streams may overlap.
 *
 * @example
 * ```ts
 * await using point = await vault.openPoint({ disk: "web", point: "latest" });
 * const hash = createHash("sha256");
 * for await (const piece of point.stream()) hash.update(piece);
 * await pipeline(point.readable({ offset: 1024 ** 2, length: 4096 }), createWriteStream("part.bin"));
 * ```
 */
export class PointHandle implements AsyncDisposable {
  readonly point: PointSummary;
  /** Size of the disk at the point, in bytes. */
  readonly sizeBytes: number;
  readonly #mount: Mount;
  readonly #device: BlockDevice;

  private constructor(mount: Mount) {
    this.#mount = mount;
    this.#device = mount.device;
    this.point = mount.point;
    this.sizeBytes = mount.device.sizeBytes;
  }

  /**
   * Opens a point and holds it. Used through `Vault.openPoint`.
   *
   * @throws TidemarkError DISK_NOT_FOUND; POINT_NOT_FOUND, also when it is being pruned;
   * INVALID_ARGUMENT; DAMAGED; and the errors of the store.
   *
   * @internal
   */
  static async open(context: VaultContext, options: OpenPointOptions): Promise<PointHandle> {
    const { cacheBytes = cacheBytesDefault, ...rest } = options;
    return new PointHandle(await Mount.open(context, { ...rest, cacheBytes }, "read"));
  }

  /** True from the call of `close` on. */
  get isClosed(): boolean {
    return this.#mount.isClosed;
  }

  /**
   * Fills `into` with the bytes from `offset` on. It must not be used until the promise settles.
   *
   * @throws TidemarkError INVALID_ARGUMENT when the range does not lie inside the point, DAMAGED
   * when a chunk is not what the map says, DEVICE_FAILED once the handle is closed, and the errors
   * of the store.
   */
  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#check(offset, into.byteLength);
    if (!this.#device.tryRead(offset, into)) await this.#device.read(offset, into);
  }

  /**
   * The range in pieces, in order. A piece is the consumer's. The next pieces are fetched
   * meanwhile, as far as the cache allows.
   *
   * @throws TidemarkError at the call: INVALID_ARGUMENT. While iterating: INTERRUPTED, and as
   * `read`.
   */
  stream(options: StreamOptions = {}): AsyncGenerator<Uint8Array, void, undefined> {
    const { offset = 0, pieceBytes = pieceBytesDefault, signal } = options;
    const length = options.length ?? this.sizeBytes - offset;
    this.#check(offset, length);
    if (!Number.isInteger(pieceBytes) || pieceBytes < 1 || pieceBytes > pieceBytesMax) {
      throw new TidemarkError(
        "INVALID_ARGUMENT",
        `a piece of ${String(pieceBytes)} bytes is not 1 to ${String(pieceBytesMax)}`,
        {
          remedy: "change pieceBytes",
        },
      );
    }
    return this.#pieces(offset, offset + length, pieceBytes, signal);
  }

  /**
   * The range as a Node stream.
   *
   * @throws TidemarkError as `stream`; what fails while it is read destroys it with that error.
   */
  readable(options: StreamOptions = {}): Readable {
    const { pieceBytes = pieceBytesDefault } = options;
    return Readable.from(this.stream(options), { objectMode: false, highWaterMark: pieceBytes });
  }

  /** Ends what is under way, whose readers get an error, and gives up the hold. Idempotent. */
  async close(): Promise<void> {
    await this.#mount.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async *#pieces(
    from: number,
    end: number,
    pieceBytes: number,
    signal?: AbortSignal,
  ): AsyncGenerator<Uint8Array, void, undefined> {
    for (let at = from; at < end; at += pieceBytes) {
      throwIfAborted(signal);
      const piece = Buffer.alloc(Math.min(pieceBytes, end - at));
      if (!(await this.#isHole(at, piece.length))) await this.read(at, piece);
      yield piece;
    }
  }

  async #isHole(offset: number, length: number): Promise<boolean> {
    const [first] = (await this.#device.lookUp?.(offset, length, 1)) ?? [];
    return first?.kind === "hole" && first.length >= length;
  }

  #check(offset: number, length: number): void {
    const isInside = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
    if (isInside && offset + length <= this.sizeBytes) return;
    const range = `bytes ${String(offset)} to ${String(offset + length)}`;
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `${range} do not lie inside ${this.#device.description} of ${String(this.sizeBytes)} bytes`,
      {
        remedy: "give a range inside the point",
        detail: { offset, length, sizeBytes: this.sizeBytes },
      },
    );
  }
}
