//! Memory, counted in bytes by the allocator: what a batch takes is bounded, whatever its rows
//! hold.

use std::sync::Arc;
use std::time::Duration;

use peak_alloc::PeakAlloc;
use serde_json::json;
use testkit::records::{Draft, LABEL, Record, scan, session};
use testkit::s3_gate::{Fault, S3Gate};
use testkit::services::{Stores, apply, service};
use tokio::sync::Notify;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const SESSIONS: usize = 32;
/// The largest item that DynamoDB takes has 400 KB; its mesh is a little less.
const MESH_BYTES: usize = 395_000;
/// Eight rows with two meshes each, as rows and as bodies, and what the gate in front of S3 takes,
/// which is counted too.
const BOUND_BYTES: usize = 40_000_000;

fn with_mesh(mut scan: Draft) -> Draft {
    if let Some(image) = &mut scan.image {
        // Zeros: all base64 is as long.
        image["mesh"] = json!({ "B": "A".repeat(MESH_BYTES / 3 * 4) });
    }
    scan
}

/// After a restore of the bucket every object is missing, and every row is read for its object.
#[tokio::test]
async fn objects_with_meshes_are_reconciled_in_bounded_memory() {
    let stores = Stores::fresh().await;
    let rows_alone = stores.projector_without_archive(&stores.database_url, 1);
    let sessions: Vec<Record> =
        (0..SESSIONS).map(|index| session(&format!("s{index}"), "u").place(LABEL, 1)).collect();
    apply(&rows_alone, &sessions).await;
    for index in 0..SESSIONS {
        let id = format!("s{index}");
        let feet =
            ["left", "right"].map(|side| with_mesh(scan(&id, side, "245.3")).place(LABEL, 2));
        apply(&rows_alone, &feet).await;
    }

    let gate = S3Gate::open(&service("AWS_ENDPOINT_URL")).await;
    let projector = stores.projector_at(&gate.url, 1).await;
    // S3 is slower than the database: what is read waits for its PUT.
    let release = Arc::new(Notify::new());
    let held = Arc::clone(&release);
    gate.set_rule(move |seen| match seen.method {
        "PUT" => Fault::Hold(Arc::clone(&held)),
        _ => Fault::Pass,
    });
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let applied = tokio::select! {
        applied = apply(&projector, &sessions) => applied,
        () = async {
            loop {
                tokio::time::sleep(Duration::from_secs(2)).await;
                release.notify_waiters();
            }
        } => unreachable!("the loop has no end"),
    };
    let bytes = ALLOCATOR.peak_usage() - before;
    println!("{bytes} bytes at the most");
    assert_eq!(applied.counts.objects_written, SESSIONS as u64);
    assert!(bytes < BOUND_BYTES, "{bytes} bytes at the most");
    // The meshes were there: all of them at once would not have fitted.
    let objects = stores.objects().await;
    let smallest = objects.values().map(Vec::len).min();
    assert!(smallest > Some(2 * MESH_BYTES / 3 * 4), "{smallest:?}");
}

/// What a function of 256 MB can spare.
const FUNCTION_BOUND_BYTES: usize = 128_000_000;

/// Makes the rows of `sessions` large, each by itself, as no batch of 6 MB could.
async fn enlarge(stores: &Stores, sets: &str) {
    let sql = format!("UPDATE measurements SET {sets}");
    stores.change(&sql).await;
}

/// Small changes over large rows: the answer of a statement holds no more of them than fits. What
/// is stored compressed, a hundredth of what it is sent as, is measured as it is sent.
#[tokio::test]
async fn small_changes_over_large_rows_take_bounded_memory() {
    let attributes =
        "session_attributes = json_build_object('note', repeat('all work and no play ', 16000))";
    let texts = "device_model = repeat('iPhone16,2 ', 31000)";
    let meshes = "left_mesh = decode(repeat('00ff', 197000), 'hex'), right_mesh = \
        decode(repeat('ff00', 197000), 'hex')";
    let all = [attributes, texts, meshes].join(", ");
    for (what, sets, count) in [
        ("attributes", attributes, 600),
        ("texts", texts, 600),
        ("meshes", meshes, 150),
        ("all", &all, 100),
    ] {
        let stores = Stores::fresh().await;
        let ids: Vec<String> = (0..count).map(|index| format!("s{index}")).collect();
        let whole = |id: &String| {
            let scan = |side| scan(id, side, "245.3").place(LABEL, 1);
            [session(id, "u").place(LABEL, 1), scan("left"), scan("right")]
        };
        let whole: Vec<Record> = ids.iter().flat_map(whole).collect();
        apply(&stores.projector_without_archive(&stores.database_url, 1), &whole).await;
        enlarge(&stores, sets).await;
        // The right foot: it has no column of those, but the mesh that it then takes away.
        let small: Vec<Record> =
            ids.iter().map(|id| scan(id, "right", "246").place(LABEL, 2)).collect();
        let projector = stores.projector().await;
        ALLOCATOR.reset_peak_usage();
        let before = ALLOCATOR.current_usage();
        let applied = apply(&projector, &small).await;
        let bytes = ALLOCATOR.peak_usage() - before;
        println!("{what}: {bytes} bytes at the most");
        assert_eq!(applied.counts.objects_written, count);
        assert!(bytes < FUNCTION_BOUND_BYTES, "{what}: {bytes} bytes at the most");
    }
}
