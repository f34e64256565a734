/** What the checks of sinks share: two clients of one store, and common assertions. */
import assert from "node:assert/strict";
import { type ErrorCode, type Sink, type StoredObject, TidemarkError } from "../../engine/index.ts";

/** Three clients for one check. */
export interface OpenedSinks {
  /** A client of a new, empty store whose container exists. */
  readonly a: Sink;
  /** Another client of the same store. */
  readonly b: Sink;
  /** A client of a container that does not exist. */
  readonly absent: Sink;
  /** Disposes of the sinks and removes what they stored. */
  readonly cleanup: () => Promise<void>;
}

/** What an adapter lets the suite do. */
export interface SinkTraits {
  /** Moves the clock by which leases expire, in ms. Absent: expiry is not checked. */
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

/**
 * An object with its bytes as a plain Uint8Array: an adapter may return a Buffer, which is not
 * deeply equal to one.
 */
export async function objectOf(sink: Sink, object: string): Promise<StoredObject> {
  const { bytes, etag } = await sink.getObject(object, mebibyte);
  return { bytes: Uint8Array.from(bytes), etag };
}

/** A range of a page object, read into a buffer whose old content must be overwritten. */
export async function pagesOf(sink: Sink, object: string, offset: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length).fill(0xee);
  await sink.readPages(object, offset, into);
  return into;
}

/** Every name that `list` yields. */
export async function namesIn(
  sink: Sink,
  prefix: string,
  options: { readonly signal?: AbortSignal } = {},
): Promise<string[]> {
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
  assert.equal(error.code, code, error.message);
  return error;
}

/** Fails unless exactly one call succeeded and all others failed with that code. */
export function expectOneWinner(results: readonly PromiseSettledResult<unknown>[], losersCode: ErrorCode): void {
  const winners = results.filter(({ status }) => status === "fulfilled");
  const codes = results.flatMap((result) => (result.status === "rejected" ? [codeOf(result.reason)] : []));
  assert.equal(winners.length, 1);
  assert.deepEqual(
    codes,
    Array.from({ length: results.length - 1 }, () => losersCode),
  );
}

function codeOf(error: unknown): string {
  return error instanceof TidemarkError ? error.code : String(error);
}

export function utf8(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text));
}

/** Bytes that differ from place to place and from seed to seed. */
export function pattern(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let index = 0; index < length; index += 1) bytes[index] = index * 31 + (index >>> 8) * 7 + seed * 101 + 1;
  return bytes;
}

export function isZero(bytes: Uint8Array): boolean {
  return Buffer.compare(bytes, new Uint8Array(bytes.length)) === 0;
}

/** Fails unless the fields of `expected` are those of `actual`; others are ignored. */
export function matches<T extends object>(actual: T, expected: Partial<T>): void {
  assert.deepEqual(Object.fromEntries(Object.keys(expected).map((key) => [key, actual[key as keyof T]])), {
    ...expected,
  });
}
