/** Identity of a file or device by its path, for tests that have no open file at hand. */
import { realpath, stat } from "node:fs/promises";
import { type FileIdentity, identityFrom } from "../engine/disk/source/file-identity.ts";

/** The identity of what `path` leads to, links resolved. */
export async function fileIdentity(path: string): Promise<FileIdentity> {
  return identityFrom(await realpath(path), await stat(path, { bigint: true }));
}
