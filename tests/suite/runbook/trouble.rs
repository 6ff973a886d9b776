//! docs/incidents.md, walked: what to do when something is wrong, each with something that is.

use serde_json::json;
use testkit::dynamodb::Write;
use testkit::mapping;
use testkit::records::{LABEL, session};
use testkit::services::{Stores, parsed};

use super::walk::{self, Walk, scan};
use super::{NOW, restore, run_sql};

/// The second half: what to do when something is wrong, each with something that is.
pub(crate) async fn trouble(walk: &mut Walk, new: &Stores) {
    let looked_at = walk.section("When something is wrong").await;
    assert_eq!(looked_at.matches("(the newest stream)").count(), 2, "{looked_at}");
    assert!(walk.section("A mapping reads nothing").await.contains("ScansMapping: Enabled"));
    rejections(walk, new).await;
    failures(walk, new).await;

    walk.shell.run("aws s3 rm --quiet --recursive \"s3://$NEW_BUCKET/measurements/\"").await;
    walk.section("A bucket was restored").await;
    walk.until_archived(new).await;
    s3_is_away(walk, new).await;
    assert!(walk.section("Records are in neither place").await.contains("done:"));
    assert!(walk.section("The database is full").await.contains("active"));

    let recovered = lost_database(walk, new).await;
    more_than_a_day(walk, &recovered).await;
}

async fn rejections(walk: &mut Walk, new: &Stores) {
    // A scan of a foot that is too long for one, corrected at its source.
    let mut bad = scan(40, "left");
    bad["foot_length_mm"] = json!({ "N": "2453" });
    walk.tables.write_all("scans", &[Write::Put(bad)]).await;
    walk.until(new, "SELECT count(*) FROM rejected_records", "1").await;
    let rejected = walk.section("Rejected records").await;
    assert!(rejected.contains("foot_length_mm"), "{rejected}");
    walk.write(40..41, "corrected").await;
    walk.until_complete(new, 45).await;
}

async fn failures(walk: &mut Walk, new: &Stores) {
    let bucket = walk.shell.run("output projector-new FailureBucket").await;
    let record = session("s-41", "given up").place(LABEL, 1);
    mapping::write_failure(bucket.trim(), 100, &[record]).await;
    // This database has had a repair: the record is kept, and its item is read again.
    let emptied = walk.section("The bucket of failures").await;
    assert!(emptied.contains("done: 1 records"), "{emptied}");
    let late = "SELECT count(*) FROM rejected_records WHERE reason LIKE '%had a repair%'";
    assert_eq!(new.ask(late).await, "1");
    walk.shell.run("backfill redrive --function \"$stack\" --reason '%had a repair%'").await;
    assert_eq!(new.ask(late).await, "0");
    let given_up = "SELECT count(*) FROM measurements WHERE user_id = 'given up'";
    assert_eq!(new.ask(given_up).await, "0", "its item is in no table");
    assert!(
        !walk.shell.run("aws s3 ls --recursive \"s3://$failures/\"").await.contains("aws/lambda")
    );
}

/// The mappings get more tries for as long as S3 is away, and then those that their stack says.
async fn s3_is_away(walk: &mut Walk, new: &Stores) {
    const HEADING: &str = "S3 is away";
    let raised = walk.block(HEADING, "10000").await;
    assert_eq!(raised.matches("10000").count(), 2, "{raised}");
    walk.block(HEADING, "max(session_changed_at)").await;
    walk.shell.run("aws s3 rm --quiet \"s3://$NEW_BUCKET/measurements/s-1.json\"").await;
    let lowered = walk.block(HEADING, "$tries").await;
    let hundred = lowered.lines().filter(|line| line.ends_with("\t100")).count();
    assert_eq!(hundred, 2, "{lowered}");
    walk.section(HEADING).await;
    assert_eq!(parsed(&new.objects().await), testkit::oracle::objects(&new.rows().await));
}

