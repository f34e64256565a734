/**
 * Connection pool of an Azure sink: keep-alive sockets, bounded in number, through a proxy if one
 * is configured.
 *
 * The proxies of the environment are not used: the SDK would send even requests to 127.0.0.1
 * through them. The agent also reports connections that the store closed while they were idle: that
 * is how a store that was restarted between two requests shows.
 */
import http from "node:http";
import https from "node:https";
import type { Duplex } from "node:stream";
import { HttpProxyAgent } from "http-proxy-agent";
import { HttpsProxyAgent } from "https-proxy-agent";
import { bypassesProxy, type ProxyOptions, parseProxyUrl } from "./proxy.ts";

/** More than the lanes in flight need. Azure and Azurite serve few connections better than many. */
export const socketsMaxDefault = 16;

/** Idle sockets are closed before Azure or a firewall drops them silently. */
const idleMsMax = 20_000;

/** Creates the agent for `url`. Calls `onIdleLost` whenever the store closes an idle connection. */
export function openAgent(
  url: URL,
  proxy: ProxyOptions | undefined,
  socketsMax: number,
  onIdleLost: () => void,
): http.Agent {
  const secure = url.protocol === "https:";
  const isProxied = proxy !== undefined && !bypassesProxy(url, proxy.bypass ?? []);
  const options = { keepAlive: true, maxSockets: socketsMax, maxFreeSockets: socketsMax, timeout: idleMsMax };
  let agent: http.Agent;
  if (!isProxied) {
    agent = secure ? new https.Agent(options) : new http.Agent(options);
    connectWithoutBrackets(agent);
  } else {
    const proxyUrl = parseProxyUrl(proxy);
    agent = secure ? new HttpsProxyAgent(proxyUrl, options) : new HttpProxyAgent(proxyUrl, options);
  }
  watchIdleSockets(agent, onIdleLost);
  return agent;
}

/** The SDK names the host as a URL does, an IPv6 address in brackets; sockets know it without. */
function connectWithoutBrackets(agent: http.Agent): void {
  const connect = agent.createConnection.bind(agent);
  agent.createConnection = (options, callback): ReturnType<typeof connect> => {
    const host = options.host?.replace(/^\[|\]$/g, "");
    return connect({ ...options, ...(host === undefined ? {} : { host }) }, callback);
  };
}

/** Calls `onLost` when the other side closes a socket that is idle in the agent. */
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
      // A close from this side, by idle time or with the agent, destroys the socket before the
      // other side ends it.
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
