/**
 * Healing of damaged chunks in place.
 *
 * The plain bytes of a damaged chunk may still exist: on the disk that it came from, or in a
 * duplicate, another chunk of the vault with the same digest. They are proved by the digest and
 * compressed again, which gives the same payload as the first time, and written to the same place.
 * Then every point that needs the chunk is whole again, and nothing else has changed.
 *
 *     segment given its length back ─► chunk read again ─► sound after all?
 *     plain bytes: sources, then duplicates ─► digest ─► payload of the stored length
 *     ─► segment made anew if it is gone ─► pages ─► read back ─► digest
 *
 * A chunk that cannot be healed is put into quarantine: no new point refers to it.
 *
 * Invariant: nothing is written that its digest does not prove, and nothing over bytes of which a
 * frame says that they are another chunk's.
 */

import { hasCode, isUnreadableOrGone, throwIfAborted } from "../../errors.ts";
import { digestBytes, granuleBytes } from "../../limits.ts";
import type { Notice } from "../../notice.ts";
import type { MappedChunk } from "../../pipeline/fetch-plan.ts";
import { createDigest, type DigestKernel } from "../../pipeline/kernels.ts";
import { Lz4 } from "../../pipeline/lz4.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { fromHex, sameBytes, toHex } from "../../store/format/checksum.ts";
import { payloadAlignment, storedLength, storedLz4Flag } from "../../store/format/frame.ts";
import { parseSegmentName, payloadSealBytes, segmentsPrefix } from "../../store/format/names.ts";
import { deadName } from "../../store/format/reclaim.ts";
import { payloadSeal, seal, unseal } from "../../store/format/sealed.ts";
import { readDead } from "../../store/segments/dead-pages.ts";
import { walkFrames } from "../../store/segments/frame-walk.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import { quarantine, release } from "../../store/segments/quarantine.ts";
import type { Store } from "../../store/store.ts";
import type { Volume } from "../../volume.ts";
import { FrameClaims } from "./frame-claims.ts";
import type { PatchOptions } from "./page-patch.ts";
import { mendSegment, patchPages } from "./page-patch.ts";

/** A chunk that does not read back as its digest says, as the maps of points describe it. */
export interface DamagedChunk extends MappedChunk {
  /** Where on which disks the chunk has been found: its first granule. */
  readonly places: readonly { readonly disk: string; readonly granule: number }[];
}

/** Undefined: the chunk is whole. Else why it could not be healed. */
export type HealOutcome = string | undefined;

