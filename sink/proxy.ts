/**
 * Proxy settings: which hosts are reached directly, and the parts of a proxy's URL.
 */
import { TidemarkError } from "../engine/index.ts";

/** An HTTP proxy and the hosts that bypass it. */
export interface ProxyOptions {
  /** `http://[USER:PASSWORD@]HOST:PORT`, or https. */
  readonly url: string;
  /**
   * Hosts reached directly: `host`, `host:port`, `.suffix`, `*.suffix` or `*`. Loopback addresses always are.
   */
  readonly bypass?: readonly string[] | undefined;
  /** What set it, for messages: the name of an environment variable, for example. */
  readonly setBy?: string | undefined;
}

/** True when `url` is reached without the proxy. */
export function bypassesProxy(url: URL, bypass: readonly string[]): boolean {
  const host = url.hostname.toLowerCase();
  const port = url.port === "" ? (url.protocol === "https:" ? "443" : "80") : url.port;
  if (isLoopback(host)) return true;
  return bypass.some((entry) => {
    const pattern = entry.trim().toLowerCase();
    if (pattern === "*") return true;
    const colon = pattern.lastIndexOf(":");
    const hasPort = colon > 0 && pattern[colon - 1] !== ":" && /^\d+$/.test(pattern.slice(colon + 1));
    if (hasPort && pattern.slice(colon + 1) !== port) return false;
    const name = (hasPort ? pattern.slice(0, colon) : pattern).replace(/^\*(?=\.)/, "");
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
export function parseProxyUrl({ url: text, setBy }: ProxyOptions): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !["http:", "https:"].includes(url.protocol) || url.hostname === "" || !isEncoded(url)) {
    const subject = setBy === undefined ? "the proxy's URL" : `the proxy's URL in ${setBy}`;
    throw new TidemarkError("INVALID_ARGUMENT", `${subject} cannot be used`, {
      remedy: `give it as http://[USER:PASSWORD@]HOST:PORT${setBy === undefined ? "" : `, or unset ${setBy}`}`,
    });
  }
  return url;
}

/** The proxy in messages: its address without user and password, and what set it. */
export function describeProxy(proxy: ProxyOptions): string {
  const { host } = parseProxyUrl(proxy);
  return proxy.setBy === undefined ? host : `${host} (${proxy.setBy})`;
}

/** True when user name and password can be decoded. */
function isEncoded({ username, password }: URL): boolean {
  try {
    decodeURIComponent(username + password);
    return true;
  } catch (error) {
    if (error instanceof URIError) return false;
    throw error;
  }
}
