/**
 * Watchdog of answers: a command that waits for its store or its source says so.
 *
 * `told` gives a stand-in for a store or a source. While a call of it is under way and none has been
 * answered for a while, that is a notice. The next one comes after twice the time, so that a slow
 * store gives a few of them and not one a call.
 *
 * Invariant: the stand-in changes no call, no answer and no error.
 */
import type { Notice } from "../engine/index.ts";

/** Shorter than the deadline of a small request to a store: what ends with it has been told before. */
const toldAfterMs = 8_000;

/** `what` names the thing in notices. */
export function told<Thing extends object>(
  thing: Thing,
  what: string,
  onNotice: (notice: Notice) => void,
  afterMs: number = toldAfterMs,
): Thing {
  const waiting = new Waiting(what, onNotice, afterMs);
  return new Proxy(thing, {
    get: (target, key) => {
      const member: unknown = Reflect.get(target, key, target); // with its private fields
      if (typeof member !== "function") return member;
      return (...given: readonly unknown[]) => watched(Reflect.apply(member, target, given), waiting);
    },
  });
}

/** Tells that `work` has not been answered for a while, as of a source that is being opened. */
export async function toldWhile<Result>(
  work: Promise<Result>,
  what: string,
  onNotice: (notice: Notice) => void,
  afterMs: number = toldAfterMs,
): Promise<Result> {
  return await new Waiting(what, onNotice, afterMs).for(work);
}

function watched(answer: unknown, waiting: Waiting): unknown {
  if (answer instanceof Promise) return waiting.for(answer);
  if (typeof answer === "object" && answer !== null && Symbol.asyncIterator in answer)
    return itemsOf(answer as AsyncIterable<unknown>, waiting);
  return answer;
}

async function* itemsOf(items: AsyncIterable<unknown>, waiting: Waiting): AsyncGenerator {
  const iterator = items[Symbol.asyncIterator]() as AsyncIterator<unknown, undefined>;
  try {
    for (;;) {
      const next = await waiting.for(iterator.next());
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    await iterator.return?.();
  }
}

class Waiting {
  readonly #what: string;
  readonly #onNotice: (notice: Notice) => void;
  #afterMs: number;
  #underWay = 0;
  #timer: NodeJS.Timeout | undefined;
  /** When the last answer came, or the first call after it was made. */
  #sinceMs = 0;

  constructor(what: string, onNotice: (notice: Notice) => void, afterMs: number) {
    this.#what = what;
    this.#onNotice = onNotice;
    this.#afterMs = afterMs;
  }

  async for<Result>(work: Promise<Result>): Promise<Result> {
    this.#underWay += 1;
    if (this.#underWay === 1) this.#begin();
    try {
      return await work;
    } finally {
      this.#underWay -= 1;
      this.#begin();
    }
  }

  #begin(): void {
    clearTimeout(this.#timer);
    this.#sinceMs = performance.now();
    if (this.#underWay > 0) this.#wait();
  }

  #wait(): void {
    this.#timer = setTimeout(() => {
      this.#afterMs *= 2;
      const seconds = ((performance.now() - this.#sinceMs) / 1000).toFixed(0);
      this.#onNotice({ code: "NO_ANSWER", message: `${this.#what} has not answered for ${seconds} s; waiting for it` });
      this.#wait();
    }, this.#afterMs);
    this.#timer.unref();
  }
}
