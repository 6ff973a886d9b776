//! Generated histories, thousands per statement: each session has its own history and its own
//! interleaving, and one batch carries a piece of thousands of them.
//!
//! A history is up to eight changes of the three parts: puts, removals, expiries, a stream that is
//! enabled anew. Each of its records goes to one or several batches of concurrent lanes, of one
//! database or of two, with a bucket each or one for both. Whole batches are delivered again, and
//! at the end of some rounds everything is replayed. S3 fails and loses answers all the while. In
//! the second database some parts lose their oldest records, and a repair reads their items
//! meanwhile: with the projector's own versions, and with the projector's own statement.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fastrand::Rng;
use futures_util::future::{join, join_all};
use projector::apply::{Known, Projector, object_versions, reconcile};
use projector::change::{self, Change, Decoded, Tables};
use projector::database::DedicatedConnection;
use projector::deadline::Deadline;
use projector::fold::{IndexedChange, fold};
use projector::measurement::Versions;
use projector::part::Part;
use projector::read_model::{upsert_unmoved, versions_by_key};
use projector::version::{Version, without_repair};
use serde_json::json;
use testkit::memory_s3::MemoryS3;
use testkit::oracle::{self, Rows};
use testkit::records::{Draft, LABEL, Record, removal, scan, session};
use testkit::services::{Stores, hasty_aws};
use time::OffsetDateTime;

use super::world::{assert_bytes, assert_same, by_session};
use super::{amount, is_soak, report, seed};

const LATER: &str = "2026-11-22T06:00:00.000";
/// Around a change of length of the sequence number.
const FIRST: u128 = 999_999_999_999_999_999_996;
/// As many histories are in flight at once, if nothing else is said.
const SESSIONS: u64 = 4_000;
const LANES: usize = 2;
/// Into how many batches each lane is cut.
const BATCHES: usize = 2;
/// Of a thousand requests to S3, this many fail.
const FAULTS_PER_MILLE: u32 = 4;
/// A batch that never gets through is a finding.
const MAX_DELIVERIES: usize = 50;

/// The history of one session.
struct History {
    records: Vec<Record>,
    /// The item of which the second database never gets the oldest records, and how many of them.
    lost: Option<(String, usize)>,
}

fn history(rng: &mut Rng, session_id: &str) -> History {
    let mut records = Vec::new();
    let longest = [2, 3, 5, 8][rng.usize(..4)];
    for number in 0..rng.u128(1..=longest) {
        let value = format!("{}.{number}", rng.u32(1..999));
        let mut draft: Draft = match rng.u32(..3) {
            0 => session(session_id, &value),
            1 => scan(session_id, "left", &value),
            _ => scan(session_id, "right", &value),
        };
        if rng.u32(..8) == 0 {
            draft.created_at = None;
        }
        if let Some(image) = draft.image.as_mut()
            && rng.u32(..8) == 0
        {
            image["note"] = json!({ "N": value });
        }
        if rng.u32(..5) == 0 {
            draft = removal(&draft);
            draft.expired = rng.bool();
        }
        let label = if rng.u32(..6) == 0 { LATER } else { LABEL };
        records.push(draft.place(label, FIRST + number));
    }
    let item = records[rng.usize(..records.len())].item.clone();
    let of_item = records.iter().filter(|record| record.item == item).count();
    let lost = (rng.u32(..8) == 0).then(|| (item, rng.usize(1..=of_item)));
    History { records, lost }
}

/// Newest last: by what the oracle goes by.
fn in_order<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<&'a Record> {
    let mut records: Vec<&Record> = records.into_iter().collect();
    records.sort_by_key(|record| (record.label.clone(), record.sequence_number));
    records
}

impl History {
    /// The records of which a database gets at least one delivery.
    fn delivered(&self, with_losses: bool) -> Vec<&Record> {
        let Some((item, count)) = self.lost.as_ref().filter(|_| with_losses) else {
            return self.records.iter().collect();
        };
        let of_item = in_order(self.records.iter().filter(|record| record.item == *item));
        let is_lost =
            |record: &Record| of_item[..*count].iter().any(|lost| std::ptr::eq(*lost, record));
        self.records.iter().filter(|record| !is_lost(record)).collect()
    }

    /// The item of the part that lost records, as it is now.
    fn item(&self) -> Option<&Record> {
        let (item, _) = self.lost.as_ref()?;
        in_order(self.records.iter().filter(|record| record.item == *item)).pop()
    }
}

/// One database and its projectors, one per lane: of both stores, and of the rows alone.
struct Side {
    stores: Stores,
    with_objects: Vec<Projector>,
    of_rows: Vec<Projector>,
}

