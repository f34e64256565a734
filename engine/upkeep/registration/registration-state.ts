/**
 * What a registered machine keeps in its state folder, for its owner only:
 *
 *     STATE/machine                                   32 hexadecimal digits, random, that name the machine
 *     STATE/registrations/<checksum of the address>   the registration key, byte for byte
 *
 * A machine is its state folder: a machine that is installed anew is another one.
 */
import { randomBytes } from "node:crypto";
import path from "node:path";
import { inStateFolder, keepWriterKey } from "../../disk/source/local-state.ts";
import { makeFolders, readPlain, replacePlain } from "../../disk/source/plain-file.ts";
import { systemCode, TidemarkError, unlessAbsent } from "../../errors.ts";
import { shellWord } from "../../shell-word.ts";
import { checksum, openChecksum, toHex } from "../../store/format/checksum.ts";
import { documentBytesMax } from "../../store/format/documents.ts";
import { hex32 } from "../../store/format/fields.ts";
import type { RegistrationKey } from "../../store/format/registration.ts";

const foldersName = "registrations";

/** The id of this machine; made at the first call. Errors: DAMAGED, ACCESS_REFUSED, NO_SPACE, TARGET_FAILED. */
export async function machineOf(stateFolder: string): Promise<string> {
  return await inStateFolder(stateFolder, async () => await readMachine(stateFolder));
}

async function readMachine(stateFolder: string): Promise<string> {
  const file = path.join(await makeFolders(stateFolder), "machine");
  const machine = (await unlessAbsent(readPlain(file, 64)))?.toString("latin1").trim();
  if (machine !== undefined) {
    if (hex32.test(machine)) return machine;
    throw new TidemarkError("DAMAGED", `${file} does not hold the id of this machine`, {
      remedy: `remove it with \`rm ${shellWord(file)}\`, run \`tidemark agents remove NAME\`, and register the machine again`,
    });
  }
  const made = toHex(randomBytes(16));
  await replacePlain(file, `${made}\n`, { durable: true });
  return made;
}

async function registrationFile(stateFolder: string, address: string): Promise<string> {
  await openChecksum();
  return path.join(stateFolder, foldersName, toHex(checksum(Buffer.from(address))));
}

/**
 * The bytes of the registration key that this machine has for the vault at `address`; undefined when
 * it has none, or none that can be read. Most machines have none, so a bad state folder is told where it
 * is used. Errors: DAMAGED.
 */
export async function findRegistration(stateFolder: string, address: string): Promise<Uint8Array | undefined> {
  try {
    return await readPlain(await registrationFile(stateFolder, address), documentBytesMax);
  } catch (error) {
    if (systemCode(error) !== undefined) return undefined;
    throw error;
  }
}

/** Keeps a key that the vault has taken, and the writer key in it. Gives the file. Errors: as `machineOf`. */
export async function keepRegistration(stateFolder: string, key: RegistrationKey, bytes: Uint8Array): Promise<string> {
  return await inStateFolder(stateFolder, async () => {
    if (key.writerKey !== null) await keepWriterKey(stateFolder, key.vault, Buffer.from(key.writerKey, "base64"));
    await makeFolders(stateFolder, foldersName);
    const file = await registrationFile(stateFolder, key.address);
    await replacePlain(file, bytes, { durable: true });
    return file;
  });
}
