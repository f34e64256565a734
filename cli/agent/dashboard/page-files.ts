/** Files of the dashboard's page, as the build has left them beside the program. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Routes } from "../http-service.ts";

const contentTypes: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
};

/** A route for each file, which is read once; `/` is `index.html`. */
export function pageRoutes<Target>(): Routes<Target> {
  const folder = dirname(fileURLToPath(import.meta.resolve("#dashboard")));
  const routes = readdirSync(folder).flatMap((name) => {
    const contentType = contentTypes[extname(name)];
    if (contentType === undefined) return [];
    const content = readFileSync(join(folder, name));
    const path = name === "index.html" ? "" : name;
    return [[`GET /${path}`, async () => ({ content, contentType })] as const];
  });
  return Object.fromEntries(routes);
}
