/**
 * LRU pool of open page files, so that a segment is not opened again for each write.
 *
 * When more than `openMax` files are open, the least recently used one that no call uses is closed.
 */
import { TidemarkError } from "../engine/index.ts";
import type { PageFile } from "./page-file.ts";

/** How often a name may be deleted and made anew between our opening and using it. */
const attemptsMax = 100;

interface Entry {
  readonly file: Promise<PageFile>;
  users: number;
  /** No longer found under its name; the last user closes it. */
  forgotten: boolean;
}

export class PageFilePool {
  readonly #openMax: number;
  readonly #open: (name: string) => Promise<PageFile>;
  /** In the order of their last use, the oldest first. */
  readonly #entries = new Map<string, Entry>();

  constructor(openMax: number, open: (name: string) => Promise<PageFile>) {
    this.#openMax = openMax;
    this.#open = open;
  }

  /**
   * Runs `task` with the file of that name. When `task` returns undefined the file has been
   * deleted, and the name is opened again.
   */
  async use<T>(name: string, task: (file: PageFile) => Promise<T | undefined>): Promise<T> {
    for (let attempt = 0; attempt < attemptsMax; attempt += 1) {
      const entry = this.#enter(name);
      try {
        const result = await task(await this.#opened(name, entry));
        if (result !== undefined) return result;
        this.#forget(name, entry);
      } finally {
        await this.#leave(entry);
        await this.#closeOldest();
      }
    }
    throw new TidemarkError("STORE_REFUSED", `the file of ${name} has no name each time it is opened`, {
      remedy: "keep the vault's folder on a local file system, or one that counts the names of open files",
      detail: { object: name },
    });
  }

  /**
   * Closes the file of that name as soon as no call uses it, which frees the space of a deleted
   * file.
   */
  async forget(name: string): Promise<void> {
    const entry = this.#entries.get(name);
    if (entry === undefined) return;
    entry.users++;
    this.#forget(name, entry);
    await this.#leave(entry);
  }

  /** Closes all. Those in use are closed by their last user. */
  async close(): Promise<void> {
    await Promise.all([...this.#entries.keys()].map((name) => this.forget(name)));
  }

  #enter(name: string): Entry {
    let entry = this.#entries.get(name);
    if (entry === undefined) {
      entry = { file: this.#open(name), users: 0, forgotten: false };
    }
    entry.users++;
    // Inserted again, it is the most recently used.
    this.#entries.delete(name);
    this.#entries.set(name, entry);
    return entry;
  }

  async #opened(name: string, entry: Entry): Promise<PageFile> {
    try {
      return await entry.file;
    } catch (error) {
      this.#forget(name, entry);
      throw error;
    }
  }

  #forget(name: string, entry: Entry): void {
    entry.forgotten = true;
    if (this.#entries.get(name) === entry) this.#entries.delete(name);
  }

  async #leave(entry: Entry): Promise<void> {
    entry.users--;
    if (!entry.forgotten || entry.users > 0) return;
    const [opening] = await Promise.allSettled([entry.file]);
    // A file that could not be opened has thrown in `#opened` and needs no close.
    if (opening.status === "fulfilled") await opening.value.close();
  }

  async #closeOldest(): Promise<void> {
    for (const [name, entry] of this.#entries) {
      if (this.#entries.size <= this.#openMax) return;
      if (entry.users === 0) await this.forget(name);
    }
  }
}