impl Side {
    async fn new(s3: &MemoryS3, mut stores: Stores, bucket: &str) -> Self {
        bucket.clone_into(&mut stores.bucket);
        let aws = hasty_aws(&s3.url).await;
        let with_objects = (0..LANES).map(|_| stores.projector_of(&aws, 1)).collect();
        let of_rows = || stores.projector_without_archive(&stores.database_url, 1);
        let of_rows = (0..LANES).map(|_| of_rows()).collect();
        Self { stores, with_objects, of_rows }
    }

    fn lanes(&self, layout: Layout) -> &[Projector] {
        if layout.objects { &self.with_objects } else { &self.of_rows }
    }

    /// Delivers these histories in an interleaving of their own, over all lanes at once.
    async fn deliver(
        &self,
        rng: &mut Rng,
        histories: &[History],
        with_losses: bool,
        layout: Layout,
    ) {
        let mut batches = vec![vec![Vec::new(); BATCHES]; LANES];
        for history in histories {
            for record in history.delivered(with_losses) {
                for _ in 0..[1, 1, 1, 2][rng.usize(..4)] {
                    batches[rng.usize(..LANES)][rng.usize(..BATCHES)].push(record);
                }
            }
        }
        let lanes = batches.into_iter().zip(self.lanes(layout)).map(|(mut batches, projector)| {
            for batch in &mut batches {
                rng.shuffle(batch);
            }
            // At least once: some come again at once, some after the next one.
            if rng.u32(..3) == 0 {
                let again = batches[0].clone();
                batches.insert(rng.usize(1..=batches.len()), again);
            }
            let guesses: Vec<bool> = batches.iter().map(|_| rng.bool()).collect();
            async move {
                for (batch, is_replay) in batches.iter().zip(guesses) {
                    projector.learned().expect_unchanged(is_replay);
                    deliver_all(projector, batch).await;
                }
            }
        });
        // Collected first: the lanes share the generator of random numbers.
        join_all(lanes.collect::<Vec<_>>()).await;
    }

    /// Everything once more, in the order of the streams.
    async fn replay(&self, histories: &[History], with_losses: bool, layout: Layout) {
        let records = histories.iter().flat_map(|history| history.delivered(with_losses));
        deliver_all(&self.lanes(layout)[0], &in_order(records)).await;
    }

    async fn forget(&self) {
        self.stores.change("TRUNCATE measurements").await;
    }
}

/// Delivers a batch until every record of it is acknowledged.
async fn deliver_all(projector: &Projector, batch: &[&Record]) {
    let mut remaining: Vec<&Record> = batch.to_vec();
    for _ in 0..MAX_DELIVERIES {
        if remaining.is_empty() {
            return;
        }
        let json: Vec<&[u8]> = remaining.iter().map(|record| record.json.as_bytes()).collect();
        let applied = Box::pin(projector.apply(&json, Deadline::NONE)).await;
        let applied = applied.expect("no fatal error");
        assert_eq!(applied.counts.rejected, 0, "every record is well-formed");
        remaining = applied.failed.iter().map(|index| remaining[*index]).collect();
    }
    panic!("{} records never get through", remaining.len());
}

/// A repair of the parts that lost records: the row's version first, the object's, then the item.
/// It holds what it has read until [`Repair::write`].
struct Repair {
    images: Vec<(Change, Option<String>)>,
}

impl Repair {
    async fn read(projector: &Projector, histories: &[History]) -> Self {
        let items: Vec<Change> = histories.iter().filter_map(History::item).map(decoded).collect();
        let keys: BTreeSet<&str> = items.iter().map(|item| item.session_id.as_str()).collect();
        let keys: Vec<&str> = keys.into_iter().collect();
        let rows = versions_by_key(&projector.database, &keys, Deadline::NONE).await;
        let rows: HashMap<String, Versions> = rows.expect("the rows");
        let image = async |item: Change| {
            let row = rows.get(&item.session_id).and_then(|row| row[item.part].clone());
            let object = versions_of_object(projector, &item.session_id).await;
            let floor = row.clone().max(object.and_then(|object| object[item.part].clone()));
            let now_us = u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000);
            let version = Version::of_repair(floor.as_deref(), now_us.expect("after 1970"));
            (Change { version: version.expect("a version"), ..item }, row)
        };
        Self { images: join_all(items.into_iter().map(image)).await }
    }

    /// After everything that the streams hold has been applied.
    async fn write(self, projector: &Projector, connection: &mut DedicatedConnection) {
        let (changes, seen): (Vec<Change>, Vec<Option<String>>) = self.images.into_iter().unzip();
        let indexed = |(record_index, change)| IndexedChange { record_index, change };
        let changes: Vec<IndexedChange> = changes.into_iter().enumerate().map(indexed).collect();
        let sessions = fold(&changes);
        let seen: Vec<Versions> = sessions
            .iter()
            .map(|session| {
                let mut versions = Versions::default();
                for one in &session.changes {
                    versions[one.change.part].clone_from(&seen[one.record_index]);
                }
                versions
            })
            .collect();
        let written = upsert_unmoved(connection, &sessions, &seen).await.expect("it is upserted");
        let objects = sessions.iter().zip(written).filter_map(|(session, held)| {
            let held = held?;
            Some(write_object(projector, session.session_id, held))
        });
        join_all(objects).await;
    }
}

