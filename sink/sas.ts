/** Shared access signatures: what one says about its rights and its time, for messages. */
import type { AzureAccess } from "./credential.ts";

/** What a SAS says about itself. */
export interface SasFacts {
  /** `st=` and `se=` in milliseconds since 1970; undefined when it does not say. */
  readonly startsAtMs: number | undefined;
  readonly expiresAtMs: number | undefined;
  /** `sp=`: one letter per right. Undefined when a stored access policy says it. */
  readonly rights: string | undefined;
  /** `sr=` or `ss=`: whether it is for one container or blob, not for the account. */
  readonly isService: boolean;
}

/** What the SAS in use says; undefined when requests are authenticated in another way. */
export function sasFacts(access: AzureAccess): SasFacts | undefined {
  if (access.kind !== "sas") return undefined;
  const fields = new URLSearchParams(access.sas);
  const time = (name: string): number | undefined => {
    const at = Date.parse(fields.get(name) ?? "");
    return Number.isNaN(at) ? undefined : at;
  };
  return {
    startsAtMs: time("st"),
    expiresAtMs: time("se"),
    rights: fields.get("sp") ?? undefined,
    isService: !fields.has("ss"),
  };
}
