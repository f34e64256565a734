/**
 * Access to the dashboard: a bearer token, or a client certificate that TLS has checked.
 *
 * The port can be reached by every user of the machine, and by every page that a browser of this
 * machine shows. So:
 *
 * - Without a token or certificates the dashboard is served on a loopback address only, and may only
 *   be looked at. The control socket, which belongs to one user, is the place for the rest.
 * - The page keeps the token and sends it in a header, never as a cookie: a request that another page
 *   causes does not carry it.
 * - A request that a browser sends for another page (Sec-Fetch-Site, Origin) is refused, and so is one
 *   that was sent to a foreign name (DNS rebinding).
 * - An action has a JSON body with that media type, which no form can send.
 */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import type { IncomingMessage } from "node:http";
import { systemCode, TidemarkError } from "../../../engine/index.ts";
import { checkHost } from "../http-service.ts";

/** What a client may do: nothing, look, or act. */
export type Access = "none" | "look" | "act";

export interface AccessRules {
  /** The name in the configuration, which may be asked for. */
  readonly host: string;
  readonly token: string | undefined;
  /** Every connection has shown a certificate. */
  readonly hasCertificates: boolean;
}

/** Shorter secrets can be guessed. */
const tokenLengthMin = 16;
const tokenBytesMax = 4096;

/** The secret in `path`, which is made for its owner alone if it is missing. Errors: INVALID_ARGUMENT. */
export async function readToken(path: string): Promise<string> {
  try {
    const token = randomBytes(24).toString("base64url");
    await writeFile(path, `${token}\n`, { flag: "wx", mode: 0o600 });
    return token;
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw unusableToken(path, systemCode(error) ?? "unknown", error);
  }
  let text: string;
  try {
    text = (await readFile(path, "utf8")).trim();
  } catch (error) {
    throw unusableToken(path, systemCode(error) ?? "unknown", error);
  }
  if (text.length >= tokenLengthMin && text.length <= tokenBytesMax && /^[\x21-\x7e]+$/.test(text)) return text;
  throw unusableToken(path, `it holds no token: ${tokenLengthMin} characters or more, without spaces`, undefined);
}

function unusableToken(path: string, why: string, cause: unknown): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `the token of the dashboard in ${path} cannot be used (${why})`, {
    remedy: `remove the file, so that the agent makes a new one, or name another as \`token\` of \`dashboard\``,
    cause,
  });
}

/** What the client of a request may do. */
export function accessOf({ token, hasCertificates }: AccessRules, request: IncomingMessage): Access {
  if (hasCertificates && token === undefined) return "act";
  if (token === undefined) return "look";
  const sent = /^Bearer (\S+)$/.exec(request.headers.authorization ?? "")?.[1] ?? "";
  const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(sent), digest(token)) ? "act" : "none";
}

/** Throws ACCESS_REFUSED for a request that is not answered. Files of the page are open to all. */
export function admit(rules: AccessRules, request: IncomingMessage): void {
  const { headers, method = "" } = request;
  checkHost(rules.host, headers.host, "dashboard.listen");
  const isFile = !(request.url ?? "").startsWith("/v1/");
  const site = headers["sec-fetch-site"];
  // A link from elsewhere may open the page, and nothing else.
  if (site !== undefined && site !== "same-origin" && site !== "none" && !(isFile && isNavigation(request)))
    throw refused("the request comes from the page of another site", "open the dashboard itself");
  if (headers.origin !== undefined && originHost(headers.origin) !== headers.host)
    throw refused("the request comes from the page of another site", "open the dashboard itself");
  if (isFile || request.url === "/v1/access") return;
  const access = accessOf(rules, request);
  if (access === "none") throw refused("the token is missing or wrong", "send the token of `dashboard.token`");
  if (method === "GET") return;
  if (access === "look")
    throw refused(
      "the dashboard may only be looked at",
      "add `token: FILE` to `dashboard` in the configuration, or use `tidemark agent`",
    );
  if (!/^application\/json\s*(;|$)/i.test(headers["content-type"] ?? ""))
    throw refused("the request is not JSON", "send it with Content-Type: application/json");
}

function isNavigation({ headers, method }: IncomingMessage): boolean {
  return method === "GET" && headers["sec-fetch-mode"] === "navigate" && headers["sec-fetch-dest"] === "document";
}

function originHost(origin: string): string | undefined {
  return URL.canParse(origin) ? new URL(origin).host : undefined;
}

function refused(message: string, remedy: string): TidemarkError {
  return new TidemarkError("ACCESS_REFUSED", message, { remedy });
}
