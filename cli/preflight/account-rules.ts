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
    return {
      check,
      state: "ok",
      fact: "plain http, which is not secured and stays on this machine or network",
      remedy: null,
    };
  if (tls === null) return { check, state: "skipped", fact: "no connection was kept to look at", remedy: null };
  const { protocol, validToMs } = tls;
  if (validToMs === null) return { check, state: "ok", fact: `${protocol}, the certificate is trusted`, remedy: null };
  const until = new Date(validToMs).toISOString().slice(0, 10);
  const fact = `${protocol}, the certificate is trusted and valid until ${until}`;
  return validToMs - nowMs < certificateMsMin
    ? { check, state: "advice", fact, remedy: "renew the certificate of the endpoint or the proxy" }
    : { check, state: "ok", fact, remedy: null };
}

/** The clock of this machine against that of the store. */
export function judgeClock(aheadMs: number): Finding {
  const seconds = Math.round(Math.abs(aheadMs) / 1000);
  const fact =
    seconds === 0 ? "is that of the store" : `is ${seconds} s ${aheadMs > 0 ? "ahead of" : "behind"} that of the store`;
  const state = seconds * 1000 > clockSkewMsMax ? "failed" : seconds * 1000 > clockSkewMsAdvised ? "advice" : "ok";
  const remedy = state === "ok" ? null : "set this machine's clock, for example with `timedatectl set-ntp true`";
  return { check: "clock", state, fact, remedy };
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
    return {
      check,
      state: "failed",
      fact: `${kind} with a hierarchical namespace, which holds no page blobs`,
      remedy: general,
    };
  if (sku?.startsWith("Premium") === true) {
    const lacks = kind === "BlockBlobStorage" ? "page blobs" : "block blobs";
    return { check, state: "failed", fact: `${kind} of premium performance, which holds no ${lacks}`, remedy: general };
  }
  return { check, state: "ok", fact: `${kind}${sku === null ? "" : " of standard performance"}`, remedy: null };
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
    ? {
        check,
        state: "advice",
        fact,
        remedy: "choose GRS or ZRS, unless the vault is in another region than the disks",
      }
    : { check, state: "ok", fact, remedy: null };
}

function softDeleteOf({ softDeleteDays: days }: AccountFacts): Finding {
  const check = "soft delete";
  if (days === null) return untold(check, "whether it keeps deleted blobs");
  if (days === 0) return { check, state: "ok", fact: "off", remedy: null };
  return {
    check,
    state: "advice",
    fact: `deleted blobs are kept and paid for ${days} days; Azure Site Recovery does not support it`,
    remedy: "turn it off with `az storage account blob-service-properties update --enable-delete-retention false`",
  };
}

function immutabilityOf({ isImmutable }: AccountFacts): Finding {
  const check = "immutability";
  if (isImmutable === null) return untold(check, "whether a policy forbids changes");
  return isImmutable
    ? {
        check,
        state: "failed",
        fact: "a policy or legal hold of the container forbids changes and deletions",
        remedy: "use a container without one",
      }
    : { check, state: "ok", fact: "no policy and no legal hold", remedy: null };
}

function publicityOf({ isPublic }: AccountFacts): Finding {
  const check = "access";
  if (isPublic === null) return untold(check, "whether anonymous requests may read it");
  return isPublic
    ? {
        check,
        state: "advice",
        fact: "anonymous requests may read the container",
        remedy: "close it with `az storage container set-permission --public-access off`",
      }
    : { check, state: "ok", fact: "not public", remedy: null };
}

function untold(check: string, what: string): Finding {
  return { check, state: "skipped", fact: `the store does not tell ${what}`, remedy: null };
}
