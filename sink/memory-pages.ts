/**
 * Sparse pages in memory, copy-on-write: versions of a page object share the pages that they have in
 * common.
 */

const storedPageBytes = 64 * 1024;

/** Writes into `pages`, replacing every page it touches by a new one. */
export function overwrite(pages: Map<number, Uint8Array>, offset: number, bytes: Uint8Array): void {
  for (const piece of pieces(offset, bytes.length)) {
    const page = new Uint8Array(storedPageBytes);
    const before = pages.get(piece.page);
    if (before !== undefined && piece.length < storedPageBytes) page.set(before);
    page.set(bytes.subarray(piece.at, piece.at + piece.length), piece.inPage);
    pages.set(piece.page, page);
  }
}

/** Drops every stored page that the range covers, and replaces those that it covers in part. */
export function clear(pages: Map<number, Uint8Array>, offset: number, length: number): void {
  for (const piece of pieces(offset, length)) {
    const rest = piece.length < storedPageBytes ? pages.get(piece.page)?.slice() : undefined;
    if (rest === undefined) pages.delete(piece.page);
    else pages.set(piece.page, rest.fill(0, piece.inPage, piece.inPage + piece.length));
  }
}

/**
 * A range cut at the borders of stored pages: which page, where in it, where in the range, how
 * long.
 */
export function* pieces(
  offset: number,
  length: number,
): Generator<{ page: number; inPage: number; at: number; length: number }, void> {
  for (let at = 0; at < length; ) {
    const page = Math.floor((offset + at) / storedPageBytes);
    const inPage = (offset + at) % storedPageBytes;
    const pieceLength = Math.min(storedPageBytes - inPage, length - at);
    yield { page, inPage, at, length: pieceLength };
    at += pieceLength;
  }
}
