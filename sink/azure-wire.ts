/**
 * Wire format of Azure Blob requests and answers: service version, ETags, bodies.
 *
 * The SDK sends the service version of its own release, which Azurite 3.35 refuses, so every
 * request carries a pinned one.
 */
import { Readable } from "node:stream";
import { finished } from "node:stream/promises";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { BlobDownloadResponseParsed, RequestPolicyFactory } from "@azure/storage-blob";
import { copyBytes } from "../engine/internal.ts";

/** The newest service version that Azurite 3.35 knows. */
export const serviceVersion = "2025-11-05";

/** SDK policy that sets the service version before the request is signed. */
export const pinnedVersion: RequestPolicyFactory = {
  create: (next) => ({
    sendRequest: (request) => {
      request.headers.set("x-ms-version", serviceVersion);
      return next.sendRequest(request);
    },
  }),
};

/** SDK policy that signs each request with the SAS of its moment. */
export function signedBy(sas: () => Promise<string>): RequestPolicyFactory {
  return {
    create: (next) => ({
      sendRequest: async (request) => {
        request.url += `${request.url.includes("?") ? "&" : "?"}${await sas()}`;
        return await next.sendRequest(request);
      },
    }),
  };
}

/** SDK policy that tells `onDate` what the store's clock says in an answer, in ms since 1970. */
export function watchedDates(onDate: (serverMs: number) => void): RequestPolicyFactory {
  return {
    create: (next) => ({
      sendRequest: async (request) => {
        const response = await next.sendRequest(request);
        const serverMs = Date.parse(response.headers.get("date") ?? "");
        if (!Number.isNaN(serverMs)) onDate(serverMs);
        return response;
      },
    }),
  };
}

/**
 * Streams the body into `into`. A body of another length throws a plain Error, which the retry
 * policy treats as a lost connection. Pieces are taken as they come: an async iterator would put
 * those that have gathered together first.
 */
export async function fill(into: Uint8Array, response: BlobDownloadResponseParsed, name: string): Promise<void> {
  const body = response.readableStreamBody;
  let filled = 0;
  if (body !== undefined) {
    body.on("data", (piece: Uint8Array) => {
      filled += piece.length;
      if (filled > into.length) discard(response);
      else copyBytes(piece, into, filled - piece.length);
    });
    await finished(body);
  }
  if (filled !== into.length) throw new Error(`the answer for ${name} does not have ${String(into.length)} bytes`);
}

/** Destroys the body of an answer, and with it the connection. */
export function discard(response: BlobDownloadResponseParsed): void {
  const body = response.readableStreamBody;
  if (body === undefined || !("destroy" in body) || typeof body.destroy !== "function") return;
  body.on("error", () => undefined);
  body.destroy();
}

/** The bytes as a Buffer over the same memory, which the SDK sends without a copy. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** What the socket is given in one turn of the event loop: copying 4 MiB to it takes some 5 ms. */
const sentAtOnceBytes: number = 256 * 1024;

/** `bytes` as a body that leaves in pieces: between two of them the event loop does other work. */
export function bodyOf(bytes: Uint8Array): () => NodeJS.ReadableStream {
  return () => Readable.from(piecesOf(asBuffer(bytes)), { highWaterMark: 1 });
}

async function* piecesOf(bytes: Buffer): AsyncGenerator<Buffer, void, undefined> {
  for (let at = 0; at < bytes.length; at += sentAtOnceBytes) {
    // A socket that takes a piece at once would be given the next one in the same turn.
    if (at > 0) await nextTurn();
    yield bytes.subarray(at, at + sentAtOnceBytes);
  }
}

/** An ETag without quotes: headers carry it in quotes, lists do not, and the engine sees none. */
export function plainEtag(etag: string | undefined): string {
  return (etag ?? "").replaceAll('"', "");
}

/** The ETag as a request header carries it, in quotes. */
export function httpEtag(etag: string): string {
  return `"${plainEtag(etag)}"`;
}
