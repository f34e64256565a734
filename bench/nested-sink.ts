/**
 * Nested sink: a store within a store, under a prefix of its own. Each run has a fresh vault in the
 * container it is given, touches nothing that was there before, and removes what it wrote when it is disposed of.
 */
import type { CallOptions, ListedObject, Sink, TidemarkError } from "../engine/index.ts";
import { hasCode } from "../engine/index.ts";
import { type Answer, SinkDecorator, type SinkRequest } from "../engine/internal.ts";

export class NestedSink extends SinkDecorator {
  readonly #prefix: string;

  /** `prefix` ends with a slash. The outer sink stays its owner's. */
  constructor(outer: Sink, prefix: string) {
    super(outer);
    this.#prefix = prefix;
  }

  override get description(): string {
    return `${super.description} (${this.#prefix})`;
  }

  /**
   * Deletes what can be deleted under the prefix, and only then says what is still leased: by a
   * process that was killed, until its lease ends. The outer sink stays open. Errors: LEASE_HELD.
   */
  override async [Symbol.asyncDispose](): Promise<void> {
    const names: string[] = [];
    for await (const { name } of this.list("")) names.push(name);
    let leased: TidemarkError | undefined;
    for (const name of names) {
      try {
        await this.deleteObject(name);
      } catch (error) {
        if (!hasCode(error, "LEASE_HELD")) throw error;
        leased = error;
      }
    }
    if (leased !== undefined) throw leased;
  }

  protected override send<Method extends SinkRequest>(
    method: Method,
    call: readonly [...Parameters<Sink[Method]>],
  ): Promise<Answer<Method>> {
    const [name, ...rest] = call;
    if (typeof name !== "string") return super.send(method, call); // the container
    return super.send(method, [this.#prefix + name, ...rest] as unknown as typeof call);
  }

  override async *list(prefix: string, options?: CallOptions): AsyncGenerator<ListedObject, void> {
    for await (const object of super.list(this.#prefix + prefix, options)) {
      yield { ...object, name: object.name.slice(this.#prefix.length) };
    }
  }
}
