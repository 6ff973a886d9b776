// aws-lambda-stream, composed as its README shows: rules, a flavor of our own that materializes
// into PostgreSQL as its `materialize` does into DynamoDB, the condition on the timestamp
// (`timestampCondition`), parallel calls, faults. With the word `compact` as its argument, its
// rules have `compact: true`.

const _ = require("highland");
const { fromDynamodb } = require("aws-lambda-stream/from/dynamodb");
const { filterOnEventType } = require("aws-lambda-stream/filters/event");
const { initialize, initializeFrom } = require("aws-lambda-stream/pipelines");
const { compact } = require("aws-lambda-stream/utils/batch");
const { faulty, rejectWithFault } = require("aws-lambda-stream/utils/faults");
const { toPromise } = require("aws-lambda-stream/utils/handler");
const { defaultOptions } = require("aws-lambda-stream/utils/opt");
const { putObjectToS3 } = require("aws-lambda-stream/sinks/s3");
const { stringify } = require("lossless-json");
const { Pool } = require("pg");
const { ATTRIBUTES, PARTS, READ_ROWS, assignments, columns } = require("./model.cjs");
const { serve } = require("./runtime.cjs");

const KEYS = ["session_id", "side"];
// Its default, for calls of the database and of S3.
const PARALLEL = 4;
const bucketName = process.env.ARCHIVE_BUCKET;
const connectionString = process.env.DATABASE_URL;
const pool = new Pool({ connectionString, max: PARALLEL, idleTimeoutMillis: 0 });
// Without a listener the end of an idle connection would end the process.
pool.on("error", (error) => console.error(error));

// Its `timestampCondition`: a change applies if its creation time is later than the row's.
function upsert(part) {
  const names = [...columns(part), `${part}_changed_at`];
  const values = names.map((_, index) => `$${index + 2}`);
  const time = `${part}_changed_at`;
  return `
    INSERT INTO measurements (session_id, ${names.join(", ")}) VALUES ($1, ${values.join(", ")})
    ON CONFLICT (session_id) DO UPDATE SET ${assignments(names)}
    WHERE measurements.${time} IS NULL OR measurements.${time} < EXCLUDED.${time}`;
}

const fromSet = (_, value) => (value instanceof Set ? [...value] : value);

// The request of a unit of work. What is deleted becomes NULL in each column, and keeps its time.
const toUpsert = (rule) => (uow) => {
  const image = uow.event.type === `${rule.id}-deleted` ? {} : uow.event.raw.new;
  const attributes = ATTRIBUTES[rule.id];
  const values = Object.keys(attributes).map((name) => {
    const value = image[name] ?? null;
    return name === "mesh" && value !== null ? Buffer.from(value, "base64") : value;
  });
  const known = (name) => KEYS.includes(name) || name in attributes;
  const others = Object.entries(image).filter(([name]) => !known(name));
  const json = others.length > 0 ? stringify(Object.fromEntries(others), fromSet) : null;
  const changedAt = new Date(uow.event.timestamp);
  return { ...uow, upsert: [uow.event.partitionKey, ...values, json, changedAt] };
};

const save = (rule) => (uow) =>
  _(pool.query({ name: rule.id, text: rule.sql, values: uow.upsert })
    .then(() => uow)
    .catch(rejectWithFault(uow)));

const toPutRequest = (uow) =>
  _(pool.query({ name: "read", text: READ_ROWS, values: [[uow.event.partitionKey]] })
    .then(({ rows: [row] }) => ({
      ...uow,
      putRequest: {
        Key: `measurements/${row.session_id}.json`,
        Body: row.body,
        ContentType: "application/json",
      },
    }))
    .catch(rejectWithFault(uow)));

const archive = (s) => s
  .map(toPutRequest)
  .parallel(PARALLEL)
  .through(putObjectToS3({ bucketName, parallel: PARALLEL }));

// The steps of its `materialize`, with other sinks.
const materialize = (rule) => (s) => s
  .filter(faulty((uow) => filterOnEventType(rule, uow)))
  .through(compact(rule))
  .map(faulty(toUpsert(rule)))
  .map(save(rule))
  .parallel(PARALLEL)
  .through(bucketName ? archive : (saved) => saved);

const PIPELINES = initializeFrom(PARTS.map((part) => ({
  id: part,
  flavor: materialize,
  eventType: new RegExp(`^${part}-`),
  sql: upsert(part),
  compact: process.argv[2] === "compact",
})));

// By default faults go to EventBridge, and on to a fault monitor. Here they go to the log.
const publish = () => (s) => s.tap(({ event: { err } }) => console.error("fault:", err.message));
const OPTIONS = { ...defaultOptions, publish };

// It reads an image of what is removed, too. A stream of new images alone has none; the keys are
// all that it needs.
const withOldImage = (record) =>
  record.eventName === "REMOVE" && !record.dynamodb.OldImage
    ? { ...record, dynamodb: { ...record.dynamodb, OldImage: record.dynamodb.Keys } }
    : record;

// An event is of one stream in use; the benchmark's may hold records of both tables.
function fromBoth(event) {
  const records = event.Records.map(withOldImage);
  const ofSessions = (record) => record.eventSourceARN.split("/")[1] === "sessions";
  const options = { pkFn: "session_id", skFn: "side" };
  const sessions = { Records: records.filter(ofSessions) };
  const scans = { Records: records.filter((record) => !ofSessions(record)) };
  return fromDynamodb(sessions, { ...options, eventTypePrefix: "session" })
    .concat(fromDynamodb(scans, options));
}

serve(async (event) => {
  await initialize(PIPELINES, OPTIONS).assemble(fromBoth(event)).through(toPromise);
  return { batchItemFailures: [] };
});
