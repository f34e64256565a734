/**
 * Declarations that ship: those that the entry points of package.json reach. The others describe internals that no consumer can import,
 * and are half of all.
 */
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";

const { exports } = JSON.parse(readFileSync("package.json", "utf8"));
const pending = Object.values(exports).flatMap(({ types }) => (types === undefined ? [] : [join(types)]));
const reached = new Set();
for (let path = pending.pop(); path !== undefined; path = pending.pop()) {
  if (reached.has(path)) continue;
  reached.add(path);
  for (const [, specifier] of readFileSync(path, "utf8").matchAll(/(?:from|import\()\s*"(\.[^"]+)\.(?:ts|js)"/g)) {
    pending.push(join(dirname(path), `${specifier}.d.ts`));
  }
}

for (const entry of readdirSync("dist", { recursive: true })) {
  const path = join("dist", entry);
  if (path.endsWith(".d.ts") && !reached.has(path)) rmSync(path);
}
