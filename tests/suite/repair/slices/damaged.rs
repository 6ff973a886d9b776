//! Files and items that are at fault: each is named, and nothing else suffers.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value as Json, json};
use testkit::exports::md5;

use super::super::{World, changed, id, of_session};
use super::{Caller, Files, Following, Sums, TIMEOUT, add, changes, sums};

/// The one slice of a file, with another member.
fn with(slice: &Json, member: &str, value: Json) -> Json {
    let mut slice = slice.clone();
    slice[member] = value;
    slice
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_checksum_a_truncated_gzip_and_a_missing_file_are_named_with_the_remedy() {
    let world = World::with_sessions(20).await;
    world.write_and_forget(&changes(0..20)).await;
    let files = Files::of(&world.tables).await;
    let mut caller = Caller::start(world.function()).await;
    let begun = [caller.begin_run("compared", false).await, caller.begin("damaged").await];
    for begun in begun {
        let repair = begun.repair;
        let following =
            repair.map(|repair| Following::start(world.starter(), (repair, "damaged"), TIMEOUT));
        let slices = files.slices(begun);
        let key = slices[0]["key"].as_str().expect("a key");
        let name = files.exports.name(key);

        let wrong = with(&slices[0], "md5", json!("AAAAAAAAAAAAAAAAAAAAAA=="));
        let said = caller.refused(&wrong, "DamagedFile").await;
        let why = format!("{name} is damaged: its MD5 is not the one of the manifest. Copy it");
        assert!(said.contains(&why), "{said}");

        let fewer = with(&slices[0], "items", json!(5));
        let said = caller.refused(&fewer, "DamagedFile").await;
        let why = format!("{name} is damaged: it has {} items", slices[0]["items"]);
        assert!(said.contains(&why), "{said}");

        let whole = &files.exports.files[key];
        let cut = whole[..whole.len() - 12].to_vec();
        let truncated = with(&slices[0], "md5", json!(md5(&cut)));
        files.exports.put(key, cut).await;
        let said = caller.refused(&truncated, "DamagedFile").await;
        assert!(said.contains(&format!("{name} is damaged: ")), "{said}");
        files.exports.put(key, whole.clone()).await;

        let gone = with(&slices[0], "key", json!(key.replace("/data/0", "/data/9")));
        let said = caller.refused(&gone, "DamagedFile").await;
        assert!(said.contains("is missing: copy the whole export"), "{said}");
        let foreign = with(&slices[0], "key", json!("somewhere/data/a.json.gz"));
        let said = caller.refused(&foreign, "Failed").await;
        assert!(said.contains("no file of a full export"), "{said}");

        // Each file by itself: the others are as they were.
        let mut all = Sums::default();
        for slice in &slices {
            add(&mut all, &caller.until_done(slice).await.0);
        }
        assert_eq!(all[0], 60);
        if let Some(following) = following {
            assert_eq!(sums(&caller.end(begun, "damaged").await), all);
            following.ended().await;
        }
    }
    world.assert_equal().await;
}

/// An item that the projector rejects, one without a key, and a line that is no item.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_line_is_rejected_by_identity_and_holds_up_no_other() {
    let world = World::with_sessions(6).await;
    let [first, left, _] = of_session(1);
    let mut malformed = left.clone();
    malformed.image.as_mut().expect("an image")["foot_length_mm"] = json!({"N": "1000"});
    world.write_and_forget(&[malformed, changed(&first, "9")]).await;
    let mut files = Files::of(&world.tables).await;
    let scans = files.slices.iter().position(|slice| {
        let key = slice["key"].as_str().expect("a key");
        let mut text = String::new();
        let bytes = files.exports.files[key].as_slice();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(bytes), &mut text)
            .expect("text");
        text.contains("\"1000\"")
    });
    let slice = &mut files.slices[scans.expect("the file of the malformed item")];
    let key = slice["key"].as_str().expect("a key").to_owned();
    // Two more members of a gzip, as an export may have.
    let mut bytes = files.exports.files[&key].clone();
    for line in [r#"{"Item":{"side":{"S":"left"}}}"#, "no item at all"] {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        writeln!(gzip, "{line}").expect("a vector takes all");
        bytes.extend(gzip.finish().expect("a vector takes all"));
    }
    slice["md5"] = json!(md5(&bytes));
    slice["items"] = json!(slice["items"].as_u64().expect("a number") + 2);
    files.exports.put(&key, bytes).await;

    for (owner, repaired) in [("first", 1), ("second", 0)] {
        let all = world.reconcile(&files, owner).await;
        assert_eq!(all, [20, repaired, repaired, 3]);
        let identities = "SELECT string_agg(identity, ' ') FROM rejected_records";
        let identity = format!("{}/{}/left/image", world.tables[1], id(1));
        assert_eq!(world.stores.ask(identities).await, identity);
    }
    assert_eq!(world.row(&id(1), "app_version").await, "9");
}
