/** HPKE against the test vectors of RFC 9180, Appendix A. */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from "node:crypto";
import { expect, it } from "vitest";
import {
  decapsulate,
  encapsulate,
  exportSecret,
  wireKey,
  x25519PrivateKey,
  x25519PublicKey,
} from "../../../../engine/store/keys/hpke.ts";

const hex = (text: string): Buffer => Buffer.from(text, "hex");
/** Of the vectors. Vaults use AES-256-GCM. */
const aes128Gcm = { id: 0x0001, keyBytes: 16 };
const info = hex("4f6465206f6e2061204772656369616e2055726e");

function p256(scalar: string, point: string): KeyObject {
  const part = (text: string): string => hex(text).toString("base64url");
  const key = { kty: "EC", crv: "P-256", d: part(scalar), x: part(point.slice(2, 66)), y: part(point.slice(66)) };
  return createPrivateKey({ key, format: "jwk" });
}

// A.1.1: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM. A.3.1: DHKEM(P-256, HKDF-SHA256).
const vectors = [
  {
    kem: "X25519",
    ephemeral: x25519PrivateKey(hex("52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736")),
    receiver: x25519PrivateKey(hex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8")),
    encapsulated: "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
    key: "4531685d41d65f03dc48f6b8302c05b0",
    nonce: "56d890e5accaaf011cff4b7d",
    exporter: "45ff1c2e220db587171952c0592d5f5ebe103f1561a2614e38f2ffd47e99e3f8",
  },
  {
    kem: "P-256",
    ephemeral: p256(
      "4995788ef4b9d6132b249ce59a77281493eb39af373d236a1fe415cb0c2d7beb",
      "04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac98536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4",
    ),
    receiver: p256(
      "f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2",
      "04fe8c19ce0905191ebc298a9245792531f26f0cece2460639e8bc39cb7f706a826a779b4cf969b8a0e539c7f62fb3d30ad6aa8f80e30f1d128aafd68a2ce72ea0",
    ),
    encapsulated:
      "04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac98536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4",
    key: "868c066ef58aae6dc589b6cfdd18f97e",
    nonce: "4e0bc5018beba4bf004cca59",
    exporter: "14ad94af484a7ad3ef40e9f3be99ecc6fa9036df9d4920548424df127ee0d99f",
  },
];

it.each(vectors)("gives the secrets of RFC 9180 for $kem", ({ ephemeral, receiver, ...wanted }) => {
  const { encapsulated, secrets } = encapsulate(createPublicKey(receiver), info, ephemeral, aes128Gcm);
  const found = {
    encapsulated: encapsulated.toString("hex"),
    key: secrets.key.toString("hex"),
    nonce: secrets.nonce.toString("hex"),
    exporter: secrets.exporter.toString("hex"),
  };
  expect(found).toEqual({
    encapsulated: wanted.encapsulated,
    key: wanted.key,
    nonce: wanted.nonce,
    exporter: wanted.exporter,
  });
});

it("exports the secret of RFC 9180 A.1.1 for an empty context", () => {
  const [vector] = vectors;
  const receiver = createPublicKey(vector?.receiver ?? x25519PrivateKey(Buffer.alloc(32, 1)));
  const { secrets } = encapsulate(receiver, info, vector?.ephemeral, aes128Gcm);
  expect(exportSecret(secrets, Buffer.alloc(0)).toString("hex")).toBe(
    "3853fe2b4035195a573ffc53856e77058e15d9ea064de3e59f4961d0095250ee",
  );
});

it.each(["x25519", "prime256v1", "secp384r1"])("gives both sides of %s the same secrets, bound to info", (curve) => {
  const { privateKey, publicKey } =
    curve === "x25519" ? generateKeyPairSync("x25519") : generateKeyPairSync("ec", { namedCurve: curve });
  const { encapsulated, secrets } = encapsulate(publicKey, info);
  expect(decapsulate(privateKey, info, encapsulated)).toEqual(secrets);
  expect(decapsulate(privateKey, Buffer.from("another"), encapsulated)?.key).not.toEqual(secrets.key);
  const altered = Buffer.from(encapsulated);
  altered.writeUInt8(altered.readUInt8(5) ^ 1, 5);
  expect(decapsulate(privateKey, info, altered)?.key).not.toEqual(secrets.key);
  expect(decapsulate(privateKey, info, encapsulated.subarray(1))).toBeUndefined();
});

it("refuses a public key of small order", () => {
  const receiver = x25519PrivateKey(Buffer.alloc(32, 7));
  expect(decapsulate(receiver, info, Buffer.alloc(32))).toBeUndefined();
  expect(wireKey(x25519PublicKey(Buffer.alloc(32, 9)))).toEqual(Buffer.alloc(32, 9));
});
