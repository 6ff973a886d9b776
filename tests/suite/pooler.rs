//! Behind a real PgBouncer in transaction mode, which hands each transaction to any of its server
//! connections: no setting reaches another client, no statement is missing, and what needs a
//! session of its own is refused.

use futures_util::future::join_all;
use projector::config;
use projector::error::Error;
use sqlx::ConnectOptions as _;
use testkit::oracle;
use testkit::records::{LABEL, Record, scan, session};
use testkit::runs::{assert_code, backfill, text};
use testkit::services::{Stores, apply_all, parsed, service};
use testkit::sql::Client;

/// The stores through each of the two poolers: one that refuses the startup parameters that it does
/// not know, and one that takes and ignores them.
async fn behind_poolers() -> Vec<(Stores, Stores)> {
    let mut pairs = Vec::new();
    for variable in ["PGBOUNCER_URL", "PGBOUNCER_LENIENT_URL"] {
        let stores = Stores::fresh().await;
        let url = service(variable).replace("/postgres?", &format!("/{}?", stores.bucket));
        pairs.push((Stores { database_url: url, ..stores.clone() }, stores));
    }
    pairs
}

fn day() -> Vec<Record> {
    (0..60_u128)
        .flat_map(|index| {
            let id = format!("s{index:03}");
            let user = session(&id, "u").place(LABEL, 1 + index);
            [user, scan(&id, "left", "245.3").place(LABEL, 100 + index)]
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_go_through_and_no_setting_reaches_the_poolers_other_clients() {
    for (pooled, direct) in behind_poolers().await {
        let records = day();
        // More clients at once than server connections.
        let mut projectors = Vec::new();
        for _ in 0..5 {
            projectors.push(pooled.projector().await);
        }
        let lanes = records.chunks(records.len().div_ceil(5)).zip(&projectors);
        join_all(lanes.map(|(records, projector)| apply_all(projector, records, 3))).await;
        assert_eq!(direct.rows().await, oracle::rows(&records));
        assert_eq!(parsed(&direct.objects().await), oracle::objects(&direct.rows().await));
        for name in ["enable_seqscan", "plan_cache_mode", "statement_timeout", "lock_timeout"] {
            let show = format!("SELECT current_setting('{name}')");
            let of = async |stores: &Stores| {
                let options = config::parse_url(&stores.database_url).expect("a URL");
                let client = options.connect().await.expect("it connects");
                Client::from(client).ask(&show).await
            };
            // Both server connections: of four clients at once no two need share one.
            let expected = of(&direct).await;
            let seen = join_all((0..4).map(|_| of(&pooled))).await;
            assert!(seen.iter().all(|one| *one == expected), "{name}: {seen:?}");
        }
    }
}

/// A statement in a transaction of its own has our limits, and its commit is durable.
#[tokio::test(flavor = "multi_thread")]
async fn each_transaction_has_its_limits_and_is_durable() {
    for (pooled, direct) in behind_poolers().await {
        let note = "CREATE TABLE seen (settings text);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO seen VALUES (current_setting('synchronous_commit') || ' '
                    || current_setting('statement_timeout') || ' ' || current_setting('lock_timeout'));
                RETURN new; END $$;
            CREATE TRIGGER note BEFORE INSERT ON measurements FOR EACH ROW EXECUTE FUNCTION note();";
        let off =
            format!("ALTER DATABASE {:?} SET synchronous_commit = off; {note}", direct.bucket);
        direct.change(&off).await;
        apply_all(&pooled.projector().await, &[session("s1", "u").place(LABEL, 1)], 1).await;
        assert_eq!(direct.ask("SELECT settings FROM seen").await, "on 20s 5s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_session_is_refused_in_one_line() {
    for (pooled, _) in behind_poolers().await {
        let error = pooled.projector().await.database.connect().await.expect_err("no session");
        assert!(matches!(error, Error::Pooled), "{error}");
        let output = backfill(&pooled, &["migrate"]);
        assert_code(&output, 2);
        let message = text(&output.stderr);
        assert!(message.contains("name the database instance itself"), "{message}");
    }
}

/// The doctor says that there is a pooler, and checks the rest through it.
#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_sees_the_pooler_and_what_is_behind_it() {
    for (pooled, _) in behind_poolers().await {
        let output = backfill(&pooled, &["doctor"]);
        assert_code(&output, 2);
        let report = text(&output.stdout);
        let of = |check: &str| report.lines().find(|line| line.contains(check)).expect(check);
        assert!(of("database route").starts_with("✗"), "{report}");
        assert!(report.contains("name the database instance itself"), "{report}");
        for check in ["database login", "database schema", "database privileges", "database limits"]
        {
            assert!(of(check).starts_with("✓"), "{check}: {report}");
        }
        assert!(of("database limits").contains("statement_timeout 20s"), "{report}");
    }
}

/// Commands that need none work.
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_need_no_session_go_through() {
    for (pooled, direct) in behind_poolers().await {
        let records = day();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("records.jsonl");
        let mut text: Vec<String> = records.iter().map(|record| record.json.clone()).collect();
        text.push(
            records[0].json.replace("2026-11-22T08:00:00Z", "yesterday").replace("s000", "bad"),
        );
        std::fs::write(&path, text.join("\n")).expect("a file");
        assert_code(&backfill(&pooled, &["file", path.to_str().expect("a path")]), 3);
        assert_eq!(direct.rows().await, oracle::rows(&records));
        assert_code(&backfill(&pooled, &["redrive"]), 3);
        assert_code(&backfill(&pooled, &["objects"]), 0);
        assert_code(&backfill(&pooled, &["status"]), 0);
    }
}
