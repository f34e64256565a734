/**
 * Gated sink: a sink that changes nothing while its gate is closed, except objects that are excepted. Reads, and the release
 * of leases, go on.
 */
import type { Sink } from "../../engine/index.ts";
import { type Answer, SinkDecorator, type SinkRequest } from "../../engine/internal.ts";

export interface Gate {
  /** Throws while the gate is closed. */
  readonly pass: () => void;
  /** Objects whose names begin so are changed all the same. */
  readonly exceptedPrefix: string;
}

const ungated: readonly SinkRequest[] = ["getObject", "statObject", "readPages", "statPages", "releaseLease"];

export class GatedSink extends SinkDecorator {
  readonly #gate: Gate;

  constructor(inner: Sink, gate: Gate) {
    super(inner);
    this.#gate = gate;
  }

  /** Errors: those of the gate. */
  protected override async send<Method extends SinkRequest>(
    method: Method,
    call: readonly [...Parameters<Sink[Method]>],
  ): Promise<Answer<Method>> {
    const [name] = call;
    const isExcepted = typeof name === "string" && name.startsWith(this.#gate.exceptedPrefix);
    if (!isExcepted && !ungated.includes(method)) this.#gate.pass();
    return await super.send(method, call);
  }
}
