/**
 * Who we are among the processes of this machine, and whether another one still lives. Only processes of one boot and one
 * process-id space can be judged: two containers on one kernel see different processes under the same ids.
 */
import { readFile, readlink } from "node:fs/promises";
import os from "node:os";
import { systemCode } from "../../errors.ts";
import { checksum, toHex } from "../format/checksum.ts";
import type { WriterRecord } from "../format/documents.ts";

export type ProcessIdentity = Omit<WriterRecord, "session">;

/** The identity of this process. */
export async function identifyProcess(): Promise<ProcessIdentity> {
  const space = process.platform === "linux" ? await linuxProcessSpace() : `${process.platform} ${os.hostname()}`;
  return {
    machine: toHex(checksum(Buffer.from(space))),
    pid: process.pid,
    startTicks: (await processStat(process.pid))?.startTicks ?? 0,
    host: os.hostname().slice(0, 100),
  };
}

/** Sessions of this very process; shared by every copy of the module that it may have loaded. */
const registryKey = Symbol.for("tidemark.sessions");
type Registry = typeof globalThis & { [registryKey]?: Set<string> };

export function liveSessions(): Set<string> {
  const registry: Registry = globalThis;
  const sessions = registry[registryKey] ?? new Set();
  registry[registryKey] = sessions;
  return sessions;
}

/** Whether `writer`, a process of this machine, still runs. When in doubt, yes. */
export async function isAlive(writer: WriterRecord): Promise<boolean> {
  if (writer.pid === process.pid) return liveSessions().has(writer.session);
  if (process.platform !== "linux") return answersSignal(writer.pid);
  const stat = await processStat(writer.pid);
  return stat !== undefined && !stat.isZombie && stat.startTicks === writer.startTicks;
}

function answersSignal(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return systemCode(error) !== "ESRCH";
  }
}

async function linuxProcessSpace(): Promise<string> {
  const bootId = await readFile("/proc/sys/kernel/random/boot_id", "utf8");
  return `${bootId.trim()} ${await readlink("/proc/self/ns/pid")}`;
}

/** State and start time from /proc/PID/stat (proc(5)), undefined when there is no such process or no /proc. */
export async function processStat(pid: number): Promise<{ readonly isZombie: boolean; readonly startTicks: number } | undefined> {
  let text: string;
  try {
    text = await readFile(`/proc/${pid.toString()}/stat`, "utf8");
  } catch (error) {
    if (systemCode(error) === "ENOENT" || systemCode(error) === "ESRCH") return undefined;
    throw error;
  }
  // The command's name stands in parentheses and may hold anything: fields are counted from the last one.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return { isZombie: fields[0] === "Z" || fields[0] === "X", startTicks: Number(fields[19]) };
}
