/** The `vaults:` part of an agent's configuration, written for a vault that the machine has registered with. */
import { stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { Document, isMap, parseDocument } from "yaml";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import { replacePlain, shellWord } from "../../engine/internal.ts";
import { writeNew } from "../new-file.ts";
import { readOwnFile } from "./own-file.ts";
import { placeOf } from "./registered.ts";

interface Entry {
  /** Id of the vault. */
  readonly vault: string;
  readonly address: string;
  readonly stateFolder: string;
}

export interface VaultsPart {
  /** The file that names the vault now; null: none was given. */
  readonly config: string | null;
  /** The vault's name in it. */
  readonly name: string;
  /** What was done, or, without a file, the part itself. */
  readonly text: string;
}

/**
 * Adds the vault to the configuration `file`, which is made if it does not exist. A vault of this
 * address that is there stays as it is.
 *
 * @throws INVALID_ARGUMENT for a file that is no YAML with sections; ACCESS_REFUSED, TARGET_FAILED.
 */
export async function addVault(file: string | undefined, entry: Entry): Promise<VaultsPart> {
  const config = file === undefined ? null : resolve(file);
  const isThere = config !== null && (await exists(config));
  const document = isThere ? await read(config) : new Document({});
  const vaults = new Map(
    Object.entries((document.toJS() as { readonly vaults?: Readonly<Record<string, unknown>> } | null)?.vaults ?? {}),
  );
  const folder = dirname(config ?? ".");
  const known = [...vaults].find(([, fields]) => isAt(fields, folder, entry.address))?.[0];
  if (known !== undefined) return { config, name: known, text: `${config ?? ""} names the vault already, as ${known}` };
  const name = vaults.has("main") ? `vault-${entry.vault.slice(0, 8)}` : "main";
  const { address, stateFolder } = entry;
  document.setIn(["vaults", name], document.createNode({ address, stateFolder }));
  const text = document.toString();
  if (config === null) return { config, name, text };
  if (isThere) await replace(config, text);
  else await writeNew(config, text, 0o600);
  return { config, name, text: `${config} names the vault as ${name}` };
}

async function read(config: string): Promise<Document> {
  const { text } = await readOwnFile(config, "configuration", "hooks");
  const document = parseDocument(text);
  const vaults = document.get("vaults", true);
  const isPlain = document.contents === null || isMap(document.contents);
  if (document.errors.length === 0 && isPlain && (vaults === undefined || vaults === null || isMap(vaults)))
    return document;
  throw new TidemarkError("INVALID_ARGUMENT", `${config} is no configuration to which a vault can be added`, {
    remedy: `correct it: \`tidemark agent --check --config ${shellWord(config)}\` shows every fault with its line`,
  });
}

function isAt(fields: unknown, folder: string, place: string): boolean {
  const { address } = (fields ?? {}) as { readonly address?: unknown };
  if (typeof address !== "string") return false;
  try {
    return placeOf(address, folder) === place;
  } catch (error) {
    if (error instanceof TidemarkError) return false;
    throw error;
  }
}

async function exists(config: string): Promise<boolean> {
  try {
    await stat(config);
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    if (systemCode(error) === undefined) throw error;
    return true; // reading it says why it cannot be used
  }
}

async function replace(config: string, text: string): Promise<void> {
  try {
    await replacePlain(config, text, { durable: true, mode: (await stat(config)).mode % 0o1000 });
  } catch (error) {
    if (error instanceof TidemarkError || systemCode(error) === undefined) throw error;
    throw new TidemarkError("TARGET_FAILED", `${config} cannot be written (${systemCode(error) ?? ""})`, {
      remedy: "give this user the right to write it and its folder",
      cause: error,
    });
  }
}
