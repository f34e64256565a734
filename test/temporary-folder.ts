/**
 * Temporary folders of tests: created under the system's folder for such, removed when no process
 * works in them any more.
 *
 * A command or a server that a test has killed, or let go, may have a child that still writes.
 * Removing the folder under it fails with ENOTEMPTY, or the child creates the folder anew. So
 * removal waits for every process that names the folder in its arguments or has it as its working
 * directory. Where there is no /proc it does not wait.
 */
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, realpathSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { systemCode } from "../engine/errors.ts";

/** A host that is ending saves first, under load for seconds. */
const endMsMax = 20_000;
const pollMs = 20;

/** Creates an empty folder, with links resolved. Remove it with `removeFolder`. */
export function createFolder(prefix: string): string {
  return realpathSync(mkdtempSync(join(tmpdir(), `tidemark-${prefix}-`)));
}

/**
 * Waits until no process works in the folder, then removes it. Throws an Error that names the
 * processes that do not end.
 */
export async function removeFolder(folder: string): Promise<void> {
  const deadlineMs = performance.now() + endMsMax;
  for (let pids = processesIn(folder); pids.length > 0; pids = processesIn(folder)) {
    if (performance.now() > deadlineMs)
      throw new Error(`${folder} is in use by the processes ${pids.join(", ")}, which do not end`);
    await sleep(pollMs);
  }
  await rm(folder, { recursive: true, force: true });
}

/**
 * The other processes of this machine that name `folder`, or a path in it, in their arguments, or
 * work in it.
 */
export function processesIn(folder: string): readonly number[] {
  const isInside = (path: string): boolean => path === folder || path.startsWith(`${folder}/`);
  const pids = unlessGone(() => readdirSync("/proc"), []).filter(
    (name) => /^\d+$/.test(name) && Number(name) !== process.pid,
  );
  return pids.map(Number).filter((pid) => {
    const words = unlessGone(() => readFileSync(`/proc/${String(pid)}/cmdline`, "utf8"), "").split("\0");
    return words.some(isInside) || isInside(unlessGone(() => readlinkSync(`/proc/${String(pid)}/cwd`), ""));
  });
}

/** What `read` returns, or `otherwise` when the process has ended or belongs to another user. */
export function unlessGone<T>(read: () => T, otherwise: T): T {
  try {
    return read();
  } catch (error) {
    if (["ENOENT", "ESRCH", "EACCES"].includes(systemCode(error) ?? "")) return otherwise;
    throw error;
  }
}
