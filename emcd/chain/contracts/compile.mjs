// Compiles src/*.sol and writes artifacts/*.json. Run by compile.py, which prepares BUILD_DIR (npm ci there).
// Usage: node compile.mjs BUILD_DIR OUT_DIR SOURCE_DIR CONTRACT...
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const SETTINGS = {
  optimizer: { enabled: true, runs: 200 },
  evmVersion: "cancun",
  metadata: { bytecodeHash: "none", appendCBOR: false },
};

const [buildDir, outDir, sourceDir, ...contracts] = process.argv.slice(2);
const solc = createRequire(join(buildDir, "package.json"))("solc");
const used = new Map(); // source name -> content

function load(name) {
  if (name.includes("..")) throw new Error(`import outside the sources: ${name}`);
  const path = name.startsWith("src/") ? join(sourceDir, name.slice(4)) : join(buildDir, "node_modules", name);
  const content = readFileSync(path, "utf8");
  used.set(name, content);
  return content;
}

function findImport(name) {
  try {
    return { contents: load(name) };
  } catch (error) {
    return { error: String(error) };
  }
}

const sources = Object.fromEntries(
  readdirSync(sourceDir).filter((file) => file.endsWith(".sol")).sort().map((file) => [`src/${file}`, { content: load(`src/${file}`) }]),
);
const outputSelection = { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } };
const input = { language: "Solidity", sources, settings: { ...SETTINGS, outputSelection } };
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: findImport }));

const faults = (output.errors ?? []).filter(
  (entry) => entry.severity === "error" || (entry.severity === "warning" && entry.sourceLocation?.file.startsWith("src/")),
);
if (faults.length > 0) {
  for (const fault of faults) console.error(fault.formattedMessage);
  process.exit(1);
}

const sha256 = (text) => createHash("sha256").update(text).digest("hex");
const hashes = Object.fromEntries([...used.keys()].sort().map((name) => [name, sha256(used.get(name))]));
const sourcesSha256 = sha256(Object.entries(hashes).map(([name, hash]) => `${hash}  ${name}\n`).join(""));
mkdirSync(outDir, { recursive: true });
for (const name of contracts) {
  const { abi, evm } = output.contracts[`src/${name}.sol`][name];
  const artifact = {
    contract: name,
    compiler: { name: "solc", version: solc.version(), settings: SETTINGS },
    sources_sha256: sourcesSha256,
    sources: hashes,
    abi,
    bytecode: "0x" + evm.bytecode.object,
    deployed_bytes: evm.deployedBytecode.object.length / 2,
  };
  writeFileSync(join(outDir, `${name}.json`), JSON.stringify(artifact, null, 1) + "\n");
  console.log(`${name}: ${artifact.deployed_bytes} bytes`);
}
