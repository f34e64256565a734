/**
 * Process identity: tells whether another process of this machine still lives.
 *
 * A process is named by machine, pid and start time, so that a recycled pid is not taken for the
 * process that had it before. A machine is a boot and a process-id space on it: two containers on
 * one kernel see different processes under the same pid, so they count as two machines. Of
 * processes of other machines nothing can be told.
 */
import { readFile, readlink } from "node:fs/promises";
import os from "node:os";
import { systemCode } from "../../errors.ts";
import { checksum, toHex } from "../format/checksum.ts";
import type { WriterRecord } from "../format/documents.ts";

export type ProcessIdentity = Omit<WriterRecord, "session">;

let own: ProcessIdentity | undefined;

/** The identity of this process, which stays: a process that can open no more files still has it. */
export async function identifyProcess(): Promise<ProcessIdentity> {
  if (own !== undefined) return own;
  const space = process.platform === "linux" ? await linuxProcessSpace() : `${process.platform} ${os.hostname()}`;
  own = {
    machine: toHex(checksum(Buffer.from(space))),
    pid: process.pid,
    startTicks: (await processStat(process.pid))?.startTicks ?? 0,
    host: os.hostname().slice(0, 100),
  };
  return own;
}

/**
 * Key of the writer sessions of this process, which all copies of this module that the process has
 * loaded share.
 */
const registryKey = Symbol.for("tidemark.sessions");
type Registry = typeof globalThis & { [registryKey]?: Set<string> };

/** Ids of the writer sessions that this process holds. */
export function liveSessions(): Set<string> {
  const registry: Registry = globalThis;
  const sessions = registry[registryKey] ?? new Set();
  registry[registryKey] = sessions;
  return sessions;
}

/** Whether `writer`, a process of this machine, still runs. True when that cannot be told. */
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

/**
 * State and start time from /proc/PID/stat (proc(5)), undefined when there is no such process or no
 * /proc.
 */
export async function processStat(
  pid: number,
): Promise<{ readonly isZombie: boolean; readonly startTicks: number } | undefined> {
  let text: string;
  try {
    text = await readFile(`/proc/${pid.toString()}/stat`, "utf8");
  } catch (error) {
    if (systemCode(error) === "ENOENT" || systemCode(error) === "ESRCH") return undefined;
    throw error;
  }
  // The command's name stands in parentheses and may itself hold parentheses: fields are counted
  // from the last one.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return { isZombie: fields[0] === "Z" || fields[0] === "X", startTicks: Number(fields[19]) };
}
