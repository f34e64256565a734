/** What the tests of stores share: two clients of one store, and the questions that every test asks of them. */
import { expect } from "vitest";
import { type ErrorCode, TidemarkError } from "../../engine/errors.ts";
import type { Sink, StoredObject } from "../../engine/sink.ts";

export interface OpenedSinks {
  readonly a: Sink;
  readonly b: Sink;
  readonly absent: Sink;
  /** Disposes of the sinks and removes what they stored. */
  readonly cleanup: () => Promise<void>;
}

export interface SinkTraits {
  /** Moves the clock by which the store's leases expire. Absent: the store has a clock of its own, and expiry is not tested. */
  readonly advanceMs?: (ms: number) => void;
}

export const mebibyte: number = 1024 * 1024;

/** Puts a new object; gives its ETag. */
export async function put(sink: Sink, object: string, text: string): Promise<string> {
  return (await sink.putObject(object, utf8(text), { ifAbsent: true })).etag;
}

/** An object's content as text. */
export async function textOf(sink: Sink, object: string): Promise<string> {
  return new TextDecoder().decode((await sink.getObject(object, mebibyte)).bytes);
}

/** An object as plain bytes: a Buffer is an honest answer too, but does not equal them. */
export async function objectOf(sink: Sink, object: string): Promise<StoredObject> {
  const { bytes, etag } = await sink.getObject(object, mebibyte);
  return { bytes: Uint8Array.from(bytes), etag };
}

/** A range of a page object, read into a buffer whose old content must not shine through. */
export async function pagesOf(sink: Sink, object: string, offset: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length).fill(0xee);
  await sink.readPages(object, offset, into);
  return into;
}

/** Every name that `list` tells. */
export async function namesIn(sink: Sink, prefix: string, options: { readonly signal?: AbortSignal } = {}): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of sink.list(prefix, options)) names.push(name);
  return names;
}

/** Fails unless `call` rejects with a TidemarkError of that code. */
export async function expectCode(call: Promise<unknown>, code: ErrorCode): Promise<TidemarkError> {
  const error: unknown = await call.then(
    (value) => `it succeeded with ${JSON.stringify(value)}`,
    (reason: unknown) => reason,
  );
  if (!(error instanceof TidemarkError)) throw new Error(`expected ${code}, but: ${String(error)}`, { cause: error });
  expect(error.code, error.message).toBe(code);
  return error;
}

/** Fails unless exactly one call succeeded and all others failed with that code. */
export function expectOneWinner(results: readonly PromiseSettledResult<unknown>[], losersCode: ErrorCode): void {
  const winners = results.filter(({ status }) => status === "fulfilled");
  const codes = results.flatMap((result) => (result.status === "rejected" ? [codeOf(result.reason)] : []));
  expect(winners).toHaveLength(1);
  expect(codes).toEqual(Array.from({ length: results.length - 1 }, () => losersCode));
}

function codeOf(error: unknown): string {
  return error instanceof TidemarkError ? error.code : String(error);
}

export function utf8(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text));
}

/** Bytes that differ from place to place and from seed to seed. */
export function pattern(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (index * 31 + (index >>> 8) * 7 + seed * 101 + 1) & 0xff);
}

export function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}
