/**
 * Diagnostic events: what one needs to know after an incident, on channels of
 * `node:diagnostics_channel`.
 *
 * The engine publishes a few events a cycle. A channel without subscribers costs one property read
 * and the event's object. Events are facts for people and tools: nothing in the engine depends on
 * them, and none of them holds a secret.
 *
 * Publishing calls the subscribers in the same turn, so a subscriber must be quick and must not
 * write to the event. What a subscriber throws reaches the process as an uncaught exception; it
 * does not disturb the engine's work.
 */
import { type Channel, channel, subscribe, unsubscribe } from "node:diagnostics_channel";
import type { ErrorCode } from "./errors.ts";

/** The events by name; the channels of `node:diagnostics_channel` are called `tidemark:<name>`. */
export interface DiagnosticEvents {
  /**
   * A disk was taken over whose head named a writer: one that has died or was fenced, or that
   * failed.
   */
  readonly "lease.taken-over": {
    readonly disk: string;
    /** Epoch of the new writer, and of the former one. */
    readonly epoch: number;
    readonly formerEpoch: number;
    readonly formerPid: number;
    readonly formerHost: string;
    /** Segments of the former writer that are fenced. */
    readonly fencedSegments: number;
  };
  /** Another writer has taken over the disk of a writer of this process. */
  readonly "writer.fenced": {
    readonly disk: string;
    /** Epoch of the writer that is locked out. */
    readonly epoch: number;
    /** What the store answered. */
    readonly message: string;
  };
  /** The swap of a head that commits a point is about to be sent. */
  readonly "commit.tried": {
    readonly disk: string;
    readonly epoch: number;
    readonly sequence: number;
    /** Id of the point. */
    readonly point: string;
    /** From 1; more than one after an outcome that was not known. */
    readonly attempt: number;
  };
  /** It is known whether the point is committed. */
  readonly "commit.resolved": {
    readonly disk: string;
    readonly epoch: number;
    readonly sequence: number;
    readonly point: string;
    readonly outcome: "committed" | "failed";
    /**
     * Why it failed; undefined when the point is committed, or when the error is not one of
     * Tidemark's.
     */
    readonly code: ErrorCode | undefined;
    readonly attempts: number;
    readonly elapsedMs: number;
  };
  /** The store has lost what it had acknowledged. */
  readonly "store.regressed": {
    /** Name of the object that was found missing or older. */
    readonly object: string;
    readonly message: string;
  };
  /** A garbage collection has condemned what no point needs. */
  readonly "collection.marked": {
    readonly vault: string;
    /** Id of the collection. */
    readonly collection: string;
    readonly condemnedChunks: number;
    readonly condemnedBytes: number;
    /** Manifests, pages of points and parts of maps that nothing refers to. */
    readonly condemnedObjects: number;
  };
  /** A garbage collection has freed what it had condemned. */
  readonly "collection.freed": {
    readonly vault: string;
    readonly collection: string;
    readonly freedBytes: number;
    readonly deletedSegments: number;
    readonly deletedObjects: number;
    /** Since the collection began. */
    readonly elapsedMs: number;
  };
  /** A protected disk has been cut: later writes belong to the next point. */
  readonly "cut.made": {
    /** Path or name of the disk's image. */
    readonly device: string;
    /** Wall clock at the cut, ms since 1970. */
    readonly timeMs: number;
    readonly sizeBytes: number;
    readonly dirtyBytes: number;
    /** How long new writes were held back, in ms. */
    readonly barrierMs: number;
    /** Whether what is overwritten is kept until it has been captured. */
    readonly exact: boolean;
  };
}

export type DiagnosticName = keyof DiagnosticEvents;

/** Every name, in the order of `DiagnosticEvents`. */
export const diagnosticNames: readonly DiagnosticName[] = [
  "lease.taken-over",
  "writer.fenced",
  "commit.tried",
  "commit.resolved",
  "store.regressed",
  "collection.marked",
  "collection.freed",
  "cut.made",
];

/**
 * Held here, because a channel that nothing refers to is collected together with its subscriptions.
 */
const channels: ReadonlyMap<DiagnosticName, Channel> = new Map(
  diagnosticNames.map((name) => [name, channel(`tidemark:${name}`)]),
);

/** Publishes an event. Free of effect while nothing subscribes. */
export function publish<Name extends DiagnosticName>(name: Name, event: DiagnosticEvents[Name]): void {
  const target = channels.get(name);
  if (target?.hasSubscribers === true) target.publish(event);
}

/** One event with its name: `switch (name)` narrows `event`. */
export type DiagnosticEvent = {
  readonly [Name in DiagnosticName]: { readonly name: Name; readonly event: DiagnosticEvents[Name] };
}[DiagnosticName];

/**
 * Subscribes to every channel. Returns a function that ends the subscription.
 *
 * @example
 * ```ts
 * const unsubscribe = subscribeDiagnostics(({ name, event }) => {
 *   console.error(name, JSON.stringify(event));
 * });
 * ```
 */
export function subscribeDiagnostics(listener: (diagnostic: DiagnosticEvent) => void): () => void {
  const subscriptions = diagnosticNames.map((name) => {
    const onMessage = (event: unknown): void => listener({ name, event } as DiagnosticEvent);
    subscribe(`tidemark:${name}`, onMessage);
    return { name, onMessage };
  });
  return () => {
    for (const { name, onMessage } of subscriptions) unsubscribe(`tidemark:${name}`, onMessage);
  };
}
