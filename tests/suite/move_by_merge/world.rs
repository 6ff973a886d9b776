//! Two real tables that are written, their streams, and the event source mappings that hand them to
//! functions: what the move finds on both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};
use testkit::dynamodb::{DynamoDb, Kind, Write};
use testkit::emulator::{Lambda, event};
use testkit::records::{Draft, removal, scan, session};
use testkit::services::{Stores, service};
use testkit::trim::TrimmedStreams;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How many records an invocation gets.
const BATCH: usize = 200;

/// The stand-in's creation times are those of the minute, so that only a pause in the writes shows
/// within seconds that a shard is caught up.
const STEPS_OF_A_BURST: usize = 20;
const PAUSE: Duration = Duration::from_millis(2_500);

/// The sequence number up to which each stream has been read; 0 if no record is known.
pub(crate) type Places = [u128; 2];

/// The two tables.
pub(crate) struct World {
    dynamodb: DynamoDb,
    /// The sessions, then the scans.
    pub(crate) tables: [String; 2],
    arns: [String; 2],
}

impl World {
    pub(crate) async fn new() -> Arc<Self> {
        let dynamodb = DynamoDb::at(&service("DYNAMODB_LOCAL_URL"));
        let suffix = format!("{:016x}", fastrand::u64(..));
        let tables = [format!("sessions-{suffix}"), format!("scans-{suffix}")];
        let arns = [
            dynamodb.create_table(&tables[0], Kind::Sessions, "NEW_AND_OLD_IMAGES").await,
            dynamodb.create_table(&tables[1], Kind::Scans, "NEW_IMAGE").await,
        ];
        Arc::new(Self { dynamodb, tables, arns })
    }

    /// Writes sessions whole; the scans come first.
    pub(crate) async fn write_sessions(&self, numbers: std::ops::Range<usize>) {
        let parts = numbers.map(|number| parts(number, 0));
        let (sessions, scans): (Vec<Write>, Vec<[Write; 2]>) = parts
            .map(|[session, left, right]| {
                (Write::Put(session.item()), [left, right].map(|part| Write::Put(part.item())))
            })
            .unzip();
        self.dynamodb.write_all(&self.tables[1], &scans.concat()).await;
        self.dynamodb.write_all(&self.tables[0], &sessions).await;
    }

    /// Removes sessions whole.
    pub(crate) async fn remove_sessions(&self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            let [session, left, right] = parts(number, 0);
            let scans = [left, right].map(|part| Write::Delete(part.key()));
            self.dynamodb.write_all(&self.tables[1], &scans).await;
            self.dynamodb.write_all(&self.tables[0], &[Write::Delete(session.key())]).await;
        }
    }

    /// Changes, removes and adds: `steps` batches, or as many as there is time for until `done`.
    pub(crate) async fn write(&self, sessions: usize, steps: usize, done: &AtomicBool) {
        for step in 0..steps {
            if done.load(Ordering::Relaxed) {
                return;
            }
            let mut writes = [Vec::new(), Vec::new()];
            let first = fastrand::usize(..sessions);
            for number in [first, (first + 1) % sessions, (first + 2) % sessions] {
                let part = fastrand::usize(..3);
                let draft = &parts(number, step + 1)[part];
                writes[usize::from(part > 0)].push(match fastrand::u32(..4) {
                    0 => Write::Delete(removal(draft).key()),
                    _ => Write::Put(draft.item()),
                });
            }
            for (table, writes) in self.tables.iter().zip(&writes) {
                self.dynamodb.write_all(table, writes).await;
            }
            if step.is_multiple_of(8) {
                let new = 1_000_000 + fastrand::usize(..1_000_000);
                self.write_sessions(new..new + 1).await;
            }
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }

    /// Writes these sessions in bursts until `done`, so that the streams can be read past a time
    /// between them.
    pub(crate) fn write_in_bursts(
        self: &Arc<Self>,
        sessions: usize,
        done: &Arc<AtomicBool>,
    ) -> JoinHandle<()> {
        let (world, done) = (Arc::clone(self), Arc::clone(done));
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                world.write(sessions, STEPS_OF_A_BURST, &done).await;
                tokio::time::sleep(PAUSE).await;
            }
        })
    }

    /// The streams, which have lost all that was written up to now.
    pub(crate) async fn trimmed_streams(&self) -> TrimmedStreams {
        let streams = TrimmedStreams::start(&service("DYNAMODB_LOCAL_URL")).await;
        for (table, tip) in self.tables.iter().zip(self.tips().await) {
            streams.trim(table, tip);
        }
        streams
    }

    /// What has been written up to now is at or before these places.
    pub(crate) async fn tips(&self) -> Places {
        let mut tips = [0; 2];
        for (tip, arn) in tips.iter_mut().zip(&self.arns) {
            for shard in self.dynamodb.shards(arn).await {
                let shard = shard["ShardId"].as_str().expect("an id");
                let (records, _) = self.dynamodb.records(arn, shard).await;
                *tip = records.last().map_or(*tip, number);
            }
        }
        tips
    }
}

