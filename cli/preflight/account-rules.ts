/**
 * Rules about a storage account: what a vault cannot live with, and what Azure Site Recovery forbids or
 * advises against for accounts that it writes to. Pure functions.
 */
import type { AccountFacts } from "../../sink/internal.ts";
import type { Finding } from "./finding.ts";

const dayMs = 86_400_000;
/** Certificates are renewed earlier than this. */
const certificateMsMin: number = 14 * dayMs;
/** Storage refuses signed requests beyond it. */
const clockSkewMsMax: number = 15 * 60_000;
/** An RPO is wrong by as much. */
const clockSkewMsAdvised = 5_000;

/** How the connection is secured. `url`: of the container. */
export function judgeTls(url: URL, tls: AccountFacts["tls"], nowMs: number): Finding {
  const check = "tls";
  if (url.protocol === "http:")
    return found(check, "ok", "plain http, which is not secured and stays on this machine or network");
  if (tls === null) return found(check, "skipped", "no connection was kept to look at");
  const { protocol, validToMs } = tls;
  if (validToMs === null) return found(check, "ok", `${protocol}, the certificate is trusted`);
  const until = new Date(validToMs).toISOString().slice(0, 10);
  const fact = `${protocol}, the certificate is trusted and valid until ${until}`;
  return validToMs - nowMs < certificateMsMin
    ? found(check, "advice", fact, "renew the certificate of the endpoint or the proxy")
    : found(check, "ok", fact);
}

/** The clock of this machine against that of the store. */
export function judgeClock(aheadMs: number): Finding {
  const seconds = Math.round(Math.abs(aheadMs) / 1000);
  const fact =
    seconds === 0 ? "is that of the store" : `is ${seconds} s ${aheadMs > 0 ? "ahead of" : "behind"} that of the store`;
  const state = seconds * 1000 > clockSkewMsMax ? "failed" : seconds * 1000 > clockSkewMsAdvised ? "advice" : "ok";
  const remedy = state === "ok" ? null : "set this machine's clock, for example with `timedatectl set-ntp true`";
  return found("clock", state, fact, remedy);
}

/** What the account and the container are. */
export function judgeAccount(facts: AccountFacts): Finding[] {
  return [kindOf(facts), redundancyOf(facts), softDeleteOf(facts), immutabilityOf(facts), publicityOf(facts)];
}

function kindOf({ kind, sku, isHierarchical }: AccountFacts): Finding {
  const check = "account";
  if (kind === null) return untold(check, "what kind of account it is");
  const general = "make a general-purpose v2 account of standard performance, without a hierarchical namespace";
  if (isHierarchical === true)
    return found(check, "failed", `${kind} with a hierarchical namespace, which holds no page blobs`, general);
  if (sku?.startsWith("Premium") === true) {
    const lacks = kind === "BlockBlobStorage" ? "page blobs" : "block blobs";
    return found(check, "failed", `${kind} of premium performance, which holds no ${lacks}`, general);
  }
  return found(check, "ok", `${kind}${sku === null ? "" : " of standard performance"}`);
}

const redundancies: Readonly<Record<string, string>> = {
  LRS: "three copies in one place of the region",
  ZRS: "copies in three zones of the region",
  GRS: "copies in two regions",
  RAGRS: "copies in two regions, both readable",
  GZRS: "copies in three zones and in a second region",
  RAGZRS: "copies in three zones and in a second region, readable there",
};

function redundancyOf({ sku }: AccountFacts): Finding {
  const check = "redundancy";
  const word = sku?.split("_")[1];
  if (word === undefined) return untold(check, "how many copies it keeps");
  const fact = `${word}: ${redundancies[word] ?? "copies of an unknown kind"}`;
  return word === "LRS"
    ? found(check, "advice", fact, "choose GRS or ZRS, unless the vault is in another region than the disks")
    : found(check, "ok", fact);
}

function softDeleteOf({ softDeleteDays: days }: AccountFacts): Finding {
  const check = "soft delete";
  if (days === null) return untold(check, "whether it keeps deleted blobs");
  if (days === 0) return found(check, "ok", "off");
  return found(
    check,
    "advice",
    `deleted blobs are kept and paid for ${days} days; Azure Site Recovery does not support it`,
    "turn it off with `az storage account blob-service-properties update --enable-delete-retention false`",
  );
}

function immutabilityOf({ isImmutable }: AccountFacts): Finding {
  const check = "immutability";
  if (isImmutable === null) return untold(check, "whether a policy forbids changes");
  return isImmutable
    ? found(
        check,
        "failed",
        "a policy or legal hold of the container forbids changes and deletions",
        "use a container without one",
      )
    : found(check, "ok", "no policy and no legal hold");
}

function publicityOf({ isPublic }: AccountFacts): Finding {
  const check = "access";
  if (isPublic === null) return untold(check, "whether anonymous requests may read it");
  return isPublic
    ? found(
        check,
        "advice",
        "anonymous requests may read the container",
        "close it with `az storage container set-permission --public-access off`",
      )
    : found(check, "ok", "not public");
}

function untold(check: string, what: string): Finding {
  return found(check, "skipped", `the store does not tell ${what}`);
}

function found(check: string, state: Finding["state"], fact: string, remedy: string | null = null): Finding {
  return { check, state, fact, remedy };
}
