//! Two thousand items, one in a hundred of which the rows lack, or hold older or changed, while the
//! tables are written and a live function reads their streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testkit::oracle;
use testkit::runs::{assert_code, with_tables};
use testkit::services::{Stores, parsed};

use super::{Caller, Files, Following, Sums, add, function, sums};
use crate::live::sample;
use crate::move_by_merge::world::{From, Side, World, session_id};

/// Sessions of three items each, of which the first ones are written all the time.
const SESSIONS: usize = 670;
const WRITTEN: usize = 60;
/// The streams of the stand-in are read past a time only in such a pause, or a minute later.
const LONG: Duration = Duration::from_mins(4);
/// Parts whose rows are wrong: four sessions without a row, and eight parts of others.
const WRONG: u64 = 4 * 3 + 8;

/// Takes rows away, takes parts back and changes values, as nothing of ours does.
async fn damage(stores: &Stores) {
    let id = |number: usize| session_id(WRITTEN + 1 + number * 7);
    for number in 0..4 {
        let sql = format!("DELETE FROM measurements WHERE session_id = '{}'", id(number));
        assert_eq!(stores.change(&sql).await, 1);
    }
    for number in 4..8 {
        // An older version with older values, and a value that no version tells.
        let sql = format!(
            "UPDATE measurements SET right_foot_length_mm = 1.5, left_foot_length_mm = 2.5,
                left_version = split_part(left_version, '/', 1) || '/' || repeat('0', 40)
            WHERE session_id = '{}'",
            id(number)
        );
        assert_eq!(stores.change(&sql).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_part_in_a_hundred_is_found_and_repaired_while_everything_moves() {
    let (world, stores) = (World::new().await, Stores::fresh().await);
    world.write_sessions(0..SESSIONS).await;
    Side::apply_so_far(&world, &stores).await;
    damage(&stores).await;
    stores.forbid_going_back().await;
    let streams = world.trimmed_streams().await;

    let done = Arc::new(AtomicBool::new(false));
    let side = Side::attach(&world, &stores, From::Now, &done).await;
    let writer = world.write_in_bursts(WRITTEN, &done);
    let sampler = tokio::spawn(sample(stores.clone(), Arc::clone(&done)));
    let (tables, url) = (world.tables.clone(), streams.url.clone());
    let of_stores = stores.clone();
    let start = move || function(&of_stores, &tables, &url);

    for (owner, expected) in [("first", WRONG), ("second", 0)] {
        let files = Files::of(&world.tables).await;
        let mut caller = Caller::start(start()).await;
        let begun = caller.begin(owner).await;
        let following = Following::start(start.clone(), (begun.id(), owner), LONG);
        let slices = files.slices(begun).into_iter().map(|slice| {
            let command = start();
            async move { Caller::with_timeout(command, LONG).await.until_done(&slice).await.0 }
        });
        let mut all = Sums::default();
        for slice in futures_util::future::join_all(slices).await {
            add(&mut all, &slice);
        }
        assert!(all[0] >= 2_000, "{all:?}");
        assert_eq!(all[1..], [expected, expected, 0], "all of them, and no other one");
        assert_eq!(sums(&caller.end(begun, owner).await), all);
        following.ended().await;
    }

    assert!(!writer.is_finished(), "the tables were written all the time");
    done.store(true, Ordering::Relaxed);
    writer.await.expect("it writes");
    side.drained().await;
    assert!(sampler.await.expect("no row goes back") > 3);
    let proof = ["verify", "--tables", "--wait", "0", "--rounds", "1"];
    let output = with_tables(&stores, &world.tables, &proof).output().await;
    assert_code(&output.expect("backfill runs"), 0);
    assert!(parsed(&stores.objects().await) == oracle::objects(&stores.rows().await));
}