/// What the object of a session holds; nothing without an archive.
async fn versions_of_object(projector: &Projector, session_id: &str) -> Option<Versions> {
    let archive = projector.archive.as_ref()?;
    for _ in 0..MAX_DELIVERIES {
        if let Ok(held) = object_versions(archive, session_id).await {
            return held;
        }
    }
    panic!("the object of {session_id} is never seen");
}

async fn write_object(projector: &Projector, session_id: &str, held: Versions) {
    let Some(archive) = projector.archive.as_ref() else { return };
    for _ in 0..MAX_DELIVERIES {
        let known = Known::from(held.clone());
        let done = reconcile(&projector.database, archive, session_id, known, Deadline::NONE).await;
        if done.is_ok() {
            return;
        }
    }
    panic!("the object of {session_id} is never written");
}

fn decoded(record: &Record) -> Change {
    let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
    match change::decode(record.json.as_bytes(), &tables).expect("a record of ours") {
        Decoded::Change(change) => change,
        Decoded::Malformed(malformed) => panic!("{malformed}"),
    }
}

/// The rows that a database must hold. A part that was repaired may have the version of an image,
/// which is of its time; what it holds is the item.
fn expected(histories: &[History], found: &Rows, with_losses: bool) -> Rows {
    let mut expected = oracle::rows(histories.iter().flat_map(|history| &history.records));
    if !with_losses {
        return expected;
    }
    for item in histories.iter().filter_map(History::item) {
        let (session_id, part) = item.item.split_once('/').unwrap_or((&item.item, "session"));
        let Some(row) = found.get(session_id) else { continue };
        let version = format!("{part}_version");
        let held = row[&version].as_str().unwrap_or_default();
        if without_repair(held) != held {
            let expected = expected.get_mut(session_id).expect("a row of the oracle");
            for column in [version, format!("{part}_changed_at")] {
                expected[&column] = row[&column].clone();
            }
        }
    }
    expected
}

/// What rounds came to.
#[derive(Default)]
struct Sum {
    histories: u64,
    records: u64,
    repaired: u64,
    rounds: BTreeMap<&'static str, u64>,
}

/// How a round is laid out.
#[derive(Clone, Copy)]
struct Layout {
    name: &'static str,
    both: bool,
    one_bucket: bool,
    objects: bool,
    /// How many histories are in flight at once.
    sessions: u64,
}

const ONE: Layout = Layout {
    name: "one database",
    both: false,
    one_bucket: false,
    objects: true,
    sessions: SESSIONS,
};
const TWO: Layout = Layout { name: "two databases, a bucket each", both: true, ..ONE };
const SHARED: Layout = Layout { name: "two databases, one bucket", one_bucket: true, ..TWO };
const ROWS: Layout = Layout { name: "two databases, rows alone", objects: false, ..TWO };

/// Most requests to S3 are made by the whole run. Built for tests, the SDK takes a hundred times as
/// long for an object as PostgreSQL for a row, so most of the sample is of rows alone.
fn layouts() -> Vec<Layout> {
    let few = [ONE, TWO, SHARED].map(|layout| Layout { sessions: SESSIONS / 20, ..layout });
    if is_soak() { vec![ONE, TWO, SHARED] } else { [&few[..], &[ROWS, ROWS, ROWS, ROWS]].concat() }
}

struct Soak {
    s3: MemoryS3,
    first: Side,
    /// The second database, with its own bucket and with that of the first.
    second: [Side; 2],
}

