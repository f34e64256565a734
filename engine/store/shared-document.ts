/**
 * Shared document: a small object that several processes replace with a compare-and-swap, each on top of
 * what another one has written.
 *
 * A document that cannot be read counts as absent, and is written anew.
 */
import { hasCode, isUnreadable, type TidemarkError } from "../errors.ts";
import type { CallOptions } from "../sink.ts";
import { documentBytesMax } from "./format/documents.ts";
import { type Store, unknownOutcomesMax, unreachable } from "./store.ts";

export interface SharedDocument<Document> {
  /** Of its object. */
  readonly name: string;
  /** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
  readonly decode: (bytes: Uint8Array, object: string) => Document;
  readonly encode: (document: Document) => Uint8Array;
}

/** A document as it was found. */
export interface FoundDocument<Document> {
  /** Undefined: there is none, or it cannot be read. */
  readonly document: Document | undefined;
  /** Why it cannot be read. */
  readonly damage?: TidemarkError;
  /** Undefined: there is no object. */
  readonly etag: string | undefined;
}

/** Errors: those of the store. */
export async function readShared<Document>(
  store: Store,
  { name, decode }: Omit<SharedDocument<Document>, "encode">,
  options: CallOptions,
): Promise<FoundDocument<Document>> {
  const there = await store.find(name, documentBytesMax, options);
  if (there === undefined) return { document: undefined, etag: undefined };
  const { etag } = there;
  try {
    return { document: decode(there.bytes, name), etag };
  } catch (damage) {
    if (!isUnreadable(damage)) throw damage;
    return { document: undefined, damage, etag };
  }
}

/**
 * Replaces a document by what `change` makes of it, or leaves it when that is the same object or
 * undefined. `change` is called again when another process came between. Returns what it gave last.
 * Errors: those of `change` and of the store; STORE_UNREACHABLE.
 */
export async function changeShared<Document, Next extends Document | undefined>(
  store: Store,
  shared: SharedDocument<Document>,
  change: (found: FoundDocument<Document>) => Next,
  options: CallOptions,
): Promise<Next> {
  let failure: unknown;
  for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
    const found = await readShared(store, shared, options);
    const next = change(found);
    if (next === undefined || next === found.document) return next;
    try {
      await store.replace(shared.name, shared.encode(next), found.etag, options);
      return next;
    } catch (error) {
      if (!hasCode(error, "CONDITION_FAILED")) throw error;
      failure = error;
    }
  }
  throw unreachable(`writing ${shared.name}`, failure);
}
