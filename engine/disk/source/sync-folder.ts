/** Folder sync: a file's name is durable only when its folder has been synced. */
import { constants } from "node:fs";
import { open } from "node:fs/promises";
import process from "node:process";
import { systemCode } from "../../errors.ts";

/**
 * Makes the names in a folder durable. Rejects with Node's own error: only the caller knows what
 * the folder means.
 */
export async function syncFolder(path: string): Promise<void> {
  // Windows cannot open folders; its file system orders renames by itself.
  if (process.platform === "win32") return;
  // With O_DIRECTORY an open does not wait for the other end of a FIFO.
  const folder = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await folder.sync();
  } catch (error) {
    // Some file systems refuse to sync a folder and need no such call.
    if (systemCode(error) !== "EINVAL") throw error;
  } finally {
    await folder.close();
  }
}