/// The id of a session.
pub(crate) fn session_id(number: usize) -> String {
    format!("session-{:08x}", number.wrapping_mul(2_654_435_761) & 0xffff_ffff)
}

/// A session and its two scans, as this step writes them.
fn parts(number: usize, step: usize) -> [Draft; 3] {
    let id = session_id(number);
    let length = format!("24{}.{}", number % 10, step % 97 + 1);
    let mut left = scan(&id, "left", &length);
    if number.is_multiple_of(7) {
        left.image.as_mut().expect("an image")["mesh"] = json!({"B": "AAECAwQFBgcICQ=="});
    }
    [session(&id, &format!("user-{step}")), left, scan(&id, "right", &length)]
}

fn number(record: &Json) -> u128 {
    let number = record["dynamodb"]["SequenceNumber"].as_str().expect("a number");
    number.parse().expect("digits")
}

/// How far a mapping has come in one stream. DynamoDB Local has one open shard per stream, and each
/// closed one has one child.
struct Stream {
    arn: String,
    shard: Option<String>,
    /// The record after which it continues in that shard.
    after: Option<String>,
}

impl Stream {
    fn from_its_beginning(arn: &str) -> Self {
        Self { arn: arn.to_owned(), shard: None, after: None }
    }

    /// What is written from now on, and nothing from before.
    async fn from_now_on(dynamodb: &DynamoDb, arn: &str) -> Self {
        let shard = dynamodb.shards(arn).await.pop().expect("a shard");
        let shard = shard["ShardId"].as_str().expect("an id").to_owned();
        let (records, _) = dynamodb.records(arn, &shard).await;
        let after = records.last().map(|record| record["dynamodb"]["SequenceNumber"].clone());
        let after = after.map(|number| number.as_str().expect("a number").to_owned());
        Self { arn: arn.to_owned(), shard: Some(shard), after }
    }

    /// The next records, as Lambda delivers them.
    async fn next(&mut self, dynamodb: &DynamoDb) -> Vec<Json> {
        let Some(shard) = self.shard.clone() else {
            self.shard = self.child_of(dynamodb, &Json::Null).await;
            return Vec::new();
        };
        let mut begin = json!({"StreamArn": self.arn, "ShardId": shard});
        begin["ShardIteratorType"] = json!("TRIM_HORIZON");
        if let Some(after) = &self.after {
            begin["ShardIteratorType"] = json!("AFTER_SEQUENCE_NUMBER");
            begin["SequenceNumber"] = json!(after);
        }
        let call = async |operation, body| {
            dynamodb.call(operation, &body).await.expect("DynamoDB Local answers")
        };
        let iterator = call("GetShardIterator", begin).await["ShardIterator"].take();
        let read = json!({"ShardIterator": iterator, "Limit": BATCH});
        let mut page = call("GetRecords", read).await;
        let mut records: Vec<Json> = page["Records"].as_array_mut().expect("records").clone();
        if records.is_empty()
            && page["NextShardIterator"].is_null()
            && let Some(child) = self.child_of(dynamodb, &json!(shard)).await
        {
            self.shard = Some(child);
            self.after = None;
        }
        for record in &mut records {
            record["eventSourceARN"] = json!(self.arn);
            // Whole seconds, which may come as a float.
            let created = record["dynamodb"]["ApproximateCreationDateTime"].to_string();
            let seconds = created.split('.').next().and_then(|whole| whole.parse::<i64>().ok());
            record["dynamodb"]["ApproximateCreationDateTime"] = json!(seconds);
        }
        records
    }

