//! Rows whose item is gone: no file names them. They are found by what the keys of all items and of
//! all rows add up to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value as Json, json};
use testkit::records::{Draft, removal};
use testkit::runs::{self, assert_code, with_tables};
use testkit::runtime_api::Limit;
use testkit::services::Stores;
use tokio::process::Command;

use super::super::{World, id, of_session};
use super::{Begun, Caller, Files, Following, Sums, TIMEOUT, add, changes, function};
use crate::live::sample;
use crate::move_by_merge::world::{self, From, Side, session_id};

/// Rows, and of their parts those that were asked for, that have no item, and that were removed.
type Rows = [u64; 4];

fn rows(range: &Json) -> Rows {
    ["rows", "asked", "gone", "removed"]
        .map(|name| range[name].as_u64().unwrap_or_else(|| panic!("{name}: {range}")))
}

fn sum(ranges: &[Json]) -> Rows {
    ranges.iter().map(rows).fold(Rows::default(), |mut sum, more| {
        for (sum, more) in sum.iter_mut().zip(more) {
            *sum += more;
        }
        sum
    })
}

impl Caller {
    /// Its invocations are to answer within this time, and are not ended after it: a busy machine
    /// may need longer for the last page.
    async fn hurried(command: Command, told: Duration) -> Self {
        let caller = Self::start(command).await;
        let more_s = TIMEOUT.saturating_sub(told).as_secs().cast_signed();
        let clock_ahead_s = World::now() - runs::now() - more_s;
        caller.0.set_limit(Limit { timeout: TIMEOUT, clock_ahead_s });
        caller
    }

    /// Calls two of each request at a time, though nobody should: one of them comes to nothing.
    async fn twice_at_a_time(world: &World, requests: &[Json]) {
        for request in requests {
            let both = [world.function(), world.function()].map(|command| async move {
                Caller::start(command).await.until_done(request).await.0
            });
            let both: [Json; 2] = join_all(both).await.try_into().expect("two answers");
            assert_eq!(both[0], both[1]);
        }
    }

    /// The rows, in at most this many ranges.
    async fn ranges(&mut self, Begun { run, repair }: Begun, at_most: u64) -> Vec<Json> {
        let ranges = json!({"ranges": {"run": run, "repair": repair, "at_most": at_most}});
        let answer = self.ask(&ranges).await;
        let ranges = answer["ranges"].as_array().expect("a list").clone();
        assert!(ranges.len() as u64 <= at_most, "{answer}");
        ranges
    }

    /// Takes one step with each of these ranges.
    async fn step(&mut self, ranges: &[Json], step: &str) -> Vec<Json> {
        let mut done = Vec::new();
        for range in ranges {
            done.push(self.until_done(&of_step(range, step)).await.0);
        }
        done
    }

    /// Every slice, and then every row.
    async fn whole(&mut self, files: &Files, begun: Begun) -> (Sums, Rows) {
        let mut of_files = Sums::default();
        for slice in files.slices(begun) {
            add(&mut of_files, &self.until_done(&slice).await.0);
        }
        (of_files, self.rows(begun, 4).await)
    }

    async fn rows(&mut self, begun: Begun, at_most: u64) -> Rows {
        let ranges = self.ranges(begun, at_most).await;
        let counted = sum(&self.step(&ranges, "count").await);
        let checked = sum(&self.step(&ranges, "check").await);
        assert_eq!(counted[1..], [0, 0, 0]);
        [counted[0], checked[1], checked[2], checked[3]]
    }
}

fn of_step(range: &Json, step: &str) -> Json {
    let mut range = range.clone();
    range["step"] = json!(step);
    range
}

const GONE_PARTS: i64 = 11;

/// Three whole sessions, and a part of two others.
fn removals() -> Vec<Draft> {
    let all = |number: usize| of_session(number);
    let whole = (11..14).flat_map(all);
    whole
        .chain([21, 22].map(|number| all(number)[number % 3].clone()))
        .map(|part| removal(&part))
        .collect()
}