impl Soak {
    async fn new(seed: u64) -> Self {
        let s3 = MemoryS3::start(seed, FAULTS_PER_MILLE).await;
        let (ours, theirs) = (Stores::fresh().await, Stores::fresh().await);
        for stores in [&ours, &theirs] {
            stores.forbid_going_back().await;
        }
        let first = Side::new(&s3, ours, "first").await;
        let own = Side::new(&s3, theirs.clone(), "second").await;
        let shared = Side::new(&s3, theirs, "first").await;
        Self { s3, first, second: [own, shared] }
    }

    async fn round(&self, rng: &mut Rng, sessions: u64, layout: Layout, sum: &mut Sum) {
        let histories: Vec<History> =
            (0..sessions).map(|number| history(rng, &format!("s{number:05}"))).collect();
        let second = &self.second[usize::from(layout.one_bucket)];
        let replays = rng.u32(..4) == 0;
        let (mut of_first, mut of_second) = (rng.fork(), rng.fork());
        let first = async {
            self.first.deliver(&mut of_first, &histories, false, layout).await;
            if replays {
                self.first.replay(&histories, false, layout).await;
            }
        };
        let with_second = async {
            if !layout.both {
                return;
            }
            let projector = &second.lanes(layout)[0];
            let streams = second.deliver(&mut of_second, &histories, true, layout);
            let ((), repair) = join(streams, Repair::read(projector, &histories)).await;
            let mut connection = projector.database.connect().await.expect("a connection");
            repair.write(projector, &mut connection).await;
            if replays {
                second.replay(&histories, true, layout).await;
            }
        };
        Box::pin(join(first, with_second)).await;
        self.judge(&histories, layout).await;
        sum.histories += sessions;
        sum.records += histories.iter().map(|history| history.records.len() as u64).sum::<u64>();
        let lost = histories.iter().filter(|history| history.lost.is_some()).count();
        sum.repaired += if layout.both { lost as u64 } else { 0 };
        *sum.rounds.entry(layout.name).or_default() += 1;
        self.first.forget().await;
        second.forget().await;
        self.s3.clear();
    }

    /// Sees that everything is as the oracle says.
    async fn judge(&self, histories: &[History], layout: Layout) {
        let mut rows = self.first.stores.rows().await;
        assert_same(&rows, &expected(histories, &rows, false));
        if layout.both {
            let second = self.second[0].stores.rows().await;
            assert_same(&second, &expected(histories, &second, true));
            if layout.one_bucket {
                for (session_id, row) in &mut rows {
                    *row = oracle::join(row, &second[session_id]);
                }
            } else if layout.objects {
                assert_bytes(&by_session(self.s3.objects("second")), &second);
            }
        }
        if !layout.objects {
            return;
        }
        assert_bytes(&by_session(self.s3.objects("first")), &rows);
        assert_eq!(self.s3.went_back(), [""; 0], "no object goes back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_histories_end_in_the_rows_and_objects_of_the_oracle() {
    let (seed, wanted) = (seed(), amount(20_000, 1_000_000));
    let mut rng = Rng::with_seed(seed);
    let soak = Soak::new(seed).await;
    let mut sum = Sum::default();
    for layout in layouts().into_iter().cycle() {
        if sum.histories >= wanted {
            break;
        }
        let sessions = layout.sessions.min(wanted - sum.histories);
        soak.round(&mut rng, sessions, layout, &mut sum).await;
    }
    let (requests, faults) = soak.s3.requests();
    assert!(wanted < 3 * SESSIONS || (sum.repaired > 0 && faults > 0), "everything was tried");
    let came_to = json!({ "histories": sum.histories, "records": sum.records,
        "parts repaired": sum.repaired, "requests to S3": requests,
        "requests that failed or lost their answer": faults, "rounds": sum.rounds });
    report("histories", seed, &came_to);
}

/// A part is its place in a row.
#[test]
fn a_history_that_loses_records_loses_the_oldest_of_one_part() {
    let mut rng = Rng::with_seed(1);
    let with_losses = (0..200).map(|_| history(&mut rng, "s")).filter(|one| one.lost.is_some());
    let mut seen = 0;
    for history in with_losses {
        let (item, count) = history.lost.clone().expect("it loses some");
        let kept = history.delivered(true);
        assert_eq!(kept.len() + count, history.records.len());
        let newest = history.item().expect("an item");
        let of_item = kept.iter().filter(|record| record.item == item);
        for record in of_item.clone() {
            assert!(
                (&record.label, record.sequence_number) <= (&newest.label, newest.sequence_number)
            );
        }
        assert!(of_item.count() == 0 || kept.iter().any(|record| std::ptr::eq(*record, newest)));
        assert_eq!(decoded(newest).part == Part::Session, !item.contains('/'));
        seen += 1;
    }
    assert!(seen > 0);
}
