/** Targets of a plan, and what each of its machines gets of them. */
import { join } from "node:path";
import { encodeDiskName } from "../../store/format/names.ts";

/** What a plan writes to, besides replicas. Images and sockets of instant targets lie in one folder. */
export const planTarget: RegExp = /^(dir:|blob:|instant:unix:)[^,]+$/s;

/** The target of one machine. Instant targets of a machine have a socket of its name in the plan's folder. */
export function targetOfMachine(target: string, machine: string): string {
  const [, folder] = /^instant:unix:(.+)$/s.exec(target) ?? [];
  if (folder === undefined) return target;
  return `instant:unix:${join(folder, `${encodeDiskName(machine)}.sock`)},image=${join(folder, "/")}`;
}