const VERIFICATIONS: &str = "SELECT string_agg(concat_ws(' ', comparison, complete, compared, \
    missing, extra, older, content), ', ' ORDER BY id) FROM verifications";

/// Nothing of a run is kept but its row.
async fn assert_dropped(stores: &Stores) {
    for table in ["reconciliation_pieces", "reconciliation_sums"] {
        assert_eq!(stores.ask(&format!("SELECT count(*) FROM {table}")).await, "0", "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_without_an_item_are_counted_by_a_comparison_and_removed_by_a_repair() {
    let world = World::with_sessions(40).await;
    world.write_and_forget(&removals()).await;
    world.stores.change("ANALYZE measurements").await;
    let files = Files::of(&world.tables).await;
    let mut caller = Caller::start(world.function()).await;
    let before = world.stores.rows().await;
    let nightly = caller.begin_run("nightly", false).await;
    let (compared, found) = caller.whole(&files, nightly).await;
    assert_eq!(compared, [109, 0, 0, 0]);
    assert_eq!(found, [40, 11, 11, 0], "nothing else is asked for");
    let ended = caller.end(nightly, "nightly").await;
    let members = ["files", "compared", "differing", "repaired", "gone", "removed", "rejected"];
    let values = members.map(|name| ended[name].as_u64().expect(name));
    assert_eq!(values, [4, 109, 11, 0, 11, 0, 0]);
    assert!(world.stores.rows().await == before, "it writes nothing");
    assert_dropped(&world.stores).await;

    for (owner, removed) in [("first", 11), ("second", 0)] {
        let begun = caller.begin(owner).await;
        let following = Following::start(world.starter(), (begun.id(), owner), TIMEOUT);
        let (compared, found) = caller.whole(&files, begun).await;
        assert_eq!(compared, [109, 0, 0, 0]);
        assert_eq!(found, [40, removed, removed, removed], "{owner}");
        let ended = caller.end(begun, owner).await;
        let values = members.map(|name| ended[name].as_u64().expect(name));
        assert_eq!(values, [4, 109, removed, removed, removed, removed, 0]);
        following.ended().await;
        assert_dropped(&world.stores).await;
    }
    world.assert_equal().await;
    let kept = "tables t 109 0 11 0 0, tables t 109 0 0 0 0, tables t 109 0 0 0 0";
    // The last one is of `verify --tables`, which proves that the sides are equal.
    assert_eq!(world.stores.ask(VERIFICATIONS).await, format!("{kept}, tables t 109 0 0 0 0"));
    // What comes late is read again.
    assert!(world.row(&id(11), "left_version").await.contains('+'));
}

/// What the pieces of a run have added up: how many keys more were seen than are held, and how many
/// cells are not 0.
pub(super) async fn added_up(stores: &Stores, run: i64) -> (i64, usize) {
    let sql = format!(
        "SELECT string_agg(encode(sums, 'hex'), ' ') FROM (
            SELECT settled FROM reconciliation_sums WHERE run = {run}
            UNION ALL SELECT recent FROM reconciliation_sums WHERE run = {run}
        ) AS all_of (sums) WHERE length(sums) > 0"
    );
    let mut cells: Vec<[u64; 3]> = Vec::new();
    for text in stores.ask(&sql).await.split(' ') {
        let numbers = text.as_bytes().chunks_exact(16).map(|digits| {
            let digits = std::str::from_utf8(digits).expect("hexadecimal digits");
            u64::from_str_radix(digits, 16).expect("a number").swap_bytes()
        });
        let numbers: Vec<u64> = numbers.collect();
        cells.resize(numbers.len() / 3, [0; 3]);
        for (cell, more) in cells.iter_mut().zip(numbers.chunks_exact(3)) {
            for (number, more) in cell.iter_mut().zip(more) {
                *number = number.wrapping_add(*more);
            }
        }
    }
    let count = cells.iter().map(|[count, ..]| count.cast_signed()).sum::<i64>();
    assert_eq!(count % 3, 0, "each key has three cells");
    (count / 3, cells.iter().filter(|cell| **cell != [0; 3]).count())
}

/// Each request of a run that is repeated, as if its answer had been lost, and what is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_added_up_once_whatever_is_killed_or_repeated() {
    let world = World::with_sessions(40).await;
    world.write_and_forget(&[removals(), changes(0..40)].concat()).await;
    world.stores.change("ANALYZE measurements").await;
    let files = Files::of(&world.tables).await;
    let mut caller = Caller::start(world.function()).await;
    let begun = caller.begin("killed").await;
    let following = Following::start(world.starter(), (begun.id(), "killed"), TIMEOUT);
    world.streams_are_read().await;
    let mut requests = files.slices(begun);
    let ranges = caller.ranges(begun, 4).await;
    assert_eq!(ranges.len(), 4);
    assert_eq!(caller.ranges(begun, 9).await, ranges, "they are kept");
    requests.extend(ranges.iter().cloned());
    for request in &requests {
        for _ in 0..2 {
            let mut killed = Caller::start(world.function()).await;
            let moment = Duration::from_millis(fastrand::u64(200..3_000));
            let _ = tokio::time::timeout(moment, killed.try_ask(request)).await;
            killed.0.stop().await.expect("it is killed");
        }
        let first = caller.until_done(request).await.0;
        assert_eq!(caller.until_done(request).await.0, first, "the answer was lost");
    }
    let checks: Vec<Json> = ranges.iter().map(|range| of_step(range, "check")).collect();
    for check in &checks {
        let mut killed = Caller::start(world.function()).await;
        let moment = Duration::from_millis(fastrand::u64(200..6_000));
        let _ = tokio::time::timeout(moment, killed.try_ask(check)).await;
        killed.0.stop().await.expect("it is killed");
        let first = caller.until_done(check).await.0;
        assert_eq!(caller.until_done(check).await.0, first, "the answer was lost");
    }
    // The parts that were gone, in three cells each; two may share one.
    let (keys, cells) = added_up(&world.stores, begun.run).await;
    assert!(keys == -GONE_PARTS && (30..=33).contains(&cells), "{keys} {cells}");
    caller.end(begun, "killed").await;
    following.ended().await;
    world.assert_equal().await;

    let nightly = caller.begin_run("nightly", false).await;
    Caller::twice_at_a_time(&world, &files.slices(nightly)).await;
    assert_eq!(added_up(&world.stores, nightly.run).await.0, 109);
    let ranges = caller.ranges(nightly, 4).await;
    Caller::twice_at_a_time(&world, &ranges).await;
    assert_eq!(added_up(&world.stores, nightly.run).await, (0, 0));
    assert_eq!(sum(&caller.step(&ranges, "check").await), [0; 4]);
    caller.end(nightly, "nightly").await;
}

