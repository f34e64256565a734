/** New files: what a command writes for a user is never put in the place of what is there. */
import { writeFile } from "node:fs/promises";
import { systemCode, TidemarkError } from "../engine/index.ts";

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
