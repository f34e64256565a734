/**
 * The sockets of one Azure sink: kept alive, bounded in number, through a proxy where one is configured, and gone when the sink is.
 *
 * The environment's proxies are never used by themselves: the SDK would send even requests to 127.0.0.1 through them. Whoever wants
 * them passes them. An agent of our own also tells us of connections that the store closed while they lay idle, which is
 * how a store that was restarted between two requests shows itself.
 */
import http from "node:http";
import https from "node:https";
import type { Duplex } from "node:stream";
import { HttpProxyAgent } from "http-proxy-agent";
import { HttpsProxyAgent } from "https-proxy-agent";
import { TidemarkError } from "../engine/index.ts";

export interface ProxyOptions {
  /** `http://[USER:PASSWORD@]HOST:PORT`, or https. */
  readonly url: string;
  /** Hosts reached directly: `host`, `host:port`, `.suffix`, `*.suffix` or `*`. Loopback always is. */
  readonly bypass?: readonly string[] | undefined;
}

/** One more than the lanes in flight need; Azure and Azurite both serve few connections better than many. */
export const socketsMaxDefault = 16;

/** Idle sockets are closed by us before Azure or a firewall drops them silently. */
const idleMsMax = 20_000;

/** Makes the agent for `url`. `onIdleLost` is called whenever the store closes a connection that no request uses. */
export function openAgent(url: URL, proxy: ProxyOptions | undefined, socketsMax: number, onIdleLost: () => void): http.Agent {
  const secure = url.protocol === "https:";
  const options = { keepAlive: true, maxSockets: socketsMax, maxFreeSockets: socketsMax, timeout: idleMsMax };
  let agent: http.Agent;
  if (proxy === undefined || bypassesProxy(url, proxy.bypass ?? [])) agent = secure ? new https.Agent(options) : new http.Agent(options);
  else {
    const proxyUrl = parseProxyUrl(proxy.url);
    agent = secure ? new HttpsProxyAgent(proxyUrl, options) : new HttpProxyAgent(proxyUrl, options);
  }
  watchIdleSockets(agent, onIdleLost);
  return agent;
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

/** True for names and addresses of this machine itself, as URLs write them. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host.endsWith(".localhost") || /^127(\.\d{1,3}){3}$/.test(host) || host === "[::1]";
}

/** Parses a proxy's URL without ever repeating it in an error, since it may hold a password. */
export function parseProxyUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || (url.protocol !== "http:" && url.protocol !== "https:")) {
    throw new TidemarkError("INVALID_ARGUMENT", "the proxy's URL cannot be used", {
      remedy: "give it as http://[USER:PASSWORD@]HOST:PORT",
    });
  }
  return url;
}

/** Calls `onLost` when a socket is closed from the other side while it waits in the agent for its next request. */
function watchIdleSockets(agent: http.Agent, onLost: () => void): void {
  const idle = new WeakSet<Duplex>();
  const watched = new WeakSet<Duplex>();
  const keep: (socket: Duplex) => unknown = agent.keepSocketAlive.bind(agent);
  const reuse = agent.reuseSocket.bind(agent);
  agent.keepSocketAlive = (socket): boolean => {
    if (keep(socket) === false) return false;
    idle.add(socket);
    if (!watched.has(socket)) {
      watched.add(socket);
      // Our own closing, by idle time or with the agent, destroys the socket before the other side has ended it.
      socket.once("end", () => {
        if (idle.has(socket)) onLost();
      });
    }
    return true;
  };
  agent.reuseSocket = (socket, request): void => {
    idle.delete(socket);
    reuse(socket, request);
  };
}
