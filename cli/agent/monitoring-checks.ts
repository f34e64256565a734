/**
 * Checks of what shows the agent to the outside: `metrics`, `dashboard` and `notify`.
 *
 * Invariant: an address that other machines reach serves the dashboard only to clients that show the
 * token or a certificate.
 */
import { constants, type Stats } from "node:fs";
import { access, stat } from "node:fs/promises";
import { resolve } from "node:path";
import { systemCode } from "../../engine/index.ts";
import { parseListen, shellWord } from "../../engine/internal.ts";
import { isLoopback } from "../../sink/internal.ts";
import type { AgentConfig, DashboardConfig, NotifyConfig, TcpAddress } from "./config.ts";
import type { Path } from "./config-document.ts";
import type { DashboardEntry, NotifyEntry } from "./schema.ts";

/** The configuration file that is checked. */
export interface Judge {
  /** Relative paths start here. */
  readonly folder: string;
  readonly report: (at: Path, what: string, remedy: string) => void;
  /** Refuses a secret that is written out, unless only the owner can read the file. */
  readonly refuseSecret: (at: Path, what: string) => void;
}

export function resolveMetrics(entry: { readonly listen: string } | undefined, judge: Judge): AgentConfig["metrics"] {
  if (entry === undefined) return undefined;
  const remedy = "write tcp:127.0.0.1:9180; the control socket serves them too";
  const listen = tcpAddress(["metrics", "listen"], entry.listen, "metrics are served on a TCP address", remedy, judge);
  return listen && { listen };
}

export async function resolveDashboard(
  entry: DashboardEntry | undefined,
  judge: Judge,
): Promise<DashboardConfig | undefined> {
  if (entry === undefined) return undefined;
  const at = ["dashboard", "listen"];
  const remedy = "write tcp:127.0.0.1:9181";
  const listen = tcpAddress(at, entry.listen, "the dashboard is served on a TCP address", remedy, judge);
  const path = (name: string): string => resolve(judge.folder, name);
  const token = entry.token === undefined ? undefined : path(entry.token);
  const tls = entry.tls && {
    key: path(entry.tls.key),
    cert: path(entry.tls.cert),
    ca: entry.tls.ca === undefined ? undefined : path(entry.tls.ca),
  };
  if (token !== undefined) await judgeToken(token, judge);
  for (const [name, file] of Object.entries(tls ?? {})) {
    if (file === undefined) continue;
    try {
      await access(file, constants.R_OK);
    } catch (error) {
      const what = `${file} cannot be read (${systemCode(error) ?? "unknown"})`;
      judge.report(["dashboard", "tls", name], what, "name a PEM file that this user may read");
    }
  }
  if (listen === undefined) return undefined;
  if (
    !isLoopback(listen.host.includes(":") ? `[${listen.host}]` : listen.host) &&
    token === undefined &&
    tls?.ca === undefined
  ) {
    const what = `${entry.listen} can be reached from other machines, and anybody there could see the disks`;
    judge.report(at, what, "add `token: FILE` or `tls` with `ca`, or listen on tcp:127.0.0.1:9181");
  }
  return { listen, token, tls };
}

/** A file that does not exist is made when the agent starts. */
async function judgeToken(path: string, { report }: Judge): Promise<void> {
  const at = ["dashboard", "token"];
  let status: Stats;
  try {
    status = await stat(path);
  } catch (error) {
    const code = systemCode(error);
    if (code !== "ENOENT") report(at, `${path} cannot be read (${code ?? "unknown"})`, "name a file of this user");
    return;
  }
  if (!status.mode.toString(8).endsWith("00"))
    report(
      at,
      `other users can read the token in ${path}`,
      `take their right away with \`chmod 600 ${shellWord(path)}\``,
    );
}

export function resolveNotify(entries: readonly NotifyEntry[], judge: Judge): readonly NotifyConfig[] {
  return entries.flatMap(({ webhook, command, on }, index): NotifyConfig[] => {
    const at = ["notify", index];
    if (command !== undefined && webhook === undefined) return [{ kind: "command", command, cwd: judge.folder, on }];
    if (webhook === undefined || command !== undefined) {
      judge.report(at, "a notification goes to exactly one of webhook and command", "write one entry for each");
      return [];
    }
    const url = URL.canParse(webhook) ? new URL(webhook) : undefined;
    if (url === undefined || !/^https?:$/.test(url.protocol)) {
      judge.report([...at, "webhook"], "the webhook's url is none", "write https://HOST/PATH");
      return [];
    }
    // Services that take webhooks put their key into the path.
    const parts = [...url.pathname.split("/"), url.search];
    const holdsKey = url.password !== "" || parts.some((part) => /\d/.test(part) && /[\w-]{16}/.test(part));
    if (holdsKey) judge.refuseSecret([...at, "webhook"], "the webhook's url holds a key");
    return [{ kind: "webhook", url: webhook, on }];
  });
}

function tcpAddress(at: Path, text: string, what: string, remedy: string, judge: Judge): TcpAddress | undefined {
  const address = parseListen(text, judge.folder);
  if (typeof address !== "string" && address.kind === "tcp") return address;
  judge.report(at, what, remedy);
  return undefined;
}
