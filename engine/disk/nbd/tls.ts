/**
 * TLS for NBD connections (STARTTLS), with client certificates: a certificate that the configured
 * authority has not signed ends the connection before the handshake goes on.
 */
import type { Socket } from "node:net";
import { createSecureContext, createServer, type TLSSocket } from "node:tls";
import { TidemarkError } from "../../errors.ts";
import type { Secure } from "./handshake.ts";

/** Server key, server certificate, and the authority that signs the clients' certificates: PEM. */
export interface NbdTls {
  readonly key: Buffer | string;
  readonly cert: Buffer | string;
  readonly ca: Buffer | string;
}

/**
 * Prepares the upgrade of sockets. Errors: INVALID_ARGUMENT (key, certificate and authority do not
 * fit or are none).
 */
export function securing({ key, cert, ca }: NbdTls): Secure {
  const options = { key, cert, ca, minVersion: "TLSv1.2", requestCert: true, rejectUnauthorized: true } as const;
  try {
    createSecureContext(options);
  } catch (cause) {
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      "the TLS key, certificate and authority of the NBD server cannot be used together",
      {
        remedy:
          "give the PEM files of a key, of its certificate, and of the authority that signs the clients' certificates",
        cause,
      },
    );
  }
  return (socket) => secured(socket, options);
}

/**
 * A server that listens nowhere judges this one socket: of all of Node's interfaces, only a server
 * refuses untrusted clients by itself. Undefined when it refuses, or when the client leaves.
 */
function secured(socket: Socket, options: Parameters<typeof createServer>[0]): Promise<TLSSocket | undefined> {
  // The answer to the client may have failed, and its `close` been told already.
  if (socket.destroyed) return Promise.resolve(undefined);
  return new Promise((resolve) => {
    // Until the handshake is over, a client that ends its side has left.
    socket.allowHalfOpen = false;
    const judge = createServer(options);
    judge.once("secureConnection", (secure) => {
      secure.allowHalfOpen = true;
      secure.on("error", () => secure.destroy());
      resolve(secure);
    });
    judge.once("tlsClientError", () => resolve(undefined));
    socket.once("close", () => resolve(undefined));
    judge.emit("connection", socket);
  });
}