/// The database is dropped, and one of an hour ago is restored: what was applied since comes from
/// the streams, what came meanwhile from the places that the mappings kept.
async fn lost_database(walk: &mut Walk, new: &Stores) -> Stores {
    const HEADING: &str = "The database is gone or corrupt";
    let fresh = Stores::unmigrated().await;
    let recovered = Stores { bucket: new.bucket.clone(), ..fresh };
    walk.shell.run(NOW).await;
    restore(new, &recovered).await;
    walk.write(70..75, "since the backup").await;
    walk.tables.delete_item("sessions", &json!({ "session_id": { "S": "s-20" } })).await;
    walk.until_complete(new, 49).await;
    walk.until_archived(new).await;
    let lost = new.rows().await;

    let stopped = walk.block(HEADING, "Mappings=disabled").await;
    assert_eq!(stopped.matches("Mapping: Disabled").count(), 2, "{stopped}");
    run_sql(new, "DROP TABLE measurements").await;
    walk.write(75..80, "while it was gone").await;
    let name = recovered.database_url.rsplit_once('/').expect("a path").1;
    let name = name.split_once('?').expect("options").0;
    walk.shell
        .run(&format!(
            r#"
            RESTORED=measurements-restored RESTORED_RESOURCE=db-RESTORED RESTORED_NAME={name}
            eval "$(grep -o -m 1 'VpcId=[^"]*' samconfig.toml | sed 's/^/RESTORED_/; s/VpcId/VPC/')"
            RESTORED_GROUP=$(grep -o -m 1 'DatabaseSecurityGroupId=[^"]*' samconfig.toml | cut -d= -f2)
            RESTORED_HOST=$(grep -o -m 1 '"Host=[^"]*' samconfig.toml | cut -d= -f2)
            RESTORED_PORT=$(grep -o -m 1 '"Port=[^"]*' samconfig.toml | cut -d= -f2)
            export DATABASE_URL='{}'"#,
            recovered.database_url
        ))
        .await;
    walk.block(HEADING, "existing-database.yaml").await;
    walk.block(HEADING, "backfill migrate").await;
    let began = walk.mappings("projector-new").await;
    let closed = walk.block(HEADING, "backfill stream").await;
    assert!(closed.contains("safe:"), "{closed}");
    // What the lost database had applied is in the restored one, before a mapping goes on.
    let ids: Vec<_> = lost.keys().cloned().collect();
    let rows = recovered.rows().await;
    assert!(ids.iter().all(|id| rows.get(id) == lost.get(id)), "the gap is closed");
    walk.block(HEADING, "Mappings=enabled").await;
    walk.until_complete(&recovered, 54).await;
    let now = walk.mappings("projector-new").await;
    let places = |mappings: &[walk::Mapping]| -> Vec<_> {
        mappings.iter().map(|mapping| mapping.0.clone()).collect()
    };
    assert_eq!(places(&now), places(&began), "the mappings and their places are those from before");
    walk.until_archived(&recovered).await;
    let proved = walk.section(HEADING).await;
    assert!(proved.contains("0 parts lacking, 0 unreadable"), "{proved}");
    recovered
}

/// A database that lacks a day: a session that came, one that changed, and one that was removed. A
/// peer has it, then the archive, and at last nobody.
async fn more_than_a_day(walk: &mut Walk, stores: &Stores) {
    const HEADING: &str = "More than 24 hours lost";
    walk.block(HEADING, "wait_for_mappings").await;
    let peer = Stores::unmigrated().await;
    restore(stores, &peer).await;
    walk.shell.run(&format!("OLD_DATABASE_URL='{}'", peer.database_url)).await;
    let yesterday = "DELETE FROM measurements WHERE session_id = 's-0';
        UPDATE measurements SET user_id = 'of yesterday', started_at = now(),
            session_version = '2020-01-01T00:00:00.000/' || repeat('0', 39) || '1'
        WHERE session_id IN ('s-1', 's-20')";
    let whole = stores.rows().await;
    run_sql(stores, yesterday).await;
    let merged = walk.block(HEADING, "backfill merge --from").await;
    assert!(merged.contains("done:") && merged.contains("equal"), "{merged}");
    assert_eq!(stores.rows().await, whole);
    run_sql(stores, yesterday).await;
    let merged = walk.block(HEADING, "--from-archive").await;
    assert!(merged.contains("done:"), "{merged}");
    assert_eq!(stores.rows().await, whole);

    // What the archive does not know either.
    let without = "DELETE FROM measurements WHERE session_id = 's-0';
        UPDATE measurements SET user_id = 'of yesterday' WHERE session_id = 's-1'";
    run_sql(stores, without).await;
    let repaired = walk.section(HEADING).await;
    assert!(repaired.contains("dollars"), "the price comes first: {repaired}");
    assert!(repaired.contains("equal"), "the tables prove it: {repaired}");
    let of_user = "SELECT user_id FROM measurements WHERE session_id = ";
    for id in ["'s-0'", "'s-1'"] {
        assert_eq!(stores.ask(&format!("{of_user}{id}")).await, "before");
    }
    let complete = "SELECT complete FROM measurements WHERE session_id = 's-0'";
    assert_eq!(stores.ask(complete).await, "true");
    let last = "SELECT source || ' ' || complete FROM repairs ORDER BY id DESC LIMIT 1";
    assert_eq!(stores.ask(last).await, "scan true");
}
