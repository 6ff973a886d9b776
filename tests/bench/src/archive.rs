//! The archive stage: objects of new rows, against the same bodies by a bare client of the same
//! SDK.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Context as _;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use futures_util::{StreamExt as _, stream};
use projector::apply::{Projector, reconcile};
use projector::deadline::Deadline;
use projector::measurement::{ColumnKind, Document, Measurement, Value};
use projector::object;
use projector::part::{Part, PerPart};
use projector::read_model::{Held, Upserted};
use testkit::records::LABEL;
use testkit::services::{Stores, s3, service};

use crate::measure::{median, median_of, quantile, ratios};
use crate::plot::{self, Plot};
use crate::report::{Aim, Section};
use crate::servers::MemoryS3;

/// A row with all that the columns can hold; meshes of this many bytes, unless it is 0.
fn row(session_id: String, mesh_bytes: usize) -> anyhow::Result<Measurement> {
    let at = time::OffsetDateTime::from_unix_timestamp(1_795_334_400)?;
    let value = |kind: ColumnKind| match kind {
        ColumnKind::Text => Some(Value::Text("iPhone16,2".to_owned())),
        ColumnKind::Timestamp => Some(Value::Timestamp(at)),
        ColumnKind::Millimetres => Some(Value::Text("245.3".to_owned())),
        ColumnKind::Bytes => (mesh_bytes > 0).then(|| Value::Bytes(vec![7; mesh_bytes])),
        ColumnKind::Attributes => None,
    };
    let document = |part: Part| -> Option<Document> {
        Some(part.fields().iter().map(|field| value(field.kind)).collect())
    };
    Ok(Measurement {
        session_id,
        documents: PerPart::from_fn(document),
        versions: [1, 2, 3].map(|number| Some(format!("{LABEL}/{number:040}"))).into(),
        changed_at: PerPart::from_fn(|_| Some(at)),
    })
}

/// PUTs a second, a round each.
#[derive(Debug, Default)]
struct Rates {
    ours: Vec<f64>,
    bare: Vec<f64>,
    /// The size of an object.
    bytes: usize,
}

impl Rates {
    async fn measure(
        projector: &Projector,
        client: &aws_sdk_s3::Client,
        bucket: &str,
        objects: usize,
        mesh_bytes: usize,
        rounds: usize,
    ) -> anyhow::Result<Self> {
        let archive = projector.archive.as_ref().context("an archive")?;
        let mut rates = Self::default();
        for round in 0..=rounds {
            let rows: Vec<Measurement> = (0..objects)
                .map(|index| row(format!("m-{round}-{mesh_bytes}-{index}"), mesh_bytes))
                .collect::<Result<_, _>>()?;
            let mut requests = Vec::with_capacity(objects);
            for row in &rows {
                let body = object::body(row)?;
                rates.bytes = body.len();
                requests.push(
                    client
                        .put_object()
                        .bucket(bucket)
                        .key(format!("bare/{}.json", row.session_id))
                        .content_type("application/json")
                        .set_metadata(Some(object::metadata(row)?))
                        .if_none_match("*")
                        .body(body.into()),
                );
            }
            let bare = async {
                let start = Instant::now();
                let mut putting = stream::iter(requests)
                    .map(PutObjectFluentBuilder::send)
                    .buffer_unordered(archive.concurrency());
                while let Some(put) = putting.next().await {
                    put.context("a bare PUT")?;
                }
                anyhow::Ok(objects as f64 / start.elapsed().as_secs_f64())
            };
            let ours = async {
                let start = Instant::now();
                let mut putting = stream::iter(rows)
                    .map(|row| {
                        let session_id = row.session_id.clone();
                        let held = Held::Row(Box::new(row));
                        let upserted = Upserted::Written { inserted: true, held };
                        let database = &projector.database;
                        async move {
                            reconcile(
                                database,
                                archive,
                                &session_id,
                                upserted.into(),
                                Deadline::NONE,
                            )
                            .await
                        }
                    })
                    .buffer_unordered(archive.concurrency());
                while let Some(archived) = putting.next().await {
                    archived?;
                }
                anyhow::Ok(objects as f64 / start.elapsed().as_secs_f64())
            };
            // Who comes second finds the memory that the first gave back.
            let (ours, bare) = if round % 2 == 0 {
                let ours = ours.await?;
                (ours, bare.await?)
            } else {
                let bare = bare.await?;
                (ours.await?, bare)
            };
            if round > 0 {
                rates.ours.push(ours);
                rates.bare.push(bare);
            }
        }
        Ok(rates)
    }
}

/// Measures small objects and ones with two meshes.
///
/// # Errors
/// Where S3 refuses, or the results cannot be written.
pub(crate) async fn measure(quick: bool) -> anyhow::Result<Section> {
    let memory = MemoryS3::start().await?;
    let stores = Stores::fresh().await;
    let stand_in = service("AWS_ENDPOINT_URL");
    let rounds = if quick { 5 } else { 15 };
    let mut table = String::from(
        "| server | object | ours, PUTs/s | bare client, PUTs/s | ratio | middle half \
            |\n|---|---|---|---|---|---|\n",
    );
    let (mut aims, mut series) = (Vec::new(), Vec::<plot::Series>::new());
    let cases = [
        ("in memory", &memory.url, 0, 2_000),
        ("in memory", &memory.url, 400_000, 60),
        ("the tests' stand-in", &stand_in, 0, 200),
    ];
    for (server, url, mesh_bytes, objects) in cases {
        let projector = if *url == memory.url {
            memory.projector(&stores).await
        } else {
            stores.projector().await
        };
        let client = s3(url).await;
        let bucket = if *url == memory.url { "bench" } else { &stores.bucket };
        let rates =
            Rates::measure(&projector, &client, bucket, objects, mesh_bytes, rounds).await?;
        let (ratios, bytes) = (ratios(&rates.ours, &rates.bare), rates.bytes);
        let middle = |share| quantile(ratios.iter().copied(), share);
        writeln!(
            table,
            "| {server} | {bytes} bytes | {:.0} | {:.0} | **{:.2}** | {:.2} to {:.2} |",
            median(rates.ours),
            median(rates.bare),
            middle(0.5),
            middle(0.25),
            middle(0.75)
        )?;
        let what =
            format!("archive, {bytes} bytes an object, S3 {server}: PUTs/s by a bare client's");
        aims.push(Aim::at_least(what, 0.9, middle(0.5)));
        series.push((
            format!("{server}, {} B", plot::thousands(bytes as f64)),
            ratios.iter().map(|ratio| (0.0, *ratio)).collect(),
        ));
    }
    let least = series.iter().map(|(_, points)| median_of(points)).fold(f64::MAX, f64::min);
    let title = format!("Objects go out at {:.0} % of a bare client's rate or more", 100.0 * least);
    let plot = Plot {
        file: "archive.svg".to_owned(),
        kind: plot::Kind::Ratios,
        title,
        x: "server and object".to_owned(),
        y: "PUTs/s by a bare client's (dashed)".to_owned(),
        series,
        columns: Vec::new(),
    };
    let text = format!(
        "Objects of new rows, 32 at once, {rounds} rounds: the body made of the row, its metadata, \
a PUT with `If-None-Match: *`; against a bare client of the same SDK that has the same bodies \
ready. Rows as large as these come from the upsert only in batches of up to 8; in larger ones each \
is read from the database first, 8 at a time, which is not in the \
figure.\n\n{table}\n![ratios](archive.svg)\n"
    );
    Ok(Section {
        order: 9,
        title: "The archive stage".to_owned(),
        text,
        aims,
        figures: Vec::new(),
        plot: Some(plot),
    })
}
