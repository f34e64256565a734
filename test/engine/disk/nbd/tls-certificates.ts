/** Certificates for tests of TLS: of our authority, and of another one. Made with openssl. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ConnectionOptions, connect } from "node:tls";
import { expect } from "vitest";
import { option, optionReply } from "../../../../engine/disk/nbd/protocol.ts";
import type { NbdTls } from "../../../../engine/disk/nbd/tls.ts";
import { RawClient } from "./server-rig.ts";

export interface Certificates {
  readonly server: NbdTls;
  readonly client: NbdTls;
  /** Of another authority. */
  readonly stranger: NbdTls;
}

export function makeCertificates(): Certificates {
  const folder = mkdtempSync(join(tmpdir(), "nbd-tls-"));
  const openssl = (line: string): void => {
    execFileSync("openssl", line.split(" "), { cwd: folder, stdio: "ignore" });
  };
  const pem = (name: string): string => readFileSync(join(folder, `${name}.pem`), "utf8");
  try {
    for (const name of ["ca", "other"])
      openssl(
        `req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=${name} -keyout ${name}-key.pem -out ${name}-cert.pem`,
      );
    writeFileSync(join(folder, "names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
    for (const [name, authority] of [
      ["server", "ca"],
      ["client", "ca"],
      ["stranger", "other"],
    ] as const) {
      openssl(
        `req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=${name} -keyout ${name}-key.pem -out ${name}.csr`,
      );
      const signer = `-CA ${authority}-cert.pem -CAkey ${authority}-key.pem -CAcreateserial`;
      openssl(`x509 -req -days 2 -in ${name}.csr ${signer} -extfile names -out ${name}-cert.pem`);
    }
    const ca = pem("ca-cert");
    const pair = (name: string): NbdTls => ({
      key: pem(`${name}-key`),
      cert: pem(`${name}-cert`),
      ca,
    });
    return { server: pair("server"), client: pair("client"), stranger: pair("stranger") };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Goes over to TLS on a connection that is ready for options. */
export async function upgraded(plain: RawClient, options: ConnectionOptions): Promise<RawClient> {
  expect(await plain.ask(option.startTls)).toMatchObject([{ type: optionReply.ack }]);
  plain.socket.removeAllListeners("data");
  return new RawClient(connect({ ...options, socket: plain.socket, servername: "localhost" }));
}