/// What is asked for too early, or belongs elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_waits_for_all_that_is_added_up_and_a_range_must_be_a_known_one() {
    let world = World::with_sessions(3).await;
    let files = Files::of(&world.tables).await;
    let mut caller = Caller::start(world.function()).await;
    let begun = caller.begin_run("nightly", false).await;
    let Begun { run, .. } = begun;
    let unknown =
        json!({"run": run, "repair": null, "step": "count", "after": "b", "through": null});
    let said = caller.refused(&unknown, "Failed").await;
    assert!(said.contains("is none of those that `ranges` has answered"), "{said}");
    let ranges = caller.ranges(begun, 1).await;
    let said = caller.refused(&of_step(&ranges[0], "check"), "Failed").await;
    assert!(said.contains("1 slices and ranges of run"), "{said}");
    let mut of_another = ranges[0].clone();
    of_another["repair"] = json!(7);
    let said = caller.refused(&of_another, "LeaseEnded").await;
    assert!(said.contains("not to Some(7)"), "{said}");
    // A run whose rows were not checked says nothing of them.
    for slice in files.slices(begun) {
        caller.until_done(&slice).await;
    }
    let end = json!({"run": run, "repair": null, "owner": "nightly", "complete": true});
    let ended = caller.ask(&json!({ "end": end })).await;
    assert_eq!(ended["complete"], false, "{ended}");
    assert_eq!(world.stores.ask(VERIFICATIONS).await, "tables f 9 0 0 0 0");
    let said = caller.refused(&ranges[0], "LeaseEnded").await;
    assert!(said.contains("has ended, or was never begun"), "{said}");
}

