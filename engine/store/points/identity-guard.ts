/**
 * Guard of a vault's identity: keeps the second copy of `vault.json`, so that the vault survives the
 * loss of either object.
 *
 * A session that has committed a point checks both objects once a process and puts a missing or
 * damaged copy back. A failure is a notice: the point is committed, and the next session tries again.
 *
 * Invariant: only the copy is written here, and only while `vault.json` itself is sound and of this
 * vault. A store that lost the vault, or holds another one, is left alone.
 */
import { hasCode, TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { VaultDocument } from "../format/documents.ts";
import { vaultCopyName } from "../format/names.ts";
import type { Store } from "../store.ts";
import { type IdentityFault, identityFaults, mendIdentity } from "./identity.ts";

/** What was wrong with one of the two objects. */
export interface FoundFault {
  readonly name: string;
  /** For people. */
  readonly message: string;
  readonly isGone: boolean;
  readonly isRestored: boolean;
}

export class IdentityGuard {
  readonly #document: VaultDocument;
  /** Both objects have been seen to be sound. */
  #isSafe = false;

  constructor(document: VaultDocument) {
    this.#document = document;
  }

  /** Checks both objects once, and puts the copy back. Never fails: what is wrong is a notice. */
  async keep(store: Store, onNotice: (notice: Notice) => void, signal: AbortSignal | undefined): Promise<void> {
    if (this.#isSafe || signal?.aborted === true) return;
    try {
      this.#isSafe = (await this.check(store, true, onNotice, signal)).length === 0;
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      onNotice({
        code: "VAULT_AT_RISK",
        message: `the second copy of the vault's identity (${vaultCopyName}) could not be checked: ${error.message}`,
      });
    }
  }

  /**
   * Reports what is wrong with `vault.json` and its copy. With `mend` a missing or damaged copy is put
   * back. Returns what was wrong. Errors: those of the store.
   */
  async check(
    store: Store,
    mend: boolean,
    onNotice: (notice: Notice) => void,
    signal: AbortSignal | undefined,
  ): Promise<readonly FoundFault[]> {
    const found: FoundFault[] = [];
    const faults = await identityFaults(store, this.#document, signal);
    for (const fault of faults) {
      const isMended = mend && faults.length === 1 && fault.name === vaultCopyName && !fault.isForeign;
      const isRestored = isMended && (await this.#mend(store, fault, signal));
      const fate = isRestored ? "it has been restored" : "run `tidemark vault repair` to restore it";
      const message = fault.isForeign ? fault.message : `${fault.message}: ${fate}`;
      onNotice({ code: "VAULT_AT_RISK", message });
      found.push({ name: fault.name, message, isGone: fault.etag === undefined && !fault.isForeign, isRestored });
    }
    return found;
  }

  async #mend(store: Store, fault: IdentityFault, signal: AbortSignal | undefined): Promise<boolean> {
    try {
      await mendIdentity(store, this.#document, fault, signal);
      return true;
    } catch (error) {
      if (!hasCode(error, "ACCESS_REFUSED")) throw error; // a client that can only read may still verify
      return false;
    }
  }
}
