/**
 * Credentials for Azure Storage, as types of their own: the packages that implement them are
 * optional.
 */

/** A source of access tokens: every credential of `@azure/identity` is one. */
export interface AzureCredential {
  /** A token for `scopes`, and when it expires in milliseconds since 1970. */
  getToken(
    scopes: string | string[],
    options?: { readonly abortSignal?: AbortSignal },
  ): Promise<{ readonly token: string; readonly expiresOnTimestamp: number } | null>;
}

/** How requests are authenticated. */
export type AzureAccess =
  | { readonly kind: "key"; readonly account: string; readonly key: string }
  /** `sas` is a query string without its `?`. `renewed` is asked for the one to use from now on. */
  | { readonly kind: "sas"; readonly sas: string; readonly renewed?: (() => Promise<string>) | undefined }
  | { readonly kind: "token"; readonly credential: AzureCredential };
