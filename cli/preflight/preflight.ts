/**
 * Pre-flight check of a store: can a vault be there, and is this machine allowed to do what it needs?
 *
 *     way ─► endpoint ─► TLS, clock ─► container ─► list, write, read, lease, pages, delete ─► account
 *
 * Each step does once what a writer, a reader or a collector does, on objects of its own, and becomes one
 * finding. What a failed step keeps from being looked at is skipped. `tidemark stress store` asks more: whether
 * the store keeps its guarantees under load.
 *
 * Invariant: a check that ends, by an error or ^C too, has deleted what it made, if it may delete at all.
 */
import { type CallOptions, hasCode, type Sink, TidemarkError } from "../../engine/index.ts";
import type { ProxyOptions, VaultSpec } from "../../sink/index.ts";
import { type AccountFacts, bypassesProxy, describeProxy, isLoopback } from "../../sink/internal.ts";
import { RunObjects, removeLeftovers } from "../capacity/run-objects.ts";
import { judgeAccount, judgeClock, judgeTls } from "./account-rules.ts";
import type { Finding } from "./finding.ts";

export interface PreflightOptions {
  readonly spec: VaultSpec;
  readonly proxy: ProxyOptions | undefined;
  readonly signal: AbortSignal;
  readonly onFinding: (finding: Finding) => void;
}

const pageObjectBytes: number = 64 * 1024;
/** A fence and one that is above it. */
const [fence, fenceAbove] = [1, 2] as const;

/** Checks, finding by finding. Errors: INTERRUPTED. All others are findings. */
export async function preflight(sink: Sink, options: PreflightOptions): Promise<void> {
  const { spec, signal, onFinding } = options;
  const url = spec.kind === "azure" ? new URL(spec.containerUrl) : undefined;
  const steps = new Steps(onFinding);
  const way = url === undefined ? undefined : wayTo(url, options.proxy);
  if (way !== undefined) steps.found("way", way);

  const there = await steps.asked(
    "endpoint",
    async () => await whatIsThere(sink, signal),
    () => `${sink.description} answers`,
  );
  if (there === undefined) return;
  const facts = url !== undefined && canTell(sink) ? await sink.accountFacts({ signal }) : undefined;
  if (url !== undefined && facts !== undefined) onFinding(judgeTls(url, facts.tls, Date.now()));
  if (spec.kind === "azure") onFinding(judgeClock(sink.clockAheadMs));
  if (there !== "nothing") await checkRights(sink, steps, signal);
  else
    onFinding({
      check: "container",
      state: "failed",
      fact: "it does not exist, so no right can be checked",
      remedy: "create it, with a vault in it, by `tidemark vault init`",
    });
  if (facts !== undefined) for (const finding of judgeAccount(facts)) onFinding(finding);
  if (url !== undefined) {
    onFinding({ check: "region", state: "skipped", fact: "the store does not tell its region", remedy: null });
  }
  if (there === "vault") steps.found("vault", "there is one");
  if (there === "container") steps.found("vault", "there is none yet; `tidemark vault init` makes one");
}

async function whatIsThere(sink: Sink, signal: AbortSignal): Promise<"vault" | "container" | "nothing"> {
  try {
    await sink.statObject("vault.json", { signal });
    return "vault";
  } catch (error) {
    if (hasCode(error, "VAULT_NOT_FOUND")) return "nothing";
    // A refusal is an answer; the steps that follow say what is refused.
    if (hasCode(error, "OBJECT_NOT_FOUND", "ACCESS_REFUSED")) return "container";
    throw error;
  }
}

/** How requests to a URL go. */
export function wayTo(url: URL, proxy: ProxyOptions | undefined): string {
  if (proxy === undefined) return `directly to ${url.host}; no proxy is set`;
  const by = describeProxy(proxy);
  if (isLoopback(url.hostname)) return `directly to ${url.host}; this machine is never reached through the proxy ${by}`;
  return bypassesProxy(url, proxy.bypass ?? [])
    ? `directly to ${url.host}; the bypass list keeps it from the proxy ${by}`
    : `to ${url.host} through the proxy ${by}`;
}

