//! Candidates from real tables, real rows, and exports in DynamoDB's own form.

use std::collections::BTreeSet;

use projector::apply::Projector;
use projector::change::Tables;
use projector::config::ConfigError;
use projector::measurement::Value;
use projector::part::Part;
use serde_json::json;
use testkit::dynamodb::{DynamoDb, Kind, Write};
use testkit::exports::{self, change};
use testkit::records::{Draft, LABEL, Record, Table, removal, scan, session};
use testkit::runs::now;
use testkit::services::{Stores, apply, aws, service};
use time::OffsetDateTime;

use super::exports::{OpenExports, open};
use super::{Batch, Candidates};
use crate::compare_tables::look::Looker;
use crate::items::Key;
use crate::items::api::{KEYS_PER_CALL, Segment, TablesApi};
use crate::items::place;

const HOUR: i64 = 60 * 60;

/// Two tables, and a database.
struct World {
    stores: Stores,
    projector: Projector,
    dynamodb: DynamoDb,
    tables: Tables,
    api: TablesApi,
}

impl World {
    async fn new() -> Self {
        let url = service("DYNAMODB_LOCAL_URL");
        let dynamodb = DynamoDb::at(&url);
        let suffix = format!("{:016x}", fastrand::u64(..));
        let tables =
            Tables { sessions: format!("sessions-{suffix}"), scans: format!("scans-{suffix}") };
        dynamodb.create_table(&tables.sessions, Kind::Sessions, "NEW_IMAGE").await;
        dynamodb.create_table(&tables.scans, Kind::Scans, "NEW_IMAGE").await;
        let stores = Stores::fresh().await;
        let projector = stores.projector_without_archive(&stores.database_url, 2);
        let api = TablesApi::new(&aws(&url).await, tables.clone(), None);
        Self { stores, projector, dynamodb, tables, api }
    }

    fn looker(&self) -> Looker<'_> {
        let (database, api) = (&self.projector.database, &self.api);
        let started = OffsetDateTime::now_utc();
        Looker { database, api, ttl_attributes: [None, None], started }
    }

    async fn write_items(&self, drafts: &[Draft]) {
        for (table, of) in
            [(&self.tables.sessions, Table::Sessions), (&self.tables.scans, Table::Scans)]
        {
            let writes = drafts.iter().filter(|draft| draft.table == of);
            let writes = writes.map(|draft| match draft.image {
                Some(_) => Write::Put(draft.item()),
                None => Write::Delete(draft.key()),
            });
            self.dynamodb.write_all(table, &writes.collect::<Vec<_>>()).await;
        }
    }

    async fn write_rows(&self, drafts: &[Draft]) {
        let numbers = 1..;
        let records: Vec<Record> =
            drafts.iter().zip(numbers).map(|(draft, number)| draft.place(LABEL, number)).collect();
        apply(&self.projector, &records).await;
    }
}

fn of_session(number: usize) -> [Draft; 3] {
    let id = id(number);
    [session(&id, "u"), scan(&id, "left", "245.3"), scan(&id, "right", "246.1")]
}

fn id(number: usize) -> String {
    format!("session-{number:04}")
}

/// All batches as one; none has more keys that differ than one call takes.
async fn all(mut candidates: Candidates<'_>) -> Batch {
    let mut all = Batch::default();
    while let Some(batch) = candidates.next().await.expect("a batch") {
        assert!(batch.differing.len() <= KEYS_PER_CALL, "{}", batch.differing.len());
        all.differing.extend(batch.differing);
        all.equal.extend(batch.equal);
        all.without_key.extend(batch.without_key);
        all.unreadable.extend(batch.unreadable);
        all.items += batch.items;
    }
    all
}

