/**
 * Finds what a vault is when `vault.json` is lost, and proves it before it is used. What claims to be it may come from
 *
 *     the copy in the vault  ·  the copy that this machine keeps for when the store is away  ·  what is still legible of either object that is damaged
 *
 * and is held against stored chunks: the digest of one of them, computed with the name and key that are claimed, agrees with the digest in its frame's table
 * by chance once in 2^128. Where a vault has no chunk that can be read there is nothing that a wrong key could spoil, and a claim with a sound checksum does.
 *
 * The vault's id stands in every frame and document, block size and digest can be told from frames. The key stands nowhere else: 256 random bits. Without it
 * chunks are still there and nothing that is read of them can be proved, so nothing is read.
 */
import { hasCode, isUnreadableOrGone, TidemarkError } from "../../errors.ts";
import { digestBytes } from "../../limits.ts";
import { createDigest, Lz4 } from "../../pipeline/kernels.ts";
import { fromHex, sameBytes, toHex } from "../../store/format/checksum.ts";
import type { VaultDocument } from "../../store/format/documents.ts";
import { decodeVault, documentBytesMax, encodeVault } from "../../store/format/documents.ts";
import { frameHeaderBytes, frameVault, storedLength } from "../../store/format/frame.ts";
import { parseSegmentName, segmentsPrefix, vaultCopyName, vaultName } from "../../store/format/names.ts";
import { walkFrames } from "../../store/segments/frame-walk.ts";
import type { Store } from "../../store/store.ts";
import { plainOf } from "../scrub/heal.ts";

/** Chunks that are tried: one that agrees is enough, but some may be damaged or given back. */
const chunksTriedMax = 256;
/** Of a frame: damage lies close together. */
const chunksOfFrameMax = 8;

/** Something that may be the vault's identity. */
interface Claim {
  readonly document: VaultDocument;
  /** Its checksum holds; else it is what is legible. */
  readonly isSound: boolean;
}

/**
 * The identity of a vault whose `vault.json` cannot be read. `kept`: what this machine remembers of the vault at that address. Errors: DAMAGED when nothing
 * is found that the chunks prove, with all that is known; and those of the store.
 */
export async function findIdentity(store: Store, kept: VaultDocument | undefined, signal: AbortSignal | undefined): Promise<VaultDocument> {
  const chunks = new Chunks(store, signal);
  for (const { document, isSound } of await claims(store, kept, signal)) {
    const verdict = await chunks.prove(document);
    if (verdict === "proved" || (verdict === "no chunk" && isSound)) return document;
  }
  const vault = await chunks.vault();
  const who = vault === undefined ? "" : `; by its chunks this is vault ${vault}`;
  const lost = `${vaultName} of ${store.description} is lost, and so is every copy that the chunks would prove${who}`;
  const left =
    "disks, points and chunks are untouched, but the key by which chunks are proved stood nowhere else, and nothing is given out unproved";
  throw new TidemarkError("DAMAGED", `${lost}. What is left: ${left}`, {
    remedy: `put a ${vaultName} that you kept back in its place, or run the command with \`--state\` of a machine that has used this vault at this address`,
    detail: { object: vaultName, vault: vault ?? null },
  });
}

async function claims(store: Store, kept: VaultDocument | undefined, signal: AbortSignal | undefined): Promise<readonly Claim[]> {
  const sound: Claim[] = kept === undefined ? [] : [{ document: kept, isSound: true }];
  const legible: Claim[] = [];
  for (const name of [vaultCopyName, vaultName]) {
    const there = await store.find(name, documentBytesMax, { signal });
    const claim = there === undefined ? undefined : claimOf(there.bytes, name);
    if (claim !== undefined) (claim.isSound ? sound : legible).unshift(claim);
  }
  return [...sound, ...legible];
}

function claimOf(bytes: Uint8Array, name: string): Claim | undefined {
  try {
    return { document: decodeVault(bytes, name), isSound: true };
  } catch (error) {
    if (!hasCode(error, "DAMAGED")) throw error;
  }
  const text = Buffer.from(bytes).toString("latin1");
  const field = (of: string, value: string): string => new RegExp(`"${of}": "?(${value})`).exec(text)?.[1] ?? "";
  const document = {
    vault: field("vault", "[0-9a-f]{32}"),
    createdMs: Number(field("createdMs", "\\d{1,15}")),
    blockBytes: Number(field("blockBytes", "\\d{1,9}")),
    digest: field("digest", "[a-z0-9-]+"),
    digestKey: field("digestKey", "[0-9a-f]{64}"),
    codec: "lz4",
    encryption: "none",
    writtenBy: "",
  };
  try {
    return { document: decodeVault(encodeVault(document as VaultDocument), name), isSound: false };
  } catch (error) {
    if (hasCode(error, "DAMAGED")) return undefined;
    throw error;
  }
}

/** The chunks of a vault whose identity is in question. */
class Chunks {
  readonly #store: Store;
  readonly #signal: AbortSignal | undefined;

  constructor(store: Store, signal: AbortSignal | undefined) {
    this.#store = store;
    this.#signal = signal;
  }

  /** The vault that frames say they are of; undefined when there is none that can be read. */
  async vault(): Promise<string | undefined> {
    for await (const { name } of this.#segments()) {
      const vault = await this.#vaultOf(name);
      if (vault !== undefined) return vault;
    }
    return undefined;
  }

  async prove(document: VaultDocument): Promise<"proved" | "disproved" | "no chunk"> {
    const digest = await createDigest(document.digest, fromHex(document.digestKey));
    const lz4 = new Lz4();
    const computed = new Uint8Array(digestBytes);
    let tried = 0;
    for await (const { name, sizeBytes } of this.#segments()) {
      const vault = await this.#vaultOf(name);
      if (vault !== undefined && vault !== document.vault) return "disproved";
      try {
        for await (const { offset, table } of walkFrames(
          this.#store,
          fromHex(document.vault),
          { name, sizeBytes, dead: undefined },
          { signal: this.#signal },
        )) {
          for (let chunk = 0; chunk < Math.min(table.count, chunksOfFrameMax); chunk += 1) {
            if (tried === chunksTriedMax) return "disproved";
            tried += 1;
            const storedWord = table.storedWords[chunk] ?? 0;
            const payload = new Uint8Array(storedLength(storedWord));
            await this.#store.readPages(name, offset + (table.offsets[chunk] ?? 0), payload, { signal: this.#signal });
            const plain = plainOf(payload, { storedWord, granules: table.granules[chunk] ?? 0 }, lz4);
            if (plain === undefined) continue;
            digest(plain, computed, 0);
            if (sameBytes(computed, table.digests.subarray(chunk * digestBytes, (chunk + 1) * digestBytes))) return "proved";
          }
        }
      } catch (error) {
        // Another segment, or what has been read of this one, may tell.
        if (!isUnreadableOrGone(error)) throw error;
      }
    }
    return tried === 0 ? "no chunk" : "disproved";
  }

  async *#segments(): AsyncGenerator<{ readonly name: string; readonly sizeBytes: number }> {
    for await (const segment of this.#store.list(segmentsPrefix, { signal: this.#signal }))
      if (parseSegmentName(segment.name) !== undefined) yield segment;
  }

  async #vaultOf(segment: string): Promise<string | undefined> {
    const header = new Uint8Array(frameHeaderBytes);
    try {
      await this.#store.readPages(segment, 0, header, { signal: this.#signal });
    } catch (error) {
      if (isUnreadableOrGone(error)) return undefined;
      throw error;
    }
    const vault = frameVault(header);
    return vault === undefined ? undefined : toHex(vault);
  }
}