/** What a writer, a reader and a collector do, each once. */
async function checkRights(sink: Sink, steps: Steps, signal: AbortSignal): Promise<void> {
  const options: CallOptions = { signal };
  const run = new RunObjects(sink);
  const pages = `${run.prefix}pages`;
  let [first, etag] = ["", ""];
  await steps.step("list", async () => {
    const removed = await removeLeftovers(sink, options);
    return removed === 0 ? "allowed" : `allowed; what a killed check had left is removed (${removed})`;
  });
  try {
    await steps.step("write", async () => {
      first = await run.make(options);
      ({ etag } = await sink.statObject(first, options));
      ({ etag } = await sink.putObject(first, Buffer.from("ab"), { ifMatch: etag }, options));
      return "allowed: a new object, and a change by compare-and-swap";
    });
    await steps.step("read", async () => {
      if (first === "") throw skipped("write");
      const { bytes } = await sink.getObject(first, 16, options);
      return Buffer.from(bytes).toString() === "ab" ? "allowed: what was written came back" : differs("object");
    });
    await steps.step("lease", async () => {
      if (first === "") throw skipped("write");
      await run.lease(options);
      return "allowed";
    });
    await steps.step("pages", async () => await checkPages(sink, pages, options));
  } finally {
    // What was made is removed after ^C, too, and without the right to list.
    await steps.step("delete", async () => {
      await run.remove([pages]);
      return first === "" ? "nothing was made" : "allowed; nothing is left";
    });
  }
}

/** Page objects, with their fence. Returns what was found. */
async function checkPages(sink: Sink, name: string, options: CallOptions): Promise<string> {
  const bytes = Buffer.alloc(4096, 0x5a);
  await sink.createPages(name, pageObjectBytes, fence, options);
  await sink.writePages(name, 0, bytes, { sequenceNumber: fence }, options);
  const back = Buffer.alloc(bytes.length);
  await sink.readPages(name, 0, back, options);
  if (!back.equals(bytes)) differs("page");
  await sink.raiseSequenceNumber(name, fenceAbove, options);
  const late = await sink.writePages(name, 0, bytes, { sequenceNumber: fence }, options).then(
    () => "accepted",
    (error: unknown) => (hasCode(error, "CONDITION_FAILED") ? "refused" : Promise.reject(error as Error)),
  );
  if (late === "accepted")
    throw new TidemarkError("STORE_REFUSED", "the store accepts pages of a writer that was fenced off", {
      remedy: "check it with `tidemark stress store`, and use another store",
    });
  await sink.clearPages(name, 0, pageObjectBytes, options);
  return `${sink.capabilities.attachablePages ? "page blobs" : "allowed"}; a late writer is refused`;
}

/** Findings of steps that may fail. */
class Steps {
  readonly #onFinding: (finding: Finding) => void;

  constructor(onFinding: (finding: Finding) => void) {
    this.#onFinding = onFinding;
  }

  found(check: string, fact: string): void {
    this.#onFinding({ check, state: "ok", fact, remedy: null });
  }

  /** A step that returns its fact. Errors: INTERRUPTED. */
  async step(check: string, work: () => Promise<string>): Promise<void> {
    await this.asked(check, work, (fact) => fact);
  }

  /** What `work` returns; undefined: it failed. Errors: INTERRUPTED. */
  async asked<Answer>(
    check: string,
    work: () => Promise<Answer>,
    factOf: (answer: Answer) => string,
  ): Promise<Answer | undefined> {
    try {
      const answer = await work();
      this.found(check, factOf(answer));
      return answer;
    } catch (error) {
      if (!(error instanceof TidemarkError) || error.code === "INTERRUPTED") throw error;
      const { message, remedy = null } = error;
      this.#onFinding({ check, state: error instanceof Skipped ? "skipped" : "failed", fact: message, remedy });
      return undefined;
    }
  }
}

/** A step that needs one that failed. */
class Skipped extends TidemarkError {}

function skipped(needed: string): Skipped {
  return new Skipped("UNSUPPORTED", `not looked at: it needs ${needed}`, {});
}

function differs(what: string): never {
  throw new TidemarkError("DAMAGED", `the ${what} that came back is not the one that was written`, {
    remedy: "check the store with `tidemark stress store`",
  });
}

function canTell(sink: Sink): sink is Sink & { accountFacts(options: CallOptions): Promise<AccountFacts> } {
  return "accountFacts" in sink;
}
