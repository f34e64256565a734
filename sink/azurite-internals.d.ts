/**
 * Internal modules of Azurite that the host process uses. Azurite 3.35 ships no declarations, and its package entry cannot be
 * imported (it needs vscode), so the modules are imported by their path.
 */
declare module "azurite/dist/src/blob/BlobConfiguration.js" {
  interface BlobConfiguration {
    readonly metadataDBPath: string;
  }
  const exported: {
    readonly default: new (
      host: string,
      port: number,
      keepAliveTimeoutSeconds: number,
      metadataDBPath: string,
      extentDBPath: string,
      persistencePathArray: readonly {
        readonly locationId: string;
        readonly locationPath: string;
        readonly maxConcurrency: number;
      }[],
      enableAccessLog: boolean,
      accessLogWriteStream: undefined,
      enableDebugLog: boolean,
      debugLogFilePath: undefined,
      loose: boolean,
      skipApiVersionCheck: boolean,
      cert: string,
      key: string,
      pwd: string,
      oauth: undefined,
      disableProductStyleUrl: boolean,
      isMemoryPersistence: boolean,
    ) => BlobConfiguration;
  };
  export default exported;
}

declare module "azurite/dist/src/blob/BlobServer.js" {
  interface LokiDatabase {
    saveDatabase(callback: (error: unknown) => void): void;
  }
  interface BlobServer {
    readonly httpServer: import("node:http").Server;
    readonly metadataStore: { readonly db: LokiDatabase };
    readonly extentMetadataStore: { readonly db: LokiDatabase };
    start(): Promise<void>;
    close(): Promise<void>;
  }
  const exported: { readonly default: new (configuration: object) => BlobServer };
  export default exported;
}