export interface HealerOptions {
  readonly context: VaultContext;
  readonly store: Store;
  /** By disk: a volume that may still hold its content. */
  readonly sources: ReadonlyMap<string, Volume>;
  readonly onNotice: (notice: Notice) => void;
  /**
   * Digests of which the vault has no other chunk; shared by healers, so that each is looked for
   * once.
   */
  readonly alone?: Set<string> | undefined;
  /** Called with a disk whose writer may still append to a segment that needs healing. */
  readonly onOpen?: ((disk: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

const anothersPlace = "another chunk lies there; the entry of the point's map is wrong";
const noPlace = "neither a source nor another chunk of the vault holds its content any more";

export class Healer {
  readonly #options: HealerOptions;
  readonly #vaultId: Uint8Array;
  readonly #lz4 = new Lz4();
  #digest: DigestKernel | undefined;
  /**
   * Digests of which the vault has no other chunk: points share damaged chunks, and each is looked
   * for once.
   */
  readonly #alone: Set<string>;

  constructor(options: HealerOptions) {
    this.#options = options;
    this.#alone = options.alone ?? new Set();
    this.#vaultId = fromHex(options.context.document.vault);
  }

  /**
   * Heals what can be healed, puts the rest into quarantine, and takes whole chunks out of it.
   * Returns an outcome for each chunk. Errors: those of the store and INTERRUPTED; then some chunks
   * may have been healed, and the others are unchanged.
   */
  async heal(chunks: readonly DamagedChunk[]): Promise<readonly HealOutcome[]> {
    const { store, context, onNotice, signal } = this.#options;
    const claims = new FrameClaims(this.#patchOptions());
    const outcomes: HealOutcome[] = [];
    const orphans: number[] = [];
    // Afterwards what is left of a damaged segment can be read.
    for (const segment of new Set(chunks.map((chunk) => chunk.segment)))
      await mendSegment(this.#patchOptions(), segment);
    for (const [index, chunk] of chunks.entries()) {
      throwIfAborted(signal);
      if ((await this.#readPlain(chunk)) !== undefined) continue;
      if (await claims.areAgainst(chunk)) {
        outcomes[index] = anothersPlace;
        continue;
      }
      const plain = await this.#fromSources(chunk);
      if (plain === undefined) orphans.push(index);
      else outcomes[index] = await this.#restore(chunk, plain);
    }
    for (const index of orphans) outcomes[index] = noPlace;
    await this.#findDuplicates(
      orphans.flatMap((index) => chunks[index] ?? []),
      async (chunk, plain) => {
        outcomes[chunks.indexOf(chunk)] = await this.#restore(chunk, plain);
      },
    );
    const isWhole = (_chunk: DamagedChunk, index: number): boolean => outcomes[index] === undefined;
    await release(store, context.document.vault, chunks.filter(isWhole), { signal });
    // A place that belongs to another chunk is sound.
    const left = chunks.filter((_chunk, index) => outcomes[index] !== undefined && outcomes[index] !== anothersPlace);
    if (left.length > 0) await quarantine(store, context.document.vault, left, { onNotice, signal });
    return chunks.map((_chunk, index) => outcomes[index]);
  }

  /**
   * The chunk's plain bytes, if what is stored gives them; undefined when it does not, or is not
   * there.
   */
  async #readPlain(chunk: MappedChunk): Promise<Uint8Array | undefined> {
    const { store, signal } = this.#options;
    const payload = new Uint8Array(storedLength(chunk.storedWord));
    try {
      await store.readPages(chunk.segment, chunk.offset, payload, { signal });
    } catch (error) {
      if (isUnreadableOrGone(error)) return undefined;
      throw error;
    }
    const plain = plainOf(store, payload, chunk, this.#lz4);
    return plain !== undefined && (await this.#isProved(plain, chunk.digest)) ? plain : undefined;
  }

  async #isProved(plain: Uint8Array, wanted: Uint8Array): Promise<boolean> {
    const { digest, digestKey } = this.#options.context.document;
    this.#digest ??= await createDigest(digest, fromHex(digestKey));
    const found = new Uint8Array(digestBytes);
    this.#digest(plain, found, 0);
    return sameBytes(found, wanted);
  }

  /** A disk may have any content by now, or be written meanwhile: the digest tells. */
  async #fromSources({ places, granules, digest }: DamagedChunk): Promise<Uint8Array | undefined> {
    for (const { disk, granule } of places) {
      const source = this.#options.sources.get(disk);
      if (source === undefined) continue;
      const plain = new Uint8Array(granules * granuleBytes);
      if (!(await readSource(source, granule * granuleBytes, plain))) continue;
      if (await this.#isProved(plain, digest)) return plain;
    }
    return undefined;
  }

  /**
   * Looks for other chunks with one of the wanted digests, and hands over the plain bytes of each
   * that is found and proved. Segments are searched as far as their frames can be read.
   */
  async #findDuplicates(
    wanted: readonly DamagedChunk[],
    found: (chunk: DamagedChunk, plain: Uint8Array) => Promise<void>,
  ): Promise<void> {
    const { store, signal } = this.#options;
    const missing = new Map<string, DamagedChunk[]>();
    for (const chunk of wanted) {
      const digest = toHex(chunk.digest);
      if (!this.#alone.has(digest)) missing.set(digest, [...(missing.get(digest) ?? []), chunk]);
    }
    if (missing.size === 0) return;
    const segments: { readonly name: string; readonly sizeBytes: number }[] = [];
    for await (const object of store.list(segmentsPrefix, { signal }))
      if (parseSegmentName(object.name) !== undefined) segments.push(object);
    for (const { name, sizeBytes } of segments) {
      if (missing.size === 0) break;
      try {
        const record = await readDead(store, toHex(this.#vaultId), deadName(name), { signal });
        const dead =
          record === undefined ? undefined : PageSet.ofRuns([...record.document.dead, ...record.document.condemned]);
        for await (const { offset, table } of walkFrames(store, this.#vaultId, { name, sizeBytes, dead }, { signal })) {
          for (let index = 0; index < table.count; index += 1) {
            const digest = toHex(table.digests.subarray(index * digestBytes, (index + 1) * digestBytes));
            const chunks = missing.get(digest);
            const [chunk] = chunks ?? [];
            const at = offset + (table.offsets[index] ?? 0);
            if (chunks === undefined || chunk === undefined) continue;
            if (chunks.some((damaged) => damaged.segment === name && damaged.offset === at)) continue;
            const storedWord = table.storedWords[index] ?? 0;
            if (storedLength(storedWord) - payloadSealBytes(name) > chunk.granules * granuleBytes) continue;
            const plain = await this.#readPlain({
              segment: name,
              offset: at,
              storedWord,
              digest: chunk.digest,
              granules: chunk.granules,
            });
            if (plain === undefined) continue;
            missing.delete(digest);
            for (const damaged of chunks) await found(damaged, plain);
          }
        }
      } catch (error) {
        if (!isUnreadableOrGone(error)) throw error;
      }
    }
    for (const digest of missing.keys()) this.#alone.add(digest);
  }

  /** Writes a chunk whose plain bytes have been proved. */
  async #restore(chunk: DamagedChunk, plain: Uint8Array): Promise<HealOutcome> {
    const { segment, offset, storedWord } = chunk;
    const packed = this.#encode(plain, storedWord - payloadSealBytes(segment));
    const by = this.#options.store.keys?.payloads(segment);
    const payload = packed && by ? seal(payloadSeal(by, offset), packed) : packed;
    if (payload === undefined) return "its content is there, but compresses to another length than when it was stored";
    // With the zeros behind it: they are a part of what was written.
    const padded = new Uint8Array(Math.ceil(payload.length / payloadAlignment) * payloadAlignment);
    padded.set(payload);
    const patch = { segment, offset, bytes: padded, makes: true };
    return await patchPages(this.#patchOptions(), patch, async () => (await this.#readPlain(chunk)) !== undefined);
  }

  #patchOptions(): PatchOptions {
    const { store, context, onNotice, onOpen, signal } = this.#options;
    return { store, vault: context.document.vault, onNotice, onOpen, signal };
  }

  /**
   * What the first writer stored: LZ4 gives the same payload for the same bytes. Undefined: it does
   * not.
   */
  #encode(plain: Uint8Array, storedWord: number): Uint8Array | undefined {
    if (storedWord < storedLz4Flag) return storedWord === plain.length ? plain : undefined;
    const packed = new Uint8Array(plain.length);
    const length = this.#lz4.compress(plain, packed, 0);
    return length === storedLength(storedWord) ? packed.subarray(0, length) : undefined;
  }
}

/**
 * Fills `into`; the part behind the end of the source stays zeros. False: the source cannot be read
 * there.
 */
async function readSource(source: Volume, offset: number, into: Uint8Array): Promise<boolean> {
  try {
    const length = Math.min(into.length, (await source.sizeBytes()) - offset);
    if (length > 0) await source.read(offset, into.subarray(0, length));
    return true;
  } catch (error) {
    if (hasCode(error, "SOURCE_UNREADABLE", "SOURCE_SHRUNK", "SOURCE_NOT_FOUND", "DEVICE_FAILED")) return false;
    throw error;
  }
}

/**
 * What a payload gives, not proved yet; undefined when it cannot give a chunk of so many granules.
 * Errors: ACCESS_REFUSED when this process cannot read an encrypted vault's payloads.
 */
export function plainOf(
  { keys }: Pick<Store, "keys">,
  stored: Uint8Array,
  { segment, offset, storedWord, granules }: Omit<MappedChunk, "digest">,
  lz4: Lz4,
): Uint8Array | undefined {
  const payload = keys === undefined ? stored : unseal(payloadSeal(keys.payloads(segment), offset), stored);
  if (payload === undefined) return undefined;
  const plain = new Uint8Array(granules * granuleBytes);
  if (storedWord < storedLz4Flag) {
    if (payload.length !== plain.length) return undefined;
    plain.set(payload);
    return plain;
  }
  try {
    lz4.decompress(payload, plain.length, plain, 0);
    return plain;
  } catch (error) {
    if (hasCode(error, "DAMAGED")) return undefined;
    throw error;
  }
}
