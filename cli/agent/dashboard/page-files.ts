/** Files of the dashboard's page, as the build has left them beside the program. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Route } from "../http-service.ts";

const contentTypes: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
};

/** A route for each file, which is read once; `/` is `index.html`. */
export function pageRoutes<Target>(): readonly Route<Target>[] {
  const folder = dirname(fileURLToPath(import.meta.resolve("#dashboard")));
  return readdirSync(folder).flatMap((name): Route<Target>[] => {
    const contentType = contentTypes[extname(name)];
    if (contentType === undefined) return [];
    const content = readFileSync(join(folder, name));
    const path = name === "index.html" ? "" : name;
    return [{ method: "GET", path: `/${path}`, answer: async () => ({ content, contentType }) }];
  });
}
