/**
 * What the tests of the NBD client share: scripted servers and clients of them, all of which are
 * closed after each test.
 */
import { NbdClient } from "../../../../engine/disk/nbd/client.ts";
import type { NbdConnectOptions } from "../../../../engine/disk/nbd/client-handshake.ts";
import { type Peer, ScriptedServer, type Terms } from "./scripted-server.ts";

export const kib = 1024;
export const mib: number = 1024 * kib;
export const gib: number = 1024 * mib;
/** Ends of chunks: more of them follow, or this is the last. */
export const more = { done: false };
export const done = { done: true };

const open: AsyncDisposable[] = [];

/** Closes what the test has opened, clients before their servers. */
export async function closeAll(): Promise<void> {
  for (const each of open.splice(0).reverse()) await each[Symbol.asyncDispose]();
}

export type Script = (peer: Peer) => Promise<void> | void;

export async function serve(script: Script): Promise<ScriptedServer> {
  const server = await ScriptedServer.listen(script);
  open.push(server);
  return server;
}

export async function connect(server: ScriptedServer, options: Partial<NbdConnectOptions> = {}): Promise<NbdClient> {
  const given = {
    exportName: "disk",
    silenceMsMax: 20_000,
    ...options,
    kind: "unix",
    path: server.path,
  } as NbdConnectOptions;
  const client = await NbdClient.connect(given);
  open.push(client);
  return client;
}

/** A client of a server that negotiates well and then follows `script`. */
export async function agreed(
  terms: Terms,
  script: Script,
  options: Partial<NbdConnectOptions> = {},
): Promise<NbdClient> {
  const server = await serve(async (peer) => {
    await peer.handshake(terms);
    await script(peer);
  });
  return connect(server, { ...(terms.contexts === undefined ? {} : { contexts: terms.contexts }), ...options });
}

export function filled(length: number, value: number): Buffer {
  return Buffer.alloc(length, value);
}

export async function all<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const found: Item[] = [];
  for await (const item of items) found.push(item);
  return found;
}
