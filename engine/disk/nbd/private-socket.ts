/** A Unix socket that only its owner can open, from the moment that it has a name. */
import { chmodSync } from "node:fs";
import type { Server } from "node:net";
import { isMainThread } from "node:worker_threads";

/**
 * Calls `server.listen` so that the socket's file has mode 0600 when bind(2) makes it. A socket that
 * is restricted afterwards would accept the connections of other users for a moment.
 *
 * Node binds during `listen`, so the process's umask is changed for that call alone. A worker thread
 * cannot change it; there the file is restricted in the same turn of the loop, before a client is
 * accepted.
 */
export function listenPrivately(server: Server, path: string): void {
  if (!isMainThread) {
    server.listen(path);
    if (server.listening) chmodSync(path, 0o600);
    return;
  }
  const before = process.umask(0o177);
  try {
    server.listen(path);
  } finally {
    process.umask(before);
  }
}
