/** Folder sync: a file's name is durable only when its folder has been synced. */
import { open } from "node:fs/promises";
import { systemCode } from "../../errors.ts";

/**
 * Makes the names in a folder durable. Rejects with Node's own error: only the caller knows what
 * the folder means.
 */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } catch (error) {
    // Some file systems refuse to sync a folder and need no such call.
    if (systemCode(error) !== "EINVAL") throw error;
  } finally {
    await folder.close();
  }
}
