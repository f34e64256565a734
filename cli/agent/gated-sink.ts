/**
 * Gated sink: a sink that changes nothing while its gate is closed, except objects that are excepted. Reads, and the release
 * of leases, go on.
 */

import { type CallOptions, type Sink } from "../../engine/index.ts";
import { SinkDecorator } from "../../engine/internal.ts";

export interface Gate {
  /** Throws while the gate is closed. */
  readonly pass: () => void;
  /** Objects whose names begin so are changed all the same. */
  readonly exceptedPrefix: string;
}

export class GatedSink extends SinkDecorator {
  readonly #gate: Gate;

  constructor(inner: Sink, gate: Gate) {
    super(inner);
    this.#gate = gate;
  }

  /** Errors: those of the gate. */
  #pass(name: string): void {
    if (!name.startsWith(this.#gate.exceptedPrefix)) this.#gate.pass();
  }

  override async createContainer(options?: CallOptions): Promise<boolean> {
    this.#gate.pass();
    return await super.createContainer(options);
  }

  override async putObject(...call: Parameters<Sink["putObject"]>): ReturnType<Sink["putObject"]> {
    this.#pass(call[0]);
    return await super.putObject(...call);
  }

  override async deleteObject(...call: Parameters<Sink["deleteObject"]>): Promise<void> {
    this.#pass(call[0]);
    await super.deleteObject(...call);
  }

  override async acquireLease(...call: Parameters<Sink["acquireLease"]>): Promise<void> {
    this.#pass(call[0]);
    await super.acquireLease(...call);
  }

  override async renewLease(...call: Parameters<Sink["renewLease"]>): Promise<void> {
    this.#pass(call[0]);
    await super.renewLease(...call);
  }

  override async changeLease(...call: Parameters<Sink["changeLease"]>): Promise<void> {
    this.#pass(call[0]);
    await super.changeLease(...call);
  }

  override async createPages(...call: Parameters<Sink["createPages"]>): ReturnType<Sink["createPages"]> {
    this.#pass(call[0]);
    return await super.createPages(...call);
  }

  override async writePages(...call: Parameters<Sink["writePages"]>): ReturnType<Sink["writePages"]> {
    this.#pass(call[0]);
    return await super.writePages(...call);
  }

  override async clearPages(...call: Parameters<Sink["clearPages"]>): Promise<void> {
    this.#pass(call[0]);
    await super.clearPages(...call);
  }

  override async restorePages(...call: Parameters<Sink["restorePages"]>): Promise<void> {
    this.#pass(call[0]);
    await super.restorePages(...call);
  }

  override async raiseSequenceNumber(
    ...call: Parameters<Sink["raiseSequenceNumber"]>
  ): ReturnType<Sink["raiseSequenceNumber"]> {
    this.#pass(call[0]);
    return await super.raiseSequenceNumber(...call);
  }
}
