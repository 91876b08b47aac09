// Opens messages with the package `jose`; test_other_implementations.py runs it.
//
// Standard input: a JSON list of {message, issuer: JWK, reader: JWK}.
// Standard output: a list with {payload, claims, token} for each, without what did not come out.
//
// `jose` is looked for as `require` does it from here, $NODE_PATH included; where it is not
// found the exit code is 3. README.md says how to have it.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

function find() {
  try {
    return createRequire(import.meta.url).resolve("jose");
  } catch {
    console.error("the package jose is not found");
    process.exit(3);
  }
}

const jose = await import(pathToFileURL(find()).href);
const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const REFUSALS = [
  "ERR_JWS_SIGNATURE_VERIFICATION_FAILED",
  "ERR_JOSE_ALG_NOT_ALLOWED",
  "ERR_JWE_DECRYPTION_FAILED",
];

async function open({ message, issuer, reader }) {
  const result = {};
  try {
    const { d: _, ...half } = issuer;
    const signed = await jose.compactVerify(message, await jose.importJWK(half, "Ed25519"), {
      algorithms: ["Ed25519"],
    });
    result.payload = text.decode(signed.payload);
    const jwe = JSON.parse(result.payload);
    if (!("ciphertext" in jwe)) return result; // a revocation
    const opened = await jose.generalDecrypt(jwe, await jose.importJWK(reader, "ECDH-ES+A256KW"), {
      keyManagementAlgorithms: ["ECDH-ES+A256KW"],
      contentEncryptionAlgorithms: ["A256GCM"],
    });
    result.claims = text.decode(opened.additionalAuthenticatedData);
    result.token = text.decode(opened.plaintext);
  } catch (error) {
    if (!REFUSALS.includes(error.code)) throw error;
  }
  return result;
}

const results = [];
for (const each of JSON.parse(readFileSync(0, "utf8"))) results.push(await open(each));
console.log(JSON.stringify(results));
