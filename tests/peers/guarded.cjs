// The handler of a careful team: versions kept in the row, the batch folded and sorted, one guarded
// statement a part over arrays, in one transaction, and objects put 32 at a time.

const { archive, change, fromArrays, takeEach, write } = require("./batches.cjs");
const { ATTRIBUTES, PARTS, assignments, columns } = require("./model.cjs");
const { serve } = require("./runtime.cjs");

const SEQUENCE_NUMBER_DIGITS = 40;

// A part is written only if its version is greater than the row's. What is removed keeps its version.
function upsert(part) {
  const version = `${part}_version`;
  const names = [...columns(part), version];
  return `
    INSERT INTO measurements (session_id, ${names.join(", ")})
    ${fromArrays(["text", ...Object.values(ATTRIBUTES[part]), "json", "text"])}
    ON CONFLICT (session_id) DO UPDATE SET ${assignments(names)}
    WHERE measurements.${version} IS NULL OR measurements.${version} < EXCLUDED.${version}`;
}

const UPSERTS = Object.fromEntries(PARTS.map((part) => [part, upsert(part)]));

// Batches that lock their rows in one order never deadlock.
const byKey = ([one], [other]) => (one < other ? -1 : 1);

serve(async (event) => {
  // One statement cannot write a row twice: the greatest version of the batch counts.
  const parts = { session: new Map(), left: new Map(), right: new Map() };
  const answer = takeEach(event, (record) => {
    const { part, label, row } = change(record);
    const number = record.dynamodb.SequenceNumber.padStart(SEQUENCE_NUMBER_DIGITS, "0");
    const version = `${label}/${number}`;
    const before = parts[part].get(row[0]);
    if (!before || before.version < version) parts[part].set(row[0], { version, row });
  });
  const sorted = (part) => [...parts[part]].sort(byKey).map(([, { version, row }]) => [...row, version]);
  await write(UPSERTS, Object.fromEntries(PARTS.map((part) => [part, sorted(part)])));
  await archive([...new Set(PARTS.flatMap((part) => [...parts[part].keys()]))]);
  return answer;
});
