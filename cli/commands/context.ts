/** Context of a command, and the vault that its flags name: opened, used and closed. */
import { stat } from "node:fs/promises";
import {
  FileVolume,
  type OperationOptions,
  type Sink,
  systemCode,
  TidemarkError,
  Vault,
  type VaultOptions,
  type VaultParameters,
  type Volume,
} from "../../engine/index.ts";
import { closing } from "../../engine/internal.ts";
import { openSink, parseVaultSpec } from "../../sink/index.ts";
import { withoutSecrets } from "../errors.ts";
import type { SignalAnswers } from "../interruption.ts";
import type { Output } from "../output.ts";
import {
  type Environment,
  sinkOptions,
  type VaultFlags,
  vaultAddress,
  vaultOptions,
  vaultSecrets,
} from "../settings.ts";
import { told } from "../waiting.ts";

export interface CommandContext {
  readonly output: Output;
  readonly environment: Environment;
  /** Aborts at ^C. */
  readonly signal: AbortSignal;
  /** From now on the command answers signals itself, and `signal` aborts no more. */
  readonly answerSignals: (answers: SignalAnswers) => void;
  /** From now on the command has `ms` to come to rest after ^C. */
  readonly allowRest: (ms: number) => void;
  /** What the process ends with unless the command throws. */
  exitCode: number;
  /** Times in UTC on a terminal too. */
  readonly utc: boolean;
}

/** Options of an operation: ^C ends it, and its progress and notices go to the output. */
export function operation({ output, signal }: CommandContext): {
  readonly [Name in keyof OperationOptions]-?: NonNullable<OperationOptions[Name]>;
} {
  return { signal, onProgress: output.progress.bind(output), onNotice: output.notice.bind(output) };
}

/** How a command comes by its vault. */
export type VaultOpener = (sink: Sink, options: VaultOptions & VaultParameters) => Promise<Vault>;

/**
 * Opens the vault that the flags name, lets `use` work with it, and closes it, also after a failure.
 * Errors: those of all three.
 */
export async function withVault<Result>(
  context: CommandContext,
  flags: VaultFlags & VaultParameters,
  use: (vault: Vault, sink: Sink) => Promise<Result>,
  open: VaultOpener = openExisting,
): Promise<Result> {
  const { environment, signal } = context;
  const { blockBytes, digest } = flags;
  const keys = await vaultSecrets(flags, environment);
  const options = { ...vaultOptions(flags, environment, signal), blockBytes, digest, keys };
  context.output.detail(`vault ${withoutSecrets(vaultAddress(flags))}, local caches in ${options.stateFolder ?? ""}`);
  return await withSink(
    context,
    flags,
    async (sink) => {
      const vault = await open(sink, options);
      return await closing(vault, async () => await use(vault, sink));
    },
    // An Azurite would make its folder, and a wrong address would look like an empty vault.
    open !== openExisting && open !== openForRepair,
  );
}

/** As `withVault`, for the store alone. `mayBeNew`: the folder of an Azurite may be made. */
export async function withSink<Result>(
  { environment, signal, output }: CommandContext,
  flags: VaultFlags,
  use: (sink: Sink) => Promise<Result>,
  mayBeNew = false,
): Promise<Result> {
  const address = vaultAddress(flags);
  if (!mayBeNew) await refuseAbsentAzurite(address);
  const opened = await openSink(address, sinkOptions(address, environment, signal));
  const sink = told(opened, withoutSecrets(opened.description), output.notice.bind(output));
  return await closing(sink, async () => await use(sink));
}

/**
 * Any address that begins like one of NBD: a fault in the address is reported rather than a missing
 * file.
 */
export const nbdAddress: RegExp = /^nbds?(\+[a-z]+)?:\/\//i;

/**
 * Refuses a source of 0 bytes: a loop device without a file, an export without a medium, a file that
 * was cut off. Errors: SOURCE_UNREADABLE.
 */
export async function refuseEmpty(source: Pick<Volume, "description" | "sizeBytes">): Promise<void> {
  if ((await source.sizeBytes()) > 0) return;
  throw new TidemarkError("SOURCE_UNREADABLE", `the source ${source.description} is empty: it has 0 bytes`, {
    remedy:
      "attach its medium, or name another source; `tidemark replicate --allow-empty` takes a point of it all the same",
    detail: { source: source.description },
  });
}

/** `refuseEmpty` of an image file or block device. Errors: SOURCE_UNREADABLE, SOURCE_NOT_FOUND. */
export async function refuseEmptyImage(path: string): Promise<void> {
  const volume = await FileVolume.open(path);
  try {
    await refuseEmpty(volume);
  } finally {
    await volume.close();
  }
}

/** Opens a vault whose `vault.json` may be lost. */
export async function openForRepair(sink: Sink, options: VaultOptions): Promise<Vault> {
  return await Vault.openForRepair(sink, options);
}

async function openExisting(sink: Sink, options: VaultOptions): Promise<Vault> {
  return await Vault.open(sink, options);
}

async function refuseAbsentAzurite(address: string): Promise<void> {
  const spec = parseVaultSpec(address);
  if (spec.kind !== "azurite") return;
  try {
    await stat(spec.dir);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") return;
    throw new TidemarkError("VAULT_NOT_FOUND", `azurite:${spec.dir} holds no vault: the folder does not exist`, {
      remedy:
        "check the address, or create a vault with `tidemark vault init`; the first `tidemark replicate` creates one too",
      cause: error,
    });
  }
}
