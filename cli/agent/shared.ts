/**
 * Reference-counted resources that several disks share: a vault, a listening server.
 *
 * The first user opens a resource, the last user to release it closes it. A user that asks while it
 * closes waits for the end, because an address or a folder is free only then.
 */

/** One use of a resource. Releasing it again does nothing. */
export interface Share<Resource> {
  readonly resource: Resource;
  release(): Promise<void>;
}

interface Held<Resource> {
  readonly opening: Promise<Resource>;
  readonly value: { current: Resource | undefined };
  users: number;
}

export class SharedResources<Resource extends { close(): Promise<void> }> {
  readonly #held = new Map<string, Held<Resource>>();
  readonly #closing = new Map<string, Promise<void>>();

  /**
   * The resource of that name; `open` makes it when there is none. An opening that failed is
   * forgotten, so that the next one tries again.
   */
  async acquire(name: string, open: () => Promise<Resource>): Promise<Share<Resource>> {
    for (let closing = this.#closing.get(name); closing !== undefined; closing = this.#closing.get(name)) await closing;
    const held = this.#held.get(name) ?? this.#open(name, open);
    held.users += 1;
    let released = false;
    const release = async (): Promise<void> => {
      if (released) return;
      released = true;
      held.users -= 1;
      if (held.users === 0) await this.#close(name, held);
    };
    try {
      const resource = await held.opening;
      held.value.current = resource;
      return { resource, release };
    } catch (error) {
      released = true;
      if (this.#held.get(name) === held) this.#held.delete(name);
      throw error;
    }
  }

  /** The resource of that name if it is open just now. */
  get(name: string): Resource | undefined {
    return this.#held.get(name)?.value.current;
  }

  #open(name: string, open: () => Promise<Resource>): Held<Resource> {
    const held = { opening: open(), value: { current: undefined }, users: 0 };
    this.#held.set(name, held);
    return held;
  }

  async #close(name: string, held: Held<Resource>): Promise<void> {
    this.#held.delete(name);
    const closing = held.value.current?.close() ?? Promise.resolve();
    // Users that wait for the name need to know that it is over; a failure is thrown to the user
    // that closes.
    const over = closing.then(
      () => undefined,
      () => undefined,
    );
    this.#closing.set(name, over);
    try {
      await closing;
    } finally {
      this.#closing.delete(name);
    }
  }
}
