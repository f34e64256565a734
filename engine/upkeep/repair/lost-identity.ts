/**
 * Recovery of a lost `vault.json`: which sound copy of it belongs to the chunks of this vault.
 *
 * A copy is in the vault (`copy/vault.json`), and each machine that has used the vault keeps one in
 * its state folder. Only a copy whose checksum holds is considered. It belongs to this vault when
 * the header of a frame names the same vault id, 128 random bits. A vault in which no frame can be
 * read has nothing that a wrong copy could spoil.
 *
 * The key by which chunks are proved stands in `vault.json` and its copies only. Without a copy
 * nothing can be proved, so nothing is read.
 *
 * Cost: 128 bytes of segments until a header can be read.
 */
import { hasCode, TidemarkError } from "../../errors.ts";
import { toHex } from "../../store/format/checksum.ts";
import type { VaultDocument } from "../../store/format/documents.ts";
import { decodeVault, documentBytesMax } from "../../store/format/documents.ts";
import { frameHeaderBytes, frameVault } from "../../store/format/frame.ts";
import { parseSegmentName, segmentsPrefix, vaultCopyName, vaultName } from "../../store/format/names.ts";
import { revisionOf } from "../../store/format/vault-document.ts";
import type { Store } from "../../store/store.ts";

/**
 * What may be the identity of a vault whose `vault.json` cannot be read or was replaced: the copies of
 * this vault, those of an encrypted one first, the newest first. Only a key tells which of these was
 * not forged. `kept`: the copy that this machine keeps for the vault's address.
 *
 * @throws `DAMAGED` when there is no copy of this vault's identity, and the errors of the store.
 */
export async function findIdentities(
  store: Store,
  kept: VaultDocument | undefined,
  signal: AbortSignal | undefined,
): Promise<readonly VaultDocument[]> {
  const vault = await vaultOfFrames(store, signal);
  // Read again: a repair may have put it back meanwhile.
  const copies = [await readCopy(store, vaultName, signal), await readCopy(store, vaultCopyName, signal), kept];
  const found = copies
    .flatMap((document) => document ?? [])
    .filter((document) => vault === undefined || vault === document.vault)
    .sort((a, b) => revisionOf(b) - revisionOf(a));
  if (found.length > 0) return found;
  const named = vault === undefined ? "" : `; its frames name vault ${vault}`;
  const left = "disks, points and chunks are untouched, but the key that proves chunks is in these copies only";
  throw new TidemarkError(
    "DAMAGED",
    `${vaultName} of ${store.description} and its copy ${vaultCopyName} are lost${named}: ${left}`,
    {
      remedy: `put back a ${vaultName} from a backup, or run \`tidemark vault repair --state FOLDER\` on a machine that has used this vault at this address`,
      detail: { object: vaultName, vault: vault ?? null },
    },
  );
}

async function readCopy(
  store: Store,
  name: string,
  signal: AbortSignal | undefined,
): Promise<VaultDocument | undefined> {
  const there = await store.find(name, documentBytesMax, { signal });
  if (there === undefined) return undefined;
  try {
    return decodeVault(there.bytes, name);
  } catch (error) {
    if (hasCode(error, "DAMAGED")) return undefined;
    throw error;
  }
}

/** The vault that the first readable header of a frame names; undefined when there is none. */
async function vaultOfFrames(store: Store, signal: AbortSignal | undefined): Promise<string | undefined> {
  for await (const { name } of store.list(segmentsPrefix, { signal })) {
    if (parseSegmentName(name) === undefined) continue;
    const header = new Uint8Array(frameHeaderBytes);
    try {
      await store.readPages(name, 0, header, { signal });
    } catch (error) {
      if (hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND", "FORMAT_UNSUPPORTED")) continue;
      throw error;
    }
    const vault = frameVault(header);
    if (vault !== undefined) return toHex(vault);
  }
  return undefined;
}
