/**
 * Discarding sink: takes pages at no cost and forgets them, so that a cycle's cost is Tidemark's
 * own work. It keeps plain objects in memory, and of pages how far they were written, because a
 * cycle asks for that before it commits.
 */
import type { CallOptions, ListedObject, PagesStat, Written } from "../engine/index.ts";
import { TidemarkError } from "../engine/index.ts";
import { MemorySink } from "../sink/testing.ts";

interface Discarded {
  etag: string;
  writtenBytes: number;
}

export class DiscardingSink extends MemorySink {
  readonly #pages = new Map<string, Discarded>();
  #discardedBytes = 0;

  constructor() {
    super({ description: "a sink that discards" });
  }

  /** Bytes of pages taken so far. */
  get discardedBytes(): number {
    return this.#discardedBytes;
  }

  override async createPages(
    name: string,
    sizeBytes: number,
    sequenceNumber: number,
    options?: CallOptions,
  ): Promise<Written> {
    const { etag } = await super.createPages(name, sizeBytes, sequenceNumber, options);
    this.#pages.set(name, { etag, writtenBytes: 0 });
    return { etag };
  }

  /** Fences are not checked: the store has one user. */
  override async writePages(name: string, offset: number, bytes: Uint8Array): Promise<Written> {
    const pages = this.#changed(name);
    pages.writtenBytes = Math.max(pages.writtenBytes, offset + bytes.length);
    this.#discardedBytes += bytes.length;
    return { etag: pages.etag };
  }

  override async readPages(name: string): Promise<void> {
    throw new TidemarkError("UNSUPPORTED", `${name} cannot be read: its pages were discarded`);
  }

  /** There is nothing to clear. */
  override async clearPages(name: string): Promise<void> {
    this.#changed(name);
  }

  override async statPages(name: string, options?: CallOptions): Promise<PagesStat> {
    return { ...(await super.statPages(name, options)), ...this.#pages.get(name) };
  }

  override async *list(prefix: string, options?: CallOptions): AsyncGenerator<ListedObject, void> {
    for await (const object of super.list(prefix, options)) {
      yield { ...object, etag: this.#pages.get(object.name)?.etag ?? object.etag };
    }
  }

  #changed(name: string): Discarded {
    const pages = this.#pages.get(name);
    if (pages === undefined) throw new TidemarkError("OBJECT_NOT_FOUND", `${name} does not exist in the store`);
    pages.etag = this.store.nextEtag();
    return pages;
  }
}
