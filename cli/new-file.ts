/** New files and folders: what a command writes for a user is never put in the place of what is there. */
import { readdir, writeFile } from "node:fs/promises";
import { systemCode, TidemarkError } from "../engine/index.ts";
import { makeFolder } from "../engine/internal.ts";

/** Writes a file that must not exist, `mode` permitting. Errors: TARGET_EXISTS, TARGET_FAILED. */
export async function writeNew(path: string, content: string | Uint8Array, mode = 0o666): Promise<void> {
  try {
    await writeFile(path, content, { flag: "wx", mode });
  } catch (error) {
    const code = systemCode(error);
    if (code === "EEXIST")
      throw new TidemarkError("TARGET_EXISTS", `${path} exists`, { remedy: "name another file", cause: error });
    throw new TidemarkError("TARGET_FAILED", `${path} cannot be written (${code ?? "unknown"})`, {
      remedy: "name a file in a folder that exists and may be written",
      cause: error,
    });
  }
}

/**
 * Writes a page that a command was told to write, over an older one. A command that takes long finds
 * with `a` and no text whether it will be able to. Errors: TARGET_FAILED.
 */
export async function writePage(path: string, page: string, flag: "w" | "a" = "w"): Promise<void> {
  try {
    await writeFile(path, page, { flag });
  } catch (error) {
    throw new TidemarkError("TARGET_FAILED", `the page ${path} cannot be written (${systemCode(error) ?? "unknown"})`, {
      remedy: "name a file in a folder that exists and may be written",
      cause: error,
    });
  }
}

/** Makes a folder that the user named, and those above it, where they are absent. Errors: TARGET_FAILED. */
export async function makeNamedFolder(path: string): Promise<void> {
  try {
    await makeFolder(path);
  } catch (error) {
    throw new TidemarkError("TARGET_FAILED", `the folder ${path} cannot be made (${systemCode(error) ?? "unknown"})`, {
      remedy: "name a folder in one that may be written",
      cause: error,
    });
  }
}

/** As `makeNamedFolder`. Errors: INVALID_ARGUMENT also, when the folder is not empty. */
export async function makeEmptyFolder(path: string): Promise<void> {
  await makeNamedFolder(path);
  if ((await readdir(path)).length === 0) return;
  throw new TidemarkError("INVALID_ARGUMENT", `the folder ${path} is not empty`, {
    remedy: "name an empty or absent folder",
  });
}
