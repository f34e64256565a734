/**
 * Memory for replies: one budget for all connections of a server.
 *
 * A read that cannot be answered at once gets a buffer of its length, which lives until the client
 * has taken the reply. A client that asks and takes nothing would hold as much as it may have under
 * way, and many such clients many times that. So the bytes are granted, first come, first served.
 *
 * Invariant: all connections together hold `bytesMax` and `freeBytes` a connection at most. A
 * connection that takes its replies is served its small reads, also when other connections use up
 * the budget.
 */

/** What a connection has without asking. */
const freeBytes: number = 1024 * 1024;

interface Waiting {
  readonly share: ReplyShare;
  readonly bytes: number;
  readonly grant: () => void;
}

export class ReplyBudget {
  readonly #bytesMax: number;
  #heldBytes = 0;
  #waiting: Waiting[] = [];

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** Resolves when `bytes` have been granted to `share`. More than the budget is granted alone. */
  async take(share: ReplyShare, bytes: number): Promise<void> {
    await new Promise<void>((grant) => {
      this.#waiting.push({ share, bytes, grant });
      this.#grant();
    });
  }

  give(bytes: number): void {
    this.#heldBytes -= bytes;
    this.#grant();
  }

  /** Resolves what `share` waits for, without granting it. */
  forget(share: ReplyShare): void {
    const mine = this.#waiting.filter((waiting) => waiting.share === share);
    this.#waiting = this.#waiting.filter((waiting) => waiting.share !== share);
    for (const { grant } of mine) grant();
    this.#grant();
  }

  #grant(): void {
    for (;;) {
      const next = this.#waiting[0];
      if (next === undefined || (this.#heldBytes > 0 && this.#heldBytes + next.bytes > this.#bytesMax)) return;
      this.#waiting.shift();
      this.#heldBytes += next.bytes;
      next.share.granted(next.bytes);
      next.grant();
    }
  }
}

/** Where the memory of a reply comes from. */
export type ReplySource = "free" | "budget";

/** What one connection holds. */
export class ReplyShare {
  readonly #budget: ReplyBudget;
  /** Bytes of replies that are being made. */
  readonly #making: Record<ReplySource, number> = { free: 0, budget: 0 };
  #grantedBytes = 0;
  #isClosed = false;

  constructor(budget: ReplyBudget) {
    this.#budget = budget;
  }

  /** Resolves when a reply of `bytes` may be made, or when the share is closed. */
  async begin(bytes: number): Promise<ReplySource> {
    if (this.#isClosed || this.#making.free + bytes <= freeBytes) {
      this.#making.free += bytes;
      return "free";
    }
    await this.#budget.take(this, bytes);
    return "budget";
  }

  /** A reply of `bytes` has been made; `untakenBytes` of all replies wait for the client. */
  made(bytes: number, source: ReplySource, untakenBytes: number): void {
    this.#making[source] -= bytes;
    this.taken(untakenBytes);
  }

  /** The client has taken replies, and `untakenBytes` are left. */
  taken(untakenBytes: number): void {
    const bytes = this.#grantedBytes - this.#making.budget - untakenBytes;
    if (bytes <= 0 || this.#isClosed) return;
    this.#grantedBytes -= bytes;
    this.#budget.give(bytes);
  }

  /** `bytes` are this share's for a reply, until `taken` or `close` gives them back. */
  granted(bytes: number): void {
    this.#grantedBytes += bytes;
    this.#making.budget += bytes;
  }

  /** The connection is closed: nothing is kept for its client any more. Called once. */
  close(): void {
    this.#isClosed = true;
    this.#budget.forget(this);
    if (this.#grantedBytes > 0) this.#budget.give(this.#grantedBytes);
  }
}
