/** Programs of others that tests work with, where they are installed. */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";

export function isInstalled(name: string): boolean {
  return binary(name) !== undefined;
}

/** Where a program lies; PostgreSQL's servers often lie beside the path. */
export function binary(name: string): string | undefined {
  const versions = "/usr/lib/postgresql";
  const servers = existsSync(versions) ? readdirSync(versions).map((version) => join(versions, version, "bin")) : [];
  const folders = [...servers, ...(process.env["PATH"] ?? "").split(":"), "/usr/sbin", "/sbin"];
  return folders.map((path) => join(path, name)).find((path) => existsSync(path));
}

export interface User {
  readonly uid: number;
  readonly gid: number;
}

/** The user that PostgreSQL runs as when we are root, which it refuses. */
export function postgresUser(): User | undefined {
  try {
    const id = (flag: string): number =>
      Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
    return { uid: id("-u"), gid: id("-g") };
  } catch (error) {
    if (error instanceof Error && "status" in error) return undefined;
    throw error;
  }
}
