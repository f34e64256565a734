/**
 * Proxy settings: which hosts are reached directly, and the parts of a proxy's URL.
 */
import { TidemarkError } from "../engine/index.ts";

/** An HTTP proxy and the hosts that bypass it. */
export interface ProxyOptions {
  /** `http://[USER:PASSWORD@]HOST:PORT`, or https. */
  readonly url: string;
  /**
   * Hosts reached directly: `host`, `host:port`, `.suffix`, `*.suffix` or `*`. Loopback addresses
   * always are.
   */
  readonly bypass?: readonly string[] | undefined;
}

/** True when `url` is reached without the proxy. */
export function bypassesProxy(url: URL, bypass: readonly string[]): boolean {
  const host = url.hostname.toLowerCase();
  const port = url.port === "" ? (url.protocol === "https:" ? "443" : "80") : url.port;
  if (isLoopback(host)) return true;
  return bypass.some((entry) => {
    const pattern = entry.trim().toLowerCase();
    if (pattern === "*") return true;
    const withPort = /^(.*[^:]):(\d+)$/.exec(pattern);
    if (withPort !== null && withPort[2] !== port) return false;
    const name = (withPort?.[1] ?? pattern).replace(/^\*(?=\.)/, "");
    if (name === "") return false;
    return name.startsWith(".") ? host.endsWith(name) || host === name.slice(1) : host === name;
  });
}

/** True for names and addresses of the loopback interface, as URLs write them. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host.endsWith(".localhost") || /^127(\.\d{1,3}){3}$/.test(host) || host === "[::1]";
}

/**
 * Parses a proxy's URL. No error repeats it, because it may hold a password. Throws
 * INVALID_ARGUMENT.
 */
export function parseProxyUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || (url.protocol !== "http:" && url.protocol !== "https:")) {
    throw new TidemarkError("INVALID_ARGUMENT", "the proxy's URL cannot be used", {
      remedy: "give it as http://[USER:PASSWORD@]HOST:PORT",
    });
  }
  return url;
}
