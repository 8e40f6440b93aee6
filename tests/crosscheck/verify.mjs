// The protocol's signatures and trees, judged by packages that share nothing with emcd.
// Usage: node verify.mjs PACKAGE_DIR < cases.json     (PACKAGE_DIR: where npm installed package-lock.json)
// Input: [{name, kind, data}]; output: [{name, ok, why}]. Types, domains and rules are written here from the
// protocol's documents (docs/typed-data.md); nothing of them comes from the Python side.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const require = createRequire(join(process.argv[2], "package.json"));
const { SimpleMerkleTree, StandardMerkleTree } = require("@openzeppelin/merkle-tree");
const { getAddress, hashStruct, hashTypedData, keccak256, recoverTypedDataAddress } = require("viem");

const ZERO_HASH = "0x" + "00".repeat(32);
const KINDS = { forward: 1, receipt: 2, delivery: 3 };
const TYPES = {
  Forward: [
    ["bytes16", "callId"], ["address", "hub"], ["address", "router"], ["address", "node"], ["bytes32", "requestHash"],
    ["bytes32", "modelHash"], ["uint32", "priceVersion"], ["uint64", "startedAtMs"],
  ],
  Receipt: [
    ["bytes32", "forwardHash"], ["bytes32", "responseHash"], ["uint16", "httpStatus"], ["uint64", "inputTokens"],
    ["uint64", "outputTokens"], ["uint64", "startedAtMs"], ["uint64", "finishedAtMs"],
  ],
  Delivery: [
    ["bytes32", "forwardHash"], ["bytes32", "receiptHash"], ["bytes32", "bodyHash"], ["uint8", "status"],
    ["uint64", "creditsMicro"], ["uint64", "vaultMicro"], ["uint64", "round"], ["uint64", "finishedAtMs"],
  ],
  RecordBatch: [
    ["address", "signer"], ["uint8", "kind"], ["bytes32", "root"], ["uint32", "count"], ["uint64", "signedAtMs"],
  ],
  RoundRoot: [["uint64", "round"], ["bytes32", "bundleHash"], ["bytes32", "root"], ["uint256", "cumulativeWei"]],
  BundleSeal: [["address", "hub"], ["uint64", "round"], ["bytes32", "bundleHash"]],
  Binding: [
    ["address", "node"], ["address", "wallet"], ["uint8", "role"], ["uint256", "nonce"], ["uint256", "deadline"],
  ],
  Extraction: [
    ["address", "wallet"], ["address", "recipient"], ["uint64", "throughRound"], ["bool", "submit"],
    ["uint256", "nonce"], ["uint256", "deadline"],
  ],
  ParametersChange: [
    ["uint64", "version"], ["uint64", "fromEpoch"], ["bytes32", "rulesHash"], ["bytes32", "documentHash"],
  ],
};

class Refused extends Error {}

function must(condition, why) {
  if (!condition) throw new Refused(why);
}

const typesOf = (name) => ({ [name]: TYPES[name].map(([type, field]) => ({ type, name: field })) });
const snake = (name) => name.replace(/[A-Z]/g, (letter) => "_" + letter.toLowerCase());

// The wire's JSON object (snake_case, amounts as decimal text) as viem's message; every field, and no other.
function message(name, object) {
  const fields = TYPES[name].map(([, field]) => snake(field));
  must(Object.keys(object).sort().join() === [...fields].sort().join(), `${name}: fields ${Object.keys(object)}`);
  return Object.fromEntries(
    TYPES[name].map(([type, field]) => {
      const value = object[snake(field)];
      return [field, type.startsWith("uint") ? BigInt(value) : value];
    }),
  );
}

const structHash = (name, object) =>
  hashStruct({ data: message(name, object), primaryType: name, types: typesOf(name) });

const typedData = (name, object, chainId, contract) => ({
  domain: { name: "emcd", version: "1", chainId, verifyingContract: contract },
  types: typesOf(name),
  primaryType: name,
  message: message(name, object),
});

const recover = (name, object, { chainId, contract, signature }) =>
  recoverTypedDataAddress({ ...typedData(name, object, chainId, contract), signature });

