/**
 * Reads a file whose commands are going to run: a configuration or a plan. A file that another user
 * may write is refused.
 */
import { constants, type Stats } from "node:fs";
import { open } from "node:fs/promises";
import process from "node:process";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import { shellWord } from "../../engine/internal.ts";

/** A configuration of a thousand disks has about a hundred KiB. */
const fileBytesMax = 4 * 1024 * 1024;

/**
 * `what` the file is, and what of it `runs`, for errors. Errors: INVALID_ARGUMENT when it cannot be
 * read, ACCESS_REFUSED when another user may write it.
 */
export async function readOwnFile(
  path: string,
  what: string,
  runs: string,
): Promise<{ readonly text: string; readonly isPrivate: boolean }> {
  let handle: Awaited<ReturnType<typeof open>> | undefined;
  try {
    handle = await open(path, constants.O_RDONLY);
    const status = await handle.stat();
    if (status.size > fileBytesMax)
      throw new TidemarkError("INVALID_ARGUMENT", `${path} is too large for a ${what}`, {
        remedy: "name a YAML file",
      });
    if (isOpenToOthers(status)) {
      throw new TidemarkError(
        "ACCESS_REFUSED",
        `other users may write the ${what} ${path}, and its ${runs} would run`,
        {
          remedy: `take their right away with \`chmod go-w ${shellWord(path)}\``,
          detail: { path, owner: status.uid },
        },
      );
    }
    // The octal digits of group and others; a string, because modes are numbers only by tradition.
    return { text: await handle.readFile("utf8"), isPrivate: status.mode.toString(8).endsWith("00") };
  } catch (error) {
    if (error instanceof TidemarkError) throw error;
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `the ${what} ${path} cannot be read (${systemCode(error) ?? "unknown"})`,
      {
        remedy: "name a YAML file that this user may read",
        cause: error,
      },
    );
  } finally {
    await handle?.close();
  }
}

/**
 * Whether a user who may not act for this process may change what it runs: as group, as others, or as
 * the owner.
 */
function isOpenToOthers({ mode, uid, gid }: Stats): boolean {
  const own = process.getuid?.();
  // A user's own group has no other members as a rule, and its files are often open to it.
  const mayWrite = gid === process.getgid?.() ? 0o002 : 0o022;
  return own !== undefined && ((mode & mayWrite) !== 0 || (uid !== own && uid !== 0));
}