    async fn child_of(&self, dynamodb: &DynamoDb, parent: &Json) -> Option<String> {
        let shards = dynamodb.shards(&self.arn).await;
        let child = shards.iter().find(|shard| &shard["ParentShardId"] == parent);
        child.and_then(|shard| shard["ShardId"].as_str()).map(str::to_owned)
    }
}

/// Where a mapping begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    /// `TRIM_HORIZON`.
    Beginning,
    /// `LATEST`: what is older never comes.
    Now,
}

/// A live function and the mappings of both streams, which deliver to it until they are drained.
pub(crate) struct Side {
    places: watch::Receiver<Places>,
    mappings: JoinHandle<()>,
}

impl Side {
    /// Attaches the projector of these stores. Until `done`, it waits for more.
    pub(crate) async fn attach(
        world: &Arc<World>,
        stores: &Stores,
        from: From,
        done: &Arc<AtomicBool>,
    ) -> Self {
        let mut streams = Vec::new();
        for arn in &world.arns {
            streams.push(match from {
                From::Beginning => Stream::from_its_beginning(arn),
                From::Now => Stream::from_now_on(&world.dynamodb, arn).await,
            });
        }
        let function = Lambda::start(&[
            ("DATABASE_URL", &stores.database_url),
            ("ARCHIVE_BUCKET", &stores.bucket),
            ("SESSIONS_TABLE", &world.tables[0]),
            ("SCANS_TABLE", &world.tables[1]),
        ])
        .await;
        let (sender, places) = watch::channel(Places::default());
        let (world, done) = (Arc::clone(world), Arc::clone(done));
        let mappings = tokio::spawn(async move {
            loop {
                // Asked before the pages are read: what was written before it is in them.
                let last = done.load(Ordering::Relaxed);
                let mut delivered = 0;
                for (index, stream) in streams.iter_mut().enumerate() {
                    let records = stream.next(&world.dynamodb).await;
                    let Some(newest) = records.last() else { continue };
                    deliver(&function, &records).await;
                    delivered += records.len();
                    let number = number(newest);
                    stream.after = newest["dynamodb"]["SequenceNumber"].as_str().map(str::to_owned);
                    sender.send_modify(|places| places[index] = number);
                }
                if last && delivered == 0 {
                    return;
                }
                // Many questions in vain would slow everybody's DynamoDB Local down.
                let pause = if delivered == 0 { 150 } else { 10 };
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        });
        Self { places, mappings }
    }

    /// Applies all that was written up to now, by a function that ends after that.
    pub(crate) async fn apply_so_far(world: &Arc<World>, stores: &Stores) {
        let ended = Arc::new(AtomicBool::new(false));
        let side = Self::attach(world, stores, From::Beginning, &ended).await;
        side.has_read(world.tips().await).await;
        ended.store(true, Ordering::Relaxed);
        side.drained().await;
    }

    /// Waits until everything up to these places is applied.
    pub(crate) async fn has_read(&self, tips: Places) {
        let read = |places: &Places| places.iter().zip(&tips).all(|(place, tip)| place >= tip);
        let waiting = tokio::time::timeout(Duration::from_mins(1), async {
            self.places.clone().wait_for(read).await.map(|places| *places)
        });
        waiting.await.expect("it reads on").expect("the mappings run");
    }

    /// Waits until it has drained its streams after `done`.
    pub(crate) async fn drained(self) {
        self.mappings.await.expect("every batch is acknowledged");
    }
}

/// Hands a batch over, and sees that all of it is acknowledged.
async fn deliver(function: &Lambda, records: &[Json]) {
    let texts: Vec<String> = records.iter().map(ToString::to_string).collect();
    let answer = function.invoke(&event(texts.iter().map(String::as_str))).await;
    assert_eq!(answer, json!({ "batchItemFailures": [] }), "{}", function.log());
}