async function requireSigner(name, object, signed, expected) {
  const signer = await recover(name, object, signed);
  must(signer === getAddress(expected), `${name} is signed by ${signer}, not by ${expected}`);
}

async function requireRecord(what, record, proof, signer, { chainId, staking }) {
  const { batch, signature, siblings } = proof;
  must(batch.kind === KINDS[what], `the batch is one of kind ${batch.kind}`);
  must(getAddress(batch.signer) === getAddress(signer), `the batch names ${batch.signer}`);
  must(batch.count > 0 && batch.count <= 256, `the batch counts ${batch.count} records`);
  const name = what[0].toUpperCase() + what.slice(1);
  const leaf = keccak256(structHash(name, record));
  must(SimpleMerkleTree.verify(batch.root, leaf, siblings), `the ${what} does not stand in its batch`);
  await requireSigner("RecordBatch", batch, { chainId, contract: staking, signature }, signer);
}

const JUDGES = {
  // A hub's answer to GET /v1/calls/{id}/receipt.
  async receipt({ call, hub, chainId, staking, body }) {
    const { forward, receipt, delivery } = call;
    const where = { chainId, staking };
    const forwardHash = structHash("Forward", forward);
    must(getAddress(forward.hub) === getAddress(hub), `the forward is by ${forward.hub}`);
    must(delivery.forward_hash === forwardHash, "the delivery is of another forward");
    await requireRecord("forward", forward, call.forward_proof, hub, where);
    if (receipt === null) {
      must(delivery.receipt_hash === ZERO_HASH, "the delivery names a receipt that is not there");
    } else {
      must(receipt.forward_hash === forwardHash, "the receipt is of another forward");
      must(delivery.receipt_hash === structHash("Receipt", receipt), "the delivery is of another receipt");
      await requireRecord("receipt", receipt, call.receipt_proof, forward.node, where);
    }
    await requireRecord("delivery", delivery, call.delivery_proof, hub, where);
    if (body !== undefined) must(keccak256(body) === delivery.body_hash, "another body was delivered");
  },

  // What a validator serves at /attestations/{round}; signed for the distributor.
  async attestation({ attestation, validator, chainId, distributor }) {
    const { round_root: outcome, signature } = attestation;
    await requireSigner("RoundRoot", outcome, { chainId, contract: distributor, signature }, validator);
  },

  // Any other signed struct, by its name.
  async signed({ type, struct, signature, signer, chainId, contract }) {
    await requireSigner(type, struct, { chainId, contract, signature }, signer);
  },

  // The digest that a contract recovers a signature from.
  async digest({ type, struct, chainId, contract, digest }) {
    const found = hashTypedData(typedData(type, struct, chainId, contract));
    must(found === digest, `the digest is ${found}`);
  },

  // A round's reward tree: dump, root and the proof of each wallet as the hub gives them.
  async tree({ dump, root: wanted, proofs }) {
    const tree = StandardMerkleTree.load(dump);
    tree.validate();
    must(tree.root === wanted, `the dump's root is ${tree.root}`);
    const values = [...tree.entries()].map(([, value]) => value);
    must(StandardMerkleTree.of(values, ["address", "uint256"]).root === wanted, "built anew, the root differs");
    must(Object.keys(proofs).length === values.length, "a wallet has no proof, or a proof no wallet");
    for (const [index, value] of tree.entries()) {
      const [wallet] = value;
      must(tree.verify(index, proofs[wallet]), `the proof of ${wallet} does not lead to the root`);
      must(tree.getProof(index).join() === proofs[wallet].join(), `the proof of ${wallet} is not the tree's`);
      must(StandardMerkleTree.verify(wanted, ["address", "uint256"], value, proofs[wallet]), `${wallet} is refused`);
    }
  },
};

async function judge({ name, kind, data }) {
  try {
    await JUDGES[kind](data);
    return { name, ok: true, why: "" };
  } catch (error) {
    return { name, ok: false, why: String(error.shortMessage ?? error.message), refused: error instanceof Refused };
  }
}

const cases = JSON.parse(readFileSync(0, "utf8"));
const verdicts = [];
for (const item of cases) verdicts.push(await judge(item));
process.stdout.write(JSON.stringify(verdicts));