/// No row, and one row whose items are gone.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_table_and_one_of_a_single_row_are_one_range() {
    let world = World::with_items(&[]).await;
    let mut caller = Caller::start(world.function()).await;
    let begun = caller.begin_run("empty", false).await;
    let ranges = caller.ranges(begun, 9).await;
    let expected = json!([{
        "run": begun.run, "repair": null, "step": "count", "after": "", "through": null,
    }]);
    assert_eq!(json!(ranges), expected);
    assert_eq!(caller.rows(begun, 9).await, [0; 4]);
    caller.end(begun, "empty").await;

    world.write(&of_session(1)).await;
    world.replay().await;
    world.write_and_forget(&of_session(1).map(|part| removal(&part))).await;
    world.stores.change("ANALYZE measurements").await;
    let begun = caller.begin("single").await;
    let following = Following::start(world.starter(), (begun.id(), "single"), TIMEOUT);
    assert_eq!(caller.rows(begun, 9).await, [1, 3, 3, 3]);
    caller.end(begun, "single").await;
    following.ended().await;
    world.assert_equal().await;
}

/// How many rows a page has at most, and there are.
const PAGE: usize = 10_000;
const MANY: usize = 4 * PAGE + 1_000;

/// Sessions of one part, in the rows as in the items; of every thousandth there is no item.
async fn many_rows(world: &World) -> Vec<Json> {
    let sql = format!(
        "INSERT INTO measurements (session_id, user_id, started_at, session_version)
        SELECT 'many-' || lpad(number::text, 6, '0'), 'u', '2026-11-22T08:00:00Z',
            '2026-11-22T00:00:00.000/' || lpad(number::text, 40, '0')
        FROM generate_series(0, {}) number",
        MANY - 1
    );
    assert_eq!(world.stores.change(&sql).await, MANY as u64);
    let item = |number: usize| {
        json!({
            "session_id": {"S": format!("many-{number:06}")},
            "user_id": {"S": "u"},
            "started_at": {"S": "2026-11-22T08:00:00Z"},
        })
    };
    (0..MANY).filter(|number| number % 1_000 != 500).map(item).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_larger_than_an_invocation_is_ended_by_the_next_ones() {
    let world = World::with_items(&[]).await;
    let items = many_rows(&world).await;
    let files = Files::with(&world.tables, [items, Vec::new()]).await;
    let function = || {
        let mut command = world.function();
        // Every row would be compared with its object.
        command.env_remove("ARCHIVE_BUCKET");
        command
    };
    let mut caller = Caller::start(function()).await;
    let begun = caller.begin("large").await;
    let command = world.starter();
    let following = Following::start(command, (begun.id(), "large"), TIMEOUT);
    world.streams_are_read().await;
    let mut all = Sums::default();
    for slice in files.slices(begun) {
        add(&mut all, &caller.until_done(&slice).await.0);
    }
    assert_eq!(all, [MANY as u64 - 41, 0, 0, 0]);
    let range = caller.ranges(begun, 1).await.remove(0);
    let mut short = Caller::hurried(function(), Duration::from_secs(1)).await;
    let (counted, calls) = short.until_done(&range).await;
    assert_eq!((rows(&counted), calls > 1), ([MANY as u64, 0, 0, 0], true), "{calls}");
    // The shortest invocation that gets anywhere: a page or two are read before nothing more could
    // be written in time.
    let mut check = of_step(&range, "check");
    for told in 13.. {
        let mut short = Caller::hurried(function(), Duration::from_secs(told)).await;
        match short.try_ask(&check).await {
            Ok(answer) => check = answer,
            Err(error) => assert_eq!(error["errorType"], "Failed", "{error}"),
        }
        if check["rows"].as_u64() > Some(0) {
            break;
        }
    }
    assert_eq!(check["done"], false, "{check}");
    let (checked, _) = caller.until_done(&check).await;
    assert_eq!(rows(&checked), [MANY as u64, 41, 41, 41]);
    caller.end(begun, "large").await;
    following.ended().await;
    let left = "SELECT count(*) FROM measurements WHERE user_id IS NULL";
    assert_eq!(world.stores.ask(left).await, "41");
}

/// Sessions of three items each, of which the first ones are written all the time.
const SESSIONS: usize = 670;
const WRITTEN: usize = 60;
/// Parts of rows whose items no stream has ever had.
const GONE: u64 = 7 * 3;
/// As in `moving.rs`.
const LONG: Duration = Duration::from_mins(4);

/// Rows like some others, of sessions of which there is no item.
async fn add_rows(stores: &Stores) {
    for number in 0..7 {
        let sql = format!(
            "CREATE TEMP TABLE one ON COMMIT DROP AS SELECT * FROM measurements
                WHERE session_id = '{}';
            ALTER TABLE one DROP COLUMN complete;
            UPDATE one SET session_id = 'session-gone-{number}';",
            session_id(WRITTEN + 1 + number)
        );
        let columns = stores
            .ask(
                "SELECT string_agg(column_name, ', ' ORDER BY ordinal_position)
                FROM information_schema.columns
                WHERE table_name = 'measurements' AND is_generated = 'NEVER'",
            )
            .await;
        let insert = format!("INSERT INTO measurements ({columns}) SELECT {columns} FROM one");
        let mut connection = stores.connect().await;
        connection.run(&format!("BEGIN; {sql} {insert}; COMMIT")).await;
    }
}

/// Two thousand items, while the tables are written and a live function reads their streams.
#[tokio::test(flavor = "multi_thread")]
async fn parts_without_an_item_are_found_and_no_other_while_everything_moves() {
    let (world, stores) = (world::World::new().await, Stores::fresh().await);
    world.write_sessions(0..SESSIONS).await;
    Side::apply_so_far(&world, &stores).await;
    add_rows(&stores).await;
    stores.change("ANALYZE measurements").await;
    stores.forbid_going_back().await;
    let streams = world.trimmed_streams().await;

    let done = Arc::new(AtomicBool::new(false));
    let side = Side::attach(&world, &stores, From::Now, &done).await;
    let writer = world.write_in_bursts(WRITTEN, &done);
    let sampler = tokio::spawn(sample(stores.clone(), Arc::clone(&done)));
    let (tables, url) = (world.tables.clone(), streams.url.clone());
    let of_stores = stores.clone();
    let start = move || function(&of_stores, &tables, &url);

    let runs =
        [("compared", false, [GONE, 0]), ("first", true, [GONE; 2]), ("second", true, [0; 2])];
    for (owner, repair, expected) in runs {
        let files = Files::of(&world.tables).await;
        let mut caller = Caller::with_timeout(start(), LONG).await;
        let begun = caller.begin_run(owner, repair).await;
        let following =
            begun.repair.map(|repair| Following::start(start.clone(), (repair, owner), LONG));
        let (of_files, of_rows) = caller.whole(&files, begun).await;
        assert!(of_files[0] >= 2_000, "{of_files:?}");
        assert_eq!(of_files[1..], [0; 3], "{owner}: the rows only lag behind");
        assert_eq!(of_rows[2..], expected, "{owner}: all of them, and no other one");
        assert_eq!(caller.end(begun, owner).await["gone"], expected[0]);
        if let Some(following) = following {
            following.ended().await;
        }
    }

    assert!(!writer.is_finished(), "the tables were written all the time");
    done.store(true, Ordering::Relaxed);
    writer.await.expect("it writes");
    side.drained().await;
    assert!(sampler.await.expect("no row goes back") > 3);
    let proof = ["verify", "--tables", "--wait", "0", "--rounds", "1"];
    let output = with_tables(&stores, &world.tables, &proof).output().await;
    assert_code(&output.expect("backfill runs"), 0);
}