fn keys<const N: usize>(keys: [(Part, &str); N]) -> BTreeSet<Key> {
    keys.map(|(part, session_id)| (part, session_id.to_owned())).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_finds_what_differs_and_what_only_rows_hold() {
    let world = World::new().await;
    let drafts: Vec<Draft> = (0..50).flat_map(of_session).collect();
    world.write_items(&drafts).await;
    world.write_rows(&drafts).await;
    // A missing row, a missing part, an extra part, an extra row, other content, malformed items.
    world.write_items(&[session("no-row", "u")]).await;
    let set =
        format!("UPDATE measurements SET right_scanned_at = NULL WHERE session_id = '{}'", id(1));
    assert_eq!(world.stores.change(&set).await, 1);
    world.write_items(&[removal(&drafts[3 * 2 + 1])]).await;
    world.write_rows(&[scan("only-a-row", "left", "245")]).await;
    let mut changed = session(&id(3), "u");
    changed.image.as_mut().expect("an image")["app_version"] = json!({"S": "9"});
    let mut malformed = scan(&id(4), "right", "1000");
    malformed.image.as_mut().expect("an image")["nickname"] = json!({"S": "kept"});
    world.write_items(&[changed, malformed]).await;
    let no_key = json!({"session_id": {"S": "no key of ours"}});
    world.dynamodb.put_item(&world.tables.sessions, &no_key).await;

    let looker = world.looker();
    let found = all(Candidates::scan(&looker, 2)).await;
    let expected = keys([
        (Part::Session, "no-row"),
        (Part::Right, &id(1)),
        (Part::Left, &id(2)),
        (Part::Left, "only-a-row"),
        (Part::Session, &id(3)),
        (Part::Right, &id(4)),
    ]);
    assert_eq!(found.differing.iter().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(found.differing.len(), expected.len());
    assert_eq!((found.items, found.equal.len()), (150 - 1 + 2, 150 - 4));
    assert_eq!(found.without_key.len(), 1);
    assert!(!found.without_key[0].contains("no key of ours"), "{:?}", found.without_key);
    // Each with the version of its row.
    let version = |key: &Key| {
        let of_key = |(equal, _): &&(Key, Option<String>)| equal == key;
        found.equal.iter().find(of_key).and_then(|(_, version)| version.clone())
    };
    assert_eq!(version(&(Part::Left, id(0))), Some(format!("{LABEL}/{:040}", 2)));

    let keys: Vec<&Key> = expected.iter().collect();
    let mut items = world.api.get_current(&keys).await.expect("items");
    items.sort_by(|a, b| a.key.cmp(&b.key));
    let read: Vec<_> =
        items.iter().map(|item| (item.key.1.as_str(), item.document.is_ok())).collect();
    // The extra parts have no item.
    assert_eq!(read, [("no-row", true), (&id(3), true), (&id(1), true), (&id(4), false)]);
    let user = items[0].document.as_ref().expect("values")[0].clone();
    assert_eq!(user, Some(Value::Text("u".to_owned())));
    let json: serde_json::Value = serde_json::from_slice(&items[3].json).expect("JSON");
    assert_eq!(json["nickname"]["S"], "kept");
}

/// An eventually consistent read may be of before the run began.
#[tokio::test(flavor = "multi_thread")]
async fn a_consistent_scan_costs_twice_as_much() {
    let world = World::new().await;
    let drafts: Vec<Draft> = (0..20).flat_map(of_session).collect();
    world.write_items(&drafts).await;
    let mut units = [0.0; 2];
    for (units, consistent) in units.iter_mut().zip([false, true]) {
        let before = world.api.read_units();
        let segment = Segment { of_sessions: false, number: 0, of: 1, consistent };
        world.api.page(segment, None).await.expect("a page");
        *units = world.api.read_units() - before;
    }
    let [eventually, consistently] = units;
    assert!(eventually > 0.0, "{units:?}");
    assert!((consistently - 2.0 * eventually).abs() <= 0.5, "{units:?}");
}

/// Incremental exports of both tables, in two windows per table, over a gap of 39 hours.
struct Gap {
    world: World,
    folder: tempfile::TempDir,
    places: Vec<String>,
    now: i64,
    start: i64,
    middle: i64,
}

impl Gap {
    async fn new() -> Self {
        let world = World::new().await;
        let now = now();
        let (start, middle, end) = (now - 40 * HOUR, now - 20 * HOUR, now - HOUR);
        let put = scan("put", "left", "245");
        let mut bare = change(&put.key(), Some(&put.item()), None);
        bare["Metadata"]["WriteTimestampMicros"] = json!(1_795_334_400_000_000_u64);
        let gone = scan("gone", "right", "245");
        let gone = change(&gone.key(), None, Some(&gone.item()));
        let sessions: Vec<_> =
            (0..250).map(|number| change(&session(&id(number), "u").key(), None, None)).collect();
        let no_side = json!({"session_id": {"S": "put"}, "side": {"S": "both"}});
        let no_side = change(&no_side, None, None);
        let folder = tempfile::tempdir().expect("a folder");
        let tables = &world.tables;
        let mut places = Vec::new();
        for (table, id, window, changes) in [
            (&tables.scans, "02-scans", (middle, end), vec![gone, no_side]),
            (&tables.scans, "01-scans", (start, middle), vec![bare]),
            (&tables.sessions, "01-sessions", (start, middle), sessions),
            (&tables.sessions, "02-sessions", (middle, end), vec![]),
        ] {
            exports::write(folder.path(), &exports::incremental(table, id, window, &changes));
            places.push(folder.path().join(id).to_str().expect("a path").to_owned());
        }
        Self { world, folder, places, now, start, middle }
    }

    /// Opens some exports for a gap that begins at a time, as of another time.
    async fn open(
        &self,
        places: &[String],
        gap_start: i64,
        at: i64,
    ) -> anyhow::Result<OpenExports> {
        let client = place::client(&aws("http://127.0.0.1:1").await);
        let moment = |seconds| OffsetDateTime::from_unix_timestamp(seconds).expect("a time");
        open(places, &self.world.tables, &client, Some(moment(gap_start)), moment(at)).await
    }
}

/// What a full export would lack, the rows tell.
#[tokio::test(flavor = "multi_thread")]
async fn incremental_exports_give_their_keys_and_the_rows_that_changed_since() {
    let gap = Gap::new().await;
    let (world, start) = (&gap.world, gap.start);
    let at = |draft: Draft, created_at| Draft { created_at, ..draft };
    // The insert was applied and the delete was not: within a window, at its edge, of unknown time.
    let (before, after) = (Some(start - 2 * HOUR), Some(start + 60));
    world
        .write_rows(&[
            at(scan("within", "left", "245"), after),
            at(scan("within", "right", "245"), before),
            at(session("within", "u"), before),
            at(scan("edge", "left", "245"), Some(start)),
            at(session("undated", "u"), None),
            at(removal(&scan("removed-since", "right", "245")), after),
            at(session("old", "u"), before),
        ])
        .await;
    let exports = gap.open(&gap.places, start, gap.now).await.expect("exports that hold the gap");
    assert_eq!(exports.items, 253);
    assert!(gap.places.iter().all(|place| exports.name.contains(place)), "{}", exports.name);
    let found = all(Candidates::export(&world.looker(), exports)).await;
    let sessions = (0..250).map(|number| (Part::Session, id(number)));
    let others = keys([
        (Part::Left, "put"),
        (Part::Right, "gone"),
        (Part::Left, "within"),
        (Part::Left, "edge"),
        (Part::Session, "undated"),
        (Part::Right, "removed-since"),
    ]);
    let expected: BTreeSet<Key> = sessions.chain(others).collect();
    assert_eq!(found.differing.iter().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!((found.items, found.equal.len(), found.without_key.len()), (253, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_the_one_of_the_manifest_is_named_and_holds_up_no_other() {
    let gap = Gap::new().await;
    let damaged = gap.folder.path().join("data/002-scansabcdefghijklmnop.json.gz");
    let mut bytes = std::fs::read(&damaged).expect("a file");
    bytes[9] ^= 1;
    std::fs::write(&damaged, bytes).expect("a file");
    let exports = gap.open(&gap.places, gap.start, gap.now).await.expect("whole manifests");
    let found = all(Candidates::export(&gap.world.looker(), exports)).await;
    let [fault] = &found.unreadable[..] else { panic!("{:?}", found.unreadable) };
    let fault = fault.to_string();
    assert!(fault.contains("002-scans") && fault.contains("its MD5 is not"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_that_do_not_hold_the_gap_are_refused_before_anything_is_read() {
    let gap = Gap::new().await;
    let (places, start, tables) = (&gap.places, gap.start, &gap.world.tables);
    let full = exports::full(&tables.scans, &[]);
    exports::write(&gap.folder.path().join("full"), &full);
    let full = gap.folder.path().join("full").to_str().expect("a path").to_owned();
    let scans_late = format!("exports of table {:?} with a hole", tables.scans);
    let no_sessions = format!("names no export of table {:?}", tables.sessions);
    for (places, gap_start, said) in [
        (&places[..], start - 1, "with a hole: none shows what changed from"),
        (&[&places[..1], &places[2..]].concat(), start, scans_late.as_str()),
        (&places[1..3], start, "that ended within the last 23 hours"),
        (&places[..2], start, no_sessions.as_str()),
        (&[&places[..], &[full]].concat(), start, "names full exports and incremental ones"),
    ] {
        // 23 hours and more after the middle.
        let late = places.len() == 2 && said.contains("23 hours");
        let at = if late { gap.middle + 23 * HOUR } else { gap.now };
        let error = gap.open(places, gap_start, at).await.err().expect(said);
        assert!(error.is::<ConfigError>() && error.to_string().contains(said), "{error:#}");
    }
}

/// A change since the export is in the streams; what the rows hold beyond it is not in the export.
#[tokio::test(flavor = "multi_thread")]
async fn full_exports_give_what_differs_and_what_only_rows_hold() {
    let world = World::new().await;
    let drafts: Vec<Draft> = (0..5).flat_map(of_session).collect();
    world.write_items(&drafts).await;
    world.write_rows(&drafts[1..]).await;
    world.write_rows(&[session("only-a-row", "u")]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut places = Vec::new();
    for (table, name) in [(&world.tables.sessions, "sessions"), (&world.tables.scans, "scans")] {
        let files = exports::full(table, &world.dynamodb.scan(table).await);
        exports::write(&folder.path().join(name), &files);
        places.push(folder.path().join(name).to_str().expect("a path").to_owned());
    }
    let client = place::client(&aws("http://127.0.0.1:1").await);
    let now = OffsetDateTime::now_utc();
    let opened = open(&places, &world.tables, &client, None, now).await.expect("two full exports");
    let looker = world.looker();
    let found = all(Candidates::export(&looker, opened)).await;
    let expected = keys([(Part::Session, &id(0)), (Part::Session, "only-a-row")]);
    assert_eq!(found.differing.iter().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!((found.items, found.equal.len()), (15, 14));
    let day_later = now + time::Duration::hours(22) + time::Duration::minutes(1);
    let error =
        open(&places, &world.tables, &client, None, day_later).await.err().expect("too old");
    assert!(
        error.is::<ConfigError>() && error.to_string().contains("make a new export"),
        "{error:#}"
    );
}

#[tokio::test]
async fn a_file_of_keys_gives_every_part_of_each_session() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut lines: Vec<String> = (0..70).map(id).collect();
    lines.push(r#"{"session_id":"s","part":"left","kind":"content"}"#.to_owned());
    std::fs::write(file.path(), lines.join("\n")).expect("a file");
    let found = all(Candidates::keys(file.path()).expect("keys")).await;
    assert_eq!((found.items, found.differing.len()), (71, 211));
    assert_eq!(found.differing.last(), Some(&(Part::Left, "s".to_owned())));
    let distinct: BTreeSet<_> = found.differing.iter().collect();
    assert_eq!(distinct.len(), 211);
}
