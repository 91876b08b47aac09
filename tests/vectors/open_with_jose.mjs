// Opens messages with the package `jose`; test_jose_on_node.py runs it.
//
// Standard input: a JSON list of {message, issuer: JWK, reader: JWK}.
// Standard output: {version, results}, a result for each being {payload, verified, claims,
// token}, without what did not come out, and `error` where one did.
//
// `jose` is looked for as `require` does it from here, $NODE_PATH included; where it is not
// found the exit code is 3. README.md says how to have it.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(import.meta.url);

function find() {
  try {
    return require.resolve("jose");
  } catch {
    console.error("the package jose is not found");
    process.exit(3);
  }
}

function version(file) {
  let folder = dirname(file);
  while (basename(folder) !== "jose" && folder !== dirname(folder)) folder = dirname(folder);
  return JSON.parse(readFileSync(join(folder, "package.json"), "utf8")).version;
}

const file = find();
const jose = await import(pathToFileURL(file).href);
const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

async function open({ message, issuer, reader }) {
  const result = {};
  try {
    const { d: _, ...half } = issuer;
    const signed = await jose.compactVerify(message, await jose.importJWK(half, "Ed25519"), {
      algorithms: ["Ed25519"],
    });
    result.verified = true;
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
    result.error = error.code ?? String(error);
  }
  return result;
}

const results = [];
for (const each of JSON.parse(readFileSync(0, "utf8"))) results.push(await open(each));
console.log(JSON.stringify({ version: version(file), results }));
