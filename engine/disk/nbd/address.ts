/**
 * Addresses of NBD servers as users write them, `unix:PATH` and `tcp:HOST:PORT`, and the URIs of
 * their exports as NBD clients take them.
 *
 * Invariant: `parseListen(formatListen(address))` gives the same address.
 */
import { resolve } from "node:path";
import type { NbdEndpoint } from "./protocol.ts";

/**
 * unix(7): 108 bytes with the zero at the end; our own name beside it takes 9 of them for a moment.
 */
const socketPathBytesMax = 98;

/**
 * `unix:PATH` or `tcp:HOST:PORT`; a relative path is one of `folder`. Gives what is wrong with
 * `text` otherwise.
 */
export function parseListen(text: string, folder: string): NbdEndpoint | string {
  if (text.startsWith("unix:")) {
    const path = text.slice("unix:".length);
    if (path === "" || path.includes("\0")) return "names no path";
    return socketPathFault(resolve(folder, path)) ?? { kind: "unix", path: resolve(folder, path) };
  }
  const match = /^tcp:(\[[0-9a-f:.]+\]|[^\s:[\]]+):(\d{1,5})$/i.exec(text);
  const port = Number(match?.[2]);
  if (match?.[1] === undefined || port > 65_535) return "is neither unix:PATH nor tcp:HOST:PORT";
  return { kind: "tcp", host: match[1].replace(/^\[|\]$/g, ""), port };
}

/** The inverse of `parseListen`; equal addresses give equal texts. */
export function formatListen(address: NbdEndpoint): string {
  if (address.kind === "unix") return `unix:${address.path}`;
  return `tcp:${address.host.includes(":") ? `[${address.host}]` : address.host.toLowerCase()}:${address.port}`;
}

/** What is wrong with the path of a socket, or undefined. */
export function socketPathFault(path: string): string | undefined {
  const bytes = Buffer.byteLength(path);
  return bytes > socketPathBytesMax
    ? `is a path of ${bytes} bytes, and a socket's has at most ${socketPathBytesMax}`
    : undefined;
}

/** The address of an export as NBD clients take it: the URI of the NBD project. */
export function exportUri(address: NbdEndpoint, name: string): string {
  const path = encodeURIComponent(name);
  if (address.kind === "unix")
    return `nbd+unix:///${path}?socket=${encodeURIComponent(address.path).replaceAll("%2F", "/")}`;
  return `nbd://${address.host.includes(":") ? `[${address.host}]` : address.host}:${address.port}/${path}`;
}
