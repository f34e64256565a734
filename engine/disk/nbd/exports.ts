/**
 * NBD exports: devices under names. All connections to an export share its device and its flushes.
 */
import type { BlockDevice } from "../../device.ts";
import { TidemarkError } from "../../errors.ts";
import { GroupedCalls } from "../source/grouped-calls.ts";
import { stringBytesMax } from "./protocol.ts";

/** A device under a name. All connections to it share the device. */
export interface NbdExport {
  /** At most 4096 bytes of UTF-8. May be empty: the export of clients that name none. */
  readonly name: string;
  /**
   * Belongs to the caller, which closes it after the export has been removed or the server closed.
   */
  readonly device: BlockDevice;
  /** One sentence for people, shown by listings. */
  readonly description?: string;
  /** Refuses writes even if the device takes them. Default: as the device. */
  readonly readOnly?: boolean;
}

/** An export as its connections use it. */
export class ServedExport {
  readonly name: string;
  readonly device: BlockDevice;
  readonly description: string;
  readonly readOnly: boolean;
  readonly #flushes: GroupedCalls = new GroupedCalls(() => this.device.flush());

  constructor({ name, device, description = "", readOnly = false }: NbdExport) {
    this.name = name;
    this.device = device;
    this.description = description;
    this.readOnly = readOnly || device.readOnly;
  }

  /** Makes durable what had been written when it was called. */
  flush(): Promise<void> {
    return this.device.readOnly ? Promise.resolve() : this.#flushes.run();
  }
}

/** The exports of one server, by name. */
export class ExportTable {
  readonly #byName: Map<string, ServedExport> = new Map();

  add(offered: NbdExport): void {
    if (Buffer.byteLength(offered.name) > stringBytesMax || offered.name.includes("\0")) {
      throw new TidemarkError("INVALID_ARGUMENT", `an export's name has at most ${stringBytesMax} bytes and no NUL`, {
        remedy: "give it a shorter name",
      });
    }
    if (Buffer.byteLength(offered.description ?? "") > stringBytesMax) {
      throw new TidemarkError(
        "INVALID_ARGUMENT",
        `the description of export "${offered.name}" is longer than ${stringBytesMax} bytes`,
        {
          remedy: "shorten it",
        },
      );
    }
    if (this.#byName.has(offered.name)) {
      throw new TidemarkError("INVALID_ARGUMENT", `there is already an export named "${offered.name}"`, {
        remedy: "remove it first or choose another name",
      });
    }
    this.#byName.set(offered.name, new ServedExport(offered));
  }

  remove(name: string): ServedExport | undefined {
    const served = this.#byName.get(name);
    this.#byName.delete(name);
    return served;
  }

  /**
   * The export called `name`. A client that names none gets the export without a name, or the only
   * export.
   */
  find(name: string): ServedExport | undefined {
    const served = this.#byName.get(name);
    if (served !== undefined || name !== "" || this.#byName.size !== 1) return served;
    const [only] = this.#byName.values();
    return only;
  }

  list(): readonly ServedExport[] {
    return [...this.#byName.values()];
  }
}
