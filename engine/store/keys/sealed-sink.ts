/**
 * Sealed sink: the objects of an encrypted vault, sealed and opened where they pass.
 *
 *     sealed object:  "TMSE" 4 │ version u16 = 1 │ generation u16 │ sealed bytes (see `sealed.ts`)
 *
 * Everything above works with plain objects, their names, ETags and plain lengths. Three kinds of
 * objects are left as they are: `vault.json` and its copy, which are read before there is a key, and
 * segments, whose writers and readers seal frame tables and payloads one by one.
 *
 * Invariant: bytes of an object reach a caller only if they were sealed for this vault and this name.
 * For any other object a caller gets what no decoder takes: see `refuseUnopened`.
 */
import type { CallOptions, ListedObject, ObjectStat, PutCondition, Sink, StoredObject, Written } from "../../sink.ts";
import { SinkDecorator } from "../../sink-decorator.ts";
import { segmentsPrefix, vaultCopyName, vaultName } from "../format/names.ts";
import { seal, sealBytes, unseal } from "../format/sealed.ts";
import { unopened } from "../format/unopened.ts";
import { laterKey, type VaultKeys } from "./vault-keys.ts";

const magic = "TMSE";
const objectVersion = 1;
const headerBytes = 8;
/** A sealed object is so much longer than the object. */
const overheadBytes = headerBytes + sealBytes;

export class SealedSink extends SinkDecorator {
  readonly keys: VaultKeys;

  constructor(inner: Sink, keys: VaultKeys) {
    super(inner);
    this.keys = keys;
  }

  override async getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    if (!isSealed(name)) return await super.getObject(name, sizeBytesMax, options);
    const { bytes, etag } = await super.getObject(name, sizeBytesMax + overheadBytes, options);
    return { bytes: await this.#open(name, Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)), etag };
  }

  async #open(name: string, bytes: Buffer): Promise<Uint8Array> {
    if (bytes.length < overheadBytes || bytes.toString("latin1", 0, 4) !== magic) return unopened.altered;
    if (bytes.readUInt16LE(4) !== objectVersion) return unopened.later;
    const generation = bytes.readUInt16LE(6);
    if (generation > this.keys.generation) await this.keys.renewed(generation);
    const by = this.keys.object(name, generation);
    return by === undefined ? unopened.later : (unseal(by, bytes.subarray(headerBytes)) ?? unopened.altered);
  }

  override async putObject(
    name: string,
    bytes: Uint8Array,
    condition: PutCondition,
    options?: CallOptions,
  ): Promise<Written> {
    const stored = isSealed(name) ? await this.#seal(name, bytes) : bytes;
    return await super.putObject(name, stored, condition, options);
  }

  async #seal(name: string, bytes: Uint8Array): Promise<Uint8Array> {
    await this.keys.renewed();
    const { generation } = this.keys;
    const by = this.keys.object(name, generation);
    if (by === undefined) throw laterKey(name, generation, generation);
    const header = Buffer.alloc(headerBytes);
    header.write(magic, "latin1");
    header.writeUInt16LE(objectVersion, 4);
    header.writeUInt16LE(generation, 6);
    return Buffer.concat([header, seal(by, bytes)]);
  }

  override async statObject(name: string, options?: CallOptions): Promise<ObjectStat> {
    return withPlainSize(name, await super.statObject(name, options));
  }

  override async *list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject> {
    for await (const object of super.list(prefix, options)) yield withPlainSize(object.name, object);
  }
}

/** Whether the vault is encrypted, and then its keys. */
export function keysOf(sink: Sink): VaultKeys | undefined {
  return sink instanceof SealedSink ? sink.keys : undefined;
}

function isSealed(name: string): boolean {
  return name !== vaultName && name !== vaultCopyName && !name.startsWith(segmentsPrefix);
}

function withPlainSize<Stat extends ObjectStat>(name: string, stat: Stat): Stat {
  return isSealed(name) ? { ...stat, sizeBytes: Math.max(0, stat.sizeBytes - overheadBytes) } : stat;
}
