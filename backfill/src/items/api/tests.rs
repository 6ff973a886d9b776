//! A server that answers as DynamoDB does when it is asked for more than it allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use projector::change::Tables;
use projector::part::Part;
use serde_json::{Value as Json, json};
use testkit::services::aws;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{Segment, TablesApi};
use crate::items::Key;

/// Answers the calls one after the other, each with its status and its body; the last one for good.
async fn server(answers: Vec<(u16, Json)>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answers, calls) = (answers.clone(), Arc::clone(&counted));
            tokio::spawn(async move { serve(stream, &answers, &calls).await });
        }
    });
    (url, calls)
}

async fn serve(stream: TcpStream, answers: &[(u16, Json)], calls: &AtomicUsize) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        stream.read_exact(&mut vec![0; length]).await.ok()?;
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let (status, body) = &answers[call.min(answers.len() - 1)];
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} -\r\ncontent-type: application/x-amz-json-1.0\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.ok()?;
    }
}

async fn api(url: &str) -> TablesApi {
    let tables = Tables { sessions: "sessions".to_owned(), scans: "scans".to_owned() };
    TablesApi::new(&aws(url).await, tables, Some(1_000))
}

fn consumed(units: f64) -> Json {
    json!({ "TableName": "sessions", "CapacityUnits": units })
}

#[tokio::test]
async fn a_throttled_scan_is_read_on_more_slowly() {
    let throttled = json!({ "__type": "ProvisionedThroughputExceededException", "message": "no" });
    let page = json!({ "Items": [], "ConsumedCapacity": consumed(1.0) });
    let (url, calls) = server(vec![(400, throttled), (200, page)]).await;
    let api = api(&url).await;
    let segment = Segment { of_sessions: true, number: 0, of: 1, consistent: true };
    for expected in [2, 3] {
        api.page(segment, None).await.expect("a page");
        assert_eq!(calls.load(Ordering::Relaxed), expected);
        // Once, and not again by the call after it, which nobody throttled.
        assert_eq!(api.rate.lock().expect("not poisoned").per_second(), Some(500.0));
    }
}

/// Of one call some keys are answered, and the others are not: DynamoDB says no more of throttling.
#[tokio::test]
async fn keys_that_are_left_unprocessed_are_asked_for_again_more_slowly() {
    let item = |id: &str| json!({ "session_id": { "S": id } });
    let part = |found: &str, left: Json| {
        let responses = json!({ "sessions": [item(found)] });
        json!({ "Responses": responses, "UnprocessedKeys": left,
            "ConsumedCapacity": [consumed(0.5)] })
    };
    let left = json!({ "sessions": { "Keys": [item("b")], "ConsistentRead": true } });
    let (url, calls) = server(vec![(200, part("a", left)), (200, part("b", json!({})))]).await;
    let api = api(&url).await;
    let keys: [Key; 2] = ["a", "b"].map(|id| (Part::Session, id.to_owned()));
    let items = api.get_current(&[&keys[0], &keys[1]]).await.expect("items");
    let found: Vec<&str> = items.iter().map(|item| item.key.1.as_str()).collect();
    assert_eq!((found, calls.load(Ordering::Relaxed)), (vec!["a", "b"], 2));
    assert_eq!(api.rate.lock().expect("not poisoned").per_second(), Some(500.0));
    assert_eq!(api.troubles().as_deref(), Some("1 calls throttled"));
}
